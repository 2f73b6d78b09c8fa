"""Mode trusted: the aggregator opens each organ of a round, one at a time, and seals their mean to every site.

This is the one place of the coordinator that holds a decryption key and needs torch. No opened organ stays. For the
plain mean each is in a private folder while it is added, and gone before the next one is opened; a rule of `[robust]`
needs all of them side by side, on disk, until the aggregate is written. Either way the folder is removed at the end,
also of an attempt that fails, and before the next one begins if a kill left it there.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Protocol

from not_fed import files
from not_fed.aggregation.blame import FEWEST, Outlier, score_organs
from not_fed.aggregation.robust import Contribution, Remark
from not_fed.aggregation.rules import BadRule
from not_fed.aggregation.secure.ring import Ring
from not_fed.aggregation.secure.server import Total
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.optimising import Began, take_step
from not_fed.coordinator.plan import FederationPlan
from not_fed.coordinator.state import Answered
from not_fed.envelope.checks import Expectation
from not_fed.envelope.label import parse_label
from not_fed.envelope.open import Opened, open_organ, passport_path
from not_fed.envelope.passport import Contributor, contributors_of, issue_passport, new_passport
from not_fed.envelope.seal import seal_organ
from not_fed.errors import NotFedError, PeerError, TrustError
from not_fed.home import Home
from not_fed.keys import Opener, Signer
from not_fed.organ.anatomy import Span
from not_fed.organ.change import move
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.extract import describe
from not_fed.organ.fit import check_fit
from not_fed.organ.merge import OrganMean, check_claims, describe_sum
from not_fed.organ.organ import read_organ
from not_fed.organ.robust import RobustOrgans
from not_fed.resources.bases import find_base
from not_fed.snapshots import take_snapshot
from not_fed.trust.plans import SumPlan
from not_fed.trust.roster import TrustedRoster

log = logging.getLogger("not_fed.coordinator")


class TooFewUsable(PeerError):
    """Fewer of this round's organs could be used than the plan's `min_answers`."""

    code = "too-few-usable"


class OtherStart(TrustError):
    """What a round is said to have begun from is not one of the coordinator's own aggregates."""

    code = "other-start"


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """A sealed aggregate: the file, which is gone after the block, its label, and the digest of the organ in it."""

    sealed: Path
    label: bytes
    organ_sha256: str


class Tell(Protocol):
    """Told of an organ that is not in the aggregate as it came."""

    def __call__(self, code: str, text: str, /, *, site: str | None = None) -> None:
        """Note it where an administrator finds it."""


@contextmanager
def aggregate(
    answers: Sequence[Answered],
    *,
    plan: FederationPlan,
    round_number: int,
    bank: Bank,
    home: Home,
    roster: TrustedRoster,
    signer: Signer,
    now: datetime,
    start: str | None = None,
    tell: Tell = lambda code, text, *, site=None: None,
) -> Iterator[Made]:
    """The sealed aggregate of a round; memory does not grow with the organs' size or number.

    An organ that is refused, left out by the plan's rule or clipped is named in the log; it does not stop the others.
    Disk: one sealed and one opened organ, eight bytes a parameter for the sums, and the aggregate twice (opened and
    sealed); with a rule of `[robust]` all organs of the round at once instead of the sums, and the start.

    Args:
        start: digest of the sealed aggregate that the round began from; None is the base's own layers. Opened where the
            plan measures from there, for which such an aggregate is sealed to the coordinator too.
        tell: told of each organ that is not in the aggregate as it came: code, text and site.
    Raises:
        TooFewUsable: fewer organs than the plan's `min_answers` are left, or than its rule needs.
        NoSpace: a rule of `[robust]` needs more room than the disk has; nothing was opened.
    Proved by: tests/journeys/test_federation_trusted.py::test_the_aggregate_is_plain_fedavg,
        tests/attacks/test_poisoned_mean.py
    """
    with _table(plan, round_number, bank=bank, home=home, roster=roster, now=now, tell=tell) as table:
        origin = table.origin(start) if plan.needs_start else None
        organ = table.combine(answers, origin=origin) if plan.rule.needs_all else table.average(answers)
        yield _finish(table, organ, origin=origin, start=start, home=home, signer=signer)


