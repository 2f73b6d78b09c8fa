"""The mean of several sites' organs as an organ of its own."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from not_fed import canonical
from not_fed.aggregation.mean import WeightedMean
from not_fed.envelope.claims import AuditResult, DpClaim, ledger_head_from_training, releases_from_training
from not_fed.envelope.header import MAX_METADATA_BYTES
from not_fed.envelope.manifest import KEY
from not_fed.envelope.passport import Passport
from not_fed.envelope.summing import Contribution
from not_fed.errors import FitError, TrustError
from not_fed.organ.claims import check_claim
from not_fed.organ.organ import Manifest, OrganInfo, read_organ
from not_fed.organ.writing import write_safetensors

_NAMES: Final = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class OrgansDiffer(FitError):
    """These organs were not cut from the same place of the same base, so they have no mean."""

    code = "organs-differ"


class ClaimsDiffer(TrustError):
    """An organ file claims another privacy or audit than the passport that its author signed."""

    code = "claims-differ"


def check_claims(organ: OrganInfo, passport: Passport) -> None:
    """Check that an organ's manifest claims what its passport does, and that its mechanism gives that epsilon.

    A mean takes its claim from manifests. Opening does not ask this: the passport alone is what a recipient relies on.

    Raises:
        ClaimsDiffer, BadClaim: manifest and passport differ. ClaimTooSmall: the claim is below its own mechanism.
    Proved by: tests/attacks/test_passport.py::test_a_manifest_that_claims_another_privacy_is_left_out
    """
    training = organ.manifest.training
    noised = tuple(release for release in passport.releases if release.how == "noised")
    claims = (
        (DpClaim.from_training(training), passport.dp),
        (AuditResult.from_training(training), passport.audit),
        (releases_from_training(training), noised),
        (ledger_head_from_training(training), passport.ledger_head),
    )
    if any(inside != signed for inside, signed in claims):
        raise ClaimsDiffer(
            where=f"{organ.path.name}, manifest, field training",
            expected="the privacy claim, the audit, the noised numbers and the ledger's head of its passport",
            got="others",
            hint="use no organ that contradicts its passport; tell its author",
        )
    check_claim(passport.dp)


class OrganMean:
    """Adds organs one at a time; all must agree in blood type, base, span and the span's original digest.

    The first one sets what the others must agree with: check that each fits the base (`check_fit`) before adding it.

    The result names its parents by digest. Its claim is the weakest of theirs: with disjoint records every record is
    protected at least that well, and if one parent claims nothing, neither does the mean. When the metadata of an organ
    file has no room for all parents, one digest stands for them and their weights (`digest_parents`).
    """

    def __init__(self, *, scratch: Path | None = None) -> None:
        """`scratch`: a private folder for the sums, which lie in memory without one."""
        self._mean = WeightedMean(scratch=scratch)
        self._manifest: Manifest | None = None
        self._parents: list[tuple[str, float]] = []
        self._claims: list[DpClaim | None] = []

    def add(self, organ: Path, *, weight: float = 1.0) -> None:
        """Add one organ; raises OrgansDiffer, TensorsDiffer, BadWeight or BadClaim, and then nothing was added."""
        info = read_organ(organ)
        claim = DpClaim.from_training(info.manifest.training)
        mine = origin_of(info, like=self._manifest)
        self._mean.add(organ, weight=weight)
        self._manifest = mine
        self._parents.append((info.sha256, weight))
        self._claims.append(claim)

    def write(self, out: Path) -> OrganInfo:
        """Write the weighted mean; its manifest lists parents and weights, or their number and one digest."""
        if self._manifest is None:
            raise OrgansDiffer(
                where="mean of organs", expected="at least one organ", got="none", hint="wait for an organ"
            )
        how: dict[str, Any] = {"mode": "mean", "dp": weakest(self._claims)}
        self._write(out, describe_merged(self._manifest, how=how, parents=self._parents))
        return read_organ(out)

    def _write(self, out: Path, metadata: Mapping[str, str]) -> None:
        """Tensor by tensor, in the organs' own number format."""
        tensors = {
            name: (_NAMES[dtype], shape, dtype.itemsize * math.prod(shape))
            for name, (dtype, shape) in self._mean.tensors().items()
        }
        write_safetensors(out, tensors, metadata=metadata, blocks=lambda name: [_bytes(self._mean.tensor(name))])


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def origin_of(info: OrganInfo, *, like: Manifest | None) -> Manifest:
    """What an organ says of where it comes from, and nothing else; raises OrgansDiffer when `like` says otherwise."""
    mine = replace(info.manifest, training=None, parents=())
    if like is not None and mine != like:
        raise OrgansDiffer(
            where=info.path.name,
            expected=f"base {like.base_sha256[:16]}…, layers {like.span}",
            got=f"base {mine.base_sha256[:16]}…, layers {mine.span}",
            hint="aggregate organs of one base and one span",
        )
    return mine


