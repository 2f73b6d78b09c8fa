"""The mean of several sites' organs as an organ of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from not_fed.aggregation.mean import WeightedMean
from not_fed.errors import FitError
from not_fed.organ.organ import Manifest, OrganInfo, read_organ


class OrgansDiffer(FitError):
    """These organs were not cut from the same place of the same base, so they have no mean."""

    code = "organs-differ"


class OrganMean:
    """Adds organs one at a time; all must agree in blood type, base, span and the span's original digest.

    The result names its parents by digest. Its claim is the weakest of theirs: with disjoint records every record is
    protected at least that well, and if one parent claims nothing, neither does the mean.
    """

    def __init__(self) -> None:
        self._mean = WeightedMean()
        self._manifest: Manifest | None = None
        self._parents: list[tuple[str, float]] = []
        self._claims: list[Mapping[str, Any] | None] = []

    def add(self, organ: Path, *, weight: float = 1.0) -> None:
        """Add one organ; raises OrgansDiffer, TensorsDiffer or BadWeight, and then nothing was added."""
        info = read_organ(organ)
        mine = replace(info.manifest, training=None, parents=())
        if self._manifest is not None and mine != self._manifest:
            raise OrgansDiffer(
                where=organ.name,
                expected=f"base {self._manifest.base_sha256[:16]}…, layers {self._manifest.span}",
                got=f"base {mine.base_sha256[:16]}…, layers {mine.span}",
                hint="aggregate organs of one base and one span",
            )
        self._mean.add(organ, weight=weight)
        self._manifest = mine
        self._parents.append((info.sha256, weight))
        self._claims.append(info.manifest.training.get("dp") if info.manifest.training else None)

    def write(self, out: Path) -> OrganInfo:
        """Write the weighted mean; its manifest lists parents and weights."""
        if self._manifest is None:
            raise OrgansDiffer(
                where="mean of organs", expected="at least one organ", got="none", hint="wait for an organ"
            )
        how = {"mode": "mean", "weights": dict(sorted(self._parents)), "dp": _weakest(self._claims)}
        manifest = replace(self._manifest, training=how, parents=tuple(sorted(sha for sha, _ in self._parents)))
        self._mean.write(out, metadata=manifest.as_metadata())
        return read_organ(out)


def mean_organs(organs: Iterable[Path], *, out: Path) -> OrganInfo:
    """The equal-weight mean of some organ files, in a fixed order, so that every site gets the same bytes."""
    mean = OrganMean()
    for organ in sorted(organs, key=lambda path: read_organ(path).sha256):
        mean.add(organ)
    return mean.write(out)


def _weakest(claims: Sequence[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """The largest epsilon, or none at all if one organ claims none or another delta or unit makes them incomparable."""
    real = [claim for claim in claims if claim]
    same = {(claim["delta"], claim["unit"]) for claim in real}
    if not real or len(same) != 1 or len(real) != len(claims):
        return None
    return max(real, key=lambda claim: float(claim["epsilon"]))
