"""The coordinator's side of a vote: take each site's answer, and decide how the run goes on. Pure.

The verdict is the sites' own: this side counts their signed votes (`not_fed.envelope.verdict`), and hands the same
papers to every site, which counts again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime

from not_fed.envelope.verdict import Ballot, Verdict, count_votes
from not_fed.envelope.vote import Vote, verify_vote
from not_fed.errors import TrustError
from not_fed.trust.members import TrustedRoster


class WrongVote(TrustError):
    """A site answered with a vote of another site, or on another question than it was asked."""

    code = "wrong-vote"


def take_vote(line: bytes, *, site: str, ballot: Ballot, roster: TrustedRoster, now: datetime) -> Vote:
    """One site's answer, so that a wrong one is told at once and can be asked for again.

    A vote for another candidate than the coordinator's passes: it is for the count to say, and for everybody to see.

    Raises:
        WrongVote: another site's vote, or not on this ballot. As `verify_vote`.
    Proved by: tests/unit/test_vote.py::test_an_answer_that_is_no_vote_on_the_ballot_is_refused_at_once
    """
    vote = verify_vote(line, roster=roster, now=now)
    asked = replace(ballot, candidate_sha256=None)
    verdict = count_votes([line], ballot=asked, roster=roster, now=now)
    if vote.site != site or verdict.not_counted:
        raise WrongVote(
            where=f"answer of {site}", expected=f"its vote on round {ballot.round} of run {ballot.run}",
            got=f"one of {vote.site} on round {vote.round} of run {vote.run}", hint="it was not counted; ask that site",
        )  # fmt: skip
    return vote


def decide(answers: Mapping[str, bytes], *, ballot: Ballot, roster: TrustedRoster, now: datetime) -> Verdict:
    """The verdict by the votes that came.

    Count anew before each order that carries the papers: a voter that was revoked meanwhile does not count any more,
    and the sites, which have the same roster, see it the same way.

    Proved by: tests/unit/test_vote.py::test_a_voter_that_was_revoked_since_does_not_count_any_more
    """
    return count_votes(answers.values(), ballot=ballot, roster=roster, now=now)
