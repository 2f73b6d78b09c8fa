"""Is this sealed organ in the federation's log? The proof travels beside it, and is checked offline.

Inclusion says that the log's keeper has put this very label where all who compare checkpoints see it: it cannot have
been shown to one site alone, nor slipped in later under an older date. It says nothing about what is inside.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import datetime

from not_fed import canonical
from not_fed.envelope.label import parse_label
from not_fed.keys import dsse
from not_fed.trust.log_entries import entry
from not_fed.trust.log_proof import LogProofRefused, check_proof, read_proof
from not_fed.trust.members import CLOCK_SKEW, TrustedRoster


@dataclass(frozen=True, slots=True, kw_only=True)
class Inclusion:
    """Where and since when a log has a label; `tree_size` and `time` are those of the log's signed checkpoint."""

    index: int
    tree_size: int
    origin: str
    time: datetime


def label_entry(label: bytes) -> bytes:
    """The log's entry for a label's signed line; raises MalformedSigned."""
    return _entry(parse_label(label)[0])


def check_inclusion(proof: bytes, *, label: bytes, roster: TrustedRoster, now: datetime) -> Inclusion:
    """Check that a proof shows this label in a log that a member on the roster keeps.

    Raises:
        NoteMalformed, CheckpointRefused, NotALog, LogProofRefused; UnknownMember, MemberNotActive.
    Proved by: tests/attacks/test_logged_organs.py
    """
    unverified, claimed = parse_label(label)
    signed, issued = check_proof(proof, entry=_entry(unverified), roster=roster, now=now), claimed.issued
    if issued - signed.issued > CLOCK_SKEW:
        raise LogProofRefused(
            where="log proof", expected=f"a checkpoint after {canonical.format_time(issued)}, when the label was made",
            got=canonical.format_time(signed.issued), hint="the log's keeper writes false dates; tell the stewards",
        )  # fmt: skip
    return Inclusion(
        index=read_proof(proof).index, tree_size=signed.size, origin=signed.origin, time=signed.issued
    )  # fmt: skip


def _entry(unverified: dsse.Unverified) -> bytes:
    return entry("seal", hashlib.sha256(unverified.payload).hexdigest())
