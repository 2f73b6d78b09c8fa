"""Adversary: whoever wants a round kept that the sites refuse, or rolled back that they accept, or to learn from votes.

Powers: the coordinator's disk, keys and every message; one site's keys; the power switch of a site. Lacks: the keys of
as many sites as the quorum has.
"""

from __future__ import annotations

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from not_fed import canonical
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.plan import load_plan
from not_fed.coordinator.state import Answered
from not_fed.coordinator.trusted import aggregate, find_outliers
from not_fed.envelope.papers import RoundPapers
from not_fed.envelope.receipt import Receipt, sign_receipt
from not_fed.envelope.verdict import PAPERS_OF_A_SITE, NotCounted, Verdict, VerdictFalse, VoteSuppressed, check_papers
from not_fed.home import Home
from not_fed.organ.evaluate import Evaluator
from not_fed.privacy.ledger.reservation import Reservation
from not_fed.privacy.randomness import RandomSource
from not_fed.privacy.release import comparison_noise
from not_fed.site import voting
from not_fed.site.verdicts import VotesMissing, check_votes
from not_fed.site.votebook import VoteBook, VoteTaken
from not_fed.site.voting import judge
from tests.support.federation import SITES, an_organ, seal_as, tiny_prepared
from tests.support.voting import BAD, CALL, CHARGED, GOOD, PUBLIC, Polling, a_job, charges, two_organs, voting_site


@pytest.fixture(scope="module")
def polling(tmp_path_factory: pytest.TempPathFactory) -> Polling:
    return Polling.of(tiny_prepared(tmp_path_factory.mktemp("polling"), epsilon=8.0))


def believe(
    polling: Polling, papers: list[bytes], *, claimed: bool, me: str = "hospice",
    **ballot: Any,  # noqa: ANN401  any field
) -> Verdict:  # fmt: skip
    """What a site does with the papers of a round."""
    return check_papers(
        papers, claimed=claimed, ballot=replace(polling.ballot, **ballot), me=me, voted=True, roster=polling.roster,
        now=polling.now,
    )  # fmt: skip


def not_counted(polling: Polling, line: bytes, **ballot: object) -> list[tuple[str | None, str]]:
    """One odd vote beside the two that suffice: kept all the same, and the odd one named."""
    verdict = polling.count([polling.vote("clinic"), polling.vote("hospice"), line], **ballot)
    assert verdict.kept
    return [(one.named, one.code) for one in verdict.not_counted]


def test_a_vote_that_a_site_did_not_cast_does_not_count(polling: Polling) -> None:
    """Own. A vote in a site's name that another site signed, an edited one, one from the future, a statement of another
    kind, noise; the votes of a site that was revoked, and of a member that is none of the run's sites.

    Powers: the keys of a site and of the coordinator. Control: the same vote as its own site signs it.
    """
    edited = canonical.loads(polling.vote("ward", "worse"), where="test")
    payload = base64.b64decode(edited["payload"])
    payload = payload.replace(b'"accept":false', b'"accept":true').replace(b'"worse"', b'"better"')
    edited["payload"] = base64.b64encode(payload).decode()
    receipt = Receipt(
        v=1, federation="tiny", site="ward", coordinator="coordinator", task="0" * 32, ledger_head=GOOD,
        issued=polling.now,
    )  # fmt: skip
    tomorrow = polling.now + timedelta(days=1)
    for line, named, code in (
        (polling.vote("ward", by="clinic"), "ward", "signature-refused"),
        (canonical.dumps(edited), "ward", "signature-refused"),
        (polling.vote("ward", issued=tomorrow), "ward", "bad-vote"),
        (polling.vote("stranger", by="ward"), "stranger", "member-unknown"),
        (polling.vote("ward", federation="other"), "ward", "bad-vote"),
        (sign_receipt(receipt, signer=polling.signers["ward"]), None, "signed-malformed"),
        (b"noise", None, "signed-malformed"),
    ):
        assert not_counted(polling, line) == [(named, code)]
    assert not_counted(polling, polling.vote("ward"), sites=("clinic", "hospice")) == [("ward", "vote-stranger")]
    later = replace(polling, roster=polling.without("ward"))
    assert not_counted(later, polling.vote("ward")) == [("ward", "member-not-active")]
    assert not_counted(polling, polling.vote("ward")) == []  # control


