"""The coordinator's decisions: orders, answers that count, the end of a round; without Flower."""

from __future__ import annotations

import errno
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from not_fed import settings
from not_fed.coordinator.plan import FederationPlan
from not_fed.coordinator.rounds import Reply, Rounds, TooFewAnswers
from not_fed.coordinator.state import PlanChanged, Seen, Step
from not_fed.envelope.checks import Expectation
from not_fed.envelope.open import open_organ
from not_fed.envelope.task import verify_task
from not_fed.home import Home
from not_fed.organ.organ import read_organ
from not_fed.settings import BadSettings
from not_fed.simulation import Prepared
from tests.support.federation import SITES, Parcel, an_organ, seal_as, tiny_prepared


def clock() -> datetime:
    """Now: not when this file was read, which under pytest-xdist is minutes before its tests run."""
    return datetime.now(UTC)


FIRST = Step(run="first", round=1, kind="train")


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return tiny_prepared(tmp_path)


def organ(prepared: Prepared, site: str, *, add: float = 0.0, round_number: int = 1) -> Parcel:
    to = None if prepared.mode == "bank" else ["coordinator"]
    path = an_organ(prepared, prepared.folder / f"{site}-{round_number}.organ", add=add)
    return seal_as(prepared, site, path, round_number=round_number, to=to)


def reply(parcel: Parcel) -> Reply:
    return Reply(sealed=parcel.sealed, label=parcel.label)


def accept(rounds: Rounds, step: Step, site: str, answer: Reply) -> str:
    return rounds.accept(step, site, answer, seconds=1.0, now=clock())


def test_every_site_gets_the_same_task_and_the_organs_of_the_others(prepared: Prepared) -> None:
    rounds = Rounds(prepared.coordinator, now=clock())
    parcels = {site: organ(prepared, site) for site in SITES}
    assert rounds.next_step() == FIRST
    assert all(rounds.order(FIRST, site, now=clock()).parcels == () for site in SITES)
    for site in SITES:
        assert accept(rounds, FIRST, site, reply(parcels[site])) == "sealed"
    rounds.close(FIRST, now=clock())
    second = rounds.next_step()
    assert second == Step(run="first", round=2, kind="train")
    orders = {site: rounds.order(second, site, now=clock()) for site in SITES}
    assert len({order.task for order in orders.values()}) == 1
    task = verify_task(orders["clinic"].task, roster=rounds.roster, now=clock())
    assert [ref.sender for ref in task.parcels] == list(SITES)
    for site, order in orders.items():
        others = sorted(name for name in SITES if name != site)
        assert [(one.label, one.sealed) for one in order.parcels] == [
            (parcels[name].label, parcels[name].sealed) for name in others
        ]


def test_an_answer_that_is_not_what_was_asked_does_not_count(prepared: Prepared) -> None:
    rounds = Rounds(prepared.coordinator, now=clock())
    good = organ(prepared, "clinic")
    rounds.order(FIRST, "clinic", now=clock())
    path = an_organ(prepared, prepared.folder / "x.organ")
    bad = {
        "of another round": reply(seal_as(prepared, "clinic", path, round_number=2)),
        "of another site": reply(organ(prepared, "ward")),
        "to fewer recipients": reply(seal_as(prepared, "clinic", path, to=["ward"])),
        "without a label": Reply(sealed=good.sealed),
        "without an organ": Reply(label=good.label),
        "changed": reply(replace(good, sealed=good.sealed + b"x")),
        "in the clear": reply(replace(good, sealed=path.read_bytes())),
        "empty": Reply(),
    }
    for what, answer in bad.items():
        assert accept(rounds, FIRST, "clinic", answer) == "bad-answer", what
    assert rounds.bank.listing() == {}
    assert accept(rounds, FIRST, "clinic", reply(good)) == "sealed"  # and a good one still counts
    assert rounds.waiting_for(FIRST) == ["hospice", "ward"]


def test_a_larger_answer_than_the_plan_allows_is_refused_unread(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, plan={"max_parcel_bytes": 1000})
    rounds = Rounds(prepared.coordinator, now=clock())
    assert accept(rounds, FIRST, "clinic", reply(organ(prepared, "clinic"))) == "bad-answer"


