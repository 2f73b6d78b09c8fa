"""Adversary: a coordinator that uses a newer roster, after which a site seals what it sent before once more.

Powers: signs any task, chooses when it asks, for what, and what comes with it. Lacks: the stewards' and sites' keys.
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from not_fed import settings
from not_fed.envelope.label import parse_label
from not_fed.envelope.open import open_organ
from not_fed.home import Home
from not_fed.organ import train as training
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.simulation import Prepared
from not_fed.simulation.prepare import to_toml
from not_fed.site.policy import SitePolicy
from not_fed.site.state import SiteState
from tests.support.exchanges import Stewards
from tests.support.federation import (
    PRIVACY,
    SITES,
    Parcel,
    a_task,
    an_organ,
    ask,
    parcel_in,
    ref,
    refusal,
    seal_as,
    signed,
    state_of,
    tiny_prepared,
)

SITE, REVOKED = "clinic", "ward"


class Asked:
    """A site that has answered both rounds under roster version 1, each with its organ; then the ward was revoked."""

    def __init__(self, folder: Path, *, epsilon: float | None = None, revoke: bool = True) -> None:
        self.prepared = tiny_prepared(folder, **({} if epsilon is None else {"epsilon": epsilon}))
        self.stewards = Stewards(self.prepared)
        self._privacy = None if epsilon is None else PRIVACY
        self.others = [
            seal_as(self.prepared, site, an_organ(self.prepared, folder / f"{site}.organ", add=add))
            for site, add in (("hospice", 0.01), (REVOKED, 0.02))
        ]
        self.first = parcel_in(self.ask(1))
        self.second = parcel_in(self.ask(2, parcels=self.refs(self.first, *self.others), bring=self.others))
        if revoke:
            self.stewards.revoke(REVOKED)

    def refs(self, *parcels: Parcel, weight: float = 1.0) -> tuple[Any, ...]:
        labels = [parse_label(parcel.label)[1] for parcel in parcels]
        return tuple(
            ref(label.sender, parcel, round_number=label.round, weight=weight)
            for label, parcel in zip(labels, parcels, strict=True)
        )

    def ask(self, round_number: int, *, bring: Any = (), **changes: Any) -> Any:  # noqa: ANN401
        task = a_task(self.prepared, **{"round": round_number, "privacy": self._privacy, **changes})
        return ask(self.prepared, SITE, signed(self.prepared, task), bring)

    @property
    def home(self) -> Path:
        return self.prepared.sites[SITE]

    def organ_in(self, parcel: Parcel, round_number: int) -> bytes:
        """What a member that is left finds in it."""
        reader, now = Home(self.prepared.sites["hospice"]), datetime.now(UTC)
        out = self.prepared.folder / f"{parcel.sha256}.organ"
        out.with_suffix(".sealed").write_bytes(parcel.sealed)
        open_organ(
            out.with_suffix(".sealed"), opener=reader.opener(), roster=reader.roster(now), out=out, now=now,
            label=parcel.label,
        )  # fmt: skip
        kept = self.home / "organs" / self.prepared.run / f"own-{round_number}.organ"
        assert out.read_bytes() == kept.read_bytes()
        return out.read_bytes()


def never(*_: object, **__: object) -> Any:  # noqa: ANN401
    raise AssertionError("it trained")


def change_policy(prepared: Prepared, **changes: object) -> None:
    path = prepared.sites[SITE] / "site.toml"
    policy = settings.load(SitePolicy, path).model_dump(mode="json")
    path.write_text(to_toml({**policy, **changes}))


def test_a_roster_that_no_steward_signed_makes_no_site_send_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. A coordinator claims a newer roster in its task, so that a site answers a round a second time.

    Powers: signs the task. Control: once the stewards signed that version, the same organ is sealed to who is left.
    """
    asked = Asked(tmp_path, revoke=False)
    monkeypatch.setattr(training, "train", never)
    before = state_of(asked.home)
    for version in (2, 99):
        assert refusal(asked.ask(1, roster_version=version)) == "other-roster"
    assert refusal(asked.ask(1)) == "round-taken"
    assert state_of(asked.home, but=("log", "state.db", "state.db-wal", "state.db-shm")).items() <= before.items()
    asked.stewards.revoke(REVOKED)
    answer = asked.ask(1, roster_version=2)
    assert refusal(answer) is None
    assert refusal(asked.ask(1, roster_version=2)) == "round-taken"  # once for each version
    assert parse_label(parcel_in(answer).label)[1].to == ("hospice",)


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_other_organs_to_start_from_make_no_other_organ_of_a_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epsilon: float | None
) -> None:
    """Own. After a revocation a coordinator offers other organs and weights, so that a site trains a round once more.

    Powers: chooses what comes with the task. Control: the very organ of before comes, for those left; no charge.
    """
    asked = Asked(tmp_path, epsilon=epsilon)
    ledger = asked.home / "ledger"
    head = None if epsilon is None else Ledger.at(ledger).head
    monkeypatch.setattr(training, "train", never)
    first = parcel_in(asked.ask(1, roster_version=2))
    other = seal_as(
        asked.prepared, "hospice", an_organ(asked.prepared, tmp_path / "new.organ", add=0.5), to=[SITE, "hospice"]
    )
    parcels = asked.refs(first, other, weight=7.0)
    answer = asked.ask(2, roster_version=2, parcels=parcels, bring=[other])
    assert refusal(answer) is None
    assert list(answer["answer"]["left-out"]) == []
    for number, again, before in ((1, first, asked.first), (2, parcel_in(answer), asked.second)):
        assert again.sha256 != before.sha256
        assert parse_label(again.label)[1].to == ("hospice",)
        assert asked.organ_in(again, number)
    if epsilon is not None:
        assert Ledger.at(ledger).head == head