def test_a_vote_counts_for_its_own_question_only(polling: Polling) -> None:
    """Own. Votes that were honestly cast on another round, run, proposal, start or candidate, or for another
    coordinator, are played back for this one.

    Powers: every vote that was ever cast. Control: the vote on this very question.
    """
    for other, code in (
        ({"round": 2}, "vote-other-question"), ({"run": "second"}, "vote-other-question"),
        ({"proposal_sha256": BAD}, "vote-other-question"), ({"coordinator": "hub"}, "vote-other-question"),
        ({"start_sha256": None}, "vote-other-start"), ({"start_sha256": BAD}, "vote-other-start"),
        ({"candidate_sha256": BAD}, "vote-other-candidate"),
    ):  # fmt: skip
        alone = polling.count([polling.vote(site, **other) for site in SITES])
        assert (alone.kept, alone.accepts) == (False, ())
        assert not_counted(polling, polling.vote("ward", **other)) == [("ward", code)]
    assert not_counted(polling, polling.vote("ward")) == []  # control


def test_a_quorum_that_is_only_claimed_is_not_believed(polling: Polling) -> None:
    """Own. The coordinator says that a round is kept: with one vote, with one vote many times, with refusals that it
    calls accepts, with accepts of another candidate, with more papers than there can be votes; or with votes that it
    signed itself.

    Powers: the coordinator's keys, and every vote. Control: two accepts of three, where two have to.
    """
    yes, no, other = (
        polling.vote("clinic"), polling.vote("hospice", "worse"), polling.vote("ward", candidate_sha256=BAD),
    )  # fmt: skip
    papers = [[yes, no], [yes, yes, yes, no], [yes, no, other], [no], [yes, no, polling.vote("ward", by="clinic")]]
    for claim in papers:
        with pytest.raises(VerdictFalse, match="rolled back"):
            believe(polling, claim, claimed=True)
    with pytest.raises(VerdictFalse, match="papers"):
        believe(polling, [yes, no] * (PAPERS_OF_A_SITE * len(SITES)), claimed=True)
    assert believe(polling, [yes, no, polling.vote("ward")], claimed=True).kept  # control


def test_a_coordinator_that_drops_a_vote_is_noticed_by_who_cast_it(polling: Polling) -> None:
    """Own. The coordinator leaves out the refusal of a site, so that it looks as if nobody minded; or an accept, so
    that a good round is rolled back.

    Powers: what travels between the sites. Control: with all votes the same rounds end as the votes say.
    """
    yes = [polling.vote("clinic"), polling.vote("ward")]
    with pytest.raises(VoteSuppressed, match="the vote of hospice"):
        believe(polling, yes, claimed=True)
    with pytest.raises(VoteSuppressed):
        believe(polling, yes[:1], claimed=False)
    assert believe(polling, [*yes, polling.vote("hospice", "worse")], claimed=True).refusals == {"hospice": "worse"}
    assert believe(polling, [yes[0], polling.vote("hospice", "no-held-out")], claimed=False).kept is False  # control
    with pytest.raises(VerdictFalse):  # and whoever is shown all of them sees that a kept round is called rolled back
        believe(polling, yes, claimed=False, me="ward")


def test_sites_that_were_shown_different_sums_do_not_keep_them(polling: Polling) -> None:
    """Own. The coordinator shows one sum to two sites and another to the third, and hands each the votes that suit it;
    or all votes to all.

    Powers: what each site is sent. Control: the sites that were shown the same sum and are the quorum.
    """
    shown = [polling.vote("clinic"), polling.vote("ward"), polling.vote("hospice", candidate_sha256=BAD)]
    with pytest.raises(VerdictFalse):  # the third site has another organ than the quorum accepted
        believe(polling, shown, claimed=True, candidate_sha256=BAD)
    with pytest.raises(VerdictFalse):
        believe(polling, shown[2:], claimed=True, candidate_sha256=BAD)
    split = polling.count(shown, quorum=1, candidate_sha256=None)
    assert not split.kept, "a quorum of one that is reached twice keeps nothing"
    assert believe(polling, shown, claimed=True, me="clinic").kept  # control


def test_one_site_cannot_stop_the_others_beyond_the_quorum(polling: Polling) -> None:
    """Own. A site refuses every round, votes twice, or claims to have been shown another sum, to stop the federation.

    Powers: one site's keys. Control: where the plan asks for all sites, one refusal does stop a round.
    """
    yes = [polling.vote("clinic"), polling.vote("hospice")]
    for ways in (
        [polling.vote("ward", "worse")], [polling.vote("ward", "cannot-open")],
        [polling.vote("ward", candidate_sha256=BAD)], [polling.vote("ward"), polling.vote("ward", "worse")], [],
    ):  # fmt: skip
        for candidate in (GOOD, None):
            assert polling.count([*yes, *ways], candidate_sha256=candidate).kept
    assert not polling.count([*yes, polling.vote("ward", "worse")], quorum=3).kept  # control


