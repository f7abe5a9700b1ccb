from __future__ import annotations

import pytest
import torch

from nichekd.models import Encoder
from nichekd.models._gene_aware import GeneAwareNetwork
from nichekd.models._stain import CropAugmentation


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return GeneAwareNetwork("small_cnn", n_targets=4, n_clusters=3, d_model=16).eval()


def test_feature_of_a_crop_is_read_off_at_its_centre(network):
    crops = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(network(crops), network.at(crops, torch.full((2, 1, 2), 32.0))[:, 0])


def test_point_reads_what_lies_under_it(network):
    """A bright spot changes the map where it is: column before row, in pixels."""
    dark, spot = torch.zeros(1, 3, 256, 256), torch.zeros(1, 3, 256, 256)
    spot[:, :, 20:44, 200:224] = 5.0  # rows 20 to 44, columns 200 to 224
    points = torch.tensor([[[212.0, 32.0], [32.0, 212.0]]])
    with torch.no_grad():
        change = (network.at(spot, points) - network.at(dark, points)).norm(dim=-1)[0]
    assert change[0] > 3 * change[1]


def test_backbone_without_the_maps_is_refused():
    small = {"depth": 3, "embed_dim": 32, "num_heads": 2}
    with pytest.raises(ValueError, match="strides .*8, 16 and 32"):
        GeneAwareNetwork("beit_base_patch16_224", n_targets=4, n_clusters=3, backbone_kwargs=small)


def test_timm_backbone_gives_the_same_shape():
    with torch.no_grad():
        features = GeneAwareNetwork("tf_efficientnet_lite0", n_targets=4, n_clusters=3).eval()(
            torch.zeros(2, 3, 64, 64)
        )
    assert features.shape == (2, 96)


def test_encoder_survives_its_folder(network, tmp_path):
    kwargs = {"backbone": "small_cnn", "n_targets": 4, "n_clusters": 3, "d_model": 16}
    encoder = Encoder("gene_aware", network, architecture="gene_aware", architecture_kwargs=kwargs)
    encoder.save(tmp_path / "encoder")
    again = Encoder.load(tmp_path / "encoder")
    crops = torch.randint(0, 256, (2, 3, 64, 64), dtype=torch.uint8)
    assert again.fingerprint == encoder.fingerprint
    assert torch.equal(again.encode(crops), encoder.encode(crops))


@pytest.mark.parametrize("seed", range(8))
def test_points_move_with_the_pixels(seed):
    """A marked pixel is still under its point after any turn and mirroring."""
    crops = torch.full((1, 3, 32, 32), 255, dtype=torch.uint8)
    crops[0, :, 5, 20] = 0
    augmentation = CropAugmentation(stain=0, tint=0)
    turned, points = augmentation(crops, torch.tensor([[[20.5, 5.5]]]), torch.Generator().manual_seed(seed))
    column, row = points[0, 0].floor().long()
    assert turned[0, 0, row, column] < 10
    assert (turned[0, 0] < 10).sum() == 1


def test_stain_changes_what_is_stained_most():
    crops = torch.cat([torch.full((1, 3, 8, 8), 255), torch.full((1, 3, 8, 8), 90)]).to(torch.uint8)
    augmentation = CropAugmentation(stain=0.3, tint=0, turn=False)
    stained, _ = augmentation(crops, torch.zeros(2, 1, 2), torch.Generator().manual_seed(0))
    assert (stained[0] == 255).all()
    assert (stained[1] != 90).any()


def test_no_augmentation_is_no_change():
    crops = torch.randint(1, 256, (2, 3, 8, 8), dtype=torch.uint8)
    same, _ = CropAugmentation(stain=0, tint=0, turn=False)(crops, torch.zeros(2, 1, 2), torch.Generator())
    assert torch.equal(same, crops)
