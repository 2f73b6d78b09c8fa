"""What travels beside a task and beside an answer: signed lines and capsules, as bytes, unverified."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPapers:
    """From the coordinator to a site.

    Attributes:
        keys: site -> its signed key for this round's secure sum.
        labels: the signed uploads that are summed, or were summed to the blind sum that comes with the task.
        capsules: uploader -> what it sealed for this site.
        votes: round -> the signed votes by which it was kept, or was not.
    """

    keys: Mapping[str, bytes] = field(default_factory=dict)
    labels: tuple[bytes, ...] = ()
    capsules: Mapping[str, bytes] = field(default_factory=dict)
    votes: Mapping[int, tuple[bytes, ...]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerPapers:
    """From a site to the coordinator.

    Attributes:
        statement: the signed upload, partial sum, shares or vote.
        capsules: site -> what this one sealed for it.
        round_key: a signed key for the next round.
    """

    statement: bytes | None = None
    capsules: Mapping[str, bytes] = field(default_factory=dict)
    round_key: bytes | None = None


NO_PAPERS, NOTHING_MORE = RoundPapers(), AnswerPapers()
