"""A site's side of the secure sum, as decisions: what it sends, for whom it helps, and what it refuses.

Everything that comes is checked before the ledger is touched, and the ledger is on disk before an answer leaves. What
a call may ask for stands in the root-signed plan; the coordinator chooses nothing but the moment.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import numpy as np
from numpy.typing import NDArray

from not_fed.age import HybridIdentity, NotForThisKey, hpke, recipient_key
from not_fed.aggregation.secure import capsules, masks, shamir
from not_fed.aggregation.secure.ledger import OwnKey, SumLedger
from not_fed.aggregation.secure.ring import BLOCK_WORDS, CHECK_WORDS, Ring, Words
from not_fed.envelope.summing import (
    KEY_VALIDITY,
    VECTOR_HEAD,
    Contribution,
    Partial,
    RoundKey,
    Shares,
    SumCall,
    Upload,
    active_sha256,
    bad_paper,
    encode,
    sign_paper,
    sign_round_key,
    verify_paper,
    verify_round_key,
)
from not_fed.errors import FitError, TrustError
from not_fed.keys import Opener, Signer
from not_fed.trust.plans import SumPlan, Thresholds
from not_fed.trust.roster import TrustedRoster

_OWN_INFO: Final = encode(b"not-fed/round-key/v1", b"own")
Sink = Callable[[memoryview], object]


class NotTheSignedPlan(TrustError):
    """The call is not one under the plan that the stewards have signed."""

    code = "sum-other-plan"


class BadCapsule(TrustError):
    """What a site sealed for this one does not open, or is not what the site has signed."""

    code = "sum-bad-capsule"


class OtherLength(FitError):
    """A vector has another length than the call says."""

    code = "sum-other-length"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uploaded:
    """What a site sends in answer to a call, beside the masked words that went to the sink.

    Attributes:
        clipped: how many numbers were cut at the plan's clip: for the site's own eyes.
    """

    label: bytes
    capsules: Mapping[str, bytes]
    vector_sha256: str
    clipped: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Helped:
    """A helper's signed partial sum, beside the words that went to the sink."""

    statement: bytes
    vector_sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Opened:
    """A set of uploads that was checked, with what its capsules hold for this site."""

    active_sha256: str
    papers: Mapping[str, Upload]
    digests: Mapping[str, str]
    capsules: Mapping[str, capsules.Capsule]


