from __future__ import annotations

import pytest
import torch
from torch import nn

from nichekd.models import Encoder
from nichekd.models._encoder_zoo import build_timm
from nichekd.models._gene_aware import GeneAwareNetwork, build_backbone
from nichekd.models._patch_tokens import PatchTokens

TINY = {"img_size": 32, "embed_dim": 32, "depth": 1, "num_heads": 2}


def network(name="vit_tiny_patch16_224", **changes):
    torch.manual_seed(0)
    kwargs = TINY | changes
    return GeneAwareNetwork(name, n_targets=4, n_clusters=3, d_model=16, backbone_kwargs=kwargs).eval()


@pytest.fixture
def crops():
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("name", "changes", "n_prefix"),
    [
        ("vit_tiny_patch16_224", {}, 1),
        ("vit_tiny_patch16_224", {"class_token": True, "reg_tokens": 4}, 5),
        ("deit_tiny_distilled_patch16_224", {}, 2),
        ("eva02_tiny_patch14_224", {"img_size": 28}, 1),
    ],
)
def test_patches_lie_in_rows_and_the_cls_token_beside_each(name, changes, n_prefix):
    tokens, channels = build_backbone(name, **TINY | changes)
    px = tokens.patch_px
    x = torch.randn(2, 3, 2 * px, 3 * px, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        (found,) = tokens.eval()(x)
        sequence = tokens.vit.forward_features(x)
    assert sequence.shape[1] == n_prefix + 6
    assert found.shape == (2, *channels, 2, 3)
    torch.testing.assert_close(found[:, :32, 1, 2], sequence[:, n_prefix + 1 * 3 + 2])
    torch.testing.assert_close(found[:, 32:, 0, 1], sequence[:, 0])


def test_no_cls_token_no_channels_of_it():
    tokens, channels = build_backbone("vit_tiny_patch16_224", **TINY, class_token=False, global_pool="avg")
    with torch.no_grad():
        (found,) = tokens(torch.zeros(1, 3, 32, 32))
    assert channels == [32]
    assert found.shape == (1, 32, 2, 2)


@pytest.mark.parametrize(("name", "px"), [("vit_tiny_patch16_224", 96), ("uni2", 70), ("vit_small_patch32_224", 64)])
def test_embeddings_lie_at_a_stride_of_eight(name, px):
    with torch.no_grad():
        maps = network(name).maps(torch.zeros(1, 3, px, px))
    assert maps.shape == (1, 16, -(-px // 8), -(-px // 8))


def test_feature_of_a_crop_is_read_off_at_its_centre(crops):
    vit = network()
    with torch.no_grad():
        assert torch.allclose(vit(crops), vit.at(crops, torch.full((2, 1, 2), 32.0))[:, 0])


def test_a_point_reads_the_patch_under_it(crops):
    """With the CLS token and the other patches' say left out: column before row, in pixels."""
    vit = network()
    with torch.no_grad():
        vit.backbone.vit.blocks[0].attn.proj.weight.zero_()  # no patch hears of another
        other = crops.clone()
        other[:, :, 0:16, 48:64] += 3.0  # the upper right patch
        change = (vit.at(other, POINTS) - vit.at(crops, POINTS)).norm(dim=-1)
    assert (change[:, 0] > 0.01).all()
    assert (change[:, 1] < 1e-5).all()


POINTS = torch.tensor([[[60.0, 4.0], [4.0, 60.0]]]).expand(2, -1, -1)


def test_a_fixed_size_is_told():
    vit = build_timm("vit_tiny_patch16_224", **TINY)
    assert PatchTokens(vit).crop_px == 32
    assert network().backbone.crop_px is None


def test_not_a_vision_transformer():
    with pytest.raises(ValueError, match=r"A Linear shows no map.*'efficientnet_lite0', 'uni2'"):
        PatchTokens(nn.Linear(1, 1))


def test_encoder_survives_its_folder(tmp_path):
    vit = network()
    kwargs = {
        "backbone": "vit_tiny_patch16_224", "n_targets": 4, "n_clusters": 3, "d_model": 16, "backbone_kwargs": TINY,
    }  # fmt: skip
    encoder = Encoder("gene_aware", vit, multiple_px=16, architecture="gene_aware", architecture_kwargs=kwargs)
    again = Encoder.load(encoder.save(tmp_path / "encoder"))
    x = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    assert again.fingerprint == encoder.fingerprint
    assert again.multiple_px == 16
    assert torch.equal(again.encode(x), encoder.encode(x))
