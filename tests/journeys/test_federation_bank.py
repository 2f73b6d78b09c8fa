"""Three sites and a relay that cannot read what it relays: through Flower, with real keys, policies and training."""

from __future__ import annotations

import logging
import stat
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message, RecordDict

from not_fed import files, settings
from not_fed.coordinator.flower import NobodyThere
from not_fed.coordinator.rounds import TooFewAnswers
from not_fed.envelope import open as opening
from not_fed.envelope.open import passport_path
from not_fed.envelope.passport import read_passport
from not_fed.envelope.task import Training
from not_fed.home import Home
from not_fed.organ import train as training
from not_fed.organ.merge import OrganMean
from not_fed.organ.organ import read_organ
from not_fed.privacy.accounting import DpPlan, compose
from not_fed.processes.bundle import load_app
from not_fed.simulation import Prepared, SimulationResult, collect, run
from not_fed.simulation.grid import LocalGrid, server_context
from not_fed.simulation.prepare import to_toml
from not_fed.site.policy import SitePolicy
from tests.support.federation import (
    PRIVACY,
    SITES,
    Messages,
    Parcel,
    a_task,
    an_organ,
    ask,
    lose,
    parcel_in,
    ref,
    refusal,
    seal_as,
    signed,
    state_of,
    tiny_prepared,
)

FAST: dict[str, Any] = {"round_timeout_s": 0.3, "join_timeout_s": 0.3, "retry_after_s": 0.1}


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SimulationResult:
    """Three sites, two rounds, nobody missing."""
    return run(tiny_prepared(tmp_path_factory.mktemp("bank")))


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return tiny_prepared(tmp_path, plan=FAST)


def digests(result: SimulationResult, round_number: int) -> dict[str, str]:
    return {
        site: files.sha256(rounds[round_number]) for site, rounds in result.aggregates.items() if round_number in rounds
    }


def test_every_site_ends_with_the_same_aggregate_and_its_own_organs(result: SimulationResult) -> None:
    for number in (1, 2):
        assert set(digests(result, number)) == set(SITES)
        assert len(set(digests(result, number).values())) == 1
    assert {site: sorted(rounds) for site, rounds in result.own.items()} == {site: [1, 2] for site in SITES}
    assert len({files.sha256(rounds[2]) for rounds in result.own.values()}) == len(SITES)


def test_the_aggregate_is_the_mean_of_all_own_organs(result: SimulationResult, tmp_path: Path) -> None:
    mean = OrganMean()
    for site in SITES:
        mean.add(result.own[site][2])
    mean.write(tmp_path / "mean.organ")
    assert files.sha256(tmp_path / "mean.organ") == digests(result, 2)["clinic"]


def test_the_second_round_starts_from_the_first_rounds_aggregate(result: SimulationResult) -> None:
    for site in SITES:
        assert read_organ(result.own[site][2]).manifest.parents == (digests(result, 1)[site],)


def test_everybody_keeps_the_passports_of_the_others(result: SimulationResult) -> None:
    home = result.prepared.sites["ward"]
    roster = Home(home).roster(datetime.now(UTC))
    organ = home / "organs" / "first" / "from-clinic-2.organ"
    passport = read_passport(passport_path(organ).read_bytes().rstrip(), roster=roster, now=datetime.now(UTC))
    assert (passport.author, passport.round, passport.organ_sha256) == ("clinic", 2, files.sha256(organ))
    assert dict(passport.metrics) == {}


def test_the_server_counts_what_it_relayed(result: SimulationResult) -> None:
    assert result.stored["sealed organs"]["count"] == 6
    assert result.stored["labels"]["count"] == 6
    assert set(result.stored) == {"sealed organs", "labels", "tasks it signed"}
    up = [one for one in result.deliveries if one.recipient == "coordinator"]
    down = [one for one in result.deliveries if one.sender != "coordinator" and one.recipient != "coordinator"]
    assert (len(up), len(down)) == (6, 12)
    assert all(one.seconds > 0 and one.bytes > 10_000 for one in result.deliveries)
    assert result.bytes_sent == sum(one.bytes for one in up + down)


