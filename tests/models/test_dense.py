from __future__ import annotations

import numpy as np
import pytest
import timm
import torch
from torch import nn

import nichekd as nk
from nichekd.models import _uni2
from nichekd.models._dense import encode_map, pool_around


def tiles(n=2, px=64, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, (n, 3, px, px), dtype=np.uint8))


def timm_encoder(name, **options):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nk.models.Encoder(name, timm.create_model(name, pretrained=False, num_classes=0, **options))


def test_a_convolutional_map_averages_to_the_tiles_features():
    encoder = timm_encoder("resnet18")
    maps, summary = encode_map(encoder, tiles())
    assert maps.shape == (2, 512, 2, 2)
    torch.testing.assert_close(summary, encoder.encode(tiles()))
    torch.testing.assert_close(maps.mean(dim=(2, 3)), summary, rtol=1e-4, atol=1e-5)


def test_the_map_of_a_vit_is_its_patch_tokens_in_rows():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        encoder = nk.models.Encoder("uni2", _uni2.build_uni2(depth=2, num_heads=2, embed_dim=32))
    x = tiles(px=56)
    maps, summary = encode_map(encoder, x)
    assert maps.shape == (2, 32, 4, 4)
    torch.testing.assert_close(summary, encoder.encode(x), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        tokens = encoder.module.forward_features(encoder.normalise(x))
    torch.testing.assert_close(maps[:, :, 1, 2], tokens[:, 1 + 8 + 1 * 4 + 2])


def test_maps_with_channels_last():
    encoder = timm_encoder("swin_tiny_patch4_window7_224", img_size=64, window_size=2)
    maps, _ = encode_map(encoder, tiles())
    assert maps.shape == (2, 768, 2, 2)


def test_encoders_without_a_map():
    with pytest.raises(ValueError, match=r"'color'.*forward_features.*mode='crop'"):
        encode_map(nk.models.get_encoder("color"), tiles())


def test_features_that_are_no_square_map():
    class Odd(nn.Module):
        def forward_features(self, x):
            return torch.zeros(len(x), 7, 4)

        def forward_head(self, x):
            return x.mean(dim=1)

    with pytest.raises(ValueError, match="no square map"):
        encode_map(nk.models.Encoder("odd", Odd()), tiles())


def test_pooling_by_hand():
    maps = torch.arange(16.0).view(1, 1, 4, 4)
    position = torch.tensor(
        [
            [0.375, 0.625],  # the middle of column 1, row 2
            [0.5, 0.5],  # where columns 1, 2 and rows 1, 2 meet
            [0.0, 0.0],  # the corner: a quarter of the window is left
            [0.4375, 0.625],  # three quarters column 1, one quarter column 2
        ]
    )
    found = pool_around(maps, torch.zeros(4, dtype=torch.long), position, window=0.25)
    assert found.flatten().tolist() == pytest.approx([9, (5 + 6 + 9 + 10) / 4, 0, 9.25])


def test_a_window_of_the_whole_tile_is_the_mean():
    maps = torch.rand(3, 5, 4, 4)
    found = pool_around(maps, torch.arange(3), torch.full((3, 2), 0.5), window=1)
    torch.testing.assert_close(found, maps.mean(dim=(2, 3)))


def test_positions_are_pooled_in_their_own_tile():
    generator = torch.Generator().manual_seed(0)
    maps = torch.rand(4, 3, 5, 6, generator=generator)
    tile = torch.tensor([0, 0, 0, 2, 3, 3])  # none in tile 1
    position = torch.rand(6, 2, generator=generator)
    found = pool_around(maps, tile, position, window=0.3)
    for i in range(6):
        alone = pool_around(maps[tile[i]][None], torch.zeros(1, dtype=torch.long), position[i][None], window=0.3)
        torch.testing.assert_close(found[i], alone[0])
