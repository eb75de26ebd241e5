"""Strict loading of safetensors into a module that was built on the meta device. Nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from pipeline.cosmos3.config import WEIGHTS_NAME
from pipeline.errors import CheckpointError

_NAMES_SHOWN = 5
_PICKLE_SUFFIXES = {".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth"}


Names = Callable[[str], bool]


def no_names(name: str) -> bool:
    return False


def load_strictly(
    module: nn.Module,
    folder: Path,
    *,
    device: torch.device,
    dtype: torch.dtype,
    skip: Names = no_names,
    keep_fp32: Names = no_names,
) -> None:
    """Fills every parameter of `module` from the safetensors in `folder`, one tensor at a time.

    `skip` says which of the checkpoint's tensors this module does without; `keep_fp32` which parameters stay fp32.
    A tensor that already has its dtype on the CPU stays a view of the mapped file, so nothing is held twice.

    Raises CheckpointError for a tensor that is missing, extra or of another shape, and for an unreadable file.
    """

    def fill(name: str, tensor: _LazyTensor) -> None:
        target_dtype = torch.float32 if keep_fp32(name) else dtype
        _assign(module, name, tensor.read().to(device=device, dtype=target_dtype))

    _match(module, folder, device, skip, fill)


def check_strictly(module: nn.Module, folder: Path, *, skip: Names = no_names) -> None:
    """Everything that `load_strictly` checks, from the files' headers alone: no weight is read."""
    _match(module, folder, torch.device("cpu"), skip, lambda name, tensor: None)


def _match(
    module: nn.Module, folder: Path, device: torch.device, skip: Names, use: Callable[[str, _LazyTensor], None]
) -> None:
    parameters = dict(module.named_parameters())
    found: set[str] = set()
    extra: list[str] = []
    for path in weight_files(folder):
        for name, tensor in _tensors(path, device):
            if name in parameters:
                _check_shape(name, tensor, parameters[name], path)
                use(name, tensor)
                found.add(name)
            elif not skip(name):
                extra.append(name)
    missing = sorted(parameters.keys() - found)
    if missing or extra:
        differences = [_listed(what, names) for what, names in (("missing", missing), ("not expected", sorted(extra)))]
        raise CheckpointError(
            f"The tensors in {folder} are not those of its config: {'; '.join(filter(None, differences))}. "
            "Check that config.json belongs to these weights and that every shard is there."
        )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files of one component: a single file, or the shards that its index names."""
    single = folder / f"{WEIGHTS_NAME}.safetensors"
    index = folder / f"{WEIGHTS_NAME}.safetensors.index.json"
    if single.is_file():
        return [single]
    if not index.is_file():
        raise CheckpointError(
            f"Expected {single.name} or {index.name} in {folder}, found neither{_pickles(folder)}. Only safetensors "
            "weights are loaded."
        )
    names = _shard_names(index)
    # Held against what the folder lists, not looked up: a name is data, and may lead anywhere.
    there = {path.name for path in folder.iterdir() if path.is_file()}
    absent = [Path(name).name for name in names if name not in there]
    if absent:
        raise CheckpointError(f"{index} names files that are not in {folder}: {_shown(absent)}.")
    return [folder / name for name in names]


def _shard_names(index: Path) -> list[str]:
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        if not names or not all(isinstance(name, str) for name in names):
            raise TypeError("weight_map must name a file for each tensor")
    except (OSError, ValueError, KeyError, AttributeError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{index} is not a safetensors index: {error!r}. Download it again.") from error
    return sorted(names)


def _pickles(folder: Path) -> str:
    """` but model.bin, …`: weights that would have to be unpickled, which can run any code."""
    if not folder.is_dir():
        return ""
    names = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLE_SUFFIXES)
    return f" but {_shown(names)}, which would have to be unpickled" if names else ""


class _LazyTensor:
    """One tensor of an open file: its shape costs nothing, its data is read when asked for."""

    def __init__(self, file, name: str) -> None:
        self._file, self._name = file, name

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self._file.get_slice(self._name).get_shape())

    def read(self) -> torch.Tensor:
        return self._file.get_tensor(self._name)


def _tensors(path: Path, device: torch.device) -> Iterator[tuple[str, _LazyTensor]]:
    try:
        with safe_open(path, framework="pt", device=str(device)) as file:
            for name in file.keys():  # noqa: SIM118 - safe_open is no mapping
                yield name, _LazyTensor(file, name)
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read as safetensors ({error}). Download it again.") from error


def _check_shape(name: str, found: _LazyTensor, parameter: nn.Parameter, path: Path) -> None:
    if found.shape != tuple(parameter.shape):
        raise CheckpointError(
            f"{path}: tensor {name!r} has shape {list(found.shape)}, its config asks for {list(parameter.shape)}."
        )


def _assign(module: nn.Module, name: str, tensor: torch.Tensor) -> None:
    *parents, leaf = name.split(".")
    owner = module.get_submodule(".".join(parents))
    setattr(owner, leaf, nn.Parameter(tensor, requires_grad=False))


def _listed(what: str, names: list[str]) -> str:
    return f"{what} {_shown(names)}" if names else ""


def _shown(names: list[str]) -> str:
    more = f" and {len(names) - _NAMES_SHOWN} more" if len(names) > _NAMES_SHOWN else ""
    return f"{', '.join(names[:_NAMES_SHOWN])}{more}"