def test_losses_stay_in_the_homes_and_fall(result: SimulationResult) -> None:
    for curve in result.loss_curves.values():
        assert len(curve) >= 2
        assert curve[0] is not None
        assert curve[-1] is not None
        assert curve[-1] < curve[0]


def test_nothing_of_the_run_stays_in_cache_inbox_or_outbox_and_all_is_private(result: SimulationResult) -> None:
    for home in result.prepared.sites.values():
        names = {path.name for path in home.iterdir()}
        assert names == {
            "held_out.jsonl", "keys", "log", "organs", "passphrase", "records.jsonl", "roster", "site.toml", "state.db",
            "work.lock",
        }  # fmt: skip
        assert stat.S_IMODE(home.stat().st_mode) == 0o700
        for name in ("organs", "organs/first", "keys"):
            assert stat.S_IMODE((home / name).stat().st_mode) == 0o700


def test_a_lost_site_does_not_stop_the_others_and_comes_back(prepared: Prepared) -> None:
    result = run(prepared, drop=lose(prepared.sites, site="hospice", group="train-1"))
    statuses = {(one["round"], one["kind"], one["site"]): one["status"] for one in result.answers}
    assert statuses[1, "train", "hospice"] == "silent"
    assert statuses[2, "train", "hospice"] == "sealed"
    for number in (1, 2):
        assert len(set(digests(result, number).values())) == 1
        assert set(digests(result, number)) == set(SITES)
    parents = read_organ(result.aggregates["hospice"][1]).manifest.parents
    assert set(parents) == {files.sha256(result.own[site][1]) for site in ("clinic", "ward")}


def test_an_answer_that_the_server_never_got_does_not_count_for_its_site_either(prepared: Prepared) -> None:
    """The site trained and sealed; the reply was lost. Only organs that the signed task lists are averaged."""

    def too_late(message: Message) -> bool:
        return (message.metadata.src_node_id, message.metadata.group_id) == (12, "train-1")

    result = run_losing_replies(prepared, too_late)
    assert 1 in result.own["ward"]
    assert len(set(digests(result, 1).values())) == 1
    assert files.sha256(result.own["ward"][1]) not in read_organ(result.aggregates["ward"][1]).manifest.parents