def test_an_organ_counts_once(prepared: Prepared) -> None:
    rounds = Rounds(prepared.coordinator, now=clock())
    parcel = organ(prepared, "clinic")
    assert accept(rounds, FIRST, "clinic", reply(parcel)) == "sealed"
    accept(rounds, FIRST, "clinic", reply(parcel))
    accept(rounds, FIRST, "clinic", reply(organ(prepared, "clinic", add=1.0)))
    answers = [one for one in rounds.state.answers("first") if one.site == "clinic"]
    assert [one.sealed_sha256 for one in answers] == [parcel.sha256]


def test_an_answer_after_the_rounds_end_is_noted_and_changes_nothing(prepared: Prepared) -> None:
    rounds = Rounds(prepared.coordinator, now=clock())
    for site in ("clinic", "ward"):
        accept(rounds, FIRST, site, reply(organ(prepared, site)))
    rounds.close(FIRST, now=clock())
    task = rounds.order(Step(run="first", round=2, kind="train"), "clinic", now=clock()).task
    before = rounds.bank.listing()
    assert accept(rounds, FIRST, "hospice", reply(organ(prepared, "hospice"))) == "late"
    assert accept(rounds, FIRST, "clinic", reply(organ(prepared, "clinic", add=1.0))) == "again"
    assert rounds.bank.listing() == before
    assert rounds.order(Step(run="first", round=2, kind="train"), "ward", now=clock()).task == task
    assert {one.site: one.status for one in rounds.state.answers("first")} == {
        "clinic": "sealed", "hospice": "late", "ward": "sealed",
    }  # fmt: skip
    assert {(one.code, one.site) for one in rounds.state.problems()} == {
        ("late-answer", "hospice"),
        ("silent", "hospice"),
    }


def test_an_organ_that_was_left_in_the_bank_is_held_to_the_same(prepared: Prepared) -> None:
    rounds = Rounds(prepared.coordinator, now=clock())
    path = an_organ(prepared, prepared.folder / "x.organ")
    good, other = organ(prepared, "clinic"), seal_as(prepared, "clinic", path, round_number=2)
    wards = organ(prepared, "ward")
    bad = {
        "not there": Reply(banked=good.sha256, label=good.label),
        "no digest": Reply(banked="../../state.db", label=good.label),
        "both ways": Reply(banked=good.sha256, sealed=good.sealed, label=good.label),
    }
    for what, answer in bad.items():
        assert accept(rounds, FIRST, "clinic", answer) == "bad-answer", what
    for parcel in (good, other, wards):
        rounds.bank.put(parcel.sealed, label=parcel.label, roster=rounds.roster, now=clock())
    bad = {
        "of another round": Reply(banked=other.sha256, label=other.label),
        "of another site": Reply(banked=wards.sha256, label=wards.label),
        "under another label": Reply(banked=other.sha256, label=good.label),
        "without a label": Reply(banked=good.sha256),
    }
    for what, answer in bad.items():
        assert accept(rounds, FIRST, "clinic", answer) == "bad-answer", what
    assert accept(rounds, FIRST, "clinic", Reply(banked=good.sha256, label=good.label)) == "sealed"
    assert accept(rounds, FIRST, "ward", reply(wards)) == "sealed"
    rounds.close(FIRST, now=clock())
    second = rounds.order(Step(run="first", round=2, kind="train"), "ward", now=clock())
    assert [(one.sealed_sha256, one.sealed) for one in second.parcels] == [(good.sha256, good.sealed)]


def test_large_organs_do_not_travel_inside_messages_where_there_is_a_bank(prepared: Prepared) -> None:
    (prepared.coordinator / "coordinator.toml").write_text(
        'address = "localhost:8443"\nlisten = "127.0.0.1:8443"\nbase = "tiny"\n[bank]\ninline_bytes = 1000\n'
    )
    rounds = Rounds(prepared.coordinator, now=clock())
    parcels = {site: organ(prepared, site) for site in SITES}
    for site in SITES:
        assert rounds.order(FIRST, site, now=clock()).inline_bytes == 1000
        accept(rounds, FIRST, site, reply(parcels[site]))
    rounds.close(FIRST, now=clock())
    order = rounds.order(Step(run="first", round=2, kind="train"), "ward", now=clock())
    assert [one.sealed for one in order.parcels] == [None, None]
    assert [one.size_bytes for one in order.parcels] == [len(parcels[site].sealed) for site in ("clinic", "hospice")]


