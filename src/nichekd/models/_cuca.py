"""CUCA: cell-type abundances from image features, with gene expression as a second modality in training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nichekd.models._rank_by_gene import Standardize
from nichekd.models._rank_losses import info_nce
from nichekd.models._whiten import Whiten

if TYPE_CHECKING:
    from numpy.typing import NDArray

Align = Literal["rmse", "infonce", "cosine"]
ALIGNMENTS: tuple[Align, ...] = ("infonce", "rmse", "cosine")
TINY = 1e-8  # below the root: its slope at 0 is infinite
ALIGNED = 128  # dimensions of the space that both modalities are mapped to, but for "rmse", which has none


@dataclass(frozen=True)
class CucaConfig:
    """Sizes of the network; the defaults are the published ones :cite:`Yan2025`.

    Attributes
    ----------
    n_features, n_types
        Length of the image features, and number of cell types.
    width
        Of the embedding.
    gene_width
        Of the gene branch, which is there in training only.
    dropout
        Between layers.
    n_components
        Read so many principal components of the features, whitened, instead of the features; ``None``: the features.
    """

    n_features: int
    n_types: int
    width: int = 512
    gene_width: int = 1024
    dropout: float = 0.25
    n_components: int | None = None


class ImageProjector(nn.Module):
    """Image features to the embedding z, which is not negative: three linear layers, normalised by batch."""

    def __init__(self, config: CucaConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in in (config.n_components or config.n_features, config.width):
            layers += [nn.Linear(n_in, config.width), nn.BatchNorm1d(config.width), nn.ReLU()]
            layers.append(nn.Dropout(config.dropout))
        last = [nn.Linear(config.width, config.width), nn.BatchNorm1d(config.width), nn.ReLU()]
        self.layers = nn.Sequential(*layers, *last)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) → (B, width)."""
        return self.layers(features)


class CucaNetwork(nn.Module):
    """Image features to abundances; all that is needed for inference.

    Parameters
    ----------
    config
        Sizes.
    """

    type_scale: Tensor

    def __init__(self, config: CucaConfig) -> None:
        super().__init__()
        n = config.n_components
        self.standardize = Standardize(config.n_features) if n is None else Whiten(config.n_features, n)
        self.projector = ImageProjector(config)
        self.head = nn.Linear(config.width, config.n_types)
        self.register_buffer("type_scale", torch.ones(config.n_types))

    def scale_features(self, sample: NDArray[np.floating]) -> None:
        """Take means and variances of features, or of their components, from training cells (n, F)."""
        if isinstance(self.standardize, Whiten):
            self.standardize.fit(sample)
        else:
            rows = sample.astype(np.float64)
            self.standardize.fit(rows.mean(axis=0), rows.std(axis=0))

    def scale_types(self, sd: NDArray[np.floating]) -> None:
        """Let the head predict in units of each type's standard deviation (K,), so that rare types count as much."""
        spread = torch.as_tensor(sd, dtype=torch.float32)
        self.type_scale.copy_(torch.where(spread > 0, spread, 1.0))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Unclipped abundances in units of ``type_scale``, (B, K), and the embedding, (B, width)."""
        return self.of_scaled(self.standardize(features))

    def of_scaled(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The same of what :attr:`standardize` made of features."""
        z = self.projector(rows)
        return self.head(z), z

    def abundance(self, scaled: Tensor) -> Tensor:
        """What the head says as abundances, none negative, (B, K)."""
        return scaled.clamp_min(0) * self.type_scale