@pytest.mark.parametrize("what", ["gone", "another"])
def test_an_answered_round_whose_organ_is_lost_is_not_trained_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """Own. Under a newer roster a coordinator asks a site that lost what it had sent: another organ would tell more.

    Powers: waits for a cleaned or damaged disk. Control: once the file is back, it is sealed again.
    """
    asked = Asked(tmp_path)
    monkeypatch.setattr(training, "train", never)
    kept = asked.home / "organs" / asked.prepared.run / "own-1.organ"
    organ = kept.read_bytes()
    kept.unlink()
    if what == "another":
        an_organ(asked.prepared, kept, add=0.3)
    for _ in range(2):
        assert refusal(asked.ask(1, roster_version=2)) == "own-organ-gone"
    kept.write_bytes(organ)
    answer = asked.ask(1, roster_version=2)
    assert refusal(answer) is None
    assert asked.organ_in(parcel_in(answer), 1) == organ


def test_sealing_again_reaches_no_stranger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. A coordinator puts somebody else in the place of the one that was revoked, or keeps the revoked one.

    Powers: names sites and recipients. Control: the run's own sites, of whom those that are members can open it.
    """
    asked = Asked(tmp_path)
    monkeypatch.setattr(training, "train", never)
    before = state_of(asked.home / "organs")
    for names, code in (
        ((SITE, "hospice", "coordinator"), "policy-partner"), ((*SITES, "lab"), "policy-partner"),
        ((SITE, "hospice"), "run-changed"),
    ):  # fmt: skip
        assert refusal(asked.ask(1, roster_version=2, sites=names, recipients=names)) == code
    change_policy(asked.prepared, partners=["hospice", "ward", "coordinator", "lab"])  # even if it had agreed
    for names in ((SITE, "hospice", "coordinator"), (*SITES, "lab")):
        assert refusal(asked.ask(1, roster_version=2, sites=names, recipients=names)) == "run-changed"
    change_policy(asked.prepared, partners=["ward"])
    assert refusal(asked.ask(1, roster_version=2)) == "policy-partner"
    change_policy(asked.prepared, partners=["ward", "hospice"])
    assert state_of(asked.home / "organs") == before
    assert refusal(asked.ask(1, roster_version=1)) == "other-roster"
    answer = asked.ask(1, roster_version=2)
    assert refusal(answer) is None
    assert parse_label(parcel_in(answer).label)[1].to == ("hospice",)


def test_after_the_end_of_a_run_no_newer_roster_opens_it(tmp_path: Path) -> None:
    """Own. A coordinator comes back to a run that has ended, with a newer roster.

    Powers: signs any task. Control: while the run went on, it was answered.
    """
    asked = Asked(tmp_path, revoke=False)
    others = [
        seal_as(asked.prepared, site, an_organ(asked.prepared, tmp_path / f"{site}-2.organ"), round_number=2)
        for site in ("hospice", REVOKED)
    ]
    ended = asked.ask(2, kind="receive", parcels=asked.refs(asked.second, *others), bring=others)
    assert refusal(ended) is None
    asked.stewards.revoke(REVOKED)
    assert refusal(asked.ask(1, roster_version=2)) == "run-ended"
    assert SiteState(asked.home).open_runs() == []