class SiteSum:
    """One site's part in the secure sums of one run."""

    def __init__(
        self, *, plan: SumPlan, signer: Signer, opener: Opener, roster: TrustedRoster, ledger: SumLedger, now: datetime
    ) -> None:
        self._plan, self._signer, self._opener = plan, signer, opener
        self._roster, self._ledger, self._now = roster, ledger, now
        self._ring = Ring.of(plan)
        self._me = signer.name

    def offer_key(self) -> bytes:
        """The signed line of a sealing key for one round, fresh or not used yet."""
        return offer_key(
            self._ledger,
            signer=self._signer,
            recipient=self._opener.recipient,
            federation=self._plan.federation,
            now=self._now,
        )

    def check(self, call: SumCall, *, takes_part: bool = True) -> Thresholds:
        """Hold a call against the signed plan and, before this site seals anything to the others, the roster.

        Args:
            takes_part: whether this site uploads. To help in what others sent, it is enough that they may: whoever was
                revoked since cannot have an upload in the set, and else counts among those that may collude.
        Raises:
            NotTheSignedPlan; UnsafePlan: the cohort is too small for the plan. UnknownMember, MemberNotActive,
            WrongRole: somebody in the cohort is not on the roster.
        """
        plan = self._plan
        asked = (call.plan_sha256, call.federation, call.run)
        if asked != (plan.sha256, plan.federation, plan.run) or not 1 <= call.round <= plan.rounds:
            raise _other_plan(f"plan {plan.sha256[:12]} of run {plan.run}, of {plan.rounds} rounds", "another")
        if self._me not in call.names or not set(call.names) <= set(plan.sites):
            raise _other_plan(f"{self._me} and other sites of the plan", ", ".join(call.names))
        for name in call.names if takes_part else ():
            self._roster.member(name, role="author", now=self._now)
        return plan.thresholds(len(call.names))

    def upload(
        self,
        call: SumCall,
        *,
        keys: Mapping[str, bytes],
        change: Iterable[NDArray[np.float32]],
        sink: Sink,
        weight: int = 1,
        contribution: Contribution,
        keep: Callable[[Uploaded], object] = lambda _: None,
    ) -> Uploaded:
        """Mask a change of weights for this call; the words go to `sink`, block by block.

        Args:
            keys: each site's signed key for this round.
            change: trained minus start, in blocks of any length, `call.parameters` numbers in all.
            weight: how often it counts, up to the plan's max_weight; hidden in the sum.
            keep: told of the upload before it is promised to be the only one, to have it on disk by then.
        Raises:
            NotTheSignedPlan, BadSumPaper, BadSumWeight, NotFinite, OtherLength; SumRoundTaken, SumUploaded,
            OtherCohort, UpdateReused, RoundKeyGone. Nothing that went to the sink may leave then.
        Guarantees: the words are uniform to whoever lacks one honest helper's seed, and the promise is on disk.
        Proved by: tests/unit/test_masked_uniform.py
        """
        rule = self.check(call)
        self._ring.check_weight(weight)
        public = self._public_keys(call, keys)
        self._ledger.begin(call, me=self._me)
        helpers = call.helpers(rule.helpers)
        seeds = {helper: masks.new_seed() for helper in helpers}
        blind = masks.new_seed() if self._plan.blind else None
        streams = [masks.MaskStream(self._pair_key(call, seed, self._me, helper)) for helper, seed in seeds.items()]
        words = _Masked(self._ring, streams, self._blinding(call, self._me, blind), sink, weight=weight)
        for block in change:
            words.add(block)
        words.finish(parameters=call.parameters)
        sealed = self._capsules(call, rule, public, seeds, blind)
        label = sign_paper(
            Upload(
                call_sha256=call.sha256, sender=self._me, vector_sha256=words.sha256, contribution=contribution,
                capsules={name: hashlib.sha256(data).hexdigest() for name, data in sealed.items()},
                commitments={
                    helper: capsules.commit(seed, call_sha256=call.sha256, uploader=self._me, helper=helper)
                    for helper, seed in seeds.items()
                },
                blind=None if blind is None else capsules.commit_blind(
                    blind, call_sha256=call.sha256, uploader=self._me
                ),
            ),
            signer=self._signer,
        )  # fmt: skip
        uploaded = Uploaded(label=label, capsules=sealed, vector_sha256=words.sha256, clipped=words.clipped)
        keep(uploaded)
        self._ledger.uploaded(call, label_sha256=hashlib.sha256(label).hexdigest(), update_sha256=words.update_sha256)
        return uploaded

    def help(
        self, call: SumCall, *, labels: Sequence[bytes], capsules_to_me: Mapping[str, bytes], sink: Sink
    ) -> Helped:
        """The sum of the masks that this site carries for one set of uploads; its words go to `sink`.

        Args:
            labels: the signed uploads that are summed.
            capsules_to_me: uploader -> what it sealed for this site.
        Raises:
            NotTheSignedPlan, BadSumPaper, BadCapsule (naming the uploader), RoundKeyGone, OtherSet, SumRoundTaken,
            OtherCohort.
        Guarantees: this site helps one set in a round; asked for it again it gives the same bytes again.
        Proved by: tests/attacks/test_secure_sum_server.py
        """
        rule = self.check(call, takes_part=False)
        if self._me not in call.helpers(rule.helpers):
            raise bad_paper("call for help", "one to a helper of this call", f"one to {self._me}")
        opened = self._open(call, rule, labels, capsules_to_me)
        made, _ = self._bind(call, opened)
        keys = [
            self._pair_key(call, capsule.seed, uploader, self._me)
            for uploader, capsule in sorted(opened.capsules.items())
            if capsule.seed is not None
        ]
        digest = _sum_masks(self._ring, keys, words=call.parameters, sink=sink)
        statement = made or sign_paper(
            Partial(
                call_sha256=call.sha256, sender=self._me, active_sha256=opened.active_sha256, vector_sha256=digest
            ),
            signer=self._signer,
        )  # fmt: skip
        self._ledger.keep_partial(call, statement)
        return Helped(statement=statement, vector_sha256=digest)

    def reveal(
        self, call: SumCall, *, labels: Sequence[bytes], capsules_to_me: Mapping[str, bytes], missing: Sequence[str]
    ) -> bytes:
        """This site's signed shares of what lost helpers carry for one set of uploads.

        Raises:
            as `help`; BadSumPaper: nobody is missing, more than the plan's `vanish`, or one who is no helper.
        """
        rule = self.check(call, takes_part=False)
        lost = list(missing)
        if lost != sorted(set(lost)) or not set(lost) <= set(call.helpers(rule.helpers)):
            raise bad_paper("lost helpers", "helpers of this call, sorted, each once", ", ".join(lost) or "nobody")
        if not 1 <= len(lost) <= self._plan.vanish:
            raise bad_paper("lost helpers", f"from 1 to {self._plan.vanish}, as the plan has it", str(len(lost)))
        opened = self._open(call, rule, labels, capsules_to_me)
        _, made = self._bind(call, opened, missing=lost)
        helpers = call.helpers(rule.helpers)
        statement = made or sign_paper(
            Shares(
                call_sha256=call.sha256, sender=self._me, active_sha256=opened.active_sha256, missing=tuple(lost),
                shares={
                    uploader: {helper: capsule.shares[helpers.index(helper)].hex() for helper in lost}
                    for uploader, capsule in opened.capsules.items()
                },
            ),
            signer=self._signer,
        )  # fmt: skip
        self._ledger.keep_shares(call, statement)
        return statement

    def unblind(
        self, call: SumCall, *, labels: Sequence[bytes], capsules_to_me: Mapping[str, bytes], total: Words
    ) -> dict[str, tuple[str, Contribution]]:
        """Take the blinding masks of a set of uploads off their sum, in place: `total` has data and tail words.

        Returns:
            site -> digest of its signed upload, and what it claims.
        Raises:
            as `help`.
        """
        rule = self.check(call, takes_part=False)
        _check_length(total, call)
        opened = self._open(call, rule, labels, capsules_to_me)
        for uploader, capsule in sorted(opened.capsules.items()):
            stream = self._blinding(call, uploader, capsule.blind)
            if stream is None:
                raise bad_paper("blind sum", "a plan with blind = true", "one without")
            stream.subtract(total[: call.parameters])
            stream.subtract(total[call.parameters + CHECK_WORDS :])
        return {site: (opened.digests[site], paper.contribution) for site, paper in opened.papers.items()}

    # -- what comes ------------------------------------------------------------------------------------------------

    def _public_keys(self, call: SumCall, keys: Mapping[str, bytes]) -> dict[str, bytes]:
        public = {}
        for ref in call.cohort:
            line = keys.get(ref.site)
            if line is None or hashlib.sha256(line).hexdigest() != ref.key_sha256:
                raise bad_paper(f"key of one round, of {ref.site}", "the one that the call names", "another, or none")
            key = verify_round_key(line, site=ref.site, roster=self._roster, now=self._now)
            public[ref.site] = key.public_bytes()
        return public

    def _open(
        self, call: SumCall, rule: Thresholds, labels: Sequence[bytes], capsules_to_me: Mapping[str, bytes]
    ) -> _Opened:
        """Check a set of uploads, and open what it holds for this site; the ledger is not touched."""
        papers: dict[str, Upload] = {}
        digests: dict[str, str] = {}
        for label in labels:
            paper = check_upload(label, plan=self._plan, call=call, site=None, roster=self._roster, now=self._now)
            if paper.sender in papers:
                raise bad_paper("set of uploads", "each site once", f"{paper.sender} twice")
            digest = hashlib.sha256(label).hexdigest()
            if paper.sender == self._me and digest != self._ledger.label_of(call):
                raise bad_paper("set of uploads", "this site's own upload as it sent it", "another in its name")
            papers[paper.sender], digests[paper.sender] = paper, digest
        if len(papers) < rule.min_sites:
            raise bad_paper("set of uploads", f"at least {rule.min_sites} sites", str(len(papers)))
        if set(capsules_to_me) != set(papers):
            raise bad_paper("capsules", "one of each upload of the set", "others")
        key = self._round_key(call)
        found = {
            name: self._unseal(call, rule, paper, capsules_to_me[name], key) for name, paper in sorted(papers.items())
        }
        return _Opened(active_sha256=active_sha256(call.sha256, labels), papers=papers, digests=digests, capsules=found)

    def _unseal(
        self, call: SumCall, rule: Thresholds, paper: Upload, sealed: bytes, key: HybridIdentity
    ) -> capsules.Capsule:
        uploader, helpers = paper.sender, call.helpers(rule.helpers)
        is_helper = self._me in helpers
        if hashlib.sha256(sealed).hexdigest() != paper.capsules[self._me]:
            raise _bad_capsule(uploader, "the one that its upload names", "another")
        try:
            plain = capsules.unseal(sealed, key=key, call_sha256=call.sha256, uploader=uploader, to=self._me)
        except NotForThisKey:
            raise _bad_capsule(uploader, "one that opens", "one that does not") from None
        capsule = capsules.unpack(plain, is_helper=is_helper, is_blind=self._plan.blind, helpers=len(helpers))
        if capsule is None:
            raise _bad_capsule(uploader, "as many secrets as the plan has", "another number")
        names = {"call_sha256": call.sha256, "uploader": uploader}
        if capsule.seed is not None and not capsules.same(
            capsules.commit(capsule.seed, helper=self._me, **names), paper.commitments[self._me]
        ):
            raise _bad_capsule(uploader, "the seed that its upload commits to", "another")
        if capsule.blind is not None and not capsules.same(
            capsules.commit_blind(capsule.blind, **names), str(paper.blind)
        ):
            raise _bad_capsule(uploader, "the blinding key that its upload commits to", "another")
        return capsule

    def _bind(
        self, call: SumCall, opened: _Opened, *, missing: Sequence[str] = ()
    ) -> tuple[bytes | None, bytes | None]:
        return self._ledger.bind(
            call, me=self._me, active_sha256=opened.active_sha256, sites=sorted(opened.papers), missing=missing
        )

    # -- secrets ---------------------------------------------------------------------------------------------------

    def _round_key(self, call: SumCall) -> HybridIdentity:
        sealed = self._ledger.sealed_key(call, me=self._me)
        return HybridIdentity(self._opener.open_own(sealed, info=_OWN_INFO).reveal())

    def _pair_key(self, call: SumCall, seed: bytes, uploader: str, helper: str) -> bytes:
        return masks.pair_key(seed, call_sha256=call.sha256, uploader=uploader, helper=helper)

    def _blinding(self, call: SumCall, uploader: str, seed: bytes | None) -> masks.MaskStream | None:
        if seed is None:
            return None
        return masks.MaskStream(masks.blind_key(seed, call_sha256=call.sha256, uploader=uploader))

    def _capsules(
        self, call: SumCall, rule: Thresholds, public: Mapping[str, bytes], seeds: Mapping[str, bytes],
        blind: bytes | None,
    ) -> dict[str, bytes]:  # fmt: skip
        shares = {
            helper: shamir.split(seed, places=len(call.names), threshold=rule.shares) for helper, seed in seeds.items()
        }
        return {
            name: capsules.seal(
                capsules.Capsule(
                    seed=seeds.get(name), blind=blind, shares=tuple(shares[helper][place] for helper in seeds)
                ),
                public=public[name], call_sha256=call.sha256, uploader=self._me, to=name,
            )
            for place, name in enumerate(call.names)
        }  # fmt: skip