class GeneBranch(nn.Module):
    """Log-normalised expression to the embedding g, and back.

    Parameters
    ----------
    n_genes
        Genes in.
    config
        Sizes.
    """

    def __init__(self, n_genes: int, config: CucaConfig) -> None:
        super().__init__()

        def hidden(n_in: int, n_out: int) -> list[nn.Module]:
            return [nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(config.dropout)]

        wide = config.gene_width
        self.encoder = nn.Sequential(*hidden(n_genes, wide), *hidden(wide, wide), nn.Linear(wide, config.width))
        self.decoder = nn.Sequential(*hidden(config.width, config.width), nn.Linear(config.width, n_genes))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                nn.init.zeros_(module.bias)

    def forward(self, genes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, G) → g, (B, width), and the genes decoded from it, (B, G)."""
        g = self.encoder(genes)
        return g, self.decoder(g)


def rmse(a: Tensor, b: Tensor) -> Tensor:
    r""":math:`\sqrt{\mathrm{mean}((a - b)^2) + \epsilon}`, whose gradient is finite where both are the same."""
    return ((a - b).square().mean() + TINY).sqrt()


class CucaObjective(nn.Module):
    r"""The loss, with the gene branch it needs.

    .. math:: \lambda_1 \, \mathrm{rmse}(\hat Y, Y) + \lambda_2 \, \mathrm{rmse}(\hat X, X) + \lambda_3 \,
              \mathrm{align}(z, g)

    Parameters
    ----------
    config
        Sizes.
    n_genes
        Genes of the gene branch.
    align
        ``"rmse"``, as published, between z, which is never negative, and g, which may be; ``"infonce"``, the
        contrastive loss both ways, or ``"cosine"``, 1 − cosine, between linear maps of both into a space of their own;
        ``None``: no gene branch, the first term alone.
    weights
        :math:`\lambda_1, \lambda_2, \lambda_3`.
    temperature
        Of ``"infonce"``.
    """

    def __init__(
        self,
        config: CucaConfig,
        n_genes: int,
        *,
        align: Align | None,
        weights: tuple[float, float, float],
        temperature: float = 0.1,
    ) -> None:
        super().__init__()
        self.align, self.weights, self.temperature = align, weights, temperature
        self.genes = None if align is None else GeneBranch(n_genes, config)
        maps = align in {"infonce", "cosine"}
        self.map_z = nn.Linear(config.width, ALIGNED) if maps else nn.Identity()
        self.map_g = nn.Linear(config.width, ALIGNED) if maps else nn.Identity()

    def forward(self, scaled: Tensor, z: Tensor, target: Tensor, genes: Tensor | None) -> dict[str, Tensor]:
        """Terms of the loss, unweighted, and their weighted sum, ``"loss"``.

        Parameters
        ----------
        scaled, target
            Abundances predicted and true in units of the network's ``type_scale``, (B, K).
        z
            Image embedding, (B, width).
        genes
            (B, G); not looked at without a gene branch.
        """
        terms = {"abundance": rmse(scaled, target)}
        if self.genes is not None and genes is not None:
            g, decoded = self.genes(genes)
            terms["genes"] = rmse(decoded, genes)
            terms["align"] = self.aligned(z, g, target)
        total = torch.stack([weight * term for weight, term in zip(self.weights, terms.values(), strict=False)]).sum()
        return {"loss": total} | terms

    def aligned(self, z: Tensor, g: Tensor, target: Tensor) -> Tensor:
        """How far the modalities are apart; ``target`` is for variants that need to know what is alike."""
        a, b = self.map_z(z), self.map_g(g)
        if self.align == "rmse":
            return rmse(a, b)
        if self.align == "cosine":
            return 1 - F.cosine_similarity(a, b, dim=-1).mean()
        return (info_nce(a, b, self.temperature) + info_nce(b, a, self.temperature)) / 2


class CucaTraining(nn.Module):
    """Network, objective and, where it trains along, the image encoder, as one module.

    Parameters
    ----------
    network, objective
        What is trained.
    backbone
        Normalised crops to features; without it, features are handed in that the network's ``standardize`` went over.
    """

    def __init__(self, network: CucaNetwork, objective: CucaObjective, backbone: nn.Module | None = None) -> None:
        super().__init__()
        self.network, self.objective, self.backbone = network, objective, backbone

    def forward(self, images: Tensor, abundance: Tensor, genes: Tensor | None) -> dict[str, Tensor]:
        """Terms of the loss of scaled features (B, C) or crops (B, 3, p, p), abundances (B, K) and genes (B, G)."""
        rows = images if self.backbone is None else self.network.standardize(self.backbone(images))
        scaled, z = self.network.of_scaled(rows)
        return self.objective(scaled, z, abundance / self.network.type_scale, genes)
