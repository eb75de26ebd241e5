"""The loop that both trainings share: AdamW, warm-up and cosine, averaged weights, and going on where it ended.

What goes on is bit for bit what would have been without a stop: weights, their average, the optimiser's moments and the
random generator are in one safetensors file, written atomically every few minutes. The curves are JSON lines.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from tqdm import tqdm

from pipeline.errors import CheckpointError
from pipeline.storage import write_atomically

STATE_NAME, CURVES_NAME = "state.safetensors", "curves.jsonl"
_HOW_OFTEN = {"save_every_s", "log_every"}  # settings that change no weight


@dataclass(frozen=True, kw_only=True)
class LoopSettings:
    num_steps: int
    learning_rate: float
    warmup_steps: int = 200
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999
    seed: int = 0
    save_every_s: float = 180.0
    log_every: int = 20

    def learning_rate_at(self, step: int) -> float:
        """Rises over the warm-up, then falls along a cosine to a hundredth."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        done = min(1.0, step / self.num_steps)
        return self.learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


Loss = Callable[[torch.Generator], tuple[torch.Tensor, Mapping[str, float]]]  # of one batch, and figures for the curves


class Training:
    """One model on its way. `folder` holds what is needed to go on, and the curves."""

    def __init__(self, model: nn.Module, settings: LoopSettings, folder: Path) -> None:
        self.model, self.settings, self.folder = model, settings, folder
        self._parameters = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        self._average = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        self._optimizer = torch.optim.AdamW(
            _decayed_or_not(self._parameters, settings.weight_decay), lr=settings.learning_rate, betas=(0.9, 0.98)
        )
        self._generator = torch.Generator().manual_seed(settings.seed)
        self.num_steps_done, self.seconds = 0, 0.0
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / STATE_NAME).is_file():
            self._load()
        self._forget_later_curves()

    @property
    def is_done(self) -> bool:
        return self.num_steps_done >= self.settings.num_steps

    def averaged(self) -> dict[str, torch.Tensor]:
        """The averaged weights by parameter name: what is worth keeping."""
        return dict(self._average)

    def run(self, loss: Loss, *, doing: str, look: Callable[[], None] = lambda: None) -> None:
        """Trains to the end. `look` is called, with the averaged weights in place, each time that a state is saved."""
        started, saved = time.monotonic() - self.seconds, time.monotonic()
        seen: list[Mapping[str, float]] = []
        with tqdm(total=self.settings.num_steps, initial=self.num_steps_done, desc=doing, unit="step") as bar:
            while not self.is_done:
                seen.append(self._step(loss))
                bar.update()
                self.seconds = time.monotonic() - started
                if self.num_steps_done % self.settings.log_every == 0:
                    figures = _mean(seen)
                    bar.set_postfix({name: f"{value:.4g}" for name, value in figures.items()})
                    self._log(figures)
                    seen = []
                if time.monotonic() - saved > self.settings.save_every_s or self.is_done:
                    self.save()
                    self._with_average(look)
                    saved = time.monotonic()

    def save(self) -> None:
        tensors = {"generator": self._generator.get_state()}
        for name, parameter in self._parameters.items():
            tensors[f"weight.{name}"], tensors[f"average.{name}"] = parameter.detach(), self._average[name]
            for key, value in self._optimizer.state.get(parameter, {}).items():
                tensors[f"{key}.{name}"] = value
        about = {"steps": self.num_steps_done, "seconds": self.seconds, "settings": asdict(self.settings)}
        contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
        metadata = {"training": json.dumps(about)}
        write_atomically(self.folder / STATE_NAME, lambda partial: save_file(contiguous, partial, metadata))

    def _step(self, loss: Loss) -> Mapping[str, float]:
        for group in self._optimizer.param_groups:
            group["lr"] = self.settings.learning_rate_at(self.num_steps_done)
        value, figures = loss(self._generator)
        self._optimizer.zero_grad(set_to_none=True)
        value.backward()
        norm = nn.utils.clip_grad_norm_(self._parameters.values(), self.settings.max_grad_norm)
        if not math.isfinite(norm):
            raise CheckpointError(
                f"step {self.num_steps_done}: the gradient is {float(norm)}. Go on from {self.folder} with a smaller "
                "learning rate."
            )
        self._optimizer.step()
        self.num_steps_done += 1
        # The average forgets its beginning quickly: early weights are worth nothing.
        decay = min(self.settings.ema_decay, (1 + self.num_steps_done) / (10 + self.num_steps_done))
        averages = list(self._average.values())
        torch._foreach_lerp_(averages, [parameter.detach() for parameter in self._parameters.values()], 1 - decay)
        return {"loss": float(value.detach()), **figures}

    def _with_average(self, look: Callable[[], None]) -> None:
        kept = {name: parameter.detach().clone() for name, parameter in self._parameters.items()}
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(self._average[name])
            look()
            for name, parameter in self._parameters.items():
                parameter.copy_(kept[name])

    def _log(self, figures: Mapping[str, float]) -> None:
        line = {"step": self.num_steps_done, "seconds": round(self.seconds, 1), **figures}
        with (self.folder / CURVES_NAME).open("a") as file:
            file.write(json.dumps(line) + "\n")

    def _load(self) -> None:
        path = self.folder / STATE_NAME
        try:
            tensors = load_file(path)
            about = _metadata(path)
        except (OSError, SafetensorError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path}: expected a training's state, found {error}. Remove it to begin anew."
            ) from error
        ours = asdict(self.settings)
        decisive = about["settings"].keys() - _HOW_OFTEN
        changed = sorted(name for name in decisive if ours.get(name) != about["settings"][name])
        if changed:
            raise CheckpointError(
                f"{path} was written with other settings ({', '.join(changed)}). Use those, or another output_dir."
            )
        with torch.no_grad():
            for name, parameter in self._parameters.items():
                parameter.copy_(tensors[f"weight.{name}"])
                self._average[name].copy_(tensors[f"average.{name}"])
                if f"exp_avg.{name}" in tensors:  # a parameter that nothing asked for has no moments
                    moments = ("step", "exp_avg", "exp_avg_sq")
                    self._optimizer.state[parameter] = {key: tensors[f"{key}.{name}"] for key in moments}
        self._generator.set_state(tensors["generator"])
        self.num_steps_done, self.seconds = about["steps"], about["seconds"]

    def _forget_later_curves(self) -> None:
        """Steps that were taken after the last save are taken again."""
        path = self.folder / CURVES_NAME
        if path.is_file():
            kept = [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= self.num_steps_done]
            write_atomically(path, lambda partial: partial.write_text("".join(f"{line}\n" for line in kept)))


def _decayed_or_not(parameters: Mapping[str, nn.Parameter], weight_decay: float) -> list[dict]:
    """Matrices are pulled towards zero; norms and biases are not."""
    matrices = [parameter for parameter in parameters.values() if parameter.ndim >= 2]
    others = [parameter for parameter in parameters.values() if parameter.ndim < 2]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _mean(seen: list[Mapping[str, float]]) -> dict[str, float]:
    names = dict.fromkeys(name for figures in seen for name in figures)
    by_name = {name: [figures[name] for figures in seen if name in figures] for name in names}
    return {name: sum(values) / len(values) for name, values in by_name.items()}


def _metadata(path: Path) -> dict:
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["training"])
