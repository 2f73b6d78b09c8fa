"""kill -9 while a child reserves, starts steps and commits: `python -m tests.support.ledger_kills FOLDER TRIALS SEED`.

The child says in a file what it has started, always after the ledger has said so. Then the parent kills it, and looks
whether the ledger knows all of that. One thread, so that forking is safe.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import sys
import time
import traceback
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

from not_fed.privacy.ledger.book import read_book
from not_fed.privacy.ledger.identity import DataIdentity
from not_fed.privacy.ledger.ledger import FILE, Ledger
from not_fed.privacy.ledger.reservation import ReservationOver
from not_fed.privacy.ledger.rows import STEPS, read_rows
from tests.support.ledgers import notes, plan

CHEAP = plan(noise=2000.0, rate=0.01, steps=4)
TRIALS_PER_LEDGER = 25


def work(folder: Path, said: Path, first_run: int) -> None:
    """Runs, one after the other, until killed; a run that was open goes on."""
    descriptor = os.open(said, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    ledger = Ledger.at(folder)
    data = ledger.identify(notes())
    for number in range(first_run, first_run + 1000):
        with suppress(ReservationOver):  # committed, and killed before it could say so
            _one_run(ledger, data, number, descriptor)


def _one_run(ledger: Ledger, data: DataIdentity, number: int, descriptor: int) -> None:
    reserved = ledger.reserve(data, name="notes.jsonl", plan=CHEAP, run=f"run {number}")
    os.write(descriptor, f"reserved {number}\n".encode())
    for step in range(CHEAP.steps):
        reserved.start_step(remaining=CHEAP.steps - 1 - step)
        os.write(descriptor, f"started {number}\n".encode())
    reserved.commit()
    os.write(descriptor, f"committed {number}\n".encode())


def killed_once(folder: Path, said: Path, first_run: int, wait_s: float) -> None:
    """One child, one kill."""
    child = os.fork()
    if child == 0:
        try:
            work(folder, said, first_run)
        except BaseException:  # noqa: BLE001  a forked child must not go on as its parent
            traceback.print_exc()
        finally:
            os._exit(1)
    time.sleep(wait_s)
    os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status), "the child ended by itself"


def check(folder: Path, said: Path) -> dict[str, int]:
    """Everything that the child said is in the ledger; how much that was.

    Raises AssertionError otherwise, and LedgerEdited if the ledger is not whole.
    """
    lines = Counter(said.read_text().splitlines()) if said.exists() else Counter()
    Ledger.at(folder).verify()
    with closing(sqlite3.connect(folder / FILE)) as database:
        database.row_factory = sqlite3.Row
        book = read_book(read_rows(database))
        counters = {
            row["reservation"]: row["started"]
            for row in database.execute("SELECT reservation, started FROM counters WHERE what = ?", (STEPS,))
        }
    charges = {charge.run: charge for charge in book.charges.values()}
    started = repeated = 0
    for line, count in lines.items():
        word, number = line.split()
        charge = charges[f"run {number}"]  # a reservation that was spoken of is there
        if word == "started":
            assert count <= counters[charge.seq] <= charge.charged(STEPS), "more was started than the ledger knows"
            started += count
            repeated += charge.repeats.get(STEPS, 0)
        if word == "committed":
            assert charge.state == "committed"
    return {"runs": len(charges), "started": started, "repeated": repeated}


def main(folder: Path, trials: int, seed: int) -> dict[str, int]:
    """All trials; what was seen in all."""
    chance, total = random.Random(seed), Counter[str]()
    for trial in range(trials):
        ledger = folder / f"ledger {trial // TRIALS_PER_LEDGER}"
        said = folder / f"said {trial // TRIALS_PER_LEDGER}"
        text = said.read_text() if said.exists() else ""
        open_run = max((int(line.split()[1]) for line in text.splitlines()), default=0)
        if f"committed {open_run}\n" in text:
            open_run += 1
        seen_before = len(text.splitlines())
        killed_once(ledger, said, open_run, chance.uniform(0.0, 0.25))
        if (ledger / FILE).exists():
            seen = check(ledger, said)
            total["checked"] += 1
        total["lines"] += len(said.read_text().splitlines()) - seen_before if said.exists() else 0
        if (trial + 1) % TRIALS_PER_LEDGER == 0 or trial + 1 == trials:
            total.update(seen)
    return dict(total)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))) + "\n")
