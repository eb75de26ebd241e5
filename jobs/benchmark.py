"""Measures the engine against diffusers' pipeline: `uv run jobs/benchmark.py --help`.

Both run the same random model of about 50 M parameters on the same inverse-dynamics windows at tier 256: guidance 1,
no decoding, same steps, fp32 on the CPU, bf16 on a GPU. They take turns within one process, and the figures are ratios
of medians, because absolute times of a shared machine mean little.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from pipeline.command_line import parse_config
from pipeline.errors import PipelineError
from pipeline.printable import error_line

_HEIGHT_PX, _WIDTH_PX, _CHUNK, _FPS = 256, 288, 16, 15.0
_TASK = "Put the marker in the pot"
_MODEL = {
    "hidden_size": 512,
    "intermediate_size": 1408,
    "num_hidden_layers": 8,
    "head_dim": 64,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
}
# Loads a checkpoint in a process of its own, touches every weight, and prints by how many bytes its memory peaked above
# where it was. Writing 5 to clear_refs resets the kernel's high-water mark.
_LOADING = """
import re, sys
from pipeline.cosmos3.engine import Engine
status = lambda name: 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
open("/proc/self/clear_refs", "w").write("5")
before = status("VmRSS")
engine = Engine.from_pretrained(sys.argv[1], device="cpu", decode_video=True)
for module in (engine.transformer, engine.vae._model):
    for parameter in module.parameters():
        parameter.sum()
print(status("VmHWM") - before)
"""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """What is measured."""

    # Turns that each side takes; the first is not counted.
    rounds: int = 4
    num_inference_steps: int = 10
    # Windows in one of our steps; the other side runs as many one by one.
    batch_sizes: tuple[int, ...] = (1, 8)
    output_dir: str = "outputs/benchmark"


def main() -> int:
    try:
        config = parse_config(BenchmarkConfig)
    except PipelineError as error:
        print(error_line(error), file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = _write_checkpoint(Path(scratch))
        report = {"config": asdict(config), "loading": measure_loading(checkpoint)}
        print(_loading_line(report["loading"]), flush=True)
        report["speed"] = [
            measure_speed(checkpoint, config, size, say=lambda line: print(line, flush=True))
            for size in config.batch_sizes
        ]
    output = Path(config.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    (output / "benchmark.json").write_text(json.dumps(report, indent=2) + "\n")
    return 0


def measure_speed(checkpoint: Path, config: BenchmarkConfig, batch_size: int, say: Callable[[str], None]) -> dict:
    """Median seconds of both sides for `batch_size` windows, in turns, and their ratio (above 1: ours is faster)."""
    ours, theirs = _our_side(checkpoint, config, batch_size), _their_side(checkpoint, config, batch_size)
    seconds: dict[str, list[float]] = {"ours": [], "diffusers": []}
    for _ in range(config.rounds):
        for name, run in (("ours", ours), ("diffusers", theirs)):
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    medians = {name: statistics.median(values[1:] or values) for name, values in seconds.items()}
    ratio = medians["diffusers"] / medians["ours"]
    say(
        f"speed      batch {batch_size}: ours {medians['ours']:.2f} s, diffusers one by one "
        f"{medians['diffusers']:.2f} s (medians of {config.rounds - 1}): {ratio:.2f} times as fast"
    )
    return {"batch_size": batch_size, "seconds": seconds, "medians": medians, "ratio_of_medians": ratio}


def measure_loading(checkpoint: Path) -> dict:
    """Growth of peak host memory while loading, in a fresh process, against the size of the weights."""
    size = sum(path.stat().st_size for path in checkpoint.rglob("*.safetensors"))
    done = subprocess.run([sys.executable, "-c", _LOADING, str(checkpoint)], check=True, capture_output=True, text=True)
    growth = int(done.stdout.split()[-1])
    return {"checkpoint_bytes": size, "peak_growth_bytes": growth, "ratio": growth / size}


def _our_side(checkpoint: Path, config: BenchmarkConfig, batch_size: int) -> Callable[[], object]:
    from pipeline.cosmos3.engine import Engine
    from pipeline.cosmos3.processor import Cosmos3PolicyProcessor

    engine = Engine.from_pretrained(checkpoint)
    processor = Cosmos3PolicyProcessor(
        checkpoint, mode="inverse_dynamics", fps=_FPS, image_size=256, view_point="ego_view", action_chunk_size=_CHUNK
    )
    frames = [_frames(seed) for seed in range(batch_size)]

    def run() -> object:
        requests = [
            processor.to_request(
                processor.preprocess({"images": clip, "task": _TASK}),
                seed=seed,
                num_inference_steps=config.num_inference_steps,
            )
            for seed, clip in enumerate(frames)
        ]
        return engine.step(requests)

    return run


def _their_side(checkpoint: Path, config: BenchmarkConfig, batch_size: int) -> Callable[[], object]:
    import torch
    from diffusers import Cosmos3OmniPipeline, CosmosActionCondition
    from PIL import Image

    on_gpu = torch.cuda.is_available()
    pipeline = Cosmos3OmniPipeline.from_pretrained(
        checkpoint, enable_safety_checker=False, dtype=torch.bfloat16 if on_gpu else torch.float32
    ).to("cuda" if on_gpu else "cpu")
    pipeline.scheduler = type(pipeline.scheduler).from_config(
        pipeline.scheduler.config, use_karras_sigmas=False, flow_shift=10.0
    )
    pipeline.set_progress_bar_config(disable=True)
    conditions = [
        CosmosActionCondition(
            mode="inverse_dynamics",
            chunk_size=_CHUNK,
            domain_name="droid_lerobot",
            resolution_tier=256,
            video=[Image.fromarray(frame) for frame in _frames(seed)],
        )
        for seed in range(batch_size)
    ]

    def run() -> object:
        return [
            pipeline(
                _TASK,
                action=condition,
                fps=_FPS,
                num_inference_steps=config.num_inference_steps,
                guidance_scale=1.0,
                output_type="latent",
            )
            for condition in conditions
        ]

    return run


def _write_checkpoint(scratch: Path) -> Path:
    from pipeline.demo.checkpoint import write_tiny_checkpoint

    return write_tiny_checkpoint(scratch / "checkpoint", **_MODEL)


def _frames(seed: int):
    import numpy as np

    shape = (_CHUNK + 1, _HEIGHT_PX, _WIDTH_PX, 3)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def _loading_line(found: dict) -> str:
    return (
        f"loading    peak host memory grows by {found['ratio']:.2f} times the checkpoint's "
        f"{found['checkpoint_bytes'] / 1e6:.0f} MB"
    )


if __name__ == "__main__":
    sys.exit(main())
