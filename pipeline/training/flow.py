"""The transformer's objective: rectified flow, in all three modes at once. Owns noise levels, masks and loss.

A sample at noise level s is (1 - s) x + s n, and the model is asked for its velocity n - x where the mode says noise;
what the mode says is given stays clean and is not asked for. Which is which comes from `cosmos3.conditioning`, what is
a token and where from `cosmos3.packing`: training and sampling cannot disagree about it. Levels are uniform, then
shifted like the sampler's grid. Source: cosmos-framework's rectified flow and its recipes' weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch

from pipeline.cosmos3.packing import PackedBatch, Sample
from pipeline.cosmos3.request import Cosmos3ActionRequest
from pipeline.cosmos3.transformer import Cosmos3Transformer, TextKeysValues
from pipeline.views import LATENT_STRIDE_FRAMES

_TIMESTEPS = 1000.0


@dataclass(frozen=True, kw_only=True)
class FlowSettings:
    """Shares of the modes need not add up to one. A policy is asked most where an episode begins."""

    mode_shares: Mapping[str, float] = field(
        default_factory=lambda: {"inverse_dynamics": 0.45, "forward_dynamics": 0.5, "policy": 0.05}
    )
    opening_mode_shares: Mapping[str, float] = field(
        default_factory=lambda: {"inverse_dynamics": 0.25, "forward_dynamics": 0.3, "policy": 0.45}
    )
    flow_shift: float = 10.0
    text_dropout: float = 0.1  # share of samples that see the empty prompt, for guidance
    action_weight: float = 10.0

    def draw_modes(self, opens: Sequence[bool], generator: torch.Generator) -> list[str]:
        """One for each window; `opens` tells whether its episode begins with it."""
        tables = (self.mode_shares, self.opening_mode_shares)
        names = list(dict.fromkeys(name for table in tables for name in table))
        shares = torch.tensor([[table.get(name, 0.0) for name in names] for table in tables])
        drawn = torch.multinomial(shares[list(map(int, opens))], 1, generator=generator)
        return [names[index] for index in drawn[:, 0].tolist()]

    def draw_levels(self, count: int, generator: torch.Generator) -> torch.Tensor:
        """[count] noise levels in 0..1, on the shifted grid of inference."""
        uniform = torch.rand(count, generator=generator)
        return self.flow_shift * uniform / (1 + (self.flow_shift - 1) * uniform)


@dataclass(frozen=True)
class Example:
    """One window of the training set, complete: nothing is noise yet.

    Only `num_actions` of its actions, and the frames up to there, are recorded; what fills it up is not learned from.
    """

    request: Cosmos3ActionRequest  # its mode is drawn anew for each step
    video_CTHW: torch.Tensor  # normalised latents
    action_RA: torch.Tensor  # model space, zero beyond raw_action_dim
    num_actions: int
    opens: bool = False  # the episode begins with it

    def is_recorded(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Masks of video and action: a latent frame counts if all of its pixel frames do."""
        ends = LATENT_STRIDE_FRAMES * torch.arange(self.video_CTHW.shape[1])
        rows = torch.arange(len(self.action_RA))
        return (
            (ends <= self.num_actions).view(1, -1, 1, 1).expand_as(self.video_CTHW),
            (rows < self.num_actions).view(-1, 1).expand_as(self.action_RA),
        )


@dataclass(frozen=True)
class FlowLoss:
    """Mean squared errors of the velocity; a part that no sample of the batch asked for is None."""

    total: torch.Tensor
    video: float | None
    action: dict[str, float]  # mode → error

    @property
    def figures(self) -> dict[str, float]:
        """For the curves."""
        video = {} if self.video is None else {"video": self.video}
        return video | {f"action_{mode}": error for mode, error in self.action.items()}


def flow_loss(
    model: Cosmos3Transformer, examples: Sequence[Example], settings: FlowSettings, generator: torch.Generator
) -> FlowLoss:
    """The loss of one batch, with a graph behind `total`. Draws modes, noise and levels from `generator`."""
    modes = settings.draw_modes([example.opens for example in examples], generator)
    levels = settings.draw_levels(len(examples), generator)
    is_empty = (torch.rand(len(examples), generator=generator) < settings.text_dropout).tolist()
    texts = _Texts(model)
    samples, targets = [], []
    for example, mode, level, empty in zip(examples, modes, levels, is_empty, strict=True):
        request = replace(example.request, mode=mode)
        noise = [torch.randn(part.shape, generator=generator) for part in (example.video_CTHW, example.action_RA)]
        clean = (example.video_CTHW, example.action_RA)
        noisy = [(1 - level) * x + level * n for x, n in zip(clean, noise, strict=True)]
        conditioning = request.conditioning
        frames, rows = list(conditioning.clean_frames), list(conditioning.clean_rows)
        noisy[0][:, frames], noisy[1][rows] = clean[0][:, frames], clean[1][rows]
        noisy[1][:, request.raw_action_dim :] = 0.0
        samples.append(
            Sample(
                request=request,
                text=texts[request.neg_text_ids if empty else request.text_ids],
                negative_text=None,
                video_CTHW=noisy[0],
                action_RA=noisy[1],
            )
        )
        targets.append(tuple(n - x for x, n in zip(clean, noise, strict=True)))
    batch = PackedBatch(model, samples)
    velocity = batch.velocity(batch.initial_state(), levels * _TIMESTEPS)
    is_asked = batch.moves & batch.state_of([example.is_recorded() for example in examples])
    return _weigh(batch, velocity - batch.state_of(targets), is_asked, modes, settings)


def _weigh(
    batch: PackedBatch, error: torch.Tensor, is_asked: torch.Tensor, modes: Sequence[str], settings: FlowSettings
) -> FlowLoss:
    """A mean over values within each sample and modality, then over samples: long videos weigh no more."""
    squared = error.square()
    is_video, sample = batch.is_video_value, batch.sample_of_value()
    means = {}
    for name, chosen in (("video", is_video & is_asked), ("action", ~is_video & is_asked)):
        sums = torch.zeros(len(modes)).index_add(0, sample[chosen], squared[chosen])
        counts = torch.bincount(sample[chosen], minlength=len(modes))
        means[name] = (sums[counts > 0] / counts[counts > 0], counts > 0)
    video, has_video = means["video"]
    action, has_action = means["action"]
    total = (video.sum() + settings.action_weight * action.sum()) / len(modes)
    actions: dict[str, list[float]] = {}
    acting = [mode for mode, acts in zip(modes, has_action.tolist(), strict=True) if acts]
    for mode, value in zip(acting, action.detach().tolist(), strict=True):
        actions.setdefault(mode, []).append(value)
    return FlowLoss(
        total=total,
        video=float(video.detach().mean()) if has_video.any() else None,
        action={mode: sum(values) / len(values) for mode, values in actions.items()},
    )


class _Texts(dict[tuple[int, ...], TextKeysValues]):
    """Each prompt of a batch is encoded once, with gradients: the text tower learns, too."""

    def __init__(self, model: Cosmos3Transformer) -> None:
        super().__init__()
        self._model = model

    def __missing__(self, text_ids: tuple[int, ...]) -> TextKeysValues:
        self[text_ids] = self._model.encode_text(text_ids)
        return self[text_ids]
