"""The patch tokens of a vision transformer as a map of features."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

VIT_MODULES = ("vision_transformer", "deit", "eva")  # of timm: ViTs that take images of any size


class PatchTokens(nn.Module):
    """A ViT's patch tokens after its last block, as one map at the stride of its patches.

    Beside each patch stands the CLS token, where there is one: what the ViT says of the image as a whole.

    Parameters
    ----------
    vit
        ``VisionTransformer`` or ``Eva`` of timm.

    Raises
    ------
    ValueError
        If it is neither.
    """

    def __init__(self, vit: nn.Module) -> None:
        from timm.models import Eva, VisionTransformer

        super().__init__()
        if not isinstance(vit, (VisionTransformer, Eva)):
            raise ValueError(
                f"A {type(vit).__name__} shows no map that a gene-aware encoder could read off, for it is no ViT of timm. "
                "Take 'efficientnet_lite0', 'uni2', or another model of timm."
            )
        self.vit: Any = vit

    @property
    def patch_px(self) -> int:
        """Side of a patch."""
        return int(self.vit.patch_embed.feat_ratio())

    @property
    def crop_px(self) -> int | None:
        """The only side of an image that it takes; ``None`` if any multiple of the patch will do."""
        return None if self.vit.dynamic_img_size else int(self.vit.patch_embed.img_size[0])

    @property
    def channels(self) -> list[int]:
        """Of the one map."""
        return [self.vit.embed_dim * (1 if self.vit.cls_token is None else 2)]

    def forward(self, x: Tensor) -> list[Tensor]:
        """(b, 3, h, w) → one map (b, c, h / patch, w / patch)."""
        tokens = self.vit.forward_features(x).transpose(1, 2)  # (b, d, prefix + patches)
        grid = [side // self.patch_px for side in x.shape[-2:]]
        patches = tokens[..., self.vit.num_prefix_tokens :].unflatten(2, grid)
        if self.vit.cls_token is None:
            return [patches]
        return [torch.cat([patches, tokens[..., :1, None].expand_as(patches)], dim=1)]