def describe_merged(
    origin: Manifest, *, how: Mapping[str, Any], parents: Sequence[tuple[str, float]], more: Mapping[str, Any] = {}
) -> dict[str, str]:
    """The metadata of an organ that was made of others, named with their weights, or by number and one digest.

    Args:
        how: its training summary, without parents.
        more: what else is said where there is room for it.
    """
    listed = {**how, **more, "weights": dict(sorted(parents))}
    digests = tuple(sorted(sha for sha, _ in parents))
    metadata = replace(origin, training=listed, parents=digests).as_metadata()
    if len(metadata[KEY].encode()) > MAX_METADATA_BYTES:
        counted = {**how, "organs": len(digests)}
        metadata = replace(origin, training=counted, parents=(digest_parents(parents),)).as_metadata()
    return metadata


def describe_sum(origin: Manifest, uploads: Mapping[str, tuple[str, Contribution]]) -> dict[str, str]:
    """The metadata of the aggregate behind a secure sum: it names the signed uploads, since nobody has the organs.

    Args:
        uploads: site -> digest of its signed upload, and what it claims. What each claims is said where there is room,
            and in the aggregate's passport always: the weakest claim of all never stands alone.
    """
    claims = [contribution.dp for _, contribution in uploads.values()]
    how = {"mode": "secure-sum", "dp": weakest(claims)}
    more = {"contributors": {site: None if one.dp is None else one.dp.epsilon for site, (_, one) in uploads.items()}}
    return describe_merged(origin, how=how, parents=[(digest, 1.0) for digest, _ in uploads.values()], more=more)


def digest_parents(parents: Iterable[tuple[str, float]]) -> str:
    """SHA-256 of the sorted list of (organ's digest, weight), as canonical JSON: names a mean of many organs."""
    return hashlib.sha256(canonical.dumps([[sha, float(weight)] for sha, weight in sorted(parents)])).hexdigest()


def is_mean_of(organ: OrganInfo, parents: Sequence[tuple[str, float]]) -> bool:
    """Whether it says that it is the mean of these organs, with these weights."""
    how, named = organ.manifest.training or {}, tuple(sorted(sha for sha, _ in parents))
    if how.get("mode") != "mean":
        return False
    listed = (organ.manifest.parents, how.get("weights")) == (named, dict(parents))
    return listed or organ.manifest.parents == (digest_parents(parents),)


def mean_organs(organs: Iterable[Path], *, out: Path) -> OrganInfo:
    """The equal-weight mean of some organ files, in a fixed order, so that every site gets the same bytes."""
    mean = OrganMean()
    for organ in sorted(organs, key=lambda path: read_organ(path).sha256):
        mean.add(organ)
    return mean.write(out)


def weakest(claims: Sequence[DpClaim | None]) -> dict[str, Any] | None:
    """The largest epsilon, or none at all if one organ claims none or another delta or unit makes them incomparable."""
    real = [claim for claim in claims if claim is not None]
    if not real or len(real) != len(claims) or len({(claim.delta, claim.unit) for claim in real}) != 1:
        return None
    weakest = max(real, key=lambda claim: claim.epsilon)
    return weakest.as_training()
