"""A round is kept when the sites that tried it say so: what a vote says, what the votes come to, what a bit costs."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from not_fed.coordinator.votes import WrongVote, decide, take_vote
from not_fed.envelope.verdict import NotCounted, check_papers
from not_fed.envelope.vote import verify_vote
from not_fed.organ.anatomy import Span
from not_fed.organ.data import read_data
from not_fed.organ.evaluate import Evaluator
from not_fed.privacy.release import comparison_noise
from not_fed.settings import BadSettings, load
from not_fed.site.policy import POLICY_FILE, QuorumTooSmall, SitePolicy, permit
from not_fed.site.voting import HeldOutShared, Judged, cast, judge, unjudged
from tests.support.federation import PRIVACY, SITES, an_organ, tiny_prepared
from tests.support.seeded import Seeded
from tests.support.voting import (
    BAD,
    CALL,
    CHARGED,
    GOOD,
    PUBLIC,
    START,
    Polling,
    a_job,
    charges,
    two_organs,
    voting_site,
)


@pytest.fixture(scope="module")
def polling(tmp_path_factory: pytest.TempPathFactory) -> Polling:
    return Polling.of(tiny_prepared(tmp_path_factory.mktemp("polling"), epsilon=8.0))


# -- what a vote says ---------------------------------------------------------------------------------------------


def test_a_vote_holds_one_bit_one_word_and_digests(polling: Polling) -> None:
    vote = verify_vote(polling.vote("ward", "worse"), roster=polling.roster, now=polling.now)
    said = vote.model_dump(mode="json")
    assert (said.pop("accept"), said.pop("reason")) == (False, "worse")
    assert (said.pop("v"), said.pop("round"), said.pop("issued")[:2]) == (1, 1, "20")
    digests = {said.pop(name) for name in ("proposal_sha256", "start_sha256", "candidate_sha256")}
    assert digests == {CALL, START, GOOD}
    assert said == {"federation": "tiny", "run": "first", "coordinator": "coordinator", "site": "ward"}


@pytest.mark.parametrize(
    "contradiction",
    [
        {"reason": "worse", "accept": True}, {"reason": "better", "accept": False},
        {"reason": "no-held-out", "accept": True}, {"reason": "worse", "candidate_sha256": None},
        {"reason": "cannot-open", "candidate_sha256": GOOD}, {"reason": "a word of its own", "accept": False},
        {"reason": "worse", "loss": 3.2}, {"reason": "worse", "round": 0},
    ],
    ids=str,
)  # fmt: skip
def test_a_vote_that_contradicts_itself_or_says_more_is_none(polling: Polling, contradiction: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        polling.vote("ward", **contradiction)


# -- what the votes come to ---------------------------------------------------------------------------------------


def test_a_round_is_kept_exactly_when_the_quorum_accepts_one_candidate(polling: Polling) -> None:
    """Every way in which three sites can accept, accept something else, refuse, abstain or be silent."""
    said: dict[str, dict[str, Any]] = {
        "yes": {}, "other": {"candidate_sha256": BAD}, "no": {"reason": "worse"}, "abstain": {"reason": "no-held-out"},
    }  # fmt: skip
    lines = {(site, way): polling.vote(site, **fields) for site in SITES for way, fields in said.items()}
    cast_by = [dict(zip(SITES, choice, strict=True)) for choice in itertools.product([*said, "silent"], repeat=3)]
    for votes, quorum in itertools.product(cast_by, (1, 2, 3)):
        sent = [lines[site, way] for site, way in votes.items() if way != "silent"]
        yes, other = ([*votes.values()].count(way) for way in ("yes", "other"))
        verdict = polling.count(sent, quorum=quorum)
        assert verdict.kept == (yes >= quorum > other), votes
        assert verdict.missing == tuple(site for site in SITES if votes[site] == "silent")
        assert verdict.abstentions == tuple(site for site in SITES if votes[site] == "abstain")
        again = polling.count(reversed(verdict.papers), quorum=quorum)
        assert again == replace(verdict, papers=again.papers)
        blind = polling.count(sent, quorum=quorum, candidate_sha256=None)
        assert blind.kept == (min(yes, other) < quorum <= max(yes, other)), "whoever cannot read the sum takes the word"


def test_a_vote_counts_once_and_two_that_contradict_each_other_not_at_all(polling: Polling) -> None:
    yes = polling.vote("clinic")
    again = polling.vote("clinic", issued=polling.now.replace(second=(polling.now.second + 1) % 60))
    assert polling.count([yes, yes, again]).accepts == ("clinic",)
    both = polling.count([yes, polling.vote("clinic", "worse"), polling.vote("ward")])
    assert (both.accepts, both.missing) == (("ward",), ("hospice",))
    assert both.not_counted == (NotCounted("clinic", "vote-double"),)
    assert len(both.papers) == 3, "the two votes are the proof"


def test_a_voter_that_was_revoked_since_does_not_count_any_more(polling: Polling) -> None:
    answers = {"clinic": polling.vote("clinic"), "ward": polling.vote("ward")}
    assert decide(answers, ballot=polling.ballot, roster=polling.roster, now=polling.now).kept
    verdict = decide(answers, ballot=polling.ballot, roster=polling.without("ward"), now=polling.now)
    assert not verdict.kept
    assert verdict.not_counted == (NotCounted("ward", "member-not-active"),)
    assert verdict.missing == ("hospice", "ward")


def test_an_answer_that_is_no_vote_on_the_ballot_is_refused_at_once(polling: Polling) -> None:
    def take(line: bytes) -> bool:
        return take_vote(line, site="ward", ballot=polling.ballot, roster=polling.roster, now=polling.now).accept

    assert take(polling.vote("ward"))
    assert take(polling.vote("ward", candidate_sha256=BAD)), "that is for the count to say"
    for other in ({"run": "second"}, {"round": 2}, {"proposal_sha256": BAD}, {"start_sha256": None}):
        with pytest.raises(WrongVote):
            take(polling.vote("ward", **other))
    with pytest.raises(WrongVote):
        take(polling.vote("clinic"))


def test_a_verdict_is_a_sentence(polling: Polling) -> None:
    lines = [polling.vote("clinic"), polling.vote("ward", "worse"), polling.vote("hospice", candidate_sha256=BAD)]
    assert str(polling.count(lines)) == (
        "rolled back: 1 accept, 2 have to; refused by ward (worse); not counted hospice (vote-other-candidate)"
    )
    assert str(polling.count([polling.vote("clinic"), polling.vote("ward")])) == (
        "kept: 2 accept, 2 have to; no vote of hospice"
    )


def test_a_site_believes_what_it_has_counted_itself(polling: Polling) -> None:
    lines = [polling.vote("clinic"), polling.vote("ward"), polling.vote("hospice", "worse")]
    for claimed, papers in ((True, lines), (False, lines[1:])):
        found = check_papers(
            papers, claimed=claimed, ballot=polling.ballot, me="hospice", voted=True, roster=polling.roster,
            now=polling.now,
        )  # fmt: skip
        assert found.kept is claimed


# -- what a site says ---------------------------------------------------------------------------------------------


def test_a_better_organ_is_accepted_and_a_worse_one_refused_within_the_tolerance(tmp_path: Path) -> None:
    prepared = voting_site(tmp_path, vote=PUBLIC)
    good, bad = two_organs(prepared, tmp_path)

    def ask(candidate: Path, start: Path | None, *, round_number: int) -> Judged:
        job = a_job(prepared)
        job.task = job.task.model_copy(update={"round": round_number})
        return judge(job, candidate=candidate, start=start)

    assert ask(good, bad, round_number=1).reason == "better"
    worse = ask(bad, good, round_number=2)
    assert (worse.accept, worse.reason) == (False, "worse")
    assert worse.notes["loss_after"] > worse.notes["loss_before"]  # type: ignore[operator]
    assert ask(good, None, round_number=3).reason == "better", "the base's own span again: no worse than itself"
    generous = voting_site(tmp_path / "generous", vote=PUBLIC | {"tolerance": 1.0, "clip": 0.5})
    assert judge(a_job(generous), candidate=bad, start=good).accept
    assert charges(prepared) == [], "a decision, not a charge"


def test_a_charged_vote_is_paid_for_before_a_loss_is_computed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = voting_site(tmp_path, vote=CHARGED)
    good, bad = two_organs(prepared, tmp_path)
    seen: list[list[tuple[str, str]]] = []
    honest = Evaluator.mean_losses

    def watched(self: Evaluator) -> object:
        seen.append([(entry.charge.purpose, entry.charge.state) for entry in charges(prepared)])
        return honest(self)

    monkeypatch.setattr(Evaluator, "mean_losses", watched)
    judge(a_job(prepared), candidate=good, start=bad)
    assert seen == [[("metric", "committed")]] * 2
    (entry,) = charges(prepared)
    assert entry.charge.mechanisms == ((1.0, 10.0, 1),)
    assert entry.charge.run == "tiny/coordinator/clinic/first/vote-1"
    assert entry.alone.value == pytest.approx(0.3, abs=0.1)


def test_a_charged_vote_is_the_comparison_with_its_noise(tmp_path: Path) -> None:
    """The same losses under other draws of noise: what decides is the sum with the noise, and nothing else."""
    prepared = voting_site(tmp_path, vote=CHARGED | {"clip": 0.01})
    good, bad = two_organs(prepared, tmp_path)
    held_out = read_data(prepared.sites["clinic"] / "held-out.jsonl")
    evaluator = Evaluator(prepared.base, records=held_out.texts, span=Span(*prepared.span), max_tokens=32)
    evaluator.put_in(good)
    before = evaluator.mean_losses()
    evaluator.put_in(bad)
    rise = (evaluator.mean_losses() - before).clip(-0.01, 0.01).sum()
    assert rise > 0
    said = set()
    for seed in range(4):
        noise = comparison_noise(clip=0.01, noise_multiplier=10.0, source=Seeded(seed))
        judged = judge(a_job(prepared, run=f"run-{seed}"), candidate=bad, start=good, source=Seeded(seed))
        assert judged.accept == (rise + noise <= 0)
        said.add(judged.accept)
    assert said == {True, False}, "choose other seeds"


def test_what_the_budget_does_not_cover_is_not_computed_and_the_site_abstains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = voting_site(tmp_path, vote=CHARGED | {"noise_multiplier": 0.2})
    good, bad = two_organs(prepared, tmp_path)
    monkeypatch.setattr(Evaluator, "mean_losses", lambda _: pytest.fail("computed"))
    judged = judge(a_job(prepared), candidate=good, start=bad)
    assert (judged.accept, judged.reason, judged.notes["why"]) == (False, "no-held-out", "budget-spent")
    assert charges(prepared) == []


def test_without_records_or_permission_a_site_abstains(tmp_path: Path) -> None:
    prepared = voting_site(tmp_path)
    good, bad = two_organs(prepared, tmp_path)
    judged = judge(a_job(prepared), candidate=good, start=bad)
    assert (judged.accept, judged.reason) == (False, "no-held-out")
    assert not (prepared.sites["clinic"] / "votes.db").exists()


def test_what_cannot_be_an_organ_here_is_refused_without_a_look_at_the_records(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepared = voting_site(tmp_path, vote=CHARGED)
    monkeypatch.setattr("not_fed.site.voting.read_data", lambda *_, **__: pytest.fail("read"))
    good, _ = two_organs(prepared, tmp_path)
    nan = an_organ(prepared, tmp_path / "nan.organ", add=float("nan"))
    huge = an_organ(prepared, tmp_path / "huge.organ", add=1e6)
    noise = tmp_path / "noise.organ"
    noise.write_bytes(b"noise")
    elsewhere = replace(prepared, spans=((0, 2),))
    other = an_organ(elsewhere, tmp_path / "other.organ")
    for candidate, reason in (
        (nan, "not-finite"), (huge, "not-finite"), (noise, "cannot-open"), (other, "does-not-fit"),
    ):  # fmt: skip
        judged = judge(a_job(prepared), candidate=candidate, start=good)
        assert (judged.accept, judged.reason) == (False, reason)
        assert (judged.candidate_sha256 is None) == (reason == "cannot-open")
        assert cast(a_job(prepared), judged, proposal_sha256=judged.candidate_sha256 or CALL)
    assert not (prepared.sites["clinic"] / "ledger").exists()


def test_records_that_are_trained_on_are_not_voted_on(tmp_path: Path) -> None:
    prepared = voting_site(tmp_path, vote=PUBLIC)
    good, bad = two_organs(prepared, tmp_path)
    home = prepared.sites["clinic"]
    policy = load(SitePolicy, home / POLICY_FILE)
    trained = json.loads((home / policy.data).read_text().splitlines()[0])["text"]
    with (home / "held-out.jsonl").open("a") as file:
        file.write(json.dumps({"text": f"  {trained.upper()} "}) + "\n")
    with pytest.raises(HeldOutShared, match="records that are in both") as refused:
        judge(a_job(prepared), candidate=good, start=bad)
    assert trained not in str(refused.value)
    people = [{"text": f"w{number} w3 w4", "patient_id": "p1"} for number in range(2)]
    for path, one in ((home / policy.data, people[0]), (home / "held-out.jsonl", people[1])):
        path.write_text(json.dumps(one) + "\n")
    with pytest.raises(HeldOutShared, match="people that are in both"):
        judge(a_job(prepared), candidate=good, start=bad)


def test_a_body_is_the_same_for_both_and_lies_beside_the_candidate(tmp_path: Path) -> None:
    prepared = voting_site(tmp_path, vote=PUBLIC)
    good, bad = two_organs(prepared, tmp_path)
    above = an_organ(replace(prepared, spans=((3, 4),)), tmp_path / "above.organ", add=0.3)
    plain = judge(a_job(prepared), candidate=good, start=bad)
    beside = judge(a_job(prepared, run="second"), candidate=good, start=bad, body=[above])
    assert beside.notes["loss_before"] != plain.notes["loss_before"]
    over = judge(a_job(prepared, run="third"), candidate=good, start=bad, body=[bad])
    assert over.reason == "does-not-fit", "a layer holds one organ"


def test_the_same_proposal_gets_the_same_signed_vote_again(tmp_path: Path, polling: Polling) -> None:
    prepared = voting_site(tmp_path, vote=PUBLIC)
    good, bad = two_organs(prepared, tmp_path)
    unread = unjudged("cannot-open", start=bad)
    first = cast(a_job(prepared), unread, proposal_sha256=CALL)
    judged = judge(a_job(prepared), candidate=good, start=bad)
    assert cast(a_job(prepared), judged, proposal_sha256=CALL) == first, "a second vote would make both void"
    sealed_anew = cast(a_job(prepared), judged, proposal_sha256=BAD)
    vote = verify_vote(sealed_anew, roster=a_job(prepared).roster, now=polling.now)
    assert (vote.accept, vote.proposal_sha256) == (True, BAD)
    assert (vote.candidate_sha256, vote.start_sha256) == (judged.candidate_sha256, judged.start_sha256)


@pytest.mark.parametrize(
    ("changes", "epsilon"),
    [({"vote": CHARGED, "held_out": None}, 8.0), ({"vote": CHARGED, "privacy": None}, None)],
    ids=["no records", "no ledger to pay from"],
)
def test_a_policy_that_could_not_vote_is_refused(
    tmp_path: Path, changes: dict[str, Any], epsilon: float | None
) -> None:
    prepared = voting_site(tmp_path, epsilon=epsilon, **changes)
    with pytest.raises(BadSettings):
        a_job(prepared)


def test_a_run_in_which_too_few_sites_decide_is_refused(tmp_path: Path) -> None:
    prepared = voting_site(tmp_path, vote=PUBLIC | {"least_quorum": 2}, modes=["bank", "trusted"])
    policy = a_job(prepared).policy
    for quorum in (0, 1):
        with pytest.raises(QuorumTooSmall):
            permit(a_job(prepared, quorum=quorum, privacy=PRIVACY).task, policy=policy)
    permit(a_job(prepared, quorum=2, privacy=PRIVACY).task, policy=policy)
    permit(a_job(prepared, privacy=PRIVACY, mode="bank", recipients=SITES).task, policy=policy)  # has no vote
