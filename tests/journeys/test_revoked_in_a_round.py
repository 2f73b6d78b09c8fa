"""A member is taken off the roster in the middle of a run: the others go on, and nobody trains a round twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Message

from not_fed import files
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.state import CoordinatorState
from not_fed.envelope.label import parse_label
from not_fed.organ import train as training
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.simulation import Prepared, run
from not_fed.site.state import SiteState
from tests.support.exchanges import Stewards
from tests.support.federation import tiny_prepared

FAST: dict[str, Any] = {"round_timeout_s": 5.0, "join_timeout_s": 0.3, "retry_after_s": 0.1, "retry_s": 0.1}
LEFT, REVOKED = ("clinic", "hospice"), "ward"


def once(when: Callable[[Message], bool], do: Callable[[], None]) -> Callable[[Message], bool]:
    """Something that happens while a message is on its way; the message arrives."""
    done: list[bool] = []

    def drop(message: Message) -> bool:
        if not done and when(message):
            done.append(True)
            do()
        return False

    return drop


def to_hospice_in_round_2(message: Message) -> bool:
    return (message.metadata.dst_node_id, message.metadata.group_id) == (11, "train-2")


def organs_of(prepared: Prepared, site: str) -> dict[int, str]:
    folder = prepared.sites[site] / "organs" / prepared.run
    return {number: files.sha256(path) for number in (1, 2) if (path := folder / f"own-{number}.organ").is_file()}


def own_of(prepared: Prepared, site: str, *, at: str | None = None) -> dict[str, str]:
    """Digest of the sealed file -> digest of the organ in it, of a site's own organs as one of the sites has them."""
    kept = SiteState(prepared.sites[at or site]).organs(prepared.run)
    return {one.sealed_sha256: one.organ_sha256 for one in kept if one.sender == site}


@pytest.mark.parametrize("epsilon", [None, 8.0])
def test_after_a_revocation_kept_organs_are_sealed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epsilon: float | None
) -> None:
    """Mode bank. The clinic has answered round 2, and everybody round 1, all of it sealed to the ward as well."""
    prepared = tiny_prepared(tmp_path, plan=FAST, epsilon=epsilon)
    stewards, trained = Stewards(prepared), Counter[str]()
    before: dict[str, dict[int, str]] = {}
    sealed: dict[str, str] = {}
    real = training.train

    def counted(*arguments: Any, out: Path, **options: Any) -> Any:  # noqa: ANN401
        trained[str(out)] += 1
        return real(*arguments, out=out, **options)

    monkeypatch.setattr(training, "train", counted)

    def revoke() -> None:
        before.update({site: organs_of(prepared, site) for site in LEFT})
        sealed.update(own_of(prepared, "clinic"))
        stewards.revoke(REVOKED)

    result = run(prepared, drop=once(to_hospice_in_round_2, revoke))
    assert {site: sorted(rounds) for site, rounds in before.items()} == {"clinic": [1, 2], "hospice": [1]}
    assert CoordinatorState(prepared.coordinator).outcome(prepared.run) == "complete"
    for site in LEFT:
        assert organs_of(prepared, site).items() >= before[site].items()
        assert sorted(result.aggregates[site]) == [1, 2]
    assert set(trained.values()) == {1}
    assert len(trained) == 5  # rounds 1 and 2 of those who are left, and the ward's first
    again = own_of(prepared, "clinic")
    assert not set(sealed) & set(again)
    assert sorted(sealed.values()) == sorted(again.values())  # the very organs that were sent before
    assert own_of(prepared, "clinic", at="hospice") == again
    for number in (1, 2):
        assert len({files.sha256(result.aggregates[site][number]) for site in LEFT}) == 1
    statuses = {(one["round"], one["site"]): one["status"] for one in result.answers if one["kind"] == "train"}
    assert statuses == {
        **{(number, site): "sealed" for number in (1, 2) for site in LEFT},
        **{(number, REVOKED): "revoked" for number in (1, 2)},
    }
    bank = Bank.at(prepared.coordinator)
    for one in CoordinatorState(prepared.coordinator).answers(prepared.run):
        if one.sealed_sha256 is not None:
            assert REVOKED not in parse_label(bank.label(one.sealed_sha256))[1].to
    if epsilon is not None:
        for site in LEFT:
            (standing,) = Ledger.at(prepared.sites[site] / "ledger").standings()
            assert standing.runs == 1
            assert standing.spent.value <= epsilon
