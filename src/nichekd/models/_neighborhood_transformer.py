"""The network that reads a neighborhood, shared by teacher and student."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nichekd.models._positional import FrequencyEncoding

if TYPE_CHECKING:
    from nichekd.models._neighborhood_batch import NeighborhoodBatch

Architecture = Literal["transformer", "pooling"]
Preset = Literal["base", "small", "pooling"]


@dataclass(frozen=True)
class NeighborhoodConfig:
    """Sizes of a neighborhood network.

    Attributes
    ----------
    n_features
        Length of a cell's feature vector.
    architecture
        ``"transformer"``: all tokens attend to all, L² a neighborhood. ``"pooling"``: the centre cell attends to its
        neighborhood once, L a neighborhood.
    d_model, n_layers, n_heads, mlp_ratio
        Width, depth, heads, and width of the MLP in ``d_model``.
    n_frequencies
        Octaves of the positional encoding; 0 takes positions away.
    dropout
        Share of activations dropped in training.
    """

    n_features: int
    architecture: Architecture = "transformer"
    d_model: int = 256
    n_layers: int = 4
    n_heads: int = 8
    mlp_ratio: float = 4.0
    n_frequencies: int = 6
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.architecture not in get_args(Architecture):
            raise ValueError(
                f"There is no architecture {self.architecture!r}; there are {list(get_args(Architecture))}."
            )
        for name in ("n_features", "d_model", "n_layers", "n_heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)}; it has to be at least 1.")
        if self.n_frequencies < 0 or self.mlp_ratio <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"n_frequencies={self.n_frequencies}, mlp_ratio={self.mlp_ratio}, dropout={self.dropout}: frequencies are "
                "0 or more, the ratio is above 0, and dropout from 0 to below 1."
            )
        if self.d_model % self.n_heads:
            raise ValueError(f"d_model={self.d_model} is not a multiple of n_heads={self.n_heads}.")

    @classmethod
    def preset(cls, name: Preset, n_features: int, **changes: Any) -> NeighborhoodConfig:
        """``base`` (the paper's sizes), ``small`` (for CPUs) or ``pooling`` (1/20 of the cost)."""
        presets: dict[str, dict[str, Any]] = {
            "base": {},
            "small": {"d_model": 128, "n_layers": 2, "n_heads": 4},
            "pooling": {"architecture": "pooling", "d_model": 128, "n_layers": 1, "n_heads": 4},
        }
        if name not in presets:
            raise ValueError(f"There is no preset {name!r}; there are {list(get_args(Preset))}.")
        return replace(cls(n_features=n_features, **presets[name]), **changes)

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for ``config.json``."""
        return asdict(self)


class NeighborhoodTransformer(nn.Module):
    """A neighborhood in, one embedding (B, d) out.

    Token = Linear(features) + Linear(encoded offset), the centre cell at offset 0. Two exact economies: the features
    are projected once per distinct cell rather than once per token, and the last block computes the row of the
    [CLS] token only.
    """

    def __init__(self, config: NeighborhoodConfig) -> None:
        super().__init__()
        self.config = config
        d = config.d_model
        self.project = nn.Linear(config.n_features, d)
        self.encode_offset = FrequencyEncoding(config.n_frequencies)
        n_offset = self.encode_offset.n_features
        self.project_offset = nn.Linear(n_offset, d, bias=False) if n_offset else None
        self.cls = nn.Parameter(torch.zeros(d))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(d)
        nn.init.trunc_normal_(self.cls, std=0.02)

    def forward(self, batch: NeighborhoodBatch) -> Tensor:
        """Embeddings, (B, d)."""
        cells = self.project(batch.features)  # (M, d)
        tokens = cells[batch.token]  # (B, L, d)
        if self.project_offset is not None:
            tokens = tokens + self.project_offset(self.encode_offset(batch.offset))
        x = torch.cat([self.cls.expand(len(tokens), 1, -1), tokens], dim=1)  # (B, 1 + L, d)
        mask = F.pad(batch.mask, (1, 0), value=True)[:, None, None, :]  # (B, 1, 1, 1 + L)
        for block in self.blocks[:-1]:
            x = block(x, x, mask)
        x = self.blocks[-1](x[:, :1], x, mask)
        return self.norm(x[:, 0])


class Block(nn.Module):
    """Pre-norm attention and MLP; queries may be fewer than keys."""

    def __init__(self, config: NeighborhoodConfig) -> None:
        super().__init__()
        d = config.d_model
        self.n_heads = config.n_heads
        self.norm_attention = nn.LayerNorm(d)
        self.query = nn.Linear(d, d)
        self.key_value = nn.Linear(d, 2 * d)
        self.out = nn.Linear(d, d)
        self.norm_mlp = nn.LayerNorm(d)
        self.mlp = mlp(d, config)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """``x`` (B, Q, d) attends to ``context`` (B, L, d) where ``mask`` (B, 1, 1, L) is true."""
        q = self.query(self.norm_attention(x)).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
        k, v = (
            self.key_value(self.norm_attention(context))
            .unflatten(-1, (2, self.n_heads, -1))
            .permute(2, 0, 3, 1, 4)  # 2 × (B, heads, L, d / heads)
        )
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.dropout(self.out(attended.transpose(1, 2).flatten(-2)))
        return x + self.mlp(self.norm_mlp(x))


class NeighborhoodPooling(nn.Module):
    r"""One attention from the centre cell over its neighborhood; all else is done once per cell.

    The offset adds to keys and values, and both products are taken apart, so that no (B, L, d) positional tensor is
    ever made: :math:`q \cdot (k_j + W_k p_j) = q \cdot k_j + (W_k^\top q) \cdot p_j` and
    :math:`\sum_j a_j (v_j + W_v p_j) = \sum_j a_j v_j + W_v \sum_j a_j p_j`.
    """

    def __init__(self, config: NeighborhoodConfig) -> None:
        super().__init__()
        self.config = config
        d, self.n_heads = config.d_model, config.n_heads
        self.project = nn.Linear(config.n_features, d)
        self.cell_mlp = nn.Sequential(nn.LayerNorm(d), mlp(d, config))
        self.norm_cell = nn.LayerNorm(d)
        self.encode_offset = FrequencyEncoding(config.n_frequencies)
        n_offset = self.encode_offset.n_features
        self.query = nn.Linear(d, d)
        self.key_value = nn.Linear(d, 2 * d)
        self.offset_key = nn.Parameter(torch.empty(self.n_heads, d // self.n_heads, n_offset))
        self.offset_value = nn.Parameter(torch.empty(self.n_heads, d // self.n_heads, n_offset))
        self.out = nn.Linear(d, d)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(d), mlp(d, config)) for _ in range(config.n_layers))
        self.norm = nn.LayerNorm(d)
        if n_offset:
            for weight in (self.offset_key, self.offset_value):
                nn.init.trunc_normal_(weight, std=0.02)

    def forward(self, batch: NeighborhoodBatch) -> Tensor:
        """Embeddings, (B, d)."""
        cells = self.project(batch.features)  # (M, d)
        cells = cells + self.cell_mlp(cells)
        normed = self.norm_cell(cells)
        k, v = self.key_value(normed).unflatten(-1, (2, self.n_heads, -1)).permute(1, 2, 0, 3)  # (heads, M, d / heads)
        centre = batch.token[:, 0]
        q = self.query(normed[centre]).unflatten(-1, (self.n_heads, -1)).transpose(0, 1)  # (heads, B, d / heads)
        position = self.encode_offset(batch.offset)  # (B, L, p)
        token = batch.token.expand(self.n_heads, -1, -1)  # (heads, B, L)

        # All B × M products and a gather of scalars cost less than a gather of B × L vectors: M is a few B.
        score = (q @ k.transpose(1, 2)).gather(2, token)
        score = score + torch.einsum("hbp,blp->hbl", q @ self.offset_key, position)
        score = score / math.sqrt(q.shape[-1])
        weight = score.masked_fill(~batch.mask, -torch.inf).softmax(-1)  # (heads, B, L)
        pooled = weight.new_zeros(*weight.shape[:2], k.shape[1]).scatter_add(2, token, weight) @ v
        where = torch.einsum("hbl,blp->hbp", weight, position)
        pooled = pooled + where @ self.offset_value.transpose(1, 2)  # (heads, B, d / heads)

        x = cells[centre] + self.out(pooled.transpose(0, 1).flatten(-2))
        for block in self.blocks:
            x = x + block(x)
        return self.norm(x)


def mlp(d: int, config: NeighborhoodConfig) -> nn.Sequential:
    """The two-layer perceptron of a block."""
    hidden = int(d * config.mlp_ratio)
    return nn.Sequential(nn.Linear(d, hidden), nn.GELU(), nn.Dropout(config.dropout), nn.Linear(hidden, d))


def neighborhood_network(config: NeighborhoodConfig) -> NeighborhoodTransformer | NeighborhoodPooling:
    """The network that ``config`` names."""
    return NeighborhoodPooling(config) if config.architecture == "pooling" else NeighborhoodTransformer(config)
