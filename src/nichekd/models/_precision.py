"""Which arithmetic a frozen network runs in, and on which device."""

from __future__ import annotations

from typing import Literal, get_args

import torch

Precision = Literal["auto", "32", "bf16"]


def resolve_device(device: str) -> torch.device:
    """A device by name; ``"auto"`` is CUDA, then Apple's MPS, then the CPU.

    Raises
    ------
    ValueError
        If torch knows no such device, or this machine has none.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        found = torch.device("cuda" if device == "gpu" else device)
    except RuntimeError as err:
        raise ValueError(f"device={device!r} is none that torch knows; choose 'auto', 'cpu', 'cuda' or 'mps'.") from err
    n_devices = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}
    there = n_devices.get(found.type, 0)
    if (found.index or 0) >= there:
        raise ValueError(
            f"device={device!r}, but torch {torch.__version__} finds {there} devices of type {found.type!r} here. "
            "Take device='auto' or 'cpu', or install a torch built for that device."
        )
    return found


def resolve_precision(precision: Precision, device: torch.device, bf16_on: tuple[str, ...]) -> Literal["32", "bf16"]:
    """What ``"auto"`` means: bf16 where the encoder was found to bear it and the hardware has it, else float32.

    Parameters
    ----------
    precision
        ``"auto"``, ``"32"`` or ``"bf16"``.
    device
        Where the network runs.
    bf16_on
        Types of device on which the encoder bears bf16.

    Raises
    ------
    ValueError
        If ``precision`` is another word.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision={precision!r}; choose one of {list(get_args(Precision))}.")
    if precision != "auto":
        return precision
    return "bf16" if device.type in bf16_on and _has_bf16(device) else "32"


def _has_bf16(device: torch.device) -> bool:
    """Whether bf16 runs natively; emulated, it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu" and hasattr(torch.cpu, "get_capabilities"):
        abilities = torch.cpu.get_capabilities()
        return bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16"))
    if device.type == "cpu" and hasattr(torch.cpu, "_is_avx512_bf16_supported"):  # until torch 2.10
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return False
