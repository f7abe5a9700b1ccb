"""Low-rank adapters in the last blocks of a vision transformer, by peft."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from torch import Tensor

LINEAR = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
MARK = "lora_"  # in the name of each adapter's tensor, by peft


@dataclass(frozen=True)
class LoraSettings:
    r"""Low-rank adaptation :cite:`Hu2022` of an image encoder; the defaults are CUCA's.

    A linear layer :math:`Wx` becomes :math:`Wx + \frac{\alpha}{r} B A x`; W stays as it is.

    Attributes
    ----------
    r
        Rank of B A.
    alpha
        :math:`\alpha`.
    dropout
        Of what goes into A, in training.
    blocks
        Blocks at the end of the transformer whose linear layers get one.
    """

    r: int = 8
    alpha: float = 16
    dropout: float = 0.1
    blocks: int = 2

    def __post_init__(self) -> None:
        if self.r < 1 or self.blocks < 1 or not 0 <= self.dropout < 1 or not self.alpha > 0:
            raise ValueError(f"{self}: r and blocks are at least 1, alpha is above 0, and dropout from 0 to below 1.")


def adapted_layers(module: nn.Module, n_blocks: int) -> list[str]:
    """Names of the linear layers in the last blocks of a ViT.

    Raises
    ------
    ValueError
        If the module is no ViT of timm, or has fewer blocks.
    """
    blocks: Any = getattr(module, "blocks", None)
    if not isinstance(blocks, (nn.Sequential, nn.ModuleList)) or not hasattr(blocks[0], "attn"):
        raise ValueError(
            f"A {type(module).__name__} has no transformer blocks for lora= to adapt. Take features of a ViT of timm, "
            "such as encoder='uni2', or leave lora= out."
        )
    if n_blocks > len(blocks):
        raise ValueError(
            f"lora= adapts {n_blocks} blocks, but the encoder has {len(blocks)}. Lower LoraSettings.blocks."
        )
    names = [f"blocks.{i}.{layer}" for i in range(len(blocks) - n_blocks, len(blocks)) for layer in LINEAR]
    there = dict(module.named_modules())
    return [name for name in names if isinstance(there.get(name), nn.Linear)]


def add_lora(module: nn.Module, settings: LoraSettings) -> nn.Module:
    """Put adapters into ``module``, in place, which do nothing yet; they alone are left to train.

    Raises
    ------
    ImportError
        If peft is not installed.
    ValueError
        If the module is no ViT of timm, or has too few blocks.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as err:
        raise ImportError(
            'lora= needs peft, which is not installed. Run `pip install "nichekd[lora]"`, or leave lora= out.'
        ) from err
    config = LoraConfig(
        r=settings.r,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # a float does as well
        lora_dropout=settings.dropout,
        bias="none",
        target_modules=adapted_layers(module, settings.blocks),
    )
    module.requires_grad_(False)
    inject_adapter_in_model(config, module)
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(MARK in name)
    return module


def lora_state(module: nn.Module) -> dict[str, Tensor]:
    """The adapters' tensors by name, on the CPU."""
    return {name: value.detach().cpu().contiguous() for name, value in module.state_dict().items() if MARK in name}


def load_lora(module: nn.Module, state: dict[str, Tensor]) -> nn.Module:
    """Give adapters the tensors of :func:`lora_state`.

    Raises
    ------
    ValueError
        If they are not the module's.
    """
    own = {name for name in module.state_dict() if MARK in name}
    if own != set(state):
        raise ValueError(f"The adapters are of another encoder: {len(own ^ set(state))} of their names differ.")
    module.load_state_dict(state, strict=False)
    return module


def merge_lora(module: nn.Module) -> nn.Module:
    """Add the adapters to the layers they adapt, in place, and take them out: an ordinary module, which needs no peft."""
    from peft.tuners.lora import LoraLayer

    adapted: dict[str, Any] = {name: m for name, m in module.named_modules() if isinstance(m, LoraLayer)}
    for name, layer in adapted.items():
        layer.merge()
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, layer.get_base_layer())
    if hasattr(module, "peft_config"):
        del module.peft_config  # peft's own, in whose presence it warns of a second adaptation
    return module
