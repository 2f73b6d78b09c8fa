"""kill -9 of a coordinator at named moments of a run: each moment is a step between two things that it writes to disk.

Run as a script of its own (`python -m tests.support.coordinator_kills MODE FOLDER`), so that torch is imported once and
the process that forks has one thread. For each moment: fresh homes, a child that runs the federation in process and
kills itself there, a second child that runs it again to its end, and a look at what everybody has.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from not_fed import files
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.flower import run_federation
from not_fed.coordinator.kept_log import KeptLog, log_folder
from not_fed.coordinator.rounds import Rounds
from not_fed.coordinator.state import CoordinatorState
from not_fed.processes.bundle import load_app
from not_fed.simulation import Prepared
from not_fed.simulation.grid import LocalGrid
from not_fed.trust.log_folder import LogFolder
from tests.support.federation import tiny_prepared


@dataclass(frozen=True)
class Moment:
    """Before or after the nth call of a method."""

    where: type
    method: str
    when: Literal["before", "after"]
    nth: int


# With three sites and two rounds: orders and answers 1-3 are round 1's, 4-6 round 2's, 7-9 the last receiving.
BOTH: dict[str, Moment] = {
    "the first task is signed, not noted": Moment(CoordinatorState, "issue", "before", 1),
    "the first task is noted, no order has left": Moment(CoordinatorState, "issue", "after", 1),
    "some orders have left, no answer has come": Moment(Rounds, "order", "after", 1),
    "an answer has come, nothing of it is stored": Moment(Rounds, "accept", "before", 1),
    "an answer is in the bank, not in the log": Moment(KeptLog, "enter", "before", 1),
    "an answer is in the log, not counted": Moment(KeptLog, "enter", "after", 1),
    "one answer is counted, others are awaited": Moment(Rounds, "accept", "after", 1),
    "all answers are counted, the round is open": Moment(Rounds, "close", "before", 1),
    "the round is closed, the next has not begun": Moment(CoordinatorState, "close", "after", 1),
    "round 2: an order has left": Moment(Rounds, "order", "after", 4),
    "round 2: an answer is in the bank, not counted": Moment(Bank, "put", "after", 5),
    "round 2: one answer is counted": Moment(Rounds, "accept", "after", 4),
    "receiving: one site has the last organs": Moment(Rounds, "accept", "after", 7),
    "all is received, the run is not ended": Moment(CoordinatorState, "end_run", "before", 1),
    "the run is ended": Moment(CoordinatorState, "end_run", "after", 1),
}
TRUSTED: dict[str, Moment] = {
    "the aggregate is to be stored": Moment(Bank, "put", "before", 4),
    "the aggregate is in the bank, not in the log": Moment(KeptLog, "enter", "before", 4),
    "the aggregate is in the log, not noted": Moment(CoordinatorState, "set_aggregate", "before", 1),
    "the aggregate is noted, the round is open": Moment(CoordinatorState, "set_aggregate", "after", 1),
}
AGAIN = (
    "some orders have left, no answer has come", "one answer is counted, others are awaited",
    "the round is closed, the next has not begun", "receiving: one site has the last organs",
)  # fmt: skip
MOMENTS: dict[str, dict[str, Moment]] = {"bank": BOTH, "trusted": TRUSTED | {name: BOTH[name] for name in AGAIN}}
# An aggregate that was entered into the log and then lost is sealed anew: the log keeps a label that nobody was sent.
ONE_LABEL_MORE = "the aggregate is in the log, not noted"


def arm(moment: Moment) -> None:
    """From now on this process dies there."""
    real, calls = getattr(moment.where, moment.method), 0

    def deadly(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        nonlocal calls
        calls += 1
        if calls == moment.nth and moment.when == "before":
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **more)
        if calls == moment.nth:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    setattr(moment.where, moment.method, deadly)


def run_all(prepared: Prepared) -> None:
    """The federation in this process, from wherever it stopped, to its end."""
    grid = LocalGrid(load_app("clients"), [{"home": str(home)} for home in prepared.sites.values()])
    run_federation(grid, home=prepared.coordinator)


def child(work: Callable[[], None]) -> int:
    """The exit code of `work` in a process of its own; minus the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def outcome(prepared: Prepared) -> dict[str, Any]:
    """What must not depend on kills: everybody's aggregates and organs, and how many organs were ever counted."""
    state = CoordinatorState(prepared.coordinator)
    organs = {
        f"{site} {path.name}": files.sha256(path)
        for site, home in prepared.sites.items()
        for path in sorted((home / "organs" / prepared.run).glob("*.organ"))
        if path.name.startswith(("aggregate-", "own-"))
    }
    kinds = LogFolder(log_folder(prepared.coordinator)).audit()
    return {
        "organs": organs,
        "ended": state.ended(prepared.run),
        "counted": sum(one.status == "sealed" for one in state.answers(prepared.run)),
        "received": sum(one.status == "received" for one in state.answers(prepared.run)),
        "entries": sum(kinds.values()),
    }


def fresh(template: Prepared, folder: Path) -> Prepared:
    """The template's homes, copied."""
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(template.folder, folder)
    return replace(template, folder=folder)


def main() -> None:
    """Print, for each moment, how it ended: beside the undisturbed run's outcome."""
    mode, folder = sys.argv[1], Path(sys.argv[2])
    template = tiny_prepared(folder, mode=mode, log=True)
    undisturbed = fresh(template, folder / "undisturbed")
    assert child(lambda: run_all(undisturbed)) == 0
    found: dict[str, Any] = {"undisturbed": outcome(undisturbed)}
    for name, moment in MOMENTS[mode].items():
        prepared = fresh(template, folder / "killed")

        def die(prepared: Prepared = prepared, moment: Moment = moment) -> None:
            arm(moment)
            run_all(prepared)

        killed = child(die)
        again = child(lambda prepared=prepared: run_all(prepared))  # type: ignore[misc]
        found[name] = {"killed": killed, "again": again} | outcome(prepared)
    sys.stdout.write(json.dumps(found))


if __name__ == "__main__":
    main()