def offer_key(ledger: SumLedger, *, signer: Signer, recipient: str, federation: str, now: datetime) -> bytes:
    """The signed line of a site's sealing key for one round: one that no call has used, or a new one.

    Args:
        recipient: the site's own sealing key, to which the seed of a new one is sealed on its disk.
    """

    def make(number: int) -> OwnKey:
        seed, own = hpke.new_seed(), recipient_key(recipient)
        key = RoundKey(
            v=1, federation=federation, site=signer.name, number=number, issued=now, expires=now + KEY_VALIDITY,
            public=base64.b64encode(HybridIdentity(seed).public).decode("ascii"),
        )  # fmt: skip
        sealed = hpke.seal(seed, public=own, info=_OWN_INFO)
        return OwnKey(number=number, line=sign_round_key(key, signer=signer), sealed=sealed)

    return ledger.offer(make, now=now)


def check_upload(
    label: bytes, *, plan: SumPlan, call: SumCall, site: str | None, roster: TrustedRoster, now: datetime
) -> Upload:
    """A signed upload for this call, with exactly the capsules and commitments that the plan asks for.

    Raises:
        MalformedSigned, BadSignature, BadSumPaper; UnknownMember, MemberNotActive, WrongRole.
    """
    paper = verify_paper(label, Upload, call=call, site=site, roster=roster, now=now)
    helpers = call.helpers(plan.thresholds(len(call.names)).helpers)
    if list(paper.capsules) != call.names or sorted(paper.commitments) != helpers:
        raise bad_paper(f"upload of {paper.sender}", "a capsule for each site, a commitment for each helper", "others")
    if (paper.blind is not None) != plan.blind:
        raise bad_paper(f"upload of {paper.sender}", "a blinding mask exactly where the plan has one", "otherwise")
    return paper


