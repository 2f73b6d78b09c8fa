"""Adversary: whoever would like the ledger to remember less, or to say more than it should.

A thief of the disk, and a hurried researcher with the site's own rights, who wants one more run. Whoever may write the
whole folder can delete it: that is noticed by what was made under it, and by nobody else.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Self

import pytest

from not_fed.cli import main as command
from not_fed.errors import BudgetError, InputError, NotFedError, TrustError
from not_fed.privacy.ledger import rows as ledger_rows
from not_fed.privacy.ledger.check import LedgerRolledBack
from not_fed.privacy.ledger.identity import KEY_FILE, LedgerKeyUnusable
from not_fed.privacy.ledger.ledger import FILE, Ledger, LedgerMissing
from not_fed.privacy.ledger.reservation import ReservationOver
from not_fed.privacy.ledger.rows import LedgerEdited
from not_fed.privacy.ledger.scope import BudgetSpent, UnitsMixed
from tests.support.ledgers import DELTA, budgeted, notes, plan, run

FULL = plan(noise=0.99, steps=10)  # after it, no second one of its kind fits into 8


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "ledger"


@contextmanager
def editing(folder: Path) -> Iterator[sqlite3.Connection]:
    """Somebody with an SQLite client."""
    with closing(sqlite3.connect(folder / FILE, isolation_level=None)) as database:
        yield database


def spent_out(folder: Path) -> Ledger:
    """A ledger in which the next run of the kind is refused."""
    ledger, data = budgeted(folder)
    run(ledger, data, "one", FULL)
    return ledger


def test_a_thief_of_the_ledger_learns_no_text_and_nobodys_name(folder: Path) -> None:
    """Own. The thief reads every byte and hashes texts that it suspects in any usual way.

    Powers: the whole folder but the key. Control: the site itself finds its records in it.
    """
    ledger = Ledger.at(folder)
    texts, people = ["Anna Muster has a knee that hurts", "short"], ["4711-0815", "0000-0001"]
    data = ledger.identify(texts, people)
    run(ledger, data, "one", plan(unit="person"))
    assert ledger.standing(data, unit="person").runs == 1
    stolen = b"".join(path.read_bytes() for path in folder.iterdir() if path.name != KEY_FILE)
    for secret in [*texts, *people, "Muster", "4711"]:
        for spelled in (secret, secret.casefold(), " ".join(secret.casefold().split())):
            plain = spelled.encode()
            assert len(plain) < 6 or plain not in stolen
            for algorithm in ("sha256", "sha1", "md5", "blake2b"):
                digest = hashlib.new(algorithm, plain).digest()
                for kind in (b"", b"r", b"p"):
                    guessed = hashlib.new(algorithm, kind + plain).digest()
                    assert guessed[:16] not in stolen
                assert digest[:16] not in stolen
                assert digest.hex()[:32].encode() not in stolen
    rows = [json.loads(body) for (body,) in sqlite3.connect(folder / FILE).execute("SELECT body FROM chain")]
    assert not {"records", "members", "people", "size"} & {key for row in rows for key in row}, "counts are private"


@pytest.mark.parametrize(
    "disguise",
    [
        lambda texts: texts, lambda texts: texts[::-1], lambda texts: [*texts, "one more record"],
        lambda texts: texts[:-1], lambda texts: texts + texts, lambda texts: [text.upper() for text in texts],
        lambda texts: [f"  {text}\t" for text in texts], lambda texts: [*notes(1000, 1100), texts[0]],
    ],
    ids=["copied", "reordered", "one added", "one removed", "doubled", "in capitals", "indented", "one among others"],
)  # fmt: skip
def test_records_in_disguise_are_the_same_records(folder: Path, disguise: Callable[[list[str]], list[str]]) -> None:
    """Own. A second budget for the same records: a copy under another name, in another order, grown or cut.

    Powers: writes any file and names any run. Control: records that were never used have a budget of their own.
    """
    ledger = spent_out(folder)
    with pytest.raises(BudgetSpent):
        ledger.reserve(ledger.identify(disguise(notes())), name="new.jsonl", plan=FULL, run="two")
    run(ledger, ledger.identify(notes(1000, 1050)), "three", FULL)


def test_splitting_the_records_does_not_split_the_budget(folder: Path) -> None:
    """Own. Halves of a spent data set, each alone; then halves first and the whole after.

    Powers: cuts files as it likes. Control: each half may spend its budget once, as each record may.
    """
    ledger = spent_out(folder)
    for half in (notes(0, 25), notes(25, 50)):
        with pytest.raises(BudgetSpent):
            ledger.reserve(ledger.identify(half), name="half", plan=FULL, run="half")
    for name, half in (("left", notes(100, 125)), ("right", notes(125, 150))):
        ledger.set_budget(ledger.identify(half), name=name, unit="record", epsilon=8.0, delta=DELTA)
        run(ledger, ledger.identify(half), name, FULL)
    with pytest.raises(BudgetSpent):
        ledger.reserve(ledger.identify(notes(100, 150)), name="whole", plan=FULL, run="whole")


def test_another_unit_is_no_other_budget(folder: Path) -> None:
    """Own. Records that are spent out are offered again per person, and with made-up people.

    Powers: adds any column. Control: the unit of the account goes on.
    """
    ledger = spent_out(folder)
    for people in (["one"] * 50, [f"p{number}" for number in range(50)]):
        with pytest.raises(UnitsMixed):
            ledger.reserve(ledger.identify(notes(), people), name="n", plan=plan(unit="person"), run="two")
    tiny = plan(noise=50.0)
    run(ledger, ledger.identify(notes(), ["one"] * 50), "three", tiny)


def test_a_restored_backup_is_noticed_by_the_organs_made_since(folder: Path, tmp_path: Path) -> None:
    """Own. The researcher keeps a copy of the folder, trains, and puts the copy back.

    Powers: the whole folder, key included. Control: before that, and with the newer folder, the organ's row is known.
    """
    ledger, data = budgeted(folder)
    shutil.copytree(folder, tmp_path / "backup")
    run(ledger, data, "one", FULL)
    head = ledger.head  # stands in the organ's manifest and passport
    ledger.require_heads([head])
    shutil.move(folder, tmp_path / "newer")
    shutil.copytree(tmp_path / "backup", folder)
    restored = Ledger.at(folder)
    restored.verify()  # an old copy is whole
    for check in (restored.require_heads, restored.verify):
        with pytest.raises(LedgerRolledBack) as caught:
            check([head])
        assert isinstance(caught.value, TrustError)
    assert Ledger.at(tmp_path / "newer").verify([head]) > 0


EDITS = {
    "noise of a run": "UPDATE chain SET body = replace(body, '0.99', '9.99') WHERE body LIKE '%reserve%'",
    "steps of a run": "UPDATE chain SET body = replace(body, '\"steps\":10', '\"steps\":1') WHERE body LIKE '%run%'",
    "the budget": "UPDATE chain SET body = replace(body, '\"8.0\"', '\"9.0\"')",
    "a row removed": 'DELETE FROM chain WHERE body LIKE \'%"kind":"reserve"%\'',
    "a row moved": "UPDATE chain SET seq = seq + 10 WHERE seq = (SELECT max(seq) FROM chain)",
    "a hash": "UPDATE chain SET hash = replace(hash, substr(hash, 1, 4), 'beef') WHERE seq = 1",
    "a row that is no JSON": "UPDATE chain SET body = '{' WHERE seq = 2",
    "a row of another kind": "UPDATE chain SET body = replace(body, 'commit', 'release')",
    "time": 'UPDATE chain SET body = replace(body, \'"time":"2\', \'"time":"3\')',
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS)
def test_an_edited_row_is_noticed(folder: Path, edit: str) -> None:
    """Own. A row is made cheaper, removed or moved.

    Powers: an SQLite client. Control: the ledger as it was written is whole.
    """
    ledger = spent_out(folder)
    ledger.verify()
    with editing(folder) as database:
        assert database.execute(edit).rowcount > 0
    for attempt in (
        ledger.verify, lambda: Ledger.at(folder),
        lambda: ledger.reserve(ledger.identify(notes()), name="n", plan=FULL, run="two"),
    ):  # fmt: skip
        with pytest.raises(LedgerEdited):
            attempt()


def test_a_chain_that_was_computed_anew_is_noticed_by_the_organs(folder: Path) -> None:
    """Own. The researcher changes the noise of a run and hashes the whole chain again.

    Powers: knows the format, writes the whole file. Control: with the organs of that ledger at hand.
    """
    ledger = spent_out(folder)
    head = ledger.head
    with editing(folder) as database:
        bodies = [body for (body,) in database.execute("SELECT body FROM chain ORDER BY seq")]
        previous = "0" * 64
        for seq, body in enumerate(bodies):
            fields = json.loads(body) | {"prev": previous}
            changed = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
            changed = changed.replace("0.99", "9.99")
            previous = hashlib.sha256(changed.encode()).hexdigest()
            database.execute("UPDATE chain SET body = ?, hash = ? WHERE seq = ?", (changed, previous, seq))
    ledger.verify()
    with pytest.raises(LedgerRolledBack):
        ledger.verify([head])


@pytest.mark.parametrize(
    "edit",
    [
        "DELETE FROM members", "DELETE FROM members WHERE member IN (SELECT member FROM members LIMIT 1)",
        "UPDATE members SET account = 999", "INSERT INTO members VALUES (x'7200', 999)",
    ],
)  # fmt: skip
def test_records_cannot_be_taken_out_of_an_account(folder: Path, edit: str) -> None:
    """Own. Without its records an account overlaps with nothing, and they could be spent again.

    Powers: an SQLite client. Control: with its records in place the refusal is about the budget.
    """
    ledger = spent_out(folder)
    again = ledger.identify([*notes(), "one more"])
    with pytest.raises(BudgetSpent):
        ledger.reserve(again, name="n", plan=FULL, run="two")
    with editing(folder) as database:
        database.execute(edit)
    with pytest.raises(LedgerEdited):
        ledger.reserve(again, name="n", plan=FULL, run="two")
    with pytest.raises(LedgerEdited):
        ledger.verify()


def test_counters_that_were_turned_back_do_not_buy_steps(folder: Path) -> None:
    """Own. A committed run is opened again, or its counters vanish, to start more steps under it.

    Powers: an SQLite client. Control: an open run starts steps.
    """
    ledger, data = budgeted(folder)
    reserved = ledger.reserve(data, name="n", plan=plan(), run="one")
    reserved.start_step(remaining=9)
    reserved.commit()
    with editing(folder) as database:
        database.execute("UPDATE counters SET closed = 0, started = 0")
    with pytest.raises(LedgerEdited):
        ledger.verify()
    with pytest.raises(ReservationOver):
        ledger.reserve(data, name="n", plan=plan(), run="one")
    with editing(folder) as database:
        database.execute("DELETE FROM counters")
    with pytest.raises(LedgerEdited):
        ledger.verify()
    with pytest.raises(ReservationOver):
        reserved.start_step(remaining=0)


def test_a_lost_or_changed_key_closes_the_ledger(folder: Path, tmp_path: Path) -> None:
    """Own. Under another key every record would look new: the key is deleted, exchanged, cut, opened to all.

    Powers: the file system. Control: with its own key the ledger opens.
    """
    ledger = spent_out(folder)
    key = (folder / KEY_FILE).read_bytes()
    other = tmp_path / "other"
    Ledger.at(other)
    for wrong in (None, (other / KEY_FILE).read_bytes(), key[:-1], key + b"x", bytes(32), b""):
        (folder / KEY_FILE).unlink(missing_ok=True)
        if wrong is not None:
            (folder / KEY_FILE).write_bytes(wrong)
            (folder / KEY_FILE).chmod(0o600)
        with pytest.raises(LedgerKeyUnusable) as caught:
            Ledger.at(folder)
        assert key.hex() not in str(caught.value)
    (folder / KEY_FILE).write_bytes(key)
    (folder / KEY_FILE).chmod(0o644)
    with pytest.raises(LedgerKeyUnusable, match="others may open"):
        Ledger.at(folder)
    (folder / KEY_FILE).chmod(0o600)
    assert Ledger.at(folder).verify() == ledger.verify()


def test_a_ledger_that_vanished_is_not_made_anew(folder: Path) -> None:
    """Own. The file is deleted, exchanged for a link or for noise; the key is left.

    Powers: the file system. Control: a folder with neither is a new ledger, which no organ was made under.
    """
    head = spent_out(folder).head
    for path in folder.glob(f"{FILE}*"):
        path.unlink()
    with pytest.raises(LedgerMissing):
        Ledger.at(folder)
    (folder / FILE).symlink_to("/dev/null")
    with pytest.raises(NotFedError):
        Ledger.at(folder)
    (folder / FILE).unlink()
    (folder / FILE).write_bytes(os.urandom(8192))
    with pytest.raises(InputError):
        Ledger.at(folder)
    shutil.rmtree(folder)
    with pytest.raises(LedgerRolledBack):
        Ledger.at(folder).require_heads([head])


def test_the_clock_buys_nothing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. The clock is set back by twenty years, and then ahead.

    Powers: the machine's time. Control: at any time a run that fits is admitted.
    """
    ledger = spent_out(folder)
    for year in (2001, 2099):

        class Clock(datetime):
            @classmethod
            def now(cls, tz: tzinfo | None = None, year: int = year) -> Self:
                return cls(year, 1, 1, tzinfo=tz)

        monkeypatch.setattr(ledger_rows, "datetime", Clock)
        with pytest.raises(BudgetSpent):
            ledger.reserve(ledger.identify(notes()), name="n", plan=FULL, run=f"{year}")
        run(ledger, ledger.identify(notes()), f"tiny {year}", plan(noise=100.0))
    ledger.verify()