def test_a_site_that_votes_both_ways_is_named_and_counts_for_neither(polling: Polling) -> None:
    """Own. A site signs an accept for one half of the federation, and a refusal for the other.

    Powers: one site's keys, and who is sent what. Control: the papers hold both lines, which prove it to everybody.
    """
    both = [polling.vote("ward"), polling.vote("ward", "worse")]
    verdict = polling.count([polling.vote("clinic"), *both])
    assert not verdict.kept
    assert verdict.not_counted == (NotCounted("ward", "vote-double"),)
    assert set(both) <= set(verdict.papers)  # control
    assert polling.count([polling.vote("clinic"), both[0]]).kept


def test_a_second_candidate_in_one_round_is_not_judged(tmp_path: Path) -> None:
    """Own. A coordinator asks a site about one organ after another in the same round, to learn from the bits.

    Powers: the coordinator's keys. Control: the first one is answered, and answered alike as often as it is asked.
    """
    prepared = voting_site(tmp_path, vote=PUBLIC)
    good, bad = two_organs(prepared, tmp_path)
    third = an_organ(prepared, tmp_path / "third.organ", add=0.01)
    first = judge(a_job(prepared), candidate=good, start=bad)
    for candidate, start in ((third, bad), (good, third), (good, None)):
        with pytest.raises(VoteTaken):
            judge(a_job(prepared), candidate=candidate, start=start)
    assert judge(a_job(prepared), candidate=good, start=bad) == first  # control


def test_a_site_killed_between_charge_and_vote_pays_once_and_says_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. Whoever runs the site's machine kills it at every step of a charged vote, again and again, so that it draws
    its noise anew until the bit suits them.

    Powers: the power switch. Control: an undisturbed vote has the same entry in the ledger, and another round another.
    """
    prepared = voting_site(tmp_path, vote=CHARGED)
    good, bad = two_organs(prepared, tmp_path)
    drawn: list[float] = []

    def counted(*, clip: float, noise_multiplier: float, source: RandomSource) -> float:
        drawn.append(comparison_noise(clip=clip, noise_multiplier=noise_multiplier, source=source))
        return drawn[-1]

    monkeypatch.setattr(voting, "comparison_noise", counted)
    for place, name in (
        (voting, "open_ledger"), (Reservation, "start_step"), (Reservation, "commit"),
        (Evaluator, "mean_losses"), (voting, "is_no_worse"), (VoteBook, "end"),
    ):  # fmt: skip
        with monkeypatch.context() as power:
            power.setattr(place, name, _killed)
            with pytest.raises(KeyboardInterrupt):
                judge(a_job(prepared), candidate=good, start=bad)
    judged = judge(a_job(prepared), candidate=good, start=bad)
    (entry,) = charges(prepared)
    assert (entry.charge.state, entry.charge.mechanisms) == ("committed", ((1.0, 10.0, 1),))
    assert len(drawn) == 1
    monkeypatch.setattr(Evaluator, "mean_losses", lambda _: pytest.fail("computed again"))
    assert judge(a_job(prepared), candidate=good, start=bad) == judged
    monkeypatch.undo()
    judge(a_job(prepared, round=2), candidate=good, start=bad)  # control
    assert [one.charge.mechanisms for one in charges(prepared)] == [((1.0, 10.0, 1),)] * 2


def _killed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_site_whose_votes_were_put_back_draws_no_second_noise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. The site's memory of its votes is deleted after a vote, so that the same round is judged under new noise.

    Powers: the site's disk, but not its ledger. Control: with its memory it says what it said.
    """
    prepared = voting_site(tmp_path, vote=CHARGED)
    good, bad = two_organs(prepared, tmp_path)
    first = judge(a_job(prepared), candidate=good, start=bad)
    assert judge(a_job(prepared), candidate=good, start=bad) == first  # control
    for path in prepared.sites["clinic"].glob("votes.db*"):
        path.unlink()
    monkeypatch.setattr(Evaluator, "mean_losses", lambda _: pytest.fail("computed"))
    again = judge(a_job(prepared), candidate=good, start=bad)
    assert (again.accept, again.reason, again.notes) == (False, "no-held-out", {"why": "reservation-over"})
    assert len(charges(prepared)) == 1