class _Masked:
    """Rounds, masks and hashes a change block by block, and hands the words on."""

    def __init__(
        self, ring: Ring, streams: Sequence[masks.MaskStream], blinding: masks.MaskStream | None, sink: Sink, *,
        weight: int,
    ) -> None:  # fmt: skip
        self._ring, self._streams, self._blinding, self._sink, self._weight = ring, streams, blinding, sink, weight
        self._digest, self._update = hashlib.sha256(VECTOR_HEAD), hashlib.sha256()
        sink(memoryview(VECTOR_HEAD))
        self._count = self.clipped = 0

    def add(self, block: NDArray[np.float32]) -> None:
        """A block of the change, of any length and layout."""
        flat = np.ascontiguousarray(block, dtype=np.float32).reshape(-1)
        for start in range(0, len(flat), BLOCK_WORDS):
            numbers = self._ring.round(flat[start : start + BLOCK_WORDS])
            self.clipped += int(np.count_nonzero(np.abs(numbers) == self._ring.levels))
            words = self._ring.words(numbers, weight=self._weight)
            self._update.update(words.data)
            if self._blinding is not None:
                self._blinding.add(words)
            self._mask(words)
            self._count += len(words)

    def finish(self, *, parameters: int) -> None:
        """Check words and weight; raises OtherLength."""
        if self._count != parameters:
            raise _other_length(parameters, self._count)
        tail = self._ring.tail(self._weight)
        if self._blinding is not None:
            self._blinding.add(tail[CHECK_WORDS:])
        self._mask(tail)

    @property
    def sha256(self) -> str:
        """Of the masked words."""
        return self._digest.hexdigest()

    @property
    def update_sha256(self) -> str:
        """Of the words before masking: for the site's own ledger."""
        return self._update.hexdigest()

    def _mask(self, words: Words) -> None:
        for stream in self._streams:
            stream.add(words)
        self._digest.update(words.data)
        self._sink(words.data)


