"""What the votes of a round come to. Pure: signed lines and a ballot in, a verdict out.

The coordinator counts to decide how the run goes on, and every site counts again, from the same signed lines, before it
goes on: who drops a vote, or claims a quorum that was not reached, is contradicted by the papers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from not_fed.envelope.dsse import parse_statement
from not_fed.envelope.vote import ABSTAINS, MAX_VOTE_BYTES, VOTE_TYPE, Reason, Vote, verify_vote
from not_fed.errors import TrustError
from not_fed.trust.members import TrustedRoster

_Content = tuple[str | None, Reason]
PAPERS_OF_A_SITE = 2  # two votes that contradict each other prove that a site cast two; a third proves nothing more


class VerdictFalse(TrustError):
    """The signed votes of a round do not come to the verdict that the coordinator claims."""

    code = "verdict-false"


class VoteSuppressed(TrustError):
    """The votes that the coordinator shows are not all: this site's own is not among them."""

    code = "vote-suppressed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ballot:
    """The question, as whoever counts knows it.

    Attributes:
        proposal_sha256, start_sha256: as a vote names them.
        candidate_sha256: of the organ that whoever counts has itself; None for a coordinator that cannot read the sum.
        sites: who may vote.
        quorum: how many of them have to accept, by the plan. Above half of them, no two candidates can both be kept.
    """

    federation: str
    run: str
    round: int
    coordinator: str
    proposal_sha256: str
    start_sha256: str | None
    candidate_sha256: str | None
    sites: tuple[str, ...]
    quorum: int


