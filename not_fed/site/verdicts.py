"""A site counts the votes of earlier rounds again, before it goes on from what the coordinator says was kept."""

from __future__ import annotations

from collections.abc import Mapping

from not_fed.envelope.dsse import parse_statement
from not_fed.envelope.papers import RoundPapers
from not_fed.envelope.verdict import Ballot, check_papers
from not_fed.envelope.vote import MAX_VOTE_BYTES, VOTE_TYPE, Vote
from not_fed.errors import TrustError
from not_fed.site.job import Job
from not_fed.site.votebook import VoteBook


class VotesMissing(TrustError):
    """A round is used, or given up, without the votes that decide it."""

    code = "votes-missing"


def check_votes(job: Job, papers: RoundPapers, *, kept: Mapping[int, tuple[str, str]]) -> None:
    """Count again the votes on every round that this task goes on from, and on those that it leaves behind.

    Args:
        kept: round -> digest of its aggregate as this site has it, and what was put to the vote.
    Raises:
        VotesMissing, VoteSuppressed, VerdictFalse: the run does not go on here.
    Guarantees: where there is a quorum, nothing is trained from an aggregate that it did not accept.
    Proved by: tests/attacks/test_votes.py
    """
    if not job.task.quorum:
        return
    cast = VoteBook(job.home.folder).cast_in(job.task.run)
    for number, (candidate, proposal) in kept.items():
        _check(job, number, papers, cast.get(number), candidate=candidate, proposal=proposal, claimed=True)
    for number, line in cast.items():
        span = job.task.span_of(number)
        used = max((one for one in kept if job.task.span_of(one) == span), default=0)
        over = number < job.task.round or job.task.kind == "receive"
        if number > used and over:
            own = _parse(line)
            _check(
                job, number, papers, line, candidate=own.candidate_sha256, proposal=own.proposal_sha256, claimed=False
            )


def _check(
    job: Job, number: int, papers: RoundPapers, own: bytes | None, *, candidate: str | None, proposal: str,
    claimed: bool,
) -> None:  # fmt: skip
    lines = papers.votes.get(number, ())
    if not lines:
        raise VotesMissing(
            where=f"run {job.task.run}, round {number}", expected="the signed votes on its aggregate", got="none",
            hint="the run does not go on here; ask the coordinator",
        )  # fmt: skip
    start = _parse(own or lines[0]).start_sha256  # a lie about it makes every honest vote one on another question
    ballot = Ballot(
        federation=job.task.federation, run=job.task.run, round=number, coordinator=job.task.coordinator,
        proposal_sha256=proposal, start_sha256=start, candidate_sha256=candidate, sites=job.task.sites,
        quorum=job.task.quorum,
    )  # fmt: skip
    check_papers(
        lines, claimed=claimed, ballot=ballot, me=job.policy.name, voted=own is not None, roster=job.roster, now=job.now
    )


def _parse(line: bytes) -> Vote:
    return parse_statement(line, Vote, payload_type=VOTE_TYPE, where="vote", max_bytes=MAX_VOTE_BYTES)[1]