def test_a_run_killed_again_and_again_pays_for_each_look(folder: Path) -> None:
    """Own. The researcher lets a run begin, kills it, and begins the same run again, to see many noisy first steps.

    Powers: kills and restarts at will. Control: a run that is restarted once goes on within its budget.
    """
    ledger, data = budgeted(folder)
    looks = 0
    with pytest.raises(BudgetSpent):
        while looks < 1000:
            Ledger.at(folder).reserve(data, name="n", plan=FULL, run="one").start_step(remaining=9)
            looks += 1
    standing = ledger.standing(data, unit="record")
    assert standing.enforced <= 8
    (entry,) = ledger.history(data)
    assert entry.charge.charged(ledger_rows.STEPS) == looks + 9
    assert 2 <= looks < 10


def test_two_at_once_do_not_get_what_one_would_not(folder: Path) -> None:
    """Own. Two commands read the ledger before either writes.

    Powers: starts them at the same moment. Control: one of them is admitted.
    """
    ledger, data = budgeted(folder)
    left, right = Ledger.at(folder), Ledger.at(folder)
    assert left.would_cost(data, plan=FULL).allowed
    assert right.would_cost(data, plan=FULL).allowed
    left.reserve(data, name="n", plan=FULL, run="left")
    with pytest.raises(BudgetError):
        right.reserve(data, name="n", plan=FULL, run="right")
    assert ledger.standing(data, unit="record").runs == 1


def test_the_command_notices_an_edited_ledger(
    own_ledger: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Own. An auditor asks for the history of a ledger in which a run was made cheaper.

    Powers: an SQLite client. Control: `budget verify` says that the ledger is whole, and exits with 0.
    """
    spent_out(own_ledger)

    def asked(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["not-fed", *words])
        with pytest.raises(SystemExit) as ended:
            command.main()
        return int(ended.value.code or 0)

    assert asked("budget", "verify") == 0
    assert "whole" in capsys.readouterr().out
    with editing(own_ledger) as database:
        database.execute(EDITS["noise of a run"])
    for verb in ("verify", "show", "history"):
        assert asked("budget", verb) == TrustError.exit_code
        assert "ledger-edited" in capsys.readouterr().err
