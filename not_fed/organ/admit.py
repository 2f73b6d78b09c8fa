"""Let an organ of somebody else in: it fits exactly and holds finite numbers, or it is refused before it spoils a mean."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import safe_open

from not_fed.errors import FitError, InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.fit import check_fit
from not_fed.organ.organ import OrganInfo, read_organ


class OtherSpan(FitError):
    """This organ was cut from other layers than this federation's."""

    code = "organ-other-span"


class NotFinite(InputError):
    """This organ holds NaN or infinity."""

    code = "organ-not-finite"


def admit(path: Path, *, base: Base, span: Span) -> OrganInfo:
    """Read an organ that somebody sent.

    Raises:
        NotAnOrgan, FitError: it is not an organ of this span of this base. NotFinite: NaN or infinity in a tensor.
    """
    organ = read_organ(path)
    if organ.span != span:
        raise OtherSpan(where=path.name, expected=f"layers {span}", got=f"layers {organ.span}", hint="ask its sender which plan they follow")
    check_fit(organ, base=base)
    with safe_open(path, framework="pt") as tensors:
        for name in organ.places:
            if not bool(torch.isfinite(tensors.get_tensor(name)).all()):
                raise NotFinite(where=f"{path.name}, tensor {name[:100]}", expected="finite numbers", got="NaN or infinity",
                                hint="it was left out; its sender's training has diverged")  # fmt: skip
    return organ
