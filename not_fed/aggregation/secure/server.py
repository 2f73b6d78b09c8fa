"""The coordinator's side of the secure sum, as decisions: what counts, what is asked next, when it is over.

uploads -> partial sums -> [shares in the place of lost helpers] -> the sum. It holds one accumulator and, for a moment,
one vector, whatever the number of sites. What it may ask for follows from the signed plan; what it asks beyond that,
honest sites refuse.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np

from not_fed.aggregation.secure import capsules, masks, shamir
from not_fed.aggregation.secure.ring import CHECK_WORDS, TAIL_WORDS, Ring, Words
from not_fed.aggregation.secure.site import check_upload
from not_fed.envelope.summing import (
    VECTOR_HEAD,
    Contribution,
    Partial,
    Shares,
    SumCall,
    Upload,
    active_sha256,
    bad_paper,
    verify_paper,
)
from not_fed.errors import PeerError, TrustError
from not_fed.trust.plans import SumPlan
from not_fed.trust.roster import TrustedRoster


class TooFewUploads(PeerError):
    """Fewer sites sent an update than a sum of this plan needs; nothing was opened."""

    code = "too-few-uploads"


class HelpersLost(PeerError):
    """More helpers were lost than the plan allows for; the round is burnt."""

    code = "helpers-lost"


class TooFewShares(PeerError):
    """Too few sites gave shares in the place of a lost helper; the round is burnt."""

    code = "too-few-shares"


class MasksRemain(TrustError):
    """A mask did not cancel: some site or helper sent another vector than its secrets imply; the round is burnt."""

    code = "masks-remain"


class SumImplausible(TrustError):
    """The sum is larger than honest updates can make it; the round is burnt."""

    code = "sum-implausible"


class BadVector(TrustError):
    """A vector is not the one that its sender signed, or not of this call's length."""

    code = "bad-vector"


@dataclass(frozen=True, slots=True, kw_only=True)
class Active:
    """The set of uploads that is summed, fixed once.

    Attributes:
        labels: the signed uploads by site, sorted.
    """

    labels: Mapping[str, bytes]
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Total:
    """A sum of words, with its masks off; in a blind sum, with the sites' blinding masks still on it.

    Attributes:
        words: data, check words and weight.
        weight: the sum of the sites' weights; None in a blind sum.
        contributions: site -> what it claims, and the digest of its signed upload.
    """

    words: Words = field(repr=False)
    weight: int | None
    contributions: Mapping[str, tuple[str, Contribution]]