@dataclass(frozen=True, slots=True)
class NotCounted:
    """A vote that does not count.

    Attributes:
        named: whose name it bears, if any can be read. With a code of `vote-...` that site did sign it; with any other
            the name is only what the line says.
    """

    named: str | None
    code: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What the votes come to, with the votes.

    Attributes:
        kept: whether the round is used; otherwise the run goes on from where the round began.
        candidate_sha256: what was accepted; None where nothing was.
        missing: sites of which no vote for this question came.
        papers: the signed lines, for every site to count again.
    """

    kept: bool
    candidate_sha256: str | None
    quorum: int
    accepts: tuple[str, ...]
    refusals: Mapping[str, Reason]
    abstentions: tuple[str, ...]
    missing: tuple[str, ...]
    not_counted: tuple[NotCounted, ...]
    papers: tuple[bytes, ...] = field(repr=False)

    def __str__(self) -> str:
        """In one line, for a log."""
        said = f"{'kept' if self.kept else 'rolled back'}: {len(self.accepts)} accept, {self.quorum} have to"
        refused = ", ".join(f"{site} ({reason})" for site, reason in self.refusals.items())
        odd = ", ".join(f"{one.named or 'a nameless one'} ({one.code})" for one in self.not_counted)
        parts = (
            ("refused by", refused), ("abstained", ", ".join(self.abstentions)),
            ("no vote of", ", ".join(self.missing)), ("not counted", odd),
        )  # fmt: skip
        return "; ".join([said, *(f"{word} {what}" for word, what in parts if what)])


def count_votes(lines: Iterable[bytes], *, ballot: Ballot, roster: TrustedRoster, now: datetime) -> Verdict:
    """Count the signed votes on one ballot.

    Guarantees: the round is kept if and only if `quorum` sites of the ballot, active on the roster, accepted one and
        the same candidate, and no other candidate reached the quorum too. The order of the lines does not matter; the
        papers come to the same verdict again. A vote counts once however often it comes; two votes of one site that
        contradict each other do not count at all.
    Proved by: tests/unit/test_vote.py::test_a_round_is_kept_exactly_when_the_quorum_accepts_one_candidate,
        tests/attacks/test_votes.py::test_a_vote_counts_for_its_own_question_only
    """
    odd: list[NotCounted] = []
    cast: dict[str, dict[_Content, tuple[Vote, bytes]]] = {}
    for line in lines:
        try:
            vote = verify_vote(line, roster=roster, now=now)
        except TrustError as error:
            odd.append(NotCounted(_named(line), error.code))
            continue
        if (code := _astray(vote, ballot)) is not None:
            odd.append(NotCounted(vote.site, code))
            continue
        said = (vote.candidate_sha256, vote.reason)  # whatever else it says is the ballot's
        cast.setdefault(vote.site, {}).setdefault(said, (vote, line))
    single = {site: vote for site, votes in sorted(cast.items()) if len(votes) == 1 for vote, _ in votes.values()}
    odd += [NotCounted(site, "vote-double") for site in sorted(cast.keys() - single.keys())]
    candidate, kept = _chosen(single.values(), ballot)
    counted: dict[str, Vote] = {}
    for site, vote in single.items():
        if vote.candidate_sha256 is not None and candidate not in (None, vote.candidate_sha256):
            odd.append(NotCounted(site, "vote-other-candidate"))
        else:
            counted[site] = vote
    return Verdict(
        kept=kept,
        candidate_sha256=candidate if any(vote.accept for vote in counted.values()) else None,
        quorum=ballot.quorum,
        accepts=tuple(site for site, vote in counted.items() if vote.accept),
        refusals={
            site: vote.reason for site, vote in counted.items() if not vote.accept and vote.reason != ABSTAINS
        },
        abstentions=tuple(site for site, vote in counted.items() if vote.reason == ABSTAINS),
        missing=tuple(sorted(set(ballot.sites) - cast.keys())),
        not_counted=tuple(sorted(odd, key=lambda one: (one.named or "", one.code))),
        papers=tuple(line for site in sorted(cast) for _, line in [*cast[site].values()][:PAPERS_OF_A_SITE]),
    )  # fmt: skip


def check_papers(
    papers: Sequence[bytes], *, claimed: bool, ballot: Ballot, me: str, voted: bool, roster: TrustedRoster,
    now: datetime,
) -> Verdict:  # fmt: skip
    """Count again what the coordinator says of a round that was voted on; a site does this before it goes on.

    Args:
        claimed: whether the coordinator says that the round is kept.
        ballot: its quorum is the plan's, and its candidate the organ that this site has, whatever others were shown.
        me, voted: this site, and whether it cast a vote.
    Raises:
        VoteSuppressed: it did, and its vote is not there. VerdictFalse: the votes come to something else.
    Guarantees: nobody without the keys of `quorum` sites can have a round kept; a coordinator that leaves out a vote is
        noticed by the site that cast it, whichever way it was.
    Proved by: tests/attacks/test_votes.py::test_a_coordinator_that_drops_a_vote_is_noticed_by_who_cast_it,
        tests/attacks/test_votes.py::test_a_quorum_that_is_only_claimed_is_not_believed
    """
    if len(papers) > PAPERS_OF_A_SITE * len(ballot.sites):
        raise _false(ballot, expected=f"at most {PAPERS_OF_A_SITE} votes of a site", got=f"{len(papers):,} papers")
    verdict = count_votes(papers, ballot=ballot, roster=roster, now=now)
    if voted and me in verdict.missing:
        raise VoteSuppressed(
            where=f"run {ballot.run}, round {ballot.round}, the votes", expected=f"the vote of {me}",
            got=f"{len(papers)} others", hint="the run does not go on here; ask the other sites what they were shown",
        )  # fmt: skip
    if verdict.kept != claimed:
        said = "kept" if claimed else "rolled back"
        raise _false(ballot, expected=f"votes by which the round is {said}", got=str(verdict))
    return verdict


def _chosen(votes: Iterable[Vote], ballot: Ballot) -> tuple[str | None, bool]:
    """The candidate that the verdict is about, and whether it is kept."""
    accepted = Counter(vote.candidate_sha256 for vote in votes if vote.accept)
    enough = [digest for digest, count in accepted.items() if count >= ballot.quorum]
    if ballot.candidate_sha256 is not None:
        return ballot.candidate_sha256, enough == [ballot.candidate_sha256]
    most = max(accepted, key=lambda digest: (accepted[digest], digest or ""), default=None)
    return most, enough == [most]


def _astray(vote: Vote, ballot: Ballot) -> str | None:
    """Why a signed vote is none on this ballot."""
    if vote.site not in ballot.sites:
        return "vote-stranger"
    if (vote.run, vote.round, vote.coordinator, vote.proposal_sha256) != (
        ballot.run, ballot.round, ballot.coordinator, ballot.proposal_sha256,
    ):  # fmt: skip
        return "vote-other-question"
    return None if vote.start_sha256 == ballot.start_sha256 else "vote-other-start"


def _named(line: bytes) -> str | None:
    """The name in a line that is not a vote of anybody, for the log."""
    try:
        return parse_statement(line, Vote, payload_type=VOTE_TYPE, where="vote", max_bytes=MAX_VOTE_BYTES)[1].site
    except TrustError:
        return None


def _false(ballot: Ballot, *, expected: str, got: str) -> VerdictFalse:
    return VerdictFalse(
        where=f"run {ballot.run}, round {ballot.round}, the votes", expected=expected, got=got,
        hint="the run does not go on here; show the votes to the other sites and to the stewards",
    )  # fmt: skip
