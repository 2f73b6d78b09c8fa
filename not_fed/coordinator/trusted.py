"""Mode trusted: the aggregator opens each organ of a round, one at a time, and seals their mean to every site.

This is the one place of the coordinator that holds a decryption key and needs torch. No opened organ stays: each is in
a private folder while it is added, and gone before the next one is opened.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path

from not_fed.coordinator.bank import Bank
from not_fed.coordinator.plan import FederationPlan
from not_fed.coordinator.state import Answered
from not_fed.envelope.checks import Expectation
from not_fed.envelope.open import open_organ, passport_path
from not_fed.envelope.passport import issue_passport, new_passport
from not_fed.envelope.seal import seal_organ
from not_fed.errors import NotFedError, PeerError
from not_fed.home import Home
from not_fed.keys import Opener, Signer
from not_fed.organ.fit import check_fit
from not_fed.organ.merge import OrganMean, check_claims
from not_fed.organ.organ import read_organ
from not_fed.resources.bases import find_base
from not_fed.snapshots import take_snapshot
from not_fed.trust.roster import TrustedRoster

log = logging.getLogger("not_fed.coordinator")


class TooFewUsable(PeerError):
    """Fewer of this round's organs could be used than the plan's `min_answers`."""

    code = "too-few-usable"


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
) -> Iterator[tuple[Path, bytes]]:
    """The sealed aggregate of a round and its label; memory does not grow with the organs' size or number.

    An organ that is refused is left out and named in the log; it does not stop the others.

    Yields:
        the sealed file, which is gone after the block, and the label.

    Raises:
        TooFewUsable: fewer organs than the plan's `min_answers` are left.
    Proved by: tests/journeys/test_federation_trusted.py::test_the_aggregate_is_plain_fedavg,
        tests/attacks/test_poisoned_mean.py
    """
    work = home.private_folder("work")
    shutil.rmtree(work)  # left by an attempt that was cut off
    home.private_folder("work")
    try:
        organ = _average(
            answers,
            plan=plan,
            round_number=round_number,
            bank=bank,
            opener=home.opener(),
            roster=roster,
            work=work,
            now=now,
        )
        snapshot = take_snapshot(organ)
        passport = new_passport(
            organ, author=plan.name, federation=plan.federation, round_number=round_number, now=now,
            organ_sha256=snapshot.sha256,
        )  # fmt: skip
        sealed = seal_organ(
            organ,
            snapshot=snapshot,
            passport=issue_passport(passport, signer=signer),
            sender=signer,
            recipients=[site for site in plan.sites if site in roster.members and roster.members[site].is_current(now)],
            roster=roster,
            federation=plan.federation,
            round_number=round_number,
            out=work / "aggregate.sealed",
            now=now,
        )
        yield sealed.path, sealed.label
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _average(
    answers: Sequence[Answered],
    *,
    plan: FederationPlan,
    round_number: int,
    bank: Bank,
    opener: Opener,
    roster: TrustedRoster,
    work: Path,
    now: datetime,
) -> Path:
    mean, added, base = OrganMean(scratch=work), 0, find_base(str(plan.base))
    expect = Expectation(
        federation=plan.federation, round_number=round_number, base_sha256=plan.base_sha256, span=plan.span_of(round_number)
    )
    for answer in sorted(answers, key=lambda one: one.site):  # the same order as a site's own mean
        out, digest, sealed = work / "one.organ", str(answer.sealed_sha256), work / "one.sealed"
        try:
            bank.fetch(digest, sealed)
            opened = open_organ(
                sealed,
                opener=opener,
                roster=roster,
                out=out,
                now=now,
                expect=expect,
                label=bank.label(digest),
            )  # each sealed file counts once by its digest; a memory of waybills would refuse it after a crash
            organ = read_organ(out)
            check_claims(organ, opened.passport)
            check_fit(organ, base=base)
            mean.add(out, weight=plan.weights.get(answer.site, 1.0))
            added += 1
            log.info("round %d: organ %s of %s added", round_number, opened.organ_sha256[:12], answer.site)
        except NotFedError as error:
            log.warning("round %d: organ of %s left out: %s: %s", round_number, answer.site, error.code, error)
        finally:
            for path in (sealed, out, passport_path(out)):
                path.unlink(missing_ok=True)
    if added < plan.min_answers:
        raise TooFewUsable(
            where=f"round {round_number}",
            expected=f"at least {plan.min_answers} organs that can be used",
            got=str(added),
            hint="the log says why each other was left out",
        )
    mean.write(work / "aggregate.organ")
    return work / "aggregate.organ"
