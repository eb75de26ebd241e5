"""One request to the model, without Ray: `uv run jobs/infer_once.py --help`.

Without arguments it runs on an embedded demo. Exit code: 0 when the files are written, 2 when the settings or the input
do not allow it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import fields
from pathlib import Path
from typing import NoReturn

from pipeline.errors import ConfigError, PipelineError, did_you_mean
from pipeline.printable import error_line
from pipeline.single_request import SingleRequest

_DESCRIPTION = """\
Answers one request with a Cosmos3 checkpoint and writes OUT_action.json and, where the mode makes video, OUT.mp4 and
OUT_last_frame.png.

  policy            image (or a video's first frame) and prompt   ->  actions and video
  forward_dynamics  image (or a video's first frame) and actions  ->  video
  inverse_dynamics  video                                         ->  the actions between its frames

OUT_action.json holds physical units where statistics are given, else the model's own scale, and can be passed back as
--action-file. OUT_last_frame.png is the video's last frame without loss: for the next chunk pass it as --image, with
--seed one higher, else the noise is the same, and the actions that follow. Without any input a demo is run.
"""


def main() -> int:
    try:
        return run(parse(sys.argv[1:]))
    except PipelineError as error:
        print(error_line(error), file=sys.stderr)
        return 2


def run(settings: SingleRequest) -> int:
    # Heavy imports wait until the settings are known to be possible.
    from pipeline import single

    if settings.is_demo:
        from pipeline.demo import NOTE

        print(f"Demo: rendering a video under outputs/demo. {NOTE}", flush=True)
        settings = single.fill_in_demo(settings, Path("outputs/demo"))
    prepared = single.prepare(settings)
    print(prepared.describe(), flush=True)
    outputs = single.run(prepared)
    print("\n".join(f"wrote {path}" for path in outputs.values()))
    if "last_frame" in outputs:
        print(f"The next chunk begins with: --image {outputs['last_frame']} --seed {settings.seed + 1}")
    return 0


def parse(arguments: list[str]) -> SingleRequest:
    """The settings that a command line describes; dashes and underscores in a flag's name are the same."""
    parser = _Parser(description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.argument_default = argparse.SUPPRESS  # what is not typed is SingleRequest's to fill in
    kinds = {field.name: field.type.split()[0] for field in fields(SingleRequest)}
    for title, helps in _HELP.items():
        group = parser.add_argument_group(title)
        for name, text in helps.items():
            nargs = "+" if name == "condition_frames" else None
            group.add_argument(_flag(name), type=_READ[kinds[name]], nargs=nargs, metavar="…", help=text)
    known, unknown = parser.parse_known_args([_with_dashes(argument) for argument in arguments])
    if unknown:
        raise ConfigError(f"Unknown argument {unknown[0]!r}.{did_you_mean(unknown[0], map(_flag, kinds))}")
    if "condition_frames" in known:
        known.condition_frames = sum(known.condition_frames, ())
    return SingleRequest(**vars(known))


class _Parser(argparse.ArgumentParser):
    """argparse, with this house's errors."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(f"{message}. --help lists all flags.")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _with_dashes(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def latent_frame_indexes(text: str) -> tuple[int, ...]:
    return tuple(int(word) for word in text.replace(",", " ").split())


def auto_true_or_false(text: str) -> bool | None:
    return (None, True, False)[("auto", "true", "false").index(text.lower())]


# How a field of SingleRequest is read, by the first word of its annotation.
_READ = {"str": str, "int": int, "float": float, "bool": auto_true_or_false, "tuple[int,": latent_frame_indexes}

_HELP = {
    "what the model is shown and asked": {
        "image": "the first frame: policy and forward_dynamics",
        "video": "in the place of an image, its first frame. inverse_dynamics labels its first chunk + 1 frames; of a "
        "shorter one the last frame is repeated for the model, and only actions between real frames are written. Where "
        "more than one frame is shown, its rate must be --fps, to 1 percent",
        "prompt": "the task, in words",
        "mode": "policy (default), forward_dynamics or inverse_dynamics",
        "domain_name": "what the actions mean (default droid_lerobot; type a wrong one for a list)",
        "view_point": "how the picture was filmed. Default: what the domain says of a single camera, third_person_view "
        "for droid_lerobot; a picture that is composed of three is concat_view",
        "fps": "frames, and actions, per second (default: the domain's; 15 for droid_lerobot)",
        "image_size": "resolution tier: 256, 480 (default), 704 or 720",
        "prompt_format": "json (default) or plain",
        "condition_frames": 'latent frames that are given, such as "0 1": latent frame 0 is the first frame, each '
        "later one is four. Default: 0 in policy and forward_dynamics; in inverse_dynamics all, as the model was "
        "trained. (PhyAI's example gives inverse_dynamics latent frames 0 and 1 only: the actions after the first four "
        "are then those of a video that the model imagines, not of yours.)",
    },
    "actions": {
        "action_file": 'the actions to follow in forward_dynamics, {"shape", "dtype", "data"} or {"action_chunks"}: '
        "cut to the chunk, or the last one repeated. In the units of the statistics, if there are any",
        "raw_action_dim": "numbers per action (default: the domain's)",
        "action_chunk_size": "actions per request, a multiple of 4 (default: the domain's)",
        "action_normalization": "none (default), or how the statistics are meant: meanstd, minmax, quantile or "
        "quantile_rot, whichever the checkpoint was trained with",
        "action_stats_path": "statistics (JSON) that turn the model's scale into physical units and back",
    },
    "checkpoint, sampling and files": {
        "checkpoint": "a folder or a hub id, such as nvidia/Cosmos3-Nano",
        "num_inference_steps": "default 30",
        "guidance_scale": "default 1.0, which is none",
        "flow_shift": "default 10.0",
        "use_karras_sigmas": "false (default): the trainer's flow grid; true: Karras; auto: what the checkpoint says",
        "seed": "default 42",
        "device": "auto (default), cuda or cpu",
        "dtype": "auto (default: bfloat16 on a GPU, float32 on the CPU), bfloat16 or float32",
        "out": "what the files' names begin with: a name or a path (default: the input's name)",
        "output_dir": "where that is, unless it is an absolute path (default outputs/infer_once)",
    },
}


if __name__ == "__main__":
    sys.exit(main())
