"""A module in which a name was changed, as CONTRIBUTING.md says."""

from typing import Any

from blockkit.renaming import renamed


def reconstruct(image: float) -> float:
    """Return an image as it is."""
    return image


def __getattr__(name: str) -> Any:
    if name == "recon":
        return renamed(__name__, name, "reconstruct", gone_in="0.4")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