def find_outliers(
    answers: Sequence[Answered],
    *,
    plan: FederationPlan,
    round_number: int,
    bank: Bank,
    home: Home,
    roster: TrustedRoster,
    now: datetime,
    start: str | None = None,
    tell: Tell = lambda code, text, *, site=None: None,
) -> tuple[Outlier, ...]:
    """Who stands out among the organs of a round that the sites refused, and by what: for people, decides nothing.

    All organs of the round are opened once more, and lie on disk side by side while they are measured. Arguments as
    `aggregate`.

    Returns:
        the farthest first; none of fewer than three organs.
    Raises:
        OtherStart; what opening the start raises: where the plan has a quorum it is sealed to the coordinator too.
        NoSpace: there is no room for all of them.
    Proved by: tests/attacks/test_votes.py::test_a_refused_round_shows_whose_organ_stands_out
    """
    with _table(plan, round_number, bank=bank, home=home, roster=roster, now=now, tell=tell) as table:
        return table.outliers(answers, origin=table.origin(start))


@contextmanager
def aggregate_sum(
    total: Total,
    *,
    sum_plan: SumPlan,
    plan: FederationPlan,
    round_number: int,
    bank: Bank,
    home: Home,
    roster: TrustedRoster,
    signer: Signer,
    now: datetime,
    start: str | None = None,
) -> Iterator[Made]:
    """The sealed aggregate behind a secure sum: where the round began, moved by the mean change, and no single organ.

    Args:
        start: as in `aggregate`; opened always, since only changes were summed.
    Raises:
        ChangeOfOthers, Overshot: there is no aggregate.
    Guarantees: its passport names every contributor with the epsilon that it claims, and claims the weakest of them.
    Proved by: tests/journeys/test_federation_sum.py::test_the_aggregate_is_the_plain_mean_of_the_changes
    """
    with _table(plan, round_number, bank=bank, home=home, roster=roster, now=now) as table:
        origin, ring = table.origin(start), Ring.of(sum_plan)
        weight = total.weight or len(total.contributions)
        base = find_base(str(plan.base))
        organ = move(
            origin, by=lambda first, last: ring.mean(total.words[first:last], weight=weight),
            metadata=describe_sum(describe(base, Span(*plan.span_of(round_number))), total.contributions),
            out=table.work / "aggregate.organ",
        ).path  # fmt: skip
        yield _finish(
            table, organ, origin=origin, start=start, home=home, signer=signer,
            contributors=contributors_of(total.contributions),
        )  # fmt: skip


@contextmanager
def seal_again(
    digest: str,
    *,
    plan: FederationPlan,
    round_number: int,
    bank: Bank,
    home: Home,
    roster: TrustedRoster,
    signer: Signer,
    now: datetime,
) -> Iterator[Made]:
    """The same aggregate with the same passport, sealed to those who are on the roster now.

    Args:
        digest: of the sealed aggregate that this coordinator made, and sealed to itself too.
    """
    with _table(plan, round_number, bank=bank, home=home, roster=roster, now=now) as table:
        out = table.work / "aggregate.organ"
        table.unseal_own(digest, out=out)
        yield _seal(table, out, passport=passport_path(out).read_bytes().strip(), signer=signer)


@contextmanager
def _table(
    plan: FederationPlan, round_number: int, *, bank: Bank, home: Home, roster: TrustedRoster, now: datetime,
    tell: Tell = lambda code, text, *, site=None: None,
) -> Iterator[_Table]:  # fmt: skip
    """A private folder in which organs are opened, empty before and gone afterwards."""
    work = home.private_folder("work")
    shutil.rmtree(work)  # left by an attempt that was cut off
    home.private_folder("work")
    try:
        yield _Table(
            plan=plan, round_number=round_number, bank=bank, opener=home.opener(), roster=roster, work=work, now=now,
            tell=tell,
        )  # fmt: skip
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _finish(
    table: _Table, organ: Path, *, origin: Mapping[str, Place] | None, start: str | None, home: Home, signer: Signer,
    contributors: tuple[Contributor, ...] = (),
) -> Made:  # fmt: skip
    """The plan's optimiser takes its step, and the aggregate gets a passport of its own."""
    plan = table.plan
    if origin is not None:
        organ = take_step(
            organ, start=origin, began=table.began(start), plan=plan, round_number=table.round_number, home=home,
            opener=table.opener, work=table.work,
        )  # fmt: skip
    passport = new_passport(
        organ, author=plan.name, federation=plan.federation, round_number=table.round_number, now=table.now,
        organ_sha256=take_snapshot(organ).sha256, contributors=contributors,
    )  # fmt: skip
    return _seal(table, organ, passport=issue_passport(passport, signer=signer), signer=signer)