def test_an_answer_that_cannot_be_stored_is_asked_for_again(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk is full: no fault of the site, whose answer is neither bad nor lost."""
    rounds = Rounds(prepared.coordinator, now=clock())
    parcel = organ(prepared, "clinic")

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(rounds.bank, "put", full)
        assert accept(rounds, FIRST, "clinic", reply(parcel)) == "waiting"
    assert [(one.code, one.site) for one in rounds.state.problems()] == [("storage-failed", "clinic")]
    assert "clinic" in rounds.waiting_for(FIRST)
    assert accept(rounds, FIRST, "clinic", reply(parcel)) == "sealed"


def test_a_problem_is_counted_and_the_newest_comes_first(prepared: Prepared) -> None:
    state = Rounds(prepared.coordinator, now=clock()).state
    for site in ("ward", "clinic", "ward"):
        state.problem("silent", "round 1: it did not answer in time", site=site)
    assert {(one.site, one.count) for one in state.problems()} == {("ward", 2), ("clinic", 1)}
    assert len(state.problems(1)) == 1


def test_the_version_that_a_site_named_last_stays(prepared: Prepared) -> None:
    state = Rounds(prepared.coordinator, now=clock()).state
    now = clock().replace(microsecond=0)
    state.saw_site("ward", at=now, version="1.0")
    state.saw_site("ward", at=now + timedelta(minutes=1))
    state.saw_site("ward", at=now)  # another process, a moment behind
    assert state.sites_seen()["ward"] == Seen(at=now + timedelta(minutes=1), version="1.0")


def test_how_long_a_run_waits_may_change_and_nothing_else(prepared: Prepared) -> None:
    Rounds(prepared.coordinator, now=clock())
    path = prepared.coordinator / "federation.toml"
    path.write_text("retry_s = 1.0\nmax_attempts = 9\nretry_after_s = 2.0\n" + path.read_text())
    assert Rounds(prepared.coordinator, now=clock()).plan.max_attempts == 9
    path.write_text("min_answers = 1\n" + path.read_text())
    with pytest.raises(PlanChanged):
        Rounds(prepared.coordinator, now=clock())


def test_whatever_a_site_sends_as_a_code_is_cleaned(prepared: Prepared) -> None:
    rounds = Rounds(prepared.coordinator, now=clock())
    for site, code in zip(SITES, ("policy-span", "Robert'); DROP TABLE answers;--", "x" * 10_000), strict=True):
        assert accept(rounds, FIRST, site, Reply(refused=code)) == "refused"
    assert [one.code for one in rounds.state.answers("first")] == ["policy-span", "bad-code", "bad-code"]


def test_too_few_organs_close_the_attempt_and_a_later_one_goes_on(prepared: Prepared) -> None:
    rounds = Rounds(prepared.coordinator, now=clock())
    assert rounds.open(FIRST) == 1
    task = rounds.order(FIRST, "clinic", now=clock()).task
    accept(rounds, FIRST, "clinic", reply(organ(prepared, "clinic")))
    accept(rounds, FIRST, "ward", Reply(refused="internal-error"))
    with pytest.raises(TooFewAnswers) as error:
        rounds.close(FIRST, now=clock())
    assert "hospice: silent" in error.value.got
    assert "ward: internal-error" in error.value.got
    (attempt,) = rounds.state.attempts("first")
    assert (attempt.outcome, attempt.missing) == ("too-few", {"hospice": "silent", "ward": "internal-error"})
    again = Rounds(prepared.coordinator, now=clock())
    assert again.next_step() == FIRST
    assert again.open(FIRST) == again.open(FIRST) == 2  # opened once, gone on with once
    assert again.waiting_for(FIRST) == ["hospice", "ward"]
    assert again.order(FIRST, "ward", now=clock()).task == task  # the same bytes: a site that answered answers the same
    assert again.order(FIRST, "ward", now=clock() + timedelta(days=8)).task != task  # expired: a fresh one
    accept(again, FIRST, "ward", reply(organ(prepared, "ward")))
    again.close(FIRST, now=clock())
    assert [one.outcome for one in again.state.attempts("first")] == ["too-few", "enough"]
    assert again.next_step() == Step(run="first", round=2, kind="train")


def test_a_plan_does_not_change_under_a_run(prepared: Prepared) -> None:
    Rounds(prepared.coordinator, now=clock())
    path = prepared.coordinator / "federation.toml"
    path.write_text(path.read_text().replace("rounds = 2", "rounds = 3"))
    with pytest.raises(PlanChanged):
        Rounds(prepared.coordinator, now=clock())


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"clinic", "hospice"', '"clinic", "clinic"'),
        lambda text: text.replace("span = [1, 3]", "span = [3, 1]"),
        lambda text: text.replace("clinic = 1.0", "clinic = 0.0").replace('"clinic" = 1.0', '"clinic" = 0.0'),
        lambda text: text.replace('mode = "bank"', 'mode = "trusted"'),
        lambda text: "min_answers = 4\n" + text,
    ],
)
def test_a_plan_that_cannot_be_is_refused(prepared: Prepared, change: Callable[[str], str]) -> None:
    path = prepared.coordinator / "federation.toml"
    text = path.read_text()
    assert change(text) != text
    path.write_text(change(text))
    with pytest.raises(BadSettings):
        settings.load(FederationPlan, path)


def test_the_aggregator_leaves_out_what_would_spoil_the_mean(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, mode="trusted")
    rounds = Rounds(prepared.coordinator, now=clock())
    accept(rounds, FIRST, "clinic", reply(organ(prepared, "clinic", add=1.0)))
    accept(rounds, FIRST, "hospice", reply(organ(prepared, "hospice", add=float("nan"))))
    accept(rounds, FIRST, "ward", reply(organ(prepared, "ward", add=3.0)))
    rounds.close(FIRST, now=clock())
    order = rounds.order(Step(run="first", round=2, kind="train"), "clinic", now=clock())
    (only,) = order.parcels
    label, sealed = only.label, only.sealed
    assert sealed is not None
    (tmp_path / "aggregate.sealed").write_bytes(sealed)
    home = Home(prepared.sites["clinic"])
    opened = open_organ(
        tmp_path / "aggregate.sealed",
        opener=home.opener(),
        roster=rounds.roster,
        out=tmp_path / "aggregate.organ",
        now=clock(),
        label=label,
        expect=Expectation(federation="tiny", round_number=1, span=(1, 3)),
    )
    assert (opened.sender, opened.author) == ("coordinator", "coordinator")
    digests = {read_organ(prepared.folder / f"{site}-1.organ").sha256 for site in ("clinic", "ward")}
    assert set(opened.passport.parents) == digests
    assert not any((prepared.coordinator / "work").glob("*"))


def test_in_mode_bank_the_coordinator_needs_neither_torch_nor_a_model(prepared: Prepared) -> None:
    (prepared.coordinator / "keys" / "seal.key").unlink()  # nor a key that opens
    parcels = {site: organ(prepared, site) for site in SITES}
    for site, parcel in parcels.items():
        (prepared.folder / f"{site}.sealed").write_bytes(parcel.sealed)
        (prepared.folder / f"{site}.label").write_bytes(parcel.label)
    script = f"""
import sys
from datetime import UTC, datetime
from pathlib import Path
for name in ("torch", "transformers", "safetensors"):
    sys.modules[name] = None
import not_fed.coordinator.flower
from not_fed.coordinator.rounds import Reply, Rounds
folder, now = Path({str(prepared.folder)!r}), datetime.now(UTC)
rounds = Rounds(folder / "coordinator", now=now)
step = rounds.next_step()
for site in {SITES!r}:
    rounds.order(step, site, now=now)
    sealed, label = (folder / f"{{site}}.sealed").read_bytes(), (folder / f"{{site}}.label").read_bytes()
    assert rounds.accept(step, site, Reply(sealed=sealed, label=label), seconds=0.0, now=now) == "sealed"
rounds.close(step, now=now)
assert len(rounds.order(rounds.next_step(), "ward", now=now).parcels) == 2
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