class ServerSum:
    """One round's secure sum at the coordinator."""

    def __init__(self, *, plan: SumPlan, call: SumCall, roster: TrustedRoster, now: datetime) -> None:
        """Raises UnsafePlan: the cohort is too small for the plan."""
        self.call, self._plan, self._roster, self._now = call, plan, roster, now
        self.rule = plan.thresholds(len(call.names))
        self.helpers = call.helpers(self.rule.helpers)
        self._ring = Ring.of(plan)
        self._total: Words = np.zeros(call.parameters + TAIL_WORDS, dtype=self._ring.dtype)
        self._labels: dict[str, bytes] = {}
        self._papers: dict[str, Upload] = {}
        self._capsules: dict[str, Mapping[str, bytes]] = {}
        self._added: set[str] = set()
        self._active: Active | None = None
        self._partials: dict[str, Partial] = {}
        self._taken: set[str] = set()
        self._missing: tuple[str, ...] | None = None
        self._shares: dict[str, Shares] = {}
        self.wrong_shares: set[str] = set()

    # -- uploads ---------------------------------------------------------------------------------------------------

    def check_upload(self, site: str, *, label: bytes, capsules_of: Mapping[str, bytes]) -> Upload:
        """A site's upload without its vector; raises BadSumPaper, BadSignature, MalformedSigned, ..."""
        paper = check_upload(label, plan=self._plan, call=self.call, site=site, roster=self._roster, now=self._now)
        found = {name: hashlib.sha256(data).hexdigest() for name, data in capsules_of.items()}
        if found != paper.capsules:
            raise bad_paper(f"capsules of {site}", "those that its upload names", "others")
        sizes = capsules.sealed_sizes(self.call.names, self.helpers, is_blind=self._plan.blind)
        if {name: len(data) for name, data in capsules_of.items()} != sizes:
            raise bad_paper(f"capsules of {site}", "as long as the plan's secrets are", "others")
        return paper

    def add_upload(self, site: str, *, label: bytes, capsules_of: Mapping[str, bytes], vector: memoryview) -> None:
        """Count an upload, and add its vector to the sum; the vector is not kept.

        Raises:
            BadVector, and as `count_upload`; nothing was added.
        """
        self.count_upload(site, label=label, capsules_of=capsules_of)
        try:
            self.add_vector(site, vector=vector)
        except BadVector:
            del self._labels[site], self._papers[site], self._capsules[site]
            raise

    def count_upload(self, site: str, *, label: bytes, capsules_of: Mapping[str, bytes]) -> None:
        """Count an upload whose vector comes later; raises as `check_upload`, and BadSumPaper for a second one."""
        if self._active is not None or site in self._labels:
            raise bad_paper(f"upload of {site}", "one of each site, before the set is fixed", "another")
        paper = self.check_upload(site, label=label, capsules_of=capsules_of)
        self._labels[site], self._papers[site], self._capsules[site] = label, paper, dict(capsules_of)

    def add_vector(self, site: str, *, vector: memoryview) -> None:
        """Add the vector of an upload that counts to the sum; raises BadVector, and then nothing was added."""
        if site not in self._papers or site in self._added:
            raise bad_paper(f"vector of {site}", "one of each upload that counts", "another")
        words = self._words(vector, expected=self._papers[site].vector_sha256, site=site)
        np.add(self._total, words, out=self._total)
        self._added.add(site)

    def close_uploads(self) -> Active:
        """Fix the set; raises TooFewUploads."""
        if len(self._labels) < self.rule.min_sites:
            raise TooFewUploads(
                where=f"round {self.call.round}", expected=f"at least {self.rule.min_sites} uploads",
                got=str(len(self._labels)), hint="nothing was opened; the uploads stay hidden",
            )  # fmt: skip
        if self._active is None:
            labels = dict(sorted(self._labels.items()))
            self._active = Active(labels=labels, sha256=active_sha256(self.call.sha256, list(labels.values())))
        return self._active

    def capsules_for(self, site: str) -> dict[str, bytes]:
        """Uploader -> what it sealed for this site, over the set."""
        return {uploader: self._capsules[uploader][site] for uploader in self._fixed().labels}

    # -- partial sums ----------------------------------------------------------------------------------------------

    def check_partial(self, site: str, *, statement: bytes) -> Partial:
        """A helper's statement without its vector; raises BadSumPaper, ..."""
        paper = verify_paper(statement, Partial, call=self.call, site=site, roster=self._roster, now=self._now)
        if site not in self.helpers or paper.active_sha256 != self._fixed().sha256:
            raise bad_paper("partial sum", "one by a helper, for the set that was fixed", f"one by {site} for another")
        return paper

    def add_partial(self, site: str, *, statement: bytes, vector: memoryview) -> None:
        """Take a helper's masks off the sum; raises BadVector, and as `count_partial`, and then nothing was taken."""
        self.count_partial(site, statement=statement)
        try:
            self.subtract_vector(site, vector=vector)
        except BadVector:
            del self._partials[site]
            raise

    def count_partial(self, site: str, *, statement: bytes) -> None:
        """Count a helper's answer whose vector comes later; raises as `check_partial`."""
        paper = self.check_partial(site, statement=statement)
        if self._missing is not None or site in self._partials:
            raise bad_paper("partial sum", "one of each helper, before shares are asked for", "another")
        self._partials[site] = paper

    def subtract_vector(self, site: str, *, vector: memoryview) -> None:
        """Take the masks of a helper that counts off the sum; raises BadVector, and then nothing was taken."""
        if site not in self._partials or site in self._taken:
            raise bad_paper(f"vector of {site}", "one of each helper that counts", "another")
        words = self._words(vector, expected=self._partials[site].vector_sha256, site=site)
        np.subtract(self._total, words, out=self._total)
        self._taken.add(site)

    def close_partials(self) -> tuple[str, ...]:
        """Helpers that gave nothing, to be stood in for; raises HelpersLost when they are too many."""
        self._fixed()
        missing = tuple(name for name in self.helpers if name not in self._partials)
        if len(missing) > self._plan.vanish:
            raise HelpersLost(
                where=f"round {self.call.round}", expected=f"at most {self._plan.vanish} lost helpers",
                got=f"{len(missing)} ({', '.join(missing)})", hint="nothing can be opened any more: a new round",
            )  # fmt: skip
        self._missing = missing
        return missing

    # -- shares ----------------------------------------------------------------------------------------------------

    def check_shares(self, site: str, *, statement: bytes) -> Shares:
        """A site's shares for the lost helpers and the set; raises BadSumPaper, ..."""
        paper = verify_paper(statement, Shares, call=self.call, site=site, roster=self._roster, now=self._now)
        active, missing = self._fixed(), self._missing or ()
        whole = set(paper.shares) == set(active.labels) and all(
            sorted(held) == list(missing) for held in paper.shares.values()
        )
        if paper.active_sha256 != active.sha256 or paper.missing != missing or not whole:
            raise bad_paper("shares", "those of the lost helpers for the set that was fixed", "others")
        return paper

    def add_shares(self, site: str, *, statement: bytes) -> None:
        """Count a site's shares; raises as `check_shares`."""
        self._shares[site] = self.check_shares(site, statement=statement)

    # -- the sum ---------------------------------------------------------------------------------------------------

    def finish(self) -> Total:
        """The sum, once every mask is off it.

        Raises:
            HelpersLost, TooFewShares; MasksRemain: the check words are not what they should be. SumImplausible.
        Guarantees: without a lie it is the sum of the sites' words, bit for bit.
        Proved by: tests/unit/test_secure_sum_losses.py::test_the_sum_is_the_plain_sum_for_every_pattern_of_losses
        """
        active = self._fixed()
        if self._added != set(active.labels) or self._taken != set(self._partials):
            raise bad_paper("secure sum", "the vector of each upload of the set and of each helper", "fewer")
        missing = self._missing if self._missing is not None else self.close_partials()
        keys = [self._lost_key(uploader, helper) for helper in missing for uploader in active.labels]
        masks.subtract_all(keys, self._total)
        check_words(self._total, sites=len(active.labels), where=f"round {self.call.round}")
        weight = None if self._plan.blind else self._weight(len(active.labels))
        found = {
            site: (hashlib.sha256(label).hexdigest(), self._papers[site].contribution)
            for site, label in active.labels.items()
        }
        return Total(words=self._total, weight=weight, contributions=found)

    def require_vector(
        self, site: str, *, named: str | None, got: tuple[str, int] | None, size_bytes: int
    ) -> None:  # fmt: skip
        """Hold digest and size of a vector, as a relay's label names them, against what its sender has signed here.

        Raises:
            BadVector.
        """
        if got != (None if named is None else (named, size_bytes)):
            raise BadVector(
                where=f"vector of {site}", expected="none" if named is None else f"{size_bytes:,} bytes, {named[:12]}",
                got="none" if got is None else f"{got[1]:,} bytes, {got[0][:12]}", hint="it counts as missing",
            )  # fmt: skip

    def _weight(self, sites: int) -> int:
        """The sum of weights, when it and every word can come of honest sites."""
        return check_total(self._total, plan=self._plan, sites=sites, where=f"round {self.call.round}")

    def _lost_key(self, uploader: str, helper: str) -> bytes:
        """The key of a lost helper's mask, from t shares that fit the commitment; a wrong share's signer is named."""
        call, names, expected = self.call.sha256, self.call.names, self._papers[uploader].commitments[helper]
        given = {
            names.index(site) + 1: bytes.fromhex(paper.shares[uploader][helper]) for site, paper in self._shares.items()
        }

        def fits(seed: bytes) -> bool:
            return capsules.same(capsules.commit(seed, call_sha256=call, uploader=uploader, helper=helper), expected)

        found = shamir.recover(given, threshold=self.rule.shares, fits=fits)
        if found is None:
            raise TooFewShares(
                where=f"round {self.call.round}, masks of {helper}", expected=f"{self.rule.shares} right shares",
                got=str(len(given)), hint="ask the sites that have not answered, or begin a new round",
            )  # fmt: skip
        seed, wrong = found
        self.wrong_shares |= {names[place - 1] for place in wrong}
        return masks.pair_key(seed, call_sha256=call, uploader=uploader, helper=helper)

    def _fixed(self) -> Active:
        if self._active is None:
            raise bad_paper("secure sum", "a set of uploads that is fixed", "none yet")
        return self._active

    def _words(self, vector: memoryview, *, expected: str, site: str) -> Words:
        size = self._ring.vector_bytes(self.call.parameters)
        flat = memoryview(vector).cast("B")
        if (
            flat.nbytes != size
            or flat[: len(VECTOR_HEAD)] != VECTOR_HEAD
            or hashlib.sha256(flat).hexdigest() != expected
        ):
            raise BadVector(
                where=f"vector of {site}", expected=f"{size:,} bytes that it has signed", got=f"{flat.nbytes:,} others",
                hint="nothing was added; it counts as missing",
            )  # fmt: skip
        return np.frombuffer(flat, dtype=self._ring.dtype, offset=len(VECTOR_HEAD))