def test_a_site_that_raises_leaks_only_a_code(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = "Patient Jansen, born 1961, in /srv/cardiology/patients.jsonl"
    real, calls = training.train, []

    def failing(*args: Any, **options: Any) -> training.Trained:  # noqa: ANN401
        calls.append(options["out"])
        if "hospice" in str(options["out"]):
            raise RuntimeError(secret)
        return real(*args, **options)

    monkeypatch.setattr(training, "train", failing)
    messages = Messages()
    result = run(prepared, tap=messages)
    assert len(calls) == 6
    assert {one["code"] for one in result.answers if one["site"] == "hospice" and one["kind"] == "train"} == {
        "internal-error"
    }
    everything = b"".join(messages.received) + b"".join(
        path.read_bytes() for path in prepared.coordinator.rglob("*") if path.is_file()
    )
    for part in ("Patient Jansen", "born 1961", "/srv/cardiology", "patients.jsonl", "RuntimeError", "Traceback"):
        for spelling in (part.encode(), part.encode("utf-16-le")):
            assert spelling not in everything, part
    assert b"internal-error" in everything  # control: the search would have found it
    log = prepared.sites["hospice"] / "log"
    assert secret in log.read_text()
    assert stat.S_IMODE(log.stat().st_mode) == 0o600
    assert len(set(digests(result, 2).values())) == 1


def test_without_the_catch_all_flower_would_have_sent_the_secret(prepared: Prepared) -> None:
    """Control for the test above: the grid answers an app that raises as a SuperNode does."""

    def app(message: Message, context: object) -> Message:
        raise RuntimeError("Patient Jansen")

    messages = Messages()
    grid = LocalGrid(app, [{}], tap=messages)  # type: ignore[arg-type]
    grid.send_and_receive([Message(RecordDict(), 10, "train")])
    assert b"Patient Jansen" in messages.received[0]


REFUSALS: list[tuple[dict[str, Any], str]] = [
    ({"base_sha256": "cd" * 32}, "policy-base"),
    ({"span": (0, 2)}, "policy-span"),
    ({"mode": "trusted", "recipients": ("coordinator",)}, "policy-mode"),
    ({"rounds": 3}, "policy-rounds"),
    ({"training": Training(lr=1e-2, epochs=2, batch_tokens=64, max_tokens=32)}, "policy-epochs"),
    ({"privacy": PRIVACY}, "policy-privacy-unknown"),
    ({"sites": ("hospice", "ward"), "recipients": ("hospice", "ward")}, "policy-not-invited"),
    ({"roster_version": 2}, "other-roster"),
]


@pytest.mark.parametrize(("changes", "code"), REFUSALS)
def test_a_refused_task_does_no_work(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], code: str
) -> None:
    work: list[str] = []
    monkeypatch.setattr(opening, "check_container", lambda *a, **k: work.append("opened"))
    monkeypatch.setattr(training, "train", lambda *a, **k: work.append("trained"))
    home = prepared.sites["clinic"]
    before = state_of(home)
    answer = ask(prepared, "clinic", signed(prepared, a_task(prepared, **changes)))
    assert refusal(answer) == code
    assert state_of(home) == before
    assert work == []
    assert code in (home / "log").read_text()


def test_a_site_that_requires_privacy_refuses_to_train_without(tmp_path: Path) -> None:
    prepared = tiny_prepared(tmp_path, epsilon=8.0)
    before = state_of(prepared.sites["clinic"])
    assert refusal(ask(prepared, "clinic", signed(prepared, a_task(prepared)))) == "policy-privacy-required"
    assert state_of(prepared.sites["clinic"]) == before


