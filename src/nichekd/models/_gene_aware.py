"""An image encoder that has seen genes: a pyramid of features, read off at cells, that predicts their expression."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nichekd.models._architectures import build_architecture, register_architecture
from nichekd.models._patch_tokens import VIT_MODULES, PatchTokens

STRIDE = 8  # of the embedding maps
SMALL_CNN = "small_cnn"
SMALL_CHANNELS = (32, 64, 128, 192)  # at strides 4, 8, 16 and 32


class SmallCNN(nn.Module):
    """A residual network of 0.9 M parameters to be trained from nothing; feature maps at strides 8, 16 and 32."""

    def __init__(self) -> None:
        super().__init__()
        first, *rest = SMALL_CHANNELS
        self.stem = nn.Sequential(
            nn.Conv2d(3, first, 5, stride=4, padding=2, bias=False), nn.BatchNorm2d(first), nn.SiLU(), Residual(first)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(before, after, 3, stride=2, padding=1, bias=False),
                nn.BatchNorm2d(after),
                nn.SiLU(),
                Residual(after),
            )
            for before, after in zip((first, *rest[:-1]), rest, strict=True)
        )

    @property
    def channels(self) -> list[int]:
        """Of the three feature maps."""
        return list(SMALL_CHANNELS[1:])

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b, 3, h, w) → maps (b, c, h / stride, w / stride)."""
        x = self.stem(x)
        maps = []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


class Residual(nn.Module):
    """Depthwise 5 × 5, then an MLP a pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, channels, 5, padding=2, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.Conv2d(channels, 2 * channels, 1),
            nn.SiLU(),
            nn.Conv2d(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """(b, c, h, w) → the same shape."""
        return x + self.body(x)


class GeneAwareNetwork(nn.Module):
    """Crops in, features of the cells in them out.

    Maps of a convolutional backbone at strides 8, 16 and 32 are added up at stride 8, from the coarsest down; the patch
    tokens of a ViT are one map, which is brought to stride 8. A cell's embedding is read off there, at its centre, so
    that one crop teaches with all the cells it shows rather than with one. A crop's feature is the embedding of its
    centre.

    Parameters
    ----------
    backbone
        ``"small_cnn"``, a convolutional model or a ViT of timm, or the architecture of a ViT, as ``"uni2"``.
    n_targets, n_clusters, n_niches
        Numbers to predict a cell, and clusters and niches to tell apart; without a teacher there are no niches.
    d_model
        Length of the embedding.
    dropout
        Of the embedding, in training.
    backbone_kwargs
        Further arguments of the backbone.
    """

    def __init__(
        self,
        backbone: str,
        n_targets: int,
        n_clusters: int,
        *,
        n_niches: int = 0,
        d_model: int = 96,
        dropout: float = 0.2,
        backbone_kwargs: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.backbone, channels = build_backbone(backbone, **(backbone_kwargs or {}))
        self.lateral = nn.ModuleList(nn.Conv2d(c, d_model, 1) for c in channels)
        self.smooth = nn.Sequential(
            nn.Conv2d(d_model, d_model, 3, padding=1, bias=False), nn.BatchNorm2d(d_model), nn.SiLU()
        )
        self.embed = nn.Sequential(
            nn.LayerNorm(d_model), nn.Dropout(dropout), nn.Linear(d_model, d_model), nn.GELU(), nn.Dropout(dropout)
        )
        self.targets = nn.Linear(d_model, n_targets)
        self.clusters = nn.Linear(d_model, n_clusters)
        self.niches = nn.Linear(d_model, n_niches) if n_niches else None

    def maps(self, crops: Tensor) -> Tensor:
        """Embedding maps at stride 8, (b, d, h / 8, w / 8)."""
        total: Any = None
        for lateral, found in zip(reversed(self.lateral), reversed(self.backbone(crops)), strict=True):
            level = lateral(found)
            if total is not None:
                level = level + F.interpolate(total, size=level.shape[-2:], mode="bilinear", align_corners=False)
            total = level
        if isinstance(self.backbone, PatchTokens):
            size = [math.ceil(side / STRIDE) for side in crops.shape[-2:]]
            total = F.interpolate(total, size=size, mode="bilinear", align_corners=False)
        return self.smooth(total)

    def at(self, crops: Tensor, points: Tensor) -> Tensor:
        """Embeddings (b, p, d) at ``points`` (b, p, 2), in pixels of the crop, column and row."""
        grid = 2 * points / crops.new_tensor([crops.shape[-1], crops.shape[-2]]) - 1
        maps = self.maps(crops)
        sampled = F.grid_sample(
            maps, grid[:, :, None].to(maps.dtype), padding_mode="border", align_corners=False
        )  # (b, d, p, 1)
        return self.embed(sampled[..., 0].transpose(1, 2).float())

    def predict(self, embedding: Tensor) -> list[Tensor]:
        """Targets (…, n_targets), cluster logits (…, n_clusters) and, with a teacher, niche logits (…, n_niches)."""
        heads = [self.targets, self.clusters, *([] if self.niches is None else [self.niches])]
        return [head(embedding) for head in heads]

    def forward(self, crops: Tensor) -> Tensor:
        """Embeddings of the centres, (b, d_model): what the targets are predicted from."""
        centre = crops.new_tensor([crops.shape[-1] / 2, crops.shape[-2] / 2], dtype=torch.float32)
        return self.at(crops, centre.expand(len(crops), 1, 2))[:, 0]


def build_backbone(name: str, **kwargs: Any) -> tuple[nn.Module, list[int]]:
    """A backbone without weights and its maps' channels: at strides 8, 16 and 32, or of a ViT's patches.

    Raises
    ------
    ValueError
        If there is no such network, or it has no such maps.
    """
    if name == SMALL_CNN:
        small = SmallCNN()
        return small, small.channels
    import timm
    from timm.models import is_model_in_modules

    if is_model_in_modules(name, VIT_MODULES):
        any_size = kwargs | {"num_classes": 0, "dynamic_img_size": True}
        vit = timm.create_model(name, pretrained=False, **any_size)
    elif timm.is_model(name):
        return _pyramid(name, **kwargs)
    else:
        vit = build_architecture(name, **kwargs)
    tokens = PatchTokens(vit)
    return tokens, tokens.channels


def _pyramid(name: str, **kwargs: Any) -> tuple[nn.Module, list[int]]:
    import timm

    probe: Any = timm.create_model(name, features_only=True, pretrained=False, **kwargs)
    strides = probe.feature_info.reduction()
    wanted = [i for i, stride in enumerate(strides) if stride in (8, 16, 32)]
    if [strides[i] for i in wanted] != [8, 16, 32]:
        raise ValueError(
            f"{name!r} has feature maps at strides {strides}; a gene-aware encoder needs 8, 16 and 32. Take a "
            "convolutional network, e.g. 'efficientnet_lite0', or a plain ViT, e.g. 'vit_small_patch16_224'."
        )
    backbone: Any = timm.create_model(name, features_only=True, pretrained=False, out_indices=wanted, **kwargs)
    return backbone, backbone.feature_info.channels()


def build_gene_aware(**kwargs: Any) -> nn.Module:
    """For :func:`nichekd.models.register_architecture`."""
    return GeneAwareNetwork(**kwargs)


register_architecture("gene_aware", build_gene_aware)