def check_words(words: Words, *, sites: int, where: str) -> None:
    """Whether as many sites are in a sum of words as it is said to be of; raises MasksRemain."""
    if any(int(word) != sites for word in words[-TAIL_WORDS : CHECK_WORDS - TAIL_WORDS]):
        raise MasksRemain(
            where=f"{where}, check words", expected=str(sites), got="others",
            hint="every vector is signed: whoever kept them can tell whose is wrong; nothing was used",
        )  # fmt: skip


def check_total(words: Words, *, plan: SumPlan, sites: int, where: str) -> int:
    """The sum of weights behind a sum of words, when honest sites can have made it; `words` has no mask on it.

    Raises:
        SumImplausible.
    """
    ring = Ring.of(plan)
    weight = int(words[-1])
    largest = weight * ring.levels
    numbers = words[:-TAIL_WORDS]
    step = 1 << 20
    signed = (ring.numbers(numbers[start : start + step]) for start in range(0, len(numbers), step))
    if not sites <= weight <= sites * plan.max_weight or any(np.abs(part).max(initial=0) > largest for part in signed):
        raise SumImplausible(
            where=where, expected="a sum that honest updates can have", got="a larger one",
            hint="some site sent what its own client would have cut; nothing was used",
        )  # fmt: skip
    return weight