def test_a_vote_shows_no_number_about_the_records(tmp_path: Path) -> None:
    """Own. Whoever reads the vote of a site looks for its losses or for how many records there are.

    Powers: the signed line. Control: the site's own notes hold both.
    """
    prepared = voting_site(tmp_path, vote=PUBLIC)
    good, bad = two_organs(prepared, tmp_path)
    job = a_job(prepared)
    judged = judge(job, candidate=good, start=bad)
    line = voting.cast(job, judged, proposal_sha256=GOOD)
    payload = canonical.loads(base64.b64decode(canonical.loads(line, where="test")["payload"]), where="test")
    assert {name for name, value in payload.items() if type(value) in (int, float)} == {"v", "round"}
    assert judged.notes["records"] == 16  # control
    assert judged.notes["loss_before"]
    assert Home(job.home.folder).signer().name == payload["site"]


def test_a_refused_round_shows_whose_organ_stands_out(tmp_path: Path) -> None:
    """Own. In mode trusted a site sends an organ that is honest by its papers and nine times as far off, and the sites
    vote the aggregate down.

    Powers: one of three members, with its keys. Control: where all organs are alike nobody stands out; and what the
    round began from is opened, so that a site which goes back there is told from those which go on.
    """
    prepared = tiny_prepared(tmp_path, mode="trusted")
    home, now = Home(prepared.coordinator), datetime.now(UTC)
    bank, plan = Bank(tmp_path / "bank"), load_plan(prepared.coordinator).model_copy(update={"quorum": 2})
    roster = home.roster(now)

    def answers(*moved: float) -> list[Answered]:
        found = []
        for site, add in zip(SITES, moved, strict=True):
            parcel = seal_as(
                prepared, site, an_organ(prepared, tmp_path / f"{site}.organ", add=add), to=["coordinator"]
            )
            bank.put(parcel.sealed, label=parcel.label, roster=roster, now=now)
            found.append(Answered(
                run=prepared.run, round=1, kind="train", site=site, status="sealed", code=None,
                sealed_sha256=parcel.sha256, size_bytes=len(parcel.sealed), seconds=0.0,
            ))  # fmt: skip
        return found

    def outliers(round_answers: list[Answered], start: str | None = None) -> dict[str, str]:
        found = find_outliers(
            round_answers, plan=plan, round_number=1, bank=bank, home=home, roster=roster, now=now, start=start
        )  # fmt: skip
        return {one.name: one.words for one in found}

    far = answers(9.0, 1.0, 1.2)
    assert list(outliers(far)) == ["clinic"]
    assert "times as long as the middle one's" in outliers(far)["clinic"]
    assert outliers(answers(1.1, 1.0, 1.2)) == {}  # control
    began = answers(1.0, 1.0, 1.0)
    with aggregate(
        began, plan=plan, round_number=1, bank=bank, home=home, roster=roster, signer=home.signer(), now=now
    ) as made:
        start = bank.put(made.sealed, label=made.label, roster=roster, now=now).sealed.sha256
    assert outliers(answers(0.5, 1.3, 1.4), start=start)["clinic"].startswith("it points away")  # control
    assert not list((prepared.coordinator / "work").glob("*"))


def test_a_site_does_not_go_on_from_what_no_quorum_accepted(tmp_path: Path) -> None:
    """Own. The next order names an aggregate as kept without its votes, with too few, with another organ under the
    same votes; or goes on from an earlier one and hides that the votes had kept the last.

    Powers: the coordinator's keys, and every vote. Control: the orders that follow from the votes.
    """
    prepared = voting_site(tmp_path, vote=PUBLIC)
    job = a_job(prepared, quorum=2, round=2)
    polling = Polling.of(prepared)
    lines = {site: polling.vote(site) for site in SITES}
    yes, kept = tuple(lines.values()), {1: (GOOD, CALL)}

    def go_on(votes: tuple[bytes, ...], *, used: dict[int, tuple[str, str]]) -> None:
        check_votes(job, RoundPapers(votes={1: votes}), kept=used)

    for votes in ((), yes[:1], (yes[0], yes[0])):
        with pytest.raises((VotesMissing, VerdictFalse)):
            go_on(votes, used=kept)
    with pytest.raises(VerdictFalse):
        go_on(yes, used={1: (BAD, CALL)})
    with pytest.raises(VerdictFalse):
        go_on(yes, used={1: (GOOD, BAD)})
    go_on(yes[1:], used=kept)  # control
    VoteBook(job.home.folder).cast(run="first", round_number=1, proposal=CALL, sign=lambda: lines["clinic"])
    with pytest.raises(VoteSuppressed):
        go_on(yes[1:], used=kept)
    with pytest.raises(VerdictFalse):
        go_on(yes, used={})
    with pytest.raises((VotesMissing, VoteSuppressed)):
        go_on((), used={})
    go_on(yes, used=kept)  # control
    go_on(yes[:1], used={})  # control: one accept of three is rolled back
