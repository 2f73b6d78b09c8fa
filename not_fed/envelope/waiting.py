"""Refusals that pass: the site will do this very task, only not now. Every other refusal is an answer."""

from __future__ import annotations

from typing import Final

COME_BACK: Final = frozenset(
    {
        "approval-awaited",  # a person there has to agree first
        "outside-hours",
        "rehearsal",  # the site tries everything but training and sending
        "site-busy",  # another process there is at work on a task
        "disk-full",
        "other-roster",  # it fetches the newest between tasks, and so does the coordinator
        "parcel-awaited",  # it does not have any more what it opened before, and was not sent it again
        "bank-unreachable",  # it could not fetch or leave a sealed organ
        "bank-busy",
        "bank-full",
    }
)
