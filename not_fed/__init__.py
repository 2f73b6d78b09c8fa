"""Federated training of neural organs: records stay home; a signed, sealed span of a model's layers travels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    __version__: str


def __getattr__(name: str) -> str:  # PEP 562: importlib.metadata costs every command 30 ms, and one needs it
    if name == "__version__":
        from importlib.metadata import version

        return version("not-fed")
    raise AttributeError(f"module {__name__} has no attribute {name}")
