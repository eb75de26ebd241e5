"""From unlike requests to one packed batch of tokens, and from the model's output back to velocities.

Shape suffixes as in `transformer.py`. A *sequence* is one pass of one request: the conditional one, and for guidance
a second one with the negative prompt. The *state* is what the solver moves: the noisy video patches of all requests
[Mv, P], one behind the other, then their noisy action rows [Ma, A]. Clean tokens are embedded once and never enter it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from pipeline.cosmos3.config import TransformerConfig
from pipeline.cosmos3.request import Cosmos3ActionRequest
from pipeline.cosmos3.transformer import Cosmos3Transformer, PackedSequences, TextKeysValues
from pipeline.views import LATENT_STRIDE_FRAMES


@dataclass(frozen=True)
class Sample:
    """One request as latents: clean parts filled in, noise everywhere else, ready to be packed."""

    request: Cosmos3ActionRequest
    text: TextKeysValues
    negative_text: TextKeysValues | None  # None without guidance
    video_CTHW: torch.Tensor
    action_RA: torch.Tensor  # zero beyond raw_action_dim


@dataclass(frozen=True)
class _Layout:
    """Where one sample's tokens lie within its own sequence, and its rows within the state."""

    patches_NP: torch.Tensor
    positions_3N: torch.Tensor  # time is relative to the text's end
    noisy_tokens: torch.Tensor
    num_noisy_video: int
    patch_is_content_MP: torch.Tensor  # False where an odd grid was padded


