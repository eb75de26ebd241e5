"""The two-tower Cosmos3 transformer, over packed tokens. Parameter names are the checkpoint's.

Shape suffixes: L text tokens of one prompt, N generation tokens of all sequences of a batch one behind the other,
M those of them that are read at the end (the noisy ones), D hidden size, H query heads, K key-value heads, h head
dim, P patch vector, A action dim.

The text tower is causal and never sees video or actions, so its keys and values depend on the token ids alone:
`encode_text` computes them once per prompt, `forward` takes them as given. The generation tower is bidirectional and
attends to `[text | its own tokens]`, sequence by sequence; everything else runs on all packed tokens at once.

Convention: cosmos-framework's mixture-of-transformers, as published in diffusers' `Cosmos3OmniTransformer`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from pipeline.cosmos3.config import TransformerConfig

_TIMESTEP_CHANNELS = 256


@dataclass(frozen=True)
class Rotary:
    """Cosine and sine of every token's rotation, [tokens, 1, h], in the model's dtype."""

    cos: torch.Tensor
    sin: torch.Tensor

    def rotate(self, x_NHh: torch.Tensor) -> torch.Tensor:
        first, second = x_NHh.chunk(2, dim=-1)
        return x_NHh * self.cos + torch.cat((-second, first), dim=-1) * self.sin

    def take(self, rows_M: torch.Tensor) -> Rotary:
        return Rotary(self.cos[rows_M], self.sin[rows_M])


@dataclass(frozen=True)
class TextKeysValues:
    """One prompt's keys and values in every layer, each [L, K, h]: all that generation needs of the text."""

    keys: tuple[torch.Tensor, ...]
    values: tuple[torch.Tensor, ...]

    @property
    def num_tokens(self) -> int:
        return self.keys[0].shape[0]

    @property
    def num_bytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in (*self.keys, *self.values))


@dataclass(frozen=True)
class PackedSequences:
    """How N packed tokens divide into sequences, and which M of them are read. Constant over the denoising steps."""

    text: Sequence[TextKeysValues]
    rotary: Rotary
    lengths: list[int]
    read_rows_M: torch.Tensor
    read_lengths: list[int]


