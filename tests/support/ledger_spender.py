"""One of several processes that spend the same budget at once: `python -m tests.support.ledger_spender FOLDER NAME`.

Each has a file of its own that shares one record with all others. It reserves until it is refused, and prints how often
it was let.
"""

from __future__ import annotations

import sys
from pathlib import Path

from not_fed.privacy.ledger.ledger import Ledger
from not_fed.privacy.ledger.scope import BudgetSpent
from tests.support.ledgers import plan


def main(folder: Path, name: str) -> int:
    """How many runs were admitted."""
    ledger = Ledger.at(folder)
    data = ledger.identify([f"a note that only {name} has", "the note that all have"])
    for number in range(100):
        try:
            reserved = ledger.reserve(data, name=name, plan=plan(), run=f"{name} {number}")
        except BudgetSpent:
            return number
        reserved.start_step(remaining=reserved.plan.steps - 1)
    return 100


if __name__ == "__main__":
    sys.stdout.write(f"{main(Path(sys.argv[1]), sys.argv[2])}\n")
