"""Adversary: whoever puts a site's disk back to an older state, organs and all, or plays with what is kept for it.

Powers: the site's whole disk, or the coordinator's. Lacks: the site's keys, and the other side's disk.
"""

from __future__ import annotations

import base64
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict

from not_fed import canonical
from not_fed.coordinator.state import CoordinatorState
from not_fed.envelope.receipt import Receipt, sign_receipt, verify_receipt
from not_fed.home import Home
from not_fed.privacy.ledger.ledger import Ledger
from not_fed.simulation import Prepared, run
from tests.support.federation import PRIVACY, a_task, ask, refusal, signed, tiny_prepared

SITE = "clinic"


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    return tiny_prepared(tmp_path, epsilon=8.0, rounds=1)


def train(prepared: Prepared, *, run: str = "first", receipt: bytes | None = None) -> RecordDict:
    papers: dict[str, Any] = {} if receipt is None else {"receipt": receipt}
    return ask(prepared, SITE, signed(prepared, a_task(prepared, privacy=PRIVACY, run=run)), **papers)


def receipt_in(answer: RecordDict) -> bytes:
    record = answer["answer"]
    assert isinstance(record, ConfigRecord)
    line = record["receipt"]
    assert isinstance(line, bytes)
    return line


def put_back(prepared: Prepared, backup: Path) -> None:
    home = prepared.sites[SITE]
    shutil.rmtree(home)
    shutil.copytree(backup, home, symlinks=True)


def test_a_site_restored_from_a_backup_is_told_by_its_own_receipt(prepared: Prepared, tmp_path: Path) -> None:
    """Own. The whole home of a site is put back to a backup from before its run: ledger, memory and organs.

    Powers: the site's whole disk. Control: without the receipt the site trains again, unaware; and a site that was not
    put back goes on with its receipt.
    """
    shutil.copytree(prepared.sites[SITE], tmp_path / "backup", symlinks=True)
    receipt = receipt_in(train(prepared))
    assert refusal(train(prepared, run="second", receipt=receipt)) == "budget-spent"  # control: it knows
    put_back(prepared, tmp_path / "backup")
    assert refusal(train(prepared, run="second", receipt=receipt)) == "ledger-rollback"
    assert refusal(train(prepared, run="second")) is None  # control: the coordinator kept nothing


def test_a_receipt_that_is_not_the_sites_own_is_refused(prepared: Prepared) -> None:
    """Own. The coordinator hands a site the receipt of another site, one for another coordinator, an edited one, noise,
    or one from the future: kept as the newest, it would stand in the way of every true one until its day comes.

    Powers: a coordinator that wants a site to refuse, or to overlook. Control: the site's own receipt.
    """
    home, now = Home(prepared.sites[SITE]), datetime.now(UTC)
    fields: dict[str, Any] = {
        "v": 1, "federation": "tiny", "site": SITE, "coordinator": "coordinator", "task": "0" * 32, "issued": now,
        "ledger_head": Ledger.at(prepared.sites[SITE] / "ledger").head,
    }  # fmt: skip
    own = sign_receipt(Receipt(**fields), signer=home.signer())
    edited = canonical.loads(own, where="test")
    payload = base64.b64decode(edited["payload"]).replace(fields["ledger_head"].encode(), b"0" * 64)
    edited["payload"] = base64.b64encode(payload).decode()
    ward = Home(prepared.sites["ward"]).signer()
    for wrong, code in (
        (sign_receipt(Receipt(**{**fields, "site": "ward"}), signer=ward), "signature-refused"),
        (sign_receipt(Receipt(**fields), signer=ward), "signature-refused"),
        (sign_receipt(Receipt(**{**fields, "coordinator": "other"}), signer=home.signer()), "bad-receipt"),
        (sign_receipt(Receipt(**{**fields, "site": "ward"}), signer=home.signer()), "bad-receipt"),
        (sign_receipt(Receipt(**{**fields, "issued": now + timedelta(hours=1)}), signer=home.signer()), "bad-receipt"),
        (canonical.dumps(edited), "signature-refused"),
        (b"noise", "signed-malformed"),
    ):
        assert refusal(train(prepared, receipt=wrong)) == code
    assert refusal(train(prepared, receipt=own)) is None  # control


def test_the_coordinator_keeps_the_newest_true_receipt_and_hands_it_back(prepared: Prepared, tmp_path: Path) -> None:
    """Own. After a whole run through the coordinator, a site is put back, and the coordinator starts another run.

    Powers: the site's whole disk. Control: the sites that were not put back are judged by their budgets.
    """
    shutil.copytree(prepared.sites[SITE], tmp_path / "backup", symlinks=True)
    run(prepared)
    state = CoordinatorState(prepared.coordinator)
    roster = Home(prepared.coordinator).roster(datetime.now(UTC))
    for site in prepared.sites:
        line = state.receipt(site)
        assert line is not None
        found = verify_receipt(line, site=site, coordinator="coordinator", roster=roster, now=datetime.now(UTC))
        assert found.ledger_head == Ledger.at(prepared.sites[site] / "ledger").head
    newest = state.receipt(SITE)
    state.keep_receipt(SITE, b"older", issued=datetime(2020, 1, 1, tzinfo=UTC))
    assert state.receipt(SITE) == newest
    put_back(prepared, tmp_path / "backup")
    plan = prepared.coordinator / "federation.toml"
    plan.write_text(plan.read_text().replace('run = "first"', 'run = "second"\nretry_after_s = 0.1'))
    with pytest.raises(Exception, match="at least 2 answers"):
        run(prepared)
    codes = {one.site: one.code for one in state.answers("second")}
    assert codes == {SITE: "ledger-rollback", "hospice": "budget-spent", "ward": "budget-spent"}