class Mlp(nn.Module):
    """SwiGLU without biases."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x_ND: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.silu(self.gate_proj(x_ND)) * self.up_proj(x_ND))


class Attention(nn.Module):
    """Both towers' projections. Heads are counted from the projections, so a sharded module works unchanged."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        hidden, self.head_dim, bias = config.hidden_size, config.head_dim, config.attention_bias
        query_width = config.num_attention_heads * config.head_dim
        key_width = config.num_key_value_heads * config.head_dim
        self.to_q = nn.Linear(hidden, query_width, bias=bias)
        self.to_k = nn.Linear(hidden, key_width, bias=bias)
        self.to_v = nn.Linear(hidden, key_width, bias=bias)
        self.to_out = nn.Linear(query_width, hidden, bias=bias)
        self.norm_q = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.norm_k = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.add_q_proj = nn.Linear(hidden, query_width, bias=bias)
        self.add_k_proj = nn.Linear(hidden, key_width, bias=bias)
        self.add_v_proj = nn.Linear(hidden, key_width, bias=bias)
        self.to_add_out = nn.Linear(query_width, hidden, bias=bias)
        self.norm_added_q = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)
        self.norm_added_k = nn.RMSNorm(config.head_dim, eps=config.rms_norm_eps)

    def text_keys_values(self, x_LD: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        return rotary.rotate(self.norm_k(self._heads(self.to_k(x_LD)))), self._heads(self.to_v(x_LD))

    def text(self, x_LD: torch.Tensor, rotary: Rotary, k_LKh: torch.Tensor, v_LKh: torch.Tensor) -> torch.Tensor:
        q_LHh = rotary.rotate(self.norm_q(self._heads(self.to_q(x_LD))))
        return self.to_out(_attend(q_LHh, k_LKh, v_LKh, is_causal=True))

    def generation(
        self, x_ND: torch.Tensor, packed: PackedSequences, layer: int, rows_M: torch.Tensor | None
    ) -> torch.Tensor:
        """Full attention of each sequence over its text and itself; queries only for `rows_M` where given."""
        k_NKh = packed.rotary.rotate(self.norm_added_k(self._heads(self.add_k_proj(x_ND))))
        v_NKh = self._heads(self.add_v_proj(x_ND))
        q_rotary = packed.rotary if rows_M is None else packed.rotary.take(rows_M)
        q_lengths = packed.lengths if rows_M is None else packed.read_lengths
        q_QHh = q_rotary.rotate(
            self.norm_added_q(self._heads(self.add_q_proj(x_ND if rows_M is None else x_ND[rows_M])))
        )
        attended = [
            _attend(q, torch.cat((text.keys[layer], k)), torch.cat((text.values[layer], v)), is_causal=False)
            for q, k, v, text in zip(
                q_QHh.split(q_lengths),
                k_NKh.split(packed.lengths),
                v_NKh.split(packed.lengths),
                packed.text,
                strict=True,
            )
        ]
        return self.to_add_out(torch.cat(attended))

    def _heads(self, x: torch.Tensor) -> torch.Tensor:
        return x.unflatten(-1, (-1, self.head_dim))


class DecoderLayer(nn.Module):
    """One layer of both towers: pre-norm attention and MLP, separate weights."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.self_attn = Attention(config)
        self.mlp = Mlp(config)
        self.mlp_moe_gen = Mlp(config)
        for name in ("input_layernorm", "post_attention_layernorm"):
            for tower in ("", "_moe_gen"):
                self.add_module(name + tower, nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps))

    def text_keys_values(self, x_LD: torch.Tensor, rotary: Rotary) -> tuple[torch.Tensor, torch.Tensor]:
        return self.self_attn.text_keys_values(self.input_layernorm(x_LD), rotary)

    def text(self, x_LD: torch.Tensor, rotary: Rotary, k_LKh: torch.Tensor, v_LKh: torch.Tensor) -> torch.Tensor:
        x_LD = x_LD + self.self_attn.text(self.input_layernorm(x_LD), rotary, k_LKh, v_LKh)
        return x_LD + self.mlp(self.post_attention_layernorm(x_LD))

    def generation(
        self, x_ND: torch.Tensor, packed: PackedSequences, layer: int, rows_M: torch.Tensor | None = None
    ) -> torch.Tensor:
        attended = self.self_attn.generation(self.input_layernorm_moe_gen(x_ND), packed, layer, rows_M)
        x_ND = (x_ND if rows_M is None else x_ND[rows_M]) + attended
        return x_ND + self.mlp_moe_gen(self.post_attention_layernorm_moe_gen(x_ND))


class DomainLinear(nn.Module):
    """One linear map per embodiment domain, stored as embedding tables: fc.weight[domain] is [in, out], in-major."""

    def __init__(self, in_features: int, out_features: int, num_domains: int) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self.fc = nn.Embedding(num_domains, in_features * out_features)
        self.bias = nn.Embedding(num_domains, out_features)

    def forward(self, x: torch.Tensor, rows_by_domain: dict[int, torch.Tensor]) -> torch.Tensor:
        out = x.new_empty(x.shape[0], self.out_features)
        for domain_id, rows in rows_by_domain.items():
            weight = self.fc.weight[domain_id].view(self.in_features, self.out_features)
            out[rows] = torch.addmm(self.bias.weight[domain_id], x[rows], weight)
        return out


class TimestepEmbedder(nn.Module):
    """The MLP behind the sinusoid of `timestep_scale * t`; kept in fp32 whatever the model's dtype."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(_TIMESTEP_CHANNELS, hidden_size)
        self.linear_2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, scaled_timestep: torch.Tensor) -> torch.Tensor:
        half = _TIMESTEP_CHANNELS // 2
        steps = torch.arange(half, dtype=torch.float32, device=self.linear_1.weight.device)
        angles = scaled_timestep.float()[..., None] * torch.exp(-math.log(10000) * steps / half)
        return self.linear_2(F.silu(self.linear_1(torch.cat((angles.cos(), angles.sin()), dim=-1))))


