"""``nk.settings``: defaults that a user sets once, in Python or by ``NICHEKD_*`` environment variables."""

from __future__ import annotations

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Package-wide defaults; an argument of a call always wins."""

    model_config = SettingsConfigDict(env_prefix="NICHEKD_", validate_assignment=True, extra="forbid")

    encoder: str = Field(default="uni2", description="Image encoder where no features have been written yet.")
    device: str = Field(
        default="auto", description="Lightning Fabric's accelerator: auto, cpu, cuda, mps; one of several as cuda:1."
    )
    progress: bool = Field(default=True, description="Show progress bars.")


settings = Settings()


def accelerator_and_devices(device: str | None = None) -> tuple[str, list[int] | int]:
    """Lightning's two arguments for ``device`` (``None``: ``nk.settings.device``), which may name one of several."""
    accelerator, _, number = (device or settings.device).partition(":")
    return accelerator, [int(number)] if number else 1