def _sum_masks(ring: Ring, keys: Sequence[bytes], *, words: int, sink: Sink) -> str:
    """The sum of masks, block by block to `sink`; its digest."""
    streams, digest = [masks.MaskStream(key) for key in keys], hashlib.sha256(VECTOR_HEAD)
    sink(memoryview(VECTOR_HEAD))
    total = words + len(ring.tail(1))
    for start in range(0, total, BLOCK_WORDS):
        block = np.zeros(min(BLOCK_WORDS, total - start), dtype=ring.dtype)
        for stream in streams:
            stream.add(block)
        digest.update(block.data)
        sink(block.data)
    return digest.hexdigest()


def _check_length(words: Words, call: SumCall) -> None:
    expected = call.parameters + CHECK_WORDS + 1
    if len(words) != expected:
        raise _other_length(expected, len(words))


def _other_length(expected: int, got: int) -> OtherLength:
    return OtherLength(
        where="change of the weights", expected=f"{expected:,} numbers", got=f"{got:,}",
        hint="nothing was sent; base and span have to be the plan's",
    )  # fmt: skip


def _other_plan(expected: str, got: str) -> NotTheSignedPlan:
    return NotTheSignedPlan(
        where="call of a secure sum", expected=expected, got=got,
        hint="nothing was sent; the plan that counts is in the roster: not-fed roster show",
    )  # fmt: skip


def _bad_capsule(uploader: str, expected: str, got: str) -> BadCapsule:
    return BadCapsule(
        where=f"capsule of {uploader}", expected=expected, got=got,
        hint="nothing was sent; the coordinator can ask again for a set without it",
    )  # fmt: skip