def test_a_refused_tasks_parcels_are_not_opened(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    parcel = a_parcel(prepared, "ward")
    order = a_task(prepared, round=2, span=(0, 2), parcels=(ref("ward", parcel),))
    monkeypatch.setattr(opening, "check_container", never)
    before = state_of(prepared.sites["clinic"])
    assert refusal(ask(prepared, "clinic", signed(prepared, order), [parcel])) == "policy-span"
    assert state_of(prepared.sites["clinic"]) == before


def test_a_task_signed_by_somebody_else_is_refused(prepared: Prepared) -> None:
    before = state_of(prepared.sites["clinic"])
    forged = signed(prepared, a_task(prepared), by=prepared.sites["ward"])
    assert refusal(ask(prepared, "clinic", forged)) == "signature-refused"
    itself = signed(prepared, a_task(prepared, coordinator="ward"), by=prepared.sites["ward"])
    assert refusal(ask(prepared, "clinic", itself)) == "member-role"
    assert state_of(prepared.sites["clinic"]) == before
    assert refusal(ask(prepared, "clinic", signed(prepared, a_task(prepared)))) is None  # control


def test_a_replayed_parcel_is_refused(prepared: Prepared) -> None:
    first = parcel_in(ask(prepared, "clinic", signed(prepared, a_task(prepared))))
    old = parcel_in(ask(prepared, "ward", signed(prepared, a_task(prepared))))
    refs = (ref("clinic", first), ref("ward", old))
    second = a_task(prepared, round=2, parcels=refs)
    # one more than the task lists, one twice, one too few: refused before anything is opened
    extra = a_parcel(prepared, "hospice")
    for wrong in ([old, extra], [old, old], [], [extra]):
        assert refusal(ask(prepared, "clinic", signed(prepared, second), wrong)) == "parcels-differ"
    answer = ask(prepared, "clinic", signed(prepared, second), [old])
    assert refusal(answer) is None
    assert list(answer["answer"]["left-out"]) == []  # type: ignore[arg-type]
    # the coordinator itself plays round 1's organ again as round 2's: named, left out, the others count
    new = parcel_in(answer)
    fresh = a_parcel(prepared, "hospice", round_number=2)
    refs = tuple(ref(site, one, round_number=2) for site, one in (("clinic", new), ("hospice", fresh), ("ward", old)))
    last = a_task(prepared, round=2, kind="receive", parcels=refs)
    got = ask(prepared, "clinic", signed(prepared, last), [fresh, old])
    assert refusal(got) is None
    assert list(got["answer"]["left-out"]) == [f"{old.sha256} other-round"]  # type: ignore[arg-type]


def test_a_parcel_opened_in_an_earlier_run_is_a_replay(prepared: Prepared) -> None:
    old = a_parcel(prepared, "ward")
    for run_name, left_out in (("first", []), ("second", [f"{old.sha256} waybill-replayed"])):
        mine = parcel_in(ask(prepared, "clinic", signed(prepared, a_task(prepared, run=run_name))))
        order = a_task(prepared, run=run_name, round=2, parcels=(ref("clinic", mine), ref("ward", old)))
        answer = ask(prepared, "clinic", signed(prepared, order), [old])
        assert list(answer["answer"]["left-out"]) == left_out  # type: ignore[arg-type]


def test_an_organ_in_a_sites_own_name_that_it_never_made_is_refused(prepared: Prepared) -> None:
    fake, other = a_parcel(prepared, "ward"), a_parcel(prepared, "hospice")
    order = a_task(prepared, round=2, parcels=(ref("clinic", fake), ref("hospice", other)))
    assert refusal(ask(prepared, "clinic", signed(prepared, order), [other])) == "parcels-differ"


@pytest.mark.parametrize(("add", "code"), [(float("nan"), "organ-not-finite"), (float("inf"), "organ-not-finite")])
def test_a_poisoned_organ_is_left_out_and_named(prepared: Prepared, add: float, code: str) -> None:
    mine = parcel_in(ask(prepared, "clinic", signed(prepared, a_task(prepared))))
    poisoned = seal_as(prepared, "ward", an_organ(prepared, prepared.folder / "bad.organ", add=add))
    order = a_task(prepared, round=2, parcels=(ref("clinic", mine), ref("ward", poisoned)))
    answer = ask(prepared, "clinic", signed(prepared, order), [poisoned])
    assert list(answer["answer"]["left-out"]) == [f"{poisoned.sha256} {code}"]  # type: ignore[arg-type]
    assert not list((prepared.sites["clinic"] / "organs").rglob("from-ward*"))


def test_the_same_task_again_gets_the_same_answer_without_work(
    prepared: Prepared, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = signed(prepared, a_task(prepared))
    first = parcel_in(ask(prepared, "clinic", line))
    monkeypatch.setattr(training, "train", never)
    assert parcel_in(ask(prepared, "clinic", line)) == first
    again = signed(prepared, a_task(prepared))  # the same round under a new id: not a second release
    assert refusal(ask(prepared, "clinic", again)) == "round-taken"


def test_a_site_that_was_cut_off_in_training_goes_on(prepared: Prepared, monkeypatch: pytest.MonkeyPatch) -> None:
    line = signed(prepared, a_task(prepared))
    with monkeypatch.context() as patch:
        patch.setattr(training, "train", never)
        assert refusal(ask(prepared, "clinic", line)) == "internal-error"
    assert refusal(ask(prepared, "clinic", line)) is None


def test_a_changed_base_model_is_noticed(prepared: Prepared) -> None:
    change_policy(prepared, "clinic", base_sha256="cd" * 32)
    order = a_task(prepared, base_sha256="cd" * 32)
    assert refusal(ask(prepared, "clinic", signed(prepared, order))) == "base-changed"


def test_messages_of_another_shape_get_a_code(prepared: Prepared) -> None:
    grid = LocalGrid(load_app("clients"), [{"home": str(prepared.sites["clinic"])}, {}, {"home": "/nowhere"}])
    for kind in ("train", "query.greet"):
        for node, code in ((10, "bad-message"), (11, "no-site"), (12, None)):
            (reply,) = grid.send_and_receive([Message(RecordDict(), node, kind)])
            assert refusal(reply.content) is not None
            assert code in (None, refusal(reply.content))


def test_all_rounds_together_cost_the_epsilon_of_the_policy(tmp_path: Path) -> None:
    result = run(tiny_prepared(tmp_path, epsilon=8.0))
    claims = [read_organ(path).manifest.training or {} for rounds in result.own.values() for path in rounds.values()]
    plans = {(c["dp"]["sample_rate"], c["dp"]["noise_multiplier"], c["dp"]["steps"], c["dp"]["runs"]) for c in claims}
    assert len(claims) == 6
    assert len(plans) == 1
    ((sample_rate, noise, steps, runs),) = plans
    assert (sample_rate, steps, runs) == (0.25, 4, 2)
    plan = DpPlan(
        sample_rate=sample_rate, steps=steps, noise_multiplier=noise, max_grad_norm=1.0, divisor=4.0, delta=1e-5
    )
    assert 7.5 < compose([plan, plan]).value <= 8.0
    assert all(epsilon is not None and epsilon <= 8.0 for epsilon in result.epsilon.values())
    assert len(set(digests(result, 2).values())) == 1


def test_a_run_that_was_cut_off_goes_on_where_it_stopped(prepared: Prepared, caplog: pytest.LogCaptureFixture) -> None:
    drop = lambda message: message.metadata.group_id == "train-2"  # noqa: E731
    with pytest.raises(TooFewAnswers):
        run(prepared, drop=drop)
    caplog.set_level(logging.INFO, logger="not_fed.coordinator")
    result = run(prepared)
    assert not [line for line in caplog.messages if line.startswith("round 1")]
    assert len(set(digests(result, 2).values())) == 1


def test_nobody_there_says_so(prepared: Prepared) -> None:
    with pytest.raises(NobodyThere):
        run(prepared, drop=lambda message: True)


def test_weights_declared_by_the_plan_are_used_by_every_site(tmp_path: Path) -> None:
    weights = {"clinic": 3.0, "hospice": 1.0, "ward": 0.5}
    result = run(tiny_prepared(tmp_path, weights=weights, rounds=1))
    mean = OrganMean()
    for site in SITES:
        mean.add(result.own[site][1], weight=weights[site])
    mean.write(tmp_path / "mean.organ")
    assert set(digests(result, 1).values()) == {files.sha256(tmp_path / "mean.organ")}


# -- helpers ----------------------------------------------------------------------------------------------------------


def a_parcel(prepared: Prepared, site: str, *, round_number: int = 1) -> Parcel:
    path = an_organ(prepared, prepared.folder / f"{site}-{round_number}.organ", add=0.01)
    return seal_as(prepared, site, path, round_number=round_number)


def change_policy(prepared: Prepared, site: str, **changes: object) -> None:
    path = prepared.sites[site] / "site.toml"
    policy = settings.load(SitePolicy, path).model_dump(mode="json")
    path.write_text(to_toml({**policy, **changes}))


def never(*args: object, **options: object) -> Any:  # noqa: ANN401
    raise AssertionError("work was done")


def run_losing_replies(prepared: Prepared, lost: Any) -> SimulationResult:  # noqa: ANN401
    class Losing(LocalGrid):
        def pull_messages(self, message_ids: Any) -> list[Message]:  # noqa: ANN401
            return [message for message in super().pull_messages(message_ids) if not lost(message)]

    homes: list[Mapping[str, Any]] = [{"home": str(home)} for home in prepared.sites.values()]
    load_app("server")(Losing(load_app("clients"), homes), server_context({"home": str(prepared.coordinator)}))
    return collect(prepared, engine="inline", seconds=0.0)