class Cosmos3Transformer(nn.Module):
    """Weights and mathematics of the action path; knows neither requests nor noise schedules.

    `lm_head` and the text tower's final `norm` are left out: nothing here predicts text.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm_moe_gen = nn.RMSNorm(config.hidden_size, eps=config.rms_norm_eps)
        self.proj_in = nn.Linear(config.patch_latent_dim, config.hidden_size)
        self.proj_out = nn.Linear(config.hidden_size, config.patch_latent_dim)
        self.time_embedder = TimestepEmbedder(config.hidden_size)
        self.action_proj_in = DomainLinear(config.action_dim, config.hidden_size, config.num_embodiment_domains)
        self.action_proj_out = DomainLinear(config.hidden_size, config.action_dim, config.num_embodiment_domains)
        self.action_modality_embed = nn.Parameter(torch.empty(config.hidden_size))

    @property
    def dtype(self) -> torch.dtype:
        return self.proj_in.weight.dtype

    @property
    def device(self) -> torch.device:
        return self.proj_in.weight.device

    def encode_text(self, text_ids: Sequence[int]) -> TextKeysValues:
        """Keys and values of one prompt in every layer. The last layer's text states are not needed, nor computed."""
        ids = torch.tensor(text_ids, device=self.device)
        positions = torch.arange(len(text_ids), dtype=torch.float32, device=self.device).expand(3, -1)
        rotary, x_LD = self.rotary(positions), self.embed_tokens(ids)
        keys, values = [], []
        for index, layer in enumerate(self.layers):
            k_LKh, v_LKh = layer.text_keys_values(x_LD, rotary)
            keys.append(k_LKh)
            values.append(v_LKh)
            if index + 1 < len(self.layers):
                x_LD = layer.text(x_LD, rotary, k_LKh, v_LKh)
        return TextKeysValues(tuple(keys), tuple(values))

    def rotary(self, positions_3N: torch.Tensor) -> Rotary:
        """Interleaved 3-D rotary angles for (time, row, column) positions, in fp32 before the final cast.

        Slot j of the `head_dim / 2` frequencies turns with the row if j % 3 == 1, with the column if j % 3 == 2, as
        long as j is within three times that axis' share; with time otherwise.
        """
        config = self.config
        slots = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions_3N.device)
        frequencies = 1.0 / config.rope_theta ** (slots / config.head_dim)
        angles_3NS = positions_3N.float()[:, :, None] * frequencies
        angles_NS = angles_3NS[0].clone()
        for axis in (1, 2):
            own = slice(axis, 3 * config.rope_axes_dim[axis], 3)
            angles_NS[:, own] = angles_3NS[axis][:, own]
        angles = torch.cat((angles_NS, angles_NS), dim=-1)[:, None, :]
        return Rotary(angles.cos().to(self.dtype), angles.sin().to(self.dtype))

    def embed_video(self, patches_NP: torch.Tensor) -> torch.Tensor:
        return self.proj_in(patches_NP.to(self.dtype))

    def embed_action(self, rows_NA: torch.Tensor, rows_by_domain: dict[int, torch.Tensor]) -> torch.Tensor:
        return self.action_proj_in(rows_NA.to(self.dtype), rows_by_domain) + self.action_modality_embed

    def embed_timestep(self, timestep: torch.Tensor) -> torch.Tensor:
        """[..., D] for timesteps in 0..1000 of any shape: added to noisy tokens only."""
        return self.time_embedder(timestep * self.config.timestep_scale).to(self.dtype)

    def forward(self, tokens_ND: torch.Tensor, packed: PackedSequences) -> torch.Tensor:
        """[N, D] embedded tokens -> [M, D] final states of the rows that are read.

        In the last layer queries and MLP run for those rows only; all tokens still serve as keys and values.
        """
        x_ND = tokens_ND
        for index, layer in enumerate(self.layers[:-1]):
            x_ND = layer.generation(x_ND, packed, index)
        x_MD = self.layers[-1].generation(x_ND, packed, len(self.layers) - 1, packed.read_rows_M)
        return self.norm_moe_gen(x_MD)

    def video_velocity(self, x_MD: torch.Tensor) -> torch.Tensor:
        """[M, P] in fp32."""
        return self.proj_out(x_MD).float()

    def action_velocity(self, x_MD: torch.Tensor, rows_by_domain: dict[int, torch.Tensor]) -> torch.Tensor:
        """[M, A] in fp32."""
        return self.action_proj_out(x_MD, rows_by_domain).float()


def _attend(q_QHh: torch.Tensor, k_Kh: torch.Tensor, v_Kh: torch.Tensor, *, is_causal: bool) -> torch.Tensor:
    """Grouped-query attention of one sequence: [Q, H, h], [L, K, h], [L, K, h] -> [Q, H * h]."""
    out = F.scaled_dot_product_attention(
        q_QHh.transpose(0, 1)[None],
        k_Kh.transpose(0, 1)[None],
        v_Kh.transpose(0, 1)[None],
        is_causal=is_causal,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1).flatten(1)
