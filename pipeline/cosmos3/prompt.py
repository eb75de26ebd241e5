"""The caption that Cosmos3 was trained with, and its token ids.

Two formats, both cosmos-framework's: the structured JSON caption (`json_formatter`), and the older plain sentences
(`viewpoint_utils`, the transforms' appenders). Either goes through the tokenizer's chat template as one user turn
without a system prompt, followed by end-of-text and `<|vision_start|>`.
"""

from __future__ import annotations

import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from pipeline.embodiments import PROMPT_FORMATS, VIEW_POINT_SENTENCES
from pipeline.errors import CheckpointError, ConfigError, did_you_mean

# (width, height) as the trainer names its canvases; "2,3" is the 512x768 one of tier 480.
_ASPECT_RATIOS = ((1, 1), (4, 3), (3, 4), (16, 9), (9, 16), (2, 3))


@dataclass(frozen=True, kw_only=True)
class Caption:
    """What a prompt says of one window: the task, and how it was filmed. Height and width are the padded canvas'."""

    task: str
    view_point: str
    view_description: str
    num_frames: int
    fps: float
    height_px: int
    width_px: int

    def render(self, prompt_format: str) -> str:
        match prompt_format:
            case "json":
                return self._json()
            case "plain":
                return self._plain()
        raise ConfigError(
            f"prompt_format must be one of {', '.join(PROMPT_FORMATS)}, found {prompt_format!r}."
            f"{did_you_mean(prompt_format, PROMPT_FORMATS)}"
        )

    @property
    def framing(self) -> str:
        if self.view_point not in VIEW_POINT_SENTENCES:
            raise ConfigError(
                f"view_point must be one of {', '.join(VIEW_POINT_SENTENCES)}, found {self.view_point!r}."
                f"{did_you_mean(self.view_point, VIEW_POINT_SENTENCES)}"
            )
        return f"{VIEW_POINT_SENTENCES[self.view_point]} {self.view_description}".strip()

    def _json(self) -> str:
        """Key order is fixed, empty fields are dropped. Inverse dynamics never sees `idle_frame`: it would tell."""
        seconds = self.num_frames / self.fps
        minutes, rest = divmod(round(seconds), 60)
        action: dict[str, Any] = {"time": f"0:00-{minutes}:{rest:02d}"}
        task = self.task.strip()
        if task:
            action["description"] = task if task.endswith((".", "!", "?")) else f"{task}."
        ratio = self.width_px / self.height_px
        width, height = min(_ASPECT_RATIOS, key=lambda named: abs(named[0] / named[1] - ratio))
        return json.dumps(
            {
                "cinematography": {"framing": self.framing},
                "actions": [action],
                "duration": f"{int(seconds)}s",
                "fps": float(self.fps),
                "resolution": {"H": self.height_px, "W": self.width_px},
                "aspect_ratio": f"{width},{height}",
            }
        )

    def _plain(self) -> str:
        """The duration is cut to whole seconds and then printed with one decimal, as in training."""
        task = self.task.strip().rstrip(".")
        sentences = [f"{task}."] if task else []
        sentences.append(self.framing)
        duration = float(int(self.num_frames / self.fps))
        sentences.append(f"The video is {duration:.1f} seconds long and is of {self.fps:.0f} FPS.")
        sentences.append(f"This video is of {self.height_px}x{self.width_px} resolution.")
        return " ".join(sentences)


class PromptTokenizer:
    """Text to ids; the checkpoint's `text_tokenizer/` folder."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._is_free = threading.Lock()  # fast tokenizers refuse to be used by two threads at once
        vision_start = tokenizer.convert_tokens_to_ids("<|vision_start|>")
        if tokenizer.eos_token_id is None or vision_start in (None, tokenizer.unk_token_id):
            raise CheckpointError("The checkpoint's text_tokenizer lacks an eos token or <|vision_start|>.")
        self._closing = (tokenizer.eos_token_id, vision_start)

    @classmethod
    def from_pretrained(cls, checkpoint_folder: Path) -> PromptTokenizer:
        folder = checkpoint_folder / "text_tokenizer"
        if not (folder / "tokenizer_config.json").is_file():
            raise CheckpointError(f"{folder} has no tokenizer_config.json. Expected the checkpoint's tokenizer there.")
        try:
            # Code that a checkpoint brings along is never run; transformers would ask whether it may.
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            made = cls(tokenizer)
            made.encode("")
        except CheckpointError:
            raise
        # The tokenizers' own errors are plain exceptions, or a panic of Rust's; those of a chat template can be any.
        except BaseException as error:
            if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
                raise
            raise CheckpointError(
                f"{folder} cannot be used as a tokenizer ({type(error).__name__}: {error}). Download it again."
            ) from error
        return made

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of one user turn holding `text`, closed for generation. `""` is the negative prompt of guidance."""
        with self._is_free:
            encoding = self._tokenizer.apply_chat_template(
                [{"role": "user", "content": text}],
                tokenize=True,
                add_generation_prompt=True,
                add_vision_id=False,
                return_dict=True,
            )
        return (*encoding["input_ids"], *self._closing)
