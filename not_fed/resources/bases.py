"""Base models by name: a folder, a hub id, or the demo's own `smollm2-135m`."""

from __future__ import annotations

from not_fed.organ.checkpoint import Base, open_base
from not_fed.progress import Progress, silent

DEMO_BASE = "smollm2-135m"


def find_base(name: str, *, progress: Progress = silent) -> Base:
    """Open a base; fetches and converts the demo's base on first use.

    Raises:
        NotABase: no such folder or hub id. PeerError: the demo's base cannot be fetched.
    """
    if name == DEMO_BASE:
        from not_fed.resources.smollm2 import smollm2_135m

        return open_base(smollm2_135m(progress), progress=progress)
    return open_base(name, progress=progress)
