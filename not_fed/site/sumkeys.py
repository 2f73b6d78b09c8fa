"""Where a site keeps what it promised in secure sums, and the keys that it offers for the next one."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime

from not_fed.aggregation.secure.ledger import SumLedger
from not_fed.aggregation.secure.site import offer_key
from not_fed.home import Home
from not_fed.keys import Signer
from not_fed.site.state import SiteState

FOLDER = "sums"


@contextmanager
def sums(home: Home, state: SiteState) -> Iterator[SumLedger]:
    """The site's memory of its secure sums; how often it was written to is noted elsewhere before anything leaves.

    Raises:
        LedgerRolledBack: that memory is older than what was noted, or is gone.
    Proved by: tests/attacks/test_secure_sum_host.py
    """
    ledger = SumLedger(home.private_folder(FOLDER), least_writes=state.sum_writes())
    try:
        yield ledger
    finally:
        state.note_sum_writes(ledger.writes)


def forget_sums(home: Home) -> None:
    """Make a new memory of secure sums in the place of one that is lost or older than what this site did.

    What was sealed to this site for rounds that are under way does not open any more, so that it helps in none of them;
    what it promised for their starts is forgotten: there, for as long as a run begins from them, it counts among the
    sites that may collude.
    """
    shutil.rmtree(home.private_folder(FOLDER))
    SiteState(home.folder).forget_sum_writes()


def next_key(home: Home, *, signer: Signer, federation: str, recipient: str, now: datetime) -> bytes:
    """The signed line of this site's sealing key for its next secure sum.

    Args:
        recipient: this site's own sealing key in the roster.
    """
    with sums(home, SiteState(home.folder)) as ledger:
        return offer_key(ledger, signer=signer, recipient=recipient, federation=federation, now=now)
