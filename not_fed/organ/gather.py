"""Organs of others: let one in, and average several. What a site and an aggregator do with organs that were opened."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from not_fed.aggregation.mean import WeightedMean
from not_fed.errors import FitError, InputError
from not_fed.organ.anatomy import Span
from not_fed.organ.organ import Manifest, OrganInfo, read_organ


class OtherPlan(FitError):
    """This organ was cut from another base or span than this federation's."""

    code = "organ-other-plan"


class NotFinite(InputError):
    """This organ holds NaN or infinity."""

    code = "organ-not-finite"


def admit(path: Path, *, base_sha256: str, span: Span) -> OrganInfo:
    """Read an organ that somebody sent, and refuse what would spoil a mean.

    Raises:
        NotAnOrgan: not an organ file. OtherPlan: another base or span. NotFinite: NaN or infinity in a tensor.
    """
    organ = read_organ(path)
    got = (organ.base_sha256, organ.span)
    if got != (base_sha256, span):
        raise OtherPlan(
            where=path.name,
            expected=f"base {base_sha256[:12]}, layers {span}",
            got=f"base {got[0][:12]}, layers {got[1]}",
            hint="it was left out; ask its sender which plan they follow",
        )
    with safe_open(path, framework="pt") as tensors:
        for name in organ.places:
            if not bool(torch.isfinite(tensors.get_tensor(name)).all()):
                raise NotFinite(
                    where=f"{path.name}, tensor {name[:100]}",
                    expected="finite numbers",
                    got="NaN or infinity",
                    hint="it was left out; its sender's training has diverged",
                )
    return organ


def mean_of(organs: Iterable[tuple[OrganInfo, float]], *, out: Path) -> OrganInfo:
    """Write the weighted mean of organs; the same organs in the same order give the same bytes anywhere.

    Args:
        organs: each with its weight; taken one at a time and not looked at again: a generator may delete behind itself.
    Raises:
        TensorsDiffer, BadWeight: they have no mean.
    """
    mean, manifests, parents = WeightedMean(), [], []
    for organ, weight in organs:
        mean.add(organ.path, weight=weight)
        manifests.append(organ.manifest)
        parents.append(organ.sha256)
    mean.write(out, metadata=_mean_manifest(manifests, parents).as_metadata() if manifests else {})
    return read_organ(out)


def _mean_manifest(manifests: list[Manifest], parents: list[str]) -> Manifest:
    training = {
        "mode": "mean",
        "organs": len(parents),
        "dp": weakest_claim([manifest.training for manifest in manifests]),
    }
    return replace(manifests[0], training=training, parents=tuple(parents))


def weakest_claim(trainings: Iterable[Mapping[str, Any] | None]) -> Mapping[str, Any] | None:
    """The claim that holds for a mean of organs of disjoint records: the largest epsilon, or none if one has none."""
    claims = [training.get("dp") if training else None for training in trainings]
    real = [claim for claim in claims if claim is not None]
    return max(real, key=lambda claim: float(claim["epsilon"])) if real and len(real) == len(claims) else None