def _seal(table: _Table, organ: Path, *, passport: bytes, signer: Signer) -> Made:
    snapshot, plan = take_snapshot(organ), table.plan
    sealed = seal_organ(
        organ,
        snapshot=snapshot,
        passport=passport,
        sender=signer,
        recipients=_recipients(plan, table.roster, now=table.now),
        roster=table.roster,
        federation=plan.federation,
        round_number=table.round_number,
        out=table.work / "aggregate.sealed",
        now=table.now,
    )
    return Made(sealed=sealed.path, label=sealed.label, organ_sha256=snapshot.sha256)


def _recipients(plan: FederationPlan, roster: TrustedRoster, *, now: datetime) -> list[str]:
    """The sites that are on the roster now; and the coordinator, where it has to measure from the aggregate later."""
    sites = [site for site in plan.sites if site in roster.members and roster.members[site].is_current(now)]
    return [*sites, plan.name] if plan.needs_start else sites


@dataclass(frozen=True, slots=True, kw_only=True)
class _Table:
    """Where one round's organs are opened."""

    plan: FederationPlan
    round_number: int
    bank: Bank
    opener: Opener
    roster: TrustedRoster
    work: Path
    now: datetime
    tell: Tell

    def average(self, answers: Sequence[Answered]) -> Path:
        """The plain mean: no more than one organ is open at a time."""
        mean, base, out = OrganMean(scratch=self.work), find_base(str(self.plan.base)), self.work / "one.organ"

        def add(answer: Answered) -> None:
            try:
                self._open(answer, base=base, out=out)
                mean.add(out, weight=self._weight(answer))
            finally:
                _remove(out)

        self._enough(self._each(answers, add))
        mean.write(self.work / "aggregate.organ")
        return self.work / "aggregate.organ"

    def combine(self, answers: Sequence[Answered], *, origin: Mapping[str, Place] | None) -> Path:
        """By the plan's rule, with all organs side by side."""
        self._check_space(answers)
        base, organs = find_base(str(self.plan.base)), RobustOrgans(self.plan.rule, start=origin)

        def add(answer: Answered) -> None:
            out = self.work / f"from-{answer.site}.organ"
            try:
                self._open(answer, base=base, out=out)
                organs.add(out, name=answer.site, weight=self._weight(answer))
            except BaseException:
                _remove(out)
                raise

        self._enough(self._each(answers, add))
        try:
            organs.write(self.work / "aggregate.organ", tell=self._remark)
        except BadRule as error:  # the filter on norms has left out too many
            raise self._too_few(error.expected, error.got) from None
        return self.work / "aggregate.organ"

    def outliers(self, answers: Sequence[Answered], *, origin: Mapping[str, Place]) -> tuple[Outlier, ...]:
        """Who stands out, with all organs side by side."""
        self._check_space(answers)
        base, organs = find_base(str(self.plan.base)), list[Contribution]()

        def add(answer: Answered) -> None:
            out = self.work / f"from-{answer.site}.organ"
            self._open(answer, base=base, out=out)
            organ = read_organ(out)
            organs.append(Contribution(name=answer.site, sha256=organ.sha256, tensors=organ.places))

        self._each(answers, add)
        return score_organs(organs, start=origin).outliers() if len(organs) >= FEWEST else ()

    def _each(self, answers: Sequence[Answered], add: Callable[[Answered], None]) -> int:
        """Add each answer's organ, in the same order as a site's own mean; how many could be added."""
        added = 0
        for answer in sorted(answers, key=lambda one: one.site):
            try:
                add(answer)
                added += 1
                log.info("round %d: organ of %s added", self.round_number, answer.site)
            except NotFedError as error:
                self._told(error.code, f"its organ was left out: {error}", site=answer.site)
        return added

    def _open(self, answer: Answered, *, base: Base, out: Path) -> None:
        """Bring one sealed organ here, open it, and check that it is what its passport says and fits the base."""
        passport = self._unseal(str(answer.sealed_sha256), out=out, round_number=self.round_number).passport
        organ = read_organ(out)
        check_claims(organ, passport)
        check_fit(organ, base=base)

    def _unseal(self, digest: str, *, out: Path, round_number: int | None) -> Opened:
        """Each sealed file counts once by its digest; a memory of waybills would refuse it after a crash."""
        sealed, plan = self.work / "one.sealed", self.plan
        expect = Expectation(
            federation=plan.federation, round_number=round_number, base_sha256=plan.base_sha256,
            span=plan.span_of(self.round_number),
        )  # fmt: skip
        try:
            self.bank.fetch(digest, sealed)
            return open_organ(
                sealed, opener=self.opener, roster=self.roster, out=out, now=self.now, expect=expect,
                label=self.bank.label(digest),
            )  # fmt: skip
        finally:
            sealed.unlink(missing_ok=True)

    def began(self, digest: str | None) -> Began | None:
        """Which aggregate the round began from, once `origin` has opened it."""
        if digest is None:
            return None
        label, organ = parse_label(self.bank.label(digest))[1], read_organ(self.work / "start.organ")
        return Began(round=label.round, organ_sha256=organ.sha256)

    def unseal_own(self, digest: str, *, out: Path) -> None:
        """Open an aggregate of the coordinator's own, whoever else it was sealed to: some of them may be revoked now.

        Raises:
            OtherStart: it is somebody else's.
        """
        sealed = self.work / "one.sealed"
        try:
            self.bank.fetch(digest, sealed)
            opened = open_organ(sealed, opener=self.opener, roster=self.roster, out=out, now=self.now)
        finally:
            sealed.unlink(missing_ok=True)
        if opened.sender != self.plan.name:
            raise OtherStart(
                where="what the round began from", expected=f"an aggregate of {self.plan.name}",
                got=f"an organ of {opened.sender}", hint="nothing was aggregated",
            )  # fmt: skip

    def origin(self, digest: str | None) -> Mapping[str, Place]:
        """The tensors that the round began from, by their names in an organ."""
        base = find_base(str(self.plan.base))
        if digest is None:
            return base.span_places(Span(*self.plan.span_of(self.round_number)))
        out = self.work / "start.organ"
        self.unseal_own(digest, out=out)
        organ = read_organ(out)
        check_fit(organ, base=base)
        return organ.places

    def _check_space(self, answers: Sequence[Answered]) -> None:
        """All organs opened, one of them sealed besides, and the aggregate opened and sealed."""
        sizes = [answer.size_bytes for answer in answers]
        needed = sum(sizes) + 3 * max(sizes, default=0)
        free = shutil.disk_usage(self.work).free
        if free < needed:
            raise files.NoSpace(
                where=str(self.work), expected=f"{needed:,} free bytes: {self.plan.rule.name} needs all organs at once",
                got=f"{free:,}", hint="nothing was opened; make room, or take the mean, which needs one at a time",
            )  # fmt: skip

    def _weight(self, answer: Answered) -> float:
        return self.plan.weights.get(answer.site, 1.0)

    def _remark(self, remark: Remark) -> None:
        self._told(remark.code, str(remark), site=remark.name)

    def _told(self, code: str, text: str, *, site: str) -> None:
        log.warning("round %d: %s: %s: %s", self.round_number, site, code, text)
        self.tell(code, f"round {self.round_number}: {text}", site=site)

    def _enough(self, added: int) -> None:
        if added < self.plan.min_answers:
            raise self._too_few(f"at least {self.plan.min_answers} organs that can be used", str(added))

    def _too_few(self, expected: str, got: str) -> TooFewUsable:
        return TooFewUsable(
            where=f"round {self.round_number}", expected=expected, got=got,
            hint="the log says why each other was left out",
        )  # fmt: skip


def _remove(organ: Path) -> None:
    for path in (organ, passport_path(organ)):
        path.unlink(missing_ok=True)