class PackedBatch:
    """Samples whose tokens are one sequence after the other. What does not change over the steps is computed here."""

    def __init__(self, model: Cosmos3Transformer, samples: Sequence[Sample]) -> None:
        self._model, self.samples = model, list(samples)
        self._layouts = [_lay_out(sample, model.config) for sample in self.samples]
        video_rows, action_rows = self._place_state()
        guided = [index for index, sample in enumerate(self.samples) if sample.negative_text is not None]
        passes = [(index, sample.text) for index, sample in enumerate(self.samples)]
        passes += [(index, self.samples[index].negative_text) for index in guided]
        self._pack_sequences(passes, video_rows, action_rows)
        self._index_reads(guided, video_rows, action_rows)

    @property
    def moves(self) -> torch.Tensor:
        """Which of the state's values mean anything, as a flat mask: not an odd grid's padding, nor unused columns."""
        return self._moves

    @property
    def is_video_value(self) -> torch.Tensor:
        """Which of the state's values are video; the others are action."""
        rows = torch.arange(len(self._sample_of_state_row), device=self._model.device)
        return self._per_value(rows < self._num_video_rows)

    def initial_state(self) -> torch.Tensor:
        """The noisy part of all samples as one flat fp32 vector."""
        return self._gather(
            [layout.patches_NP for layout in self._layouts], [sample.action_RA for sample in self.samples]
        )

    def state_of(self, values: Sequence[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
        """What stands in the places of the noisy part, of any (video [C, t, h, w], action [chunk, A]) per sample."""
        patch_size = self._model.config.latent_patch_size
        return self._gather([_patchify(video, patch_size) for video, _ in values], [action for _, action in values])

    def sample_of_value(self) -> torch.Tensor:
        """Which sample each of the state's values belongs to."""
        return self._per_value(self._sample_of_state_row)

    def velocity(self, state: torch.Tensor, timestep: torch.Tensor) -> torch.Tensor:
        """One pass of the model over the whole batch: flat state -> flat fp32 velocity, guidance applied.

        `timestep` in 0..1000 is one for all, as in sampling, or one per sample, as in training.
        """
        model = self._model
        video_MP, action_MA = self._split(state)
        embedded = torch.cat((model.embed_video(video_MP), model.embed_action(action_MA, self._state_domains)))
        tokens_ND = self._clean_tokens_ND.clone()
        steps = model.embed_timestep(timestep)
        steps = steps[self._sample_of_state_row] if timestep.ndim else steps
        tokens_ND[self._packed.read_rows_M] = (embedded + steps)[self._state_row_of_read]
        hidden = model(tokens_ND, self._packed)
        velocity = self._heads(hidden[self._conditional_reads])
        if self._guided_rows.numel():
            # Requests without guidance keep their velocity untouched: u + 1 * (c - u) would round differently.
            reads = self._conditional_reads.clone()
            reads[self._guided_rows] = self._unconditional_reads
            negative = self._heads(hidden[reads])
            velocity = torch.where(self._is_guided, negative + self._guidance * (velocity - negative), velocity)
        return velocity * self._moves

    def unpack(self, state: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Per request, in order: video [C, t, h, w] and action [chunk, raw_action_dim], clean parts included."""
        video_MP, action_MA = self._split(state)
        results, video_start, action_start = [], 0, 0
        for sample, layout in zip(self.samples, self._layouts, strict=True):
            rows = list(sample.request.conditioning.noisy_rows)
            patches = layout.patches_NP.clone()
            patches[layout.noisy_tokens[: layout.num_noisy_video]] = video_MP[
                video_start : video_start + layout.num_noisy_video
            ]
            action = sample.action_RA.clone()
            action[rows] = action_MA[action_start : action_start + len(rows)]
            video_start, action_start = video_start + layout.num_noisy_video, action_start + len(rows)
            results.append((self._unpatchify(patches, sample), action[:, : sample.request.raw_action_dim]))
        return results

    def _gather(self, patches: Sequence[torch.Tensor], actions: Sequence[torch.Tensor]) -> torch.Tensor:
        """The noisy rows of every sample's patches [N, P] and then of its actions [chunk, A], flat."""
        video = [
            patches_NP[layout.noisy_tokens[: layout.num_noisy_video]]
            for layout, patches_NP in zip(self._layouts, patches, strict=True)
        ]
        action = [
            action_RA[list(sample.request.conditioning.noisy_rows)]
            for sample, action_RA in zip(self.samples, actions, strict=True)
        ]
        return torch.cat([part.flatten() for part in (*video, *action)])

    def _place_state(self) -> tuple[list[range], list[range]]:
        """Gives every sample its rows in the state, and notes which of the state's values may move."""
        config, device = self._model.config, self._model.device
        video_counts = [layout.num_noisy_video for layout in self._layouts]
        action_counts = [len(layout.noisy_tokens) - layout.num_noisy_video for layout in self._layouts]
        self._num_video_rows = sum(video_counts)
        columns = torch.arange(config.action_dim, device=device)
        moves = [layout.patch_is_content_MP.flatten() for layout in self._layouts]
        moves += [
            (columns < sample.request.raw_action_dim).repeat(count)
            for sample, count in zip(self.samples, action_counts, strict=True)
        ]
        self._moves = torch.cat(moves)
        counts = torch.tensor([*video_counts, *action_counts], device=device)
        self._sample_of_state_row = torch.arange(len(self.samples), device=device).repeat(2).repeat_interleave(counts)
        video_rows = _consecutive(video_counts, start=0)
        action_rows = _consecutive(action_counts, start=self._num_video_rows)
        domains = [sample.request.domain_id for sample in self.samples for _ in range(len(sample.action_RA))]
        self._clean_domains = _rows_by_domain(domains, device)
        self._state_domains = _rows_by_domain(
            [s.request.domain_id for s, count in zip(self.samples, action_counts, strict=True) for _ in range(count)],
            device,
        )
        return video_rows, action_rows

    def _pack_sequences(
        self, passes: list[tuple[int, TextKeysValues]], video_rows: list[range], action_rows: list[range]
    ) -> None:
        model, device = self._model, self._model.device
        embedded = self._embed_clean()
        tokens, positions, read_rows, state_rows, start = [], [], [], [], 0
        for index, text in passes:
            layout = self._layouts[index]
            text_end = torch.zeros(3, 1, device=device)
            text_end[0] = text.num_tokens + model.config.temporal_margin
            positions.append(layout.positions_3N + text_end)
            tokens.append(embedded[index])
            read_rows.append(layout.noisy_tokens + start)
            state_rows.extend((*video_rows[index], *action_rows[index]))
            start += len(embedded[index])
        self._clean_tokens_ND = torch.cat(tokens)
        self._state_row_of_read = torch.tensor(state_rows, device=device)
        self._packed = PackedSequences(
            text=[text for _, text in passes],
            rotary=model.rotary(torch.cat(positions, dim=1)),
            lengths=[len(token) for token in tokens],
            read_rows_M=torch.cat(read_rows),
            read_lengths=[len(rows) for rows in read_rows],
        )

    def _embed_clean(self) -> list[torch.Tensor]:
        """Every sample's tokens without timestep: right for the clean ones, overwritten at each step for the noisy."""
        model = self._model
        actions = model.embed_action(torch.cat([sample.action_RA for sample in self.samples]), self._clean_domains)
        per_sample = actions.split([len(sample.action_RA) for sample in self.samples])
        return [
            torch.cat((model.embed_video(layout.patches_NP), action))
            for layout, action in zip(self._layouts, per_sample, strict=True)
        ]

    def _index_reads(self, guided: list[int], video_rows: list[range], action_rows: list[range]) -> None:
        """Which of the M read rows answers for which row of the state, with and without the negative prompt."""
        device, num_rows = self._model.device, action_rows[-1].stop
        read_starts = [reads.start for reads in _consecutive(self._packed.read_lengths, start=0)]
        conditional = torch.empty(num_rows, dtype=torch.long)
        guidance = torch.ones(num_rows)
        guided_rows, unconditional = [], []
        for index, sample in enumerate(self.samples):
            rows = torch.tensor((*video_rows[index], *action_rows[index]))
            reads = torch.arange(len(rows)) + read_starts[index]
            conditional[rows] = reads
            if index in guided:
                guided_rows.append(rows)
                unconditional.append(torch.arange(len(rows)) + read_starts[len(self.samples) + guided.index(index)])
                guidance[rows] = sample.request.guidance_scale
        nothing = torch.empty(0, dtype=torch.long)
        self._conditional_reads = conditional.to(device)
        self._guided_rows = torch.cat([*guided_rows, nothing]).to(device)
        self._unconditional_reads = torch.cat([*unconditional, nothing]).to(device)
        is_guided = torch.zeros(num_rows, dtype=torch.bool)
        is_guided[self._guided_rows.cpu()] = True
        self._guidance, self._is_guided = self._per_value(guidance.to(device)), self._per_value(is_guided.to(device))

    def _per_value(self, per_row: torch.Tensor) -> torch.Tensor:
        """Repeats one value per state row over that row's columns, in the state's flat order."""
        config, split = self._model.config, self._num_video_rows
        return torch.cat(
            (
                per_row[:split].repeat_interleave(config.patch_latent_dim),
                per_row[split:].repeat_interleave(config.action_dim),
            )
        )

    def _heads(self, hidden_MD: torch.Tensor) -> torch.Tensor:
        video = self._model.video_velocity(hidden_MD[: self._num_video_rows])
        action = self._model.action_velocity(hidden_MD[self._num_video_rows :], self._state_domains)
        return torch.cat((video.flatten(), action.flatten()))

    def _split(self, state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        config = self._model.config
        boundary = self._num_video_rows * config.patch_latent_dim
        return state[:boundary].view(-1, config.patch_latent_dim), state[boundary:].view(-1, config.action_dim)

    def _unpatchify(self, patches_NP: torch.Tensor, sample: Sample) -> torch.Tensor:
        p, channels = self._model.config.latent_patch_size, self._model.config.latent_channel
        t, h, w = sample.request.video_shape
        rows, columns = math.ceil(h / p), math.ceil(w / p)
        grid = patches_NP.view(t, rows, columns, p, p, channels).permute(5, 0, 1, 3, 2, 4)
        return grid.reshape(channels, t, rows * p, columns * p)[:, :, :h, :w].contiguous()


def _lay_out(sample: Sample, config: TransformerConfig) -> _Layout:
    """Tokens in the checkpoint's order: video frame by frame, row by row, then the action rows."""
    request, conditioning = sample.request, sample.request.conditioning
    device = sample.video_CTHW.device
    patches_NP = _patchify(sample.video_CTHW, config.latent_patch_size)
    t, h, w = request.video_shape
    rows, columns = math.ceil(h / config.latent_patch_size), math.ceil(w / config.latent_patch_size)
    tokens = torch.arange(len(patches_NP), device=device).view(t, rows * columns)
    noisy_video = tokens[list(conditioning.noisy_frames)].flatten()
    noisy_action = torch.tensor(conditioning.noisy_rows, dtype=torch.long, device=device) + len(patches_NP)
    is_content = _patchify(torch.ones_like(sample.video_CTHW, dtype=torch.bool), config.latent_patch_size)
    return _Layout(
        patches_NP=patches_NP,
        positions_3N=_positions(request, rows, columns, config).to(device),
        noisy_tokens=torch.cat((noisy_video, noisy_action)),
        num_noisy_video=len(noisy_video),
        patch_is_content_MP=is_content[noisy_video],
    )


def _patchify(video_CTHW: torch.Tensor, p: int) -> torch.Tensor:
    """[C, t, h, w] -> [t * rows * columns, p * p * C], zero-padded below and right; vectors are (row, column, C)."""
    channels, t, h, w = video_CTHW.shape
    padded = torch.nn.functional.pad(video_CTHW, (0, -w % p, 0, -h % p))
    grid = padded.reshape(channels, t, padded.shape[2] // p, p, padded.shape[3] // p, p)
    return grid.permute(1, 2, 4, 3, 5, 0).reshape(-1, p * p * channels)


def _positions(request: Cosmos3ActionRequest, rows: int, columns: int, config: TransformerConfig) -> torch.Tensor:
    """[3, N] (time, row, column) of the video patches and action rows, time counted from the end of the text.

    A latent frame f is at `base_fps * f / fps`; action row k belongs to pixel frame k + 1, so that row 3 sits exactly
    on latent frame 1. Rows and columns count patches; actions have none.
    """
    t = request.video_shape[0]
    frames, actions = torch.arange(t, dtype=torch.float32), torch.arange(1, request.action_chunk + 1).float()
    if config.enable_fps_modulation:
        base = config.base_fps / LATENT_STRIDE_FRAMES
        frames, actions = frames / (request.fps / LATENT_STRIDE_FRAMES) * base, actions / request.fps * base
    video = torch.stack(
        torch.meshgrid(frames, torch.arange(rows).float(), torch.arange(columns).float(), indexing="ij")
    )
    action = torch.stack((actions, torch.zeros_like(actions), torch.zeros_like(actions)))
    return torch.cat((video.flatten(1), action), dim=1)


def _consecutive(counts: Sequence[int], *, start: int) -> list[range]:
    ranges = []
    for count in counts:
        ranges.append(range(start, start + count))
        start += count
    return ranges


def _rows_by_domain(domains: Sequence[int], device: torch.device) -> dict[int, torch.Tensor]:
    return {
        domain: torch.tensor([row for row, other in enumerate(domains) if other == domain], device=device)
        for domain in sorted(set(domains))
    }
