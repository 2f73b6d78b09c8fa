"""Run a prepared federation through Flower and gather what everybody ended up with."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from flwr.app import Message

from not_fed.coordinator.bank import Bank
from not_fed.coordinator.kept_log import log_folder
from not_fed.coordinator.state import CoordinatorState
from not_fed.envelope.task import parse_task
from not_fed.processes.bundle import load_app
from not_fed.progress import Progress, current, silent
from not_fed.simulation.grid import LocalGrid, Tap, server_context
from not_fed.simulation.prepare import COORDINATOR, Prepared
from not_fed.site.state import SiteState
from not_fed.trust.log_entries import entry
from not_fed.trust.log_folder import LogFolder

Engine = Literal["inline", "ray", "processes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One sealed organ on its way.

    Attributes:
        round: the round in which the organ was made.
        sender, recipient: names; `coordinator` is the server.
        seconds: what sealing (towards the server) or verifying and opening (away from it) took at the site.
    """

    round: int
    sender: str
    recipient: str
    bytes: int
    seconds: float
    kind: Literal["organ", "aggregate", "update", "partial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class SimulationResult:
    """What a run left behind. Losses come from the sites' own homes: only a simulation may look there.

    Attributes:
        own: site -> its organ of each round, by round; a site that was lost has none for that round.
        aggregates: site -> the aggregate of each round as this site has it.
        kept: the rounds whose aggregates were kept in the end, one of each span.
        notes: site -> its own notes on each task: losses, tokens, seconds, epsilon.
        answers: every answer that the coordinator counted or refused.
        stored: kind of file that the server stored -> {"count", "bytes"}.
        seconds: the whole run.
    """

    prepared: Prepared
    engine: Engine
    own: Mapping[str, Mapping[int, Path]]
    aggregates: Mapping[str, Mapping[int, Path]]
    kept: tuple[int, ...]
    deliveries: list[Delivery]
    notes: Mapping[str, list[dict[str, Any]]]
    answers: list[dict[str, Any]]
    stored: Mapping[str, Mapping[str, int]]
    seconds: float

    @property
    def loss_curves(self) -> dict[str, list[float | None]]:
        """Site -> its training loss over all its steps of all rounds; a private run has none."""
        curves = {
            site: [loss for note in notes for loss in note.get("loss_curve", [])] for site, notes in self.notes.items()
        }
        return {site: curve for site, curve in curves.items() if curve}

    @property
    def accounts(self) -> dict[str, dict[str, Any]]:
        """Site -> where its records stood with their budget after its last private round."""
        found = {site: [note["account"] for note in notes if "account" in note] for site, notes in self.notes.items()}
        return {site: accounts[-1] for site, accounts in found.items() if accounts}

    @property
    def bytes_sent(self) -> int:
        """Sealed bytes over all deliveries, each way."""
        return sum(delivery.bytes for delivery in self.deliveries)

    @property
    def epsilon(self) -> dict[str, float | None]:
        """Site -> what all rounds of the run cost together; None without differential privacy."""
        return {
            site: next((n["epsilon"] for n in notes if n.get("epsilon") is not None), None)
            for site, notes in self.notes.items()
        }

    @property
    def last_own(self) -> dict[str, Path]:
        """Site -> its organ of the last round in which it had one."""
        return {site: organs[max(organs)] for site, organs in self.own.items() if organs}

    @property
    def aggregate(self) -> Path | None:
        """The newest aggregate that was kept, from the first site that has it (they are the same everywhere)."""
        return self._aggregate_of(max(self.kept, default=0))

    @property
    def body(self) -> tuple[Path, ...]:
        """The newest kept aggregate of every span: what the run came to."""
        found = (self._aggregate_of(number) for number in self.kept)
        return tuple(organ for organ in found if organ is not None)

    @property
    def own_bodies(self) -> dict[str, tuple[Path, ...]]:
        """Site -> its own last organ, with the kept aggregates of the other spans in their layers."""
        return {
            site: (
                organs[last],
                *(
                    organ
                    for number in self.kept
                    if self.prepared.span_of(number) != self.prepared.span_of(last)
                    and (organ := self._aggregate_of(number)) is not None
                ),
            )
            for site, organs in self.own.items()
            if organs and (last := max(organs))
        }

    def _aggregate_of(self, number: int) -> Path | None:
        return next((rounds[number] for _, rounds in sorted(self.aggregates.items()) if number in rounds), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """Things of one kind that the coordinator held in a round, and what they told it."""

    round: int
    what: str
    count: int
    bytes: int
    tells: str


def run(
    prepared: Prepared,
    *,
    engine: Engine = "inline",
    tap: Tap | None = None,
    drop: Callable[[Message], bool] | None = None,
    progress: Progress = silent,
) -> SimulationResult:
    """Run a prepared federation with the bundle's own two apps.

    Args:
        engine: `inline` calls the apps in this process through Flower's serialisation; `ray` is Flower's simulation
            engine, in processes of its own; `processes` is a deployment as `coordinator serve` and `site join` run it.
            Both are stopped afterwards.
        tap: told about every message's bytes; inline only.
        drop: messages that are lost; inline only.
    Raises:
        NotFedError: the coordinator could not go on. With `ray`, EngineFailed; with `processes`, ProcessesFailed.
    """
    started = time.monotonic()
    if engine == "ray":
        from not_fed.simulation.ray_engine import run_with_ray

        run_with_ray(prepared, progress=progress)
    elif engine == "processes":
        from not_fed.simulation.processes import run_with_processes

        run_with_processes(prepared, progress=progress)
    else:
        logging.getLogger("not_fed").addHandler(logging.NullHandler())  # the caller decides what to show
        homes = [{"home": str(home)} for home in prepared.sites.values()]
        grid = LocalGrid(load_app("clients"), homes, tap=_count(prepared, tap, progress), drop=drop)
        listening = current.set(progress)
        try:
            load_app("server")(grid, server_context({"home": str(prepared.coordinator)}))
        finally:
            current.reset(listening)
    return collect(prepared, engine=engine, seconds=time.monotonic() - started)


def collect(prepared: Prepared, *, engine: Engine, seconds: float) -> SimulationResult:
    """Read the homes after a run."""
    states = {site: SiteState(home) for site, home in prepared.sites.items()}
    own: dict[str, dict[int, Path]] = {}
    aggregates: dict[str, dict[int, Path]] = {}
    for site, home in prepared.sites.items():
        organs = home / "organs" / prepared.run
        own[site] = {number: path for number in _rounds(prepared) if (path := organs / f"own-{number}.organ").is_file()}
        aggregates[site] = {
            number: path for number in _rounds(prepared) if (path := organs / f"aggregate-{number}.organ").is_file()
        }
    coordinator = CoordinatorState(prepared.coordinator)
    return SimulationResult(
        prepared=prepared,
        engine=engine,
        own=own,
        aggregates=aggregates,
        kept=_kept(prepared, coordinator),
        deliveries=_deliveries(prepared, coordinator, states),
        notes={site: state.results(prepared.run) for site, state in states.items()},
        answers=[
            {"round": one.round, "kind": one.kind, "site": one.site, "status": one.status, "code": one.code}
            for one in coordinator.answers(prepared.run)
        ],
        stored=_stored(prepared, coordinator),
        seconds=seconds,
    )


def _kept(prepared: Prepared, coordinator: CoordinatorState) -> tuple[int, ...]:
    """The rounds whose organs the coordinator's last task names, so far as the run has come."""
    tasks = [parse_task(line) for line in coordinator.tasks(prepared.run)]
    final = next((task for task in tasks if task.kind == "receive"), None)
    if final is None:
        return ()
    blind = set() if final.total is None else {final.total.call.round}
    return tuple(sorted({ref.round for ref in final.parcels} | blind))


def _rounds(prepared: Prepared) -> range:
    return range(1, prepared.rounds + 1)


def _deliveries(prepared: Prepared, coordinator: CoordinatorState, states: Mapping[str, SiteState]) -> list[Delivery]:
    seconds: dict[tuple[str, str], float] = {}
    for site, state in states.items():
        for organ in state.organs(prepared.run):
            recipient = COORDINATOR if organ.sender == site else site
            seconds[organ.sealed_sha256, recipient] = organ.seconds
    return [
        Delivery(
            round=one.round,
            sender=one.sender,
            recipient=one.recipient,
            bytes=one.size_bytes,
            kind=one.kind,
            seconds=seconds.get((one.sealed_sha256, one.recipient), 0.0),
        )
        for one in coordinator.deliveries(prepared.run)
    ]


def _stored(prepared: Prepared, coordinator: CoordinatorState) -> dict[str, dict[str, int]]:
    """What the server keeps, by kind: sealed organs, their labels, and its own notes on who sent what when."""
    names = {"sealed": "sealed organs", "label": "labels"}
    found = {
        names.get(kind, kind): {"count": stored.count, "bytes": stored.bytes}
        for kind, stored in Bank.at(prepared.coordinator).listing().items()
    }
    aggregates = [one for number in _rounds(prepared) if (one := coordinator.aggregate(prepared.run, number))]
    if aggregates:
        found["sealed aggregates"] = {"count": len(aggregates), "bytes": sum(size for _, size in aggregates)}
        for field in ("count", "bytes"):
            found["sealed organs"][field] -= found["sealed aggregates"][field]
    papers = coordinator.papers(prepared.run)
    if papers:
        found["signed papers and capsules of sums and votes"] = {
            "count": sum(one.count for one in papers),
            "bytes": sum(one.bytes for one in papers),
        }
    tasks = coordinator.tasks(prepared.run)
    found["tasks it signed"] = {"count": len(tasks), "bytes": sum(len(task) for task in tasks)}
    if log_folder(prepared.coordinator).is_dir():
        kinds = LogFolder(log_folder(prepared.coordinator)).audit()
        size = sum(count * len(entry(kind, "0" * 64)) for kind, count in kinds.items())
        found["log entries"] = {"count": sum(kinds.values()), "bytes": size}
    return found


def held(prepared: Prepared) -> list[Held]:
    """What the coordinator held at each step of each round, by its own records of who sent what and what came of it."""
    state = CoordinatorState(prepared.coordinator)
    answers, papers = state.answers(prepared.run), state.papers(prepared.run)
    outcomes, rows = state.round_outcomes(prepared.run), []

    def add(number: int, what: str, count: int, size: int, tells: str) -> None:
        if count:
            rows.append(Held(round=number, what=what, count=count, bytes=size, tells=tells))

    def add_papers(number: int, kinds: Mapping[str, tuple[str, str]]) -> None:
        for kind, (what, tells) in kinds.items():
            found = [one for one in papers if (one.round, one.kind) == (number, kind)]
            add(number, what, sum(one.count for one in found), sum(one.bytes for one in found), tells)

    for number in _rounds(prepared):
        for kind, what, tells in _HELD if prepared.mode == "secure-sum" else _SEALED:
            sealed = [one for one in answers if (one.round, one.kind, one.status) == (number, kind, "sealed")]
            add(number, what, len(sealed), sum(one.size_bytes for one in sealed), tells)
        add_papers(number, _UPLOADED)
        made, proposal = state.aggregate(prepared.run, number), state.proposal(prepared.run, number)
        if proposal is not None and proposal.total_sha256 is not None:
            add(number, "sum under the sites' own masks", 1, proposal.size_bytes, "nothing: only sites read it")
        elif made is not None:
            told = "the aggregate" if prepared.mode == "trusted" else "the sum of all their changes, and no single one"
            add(number, "aggregate, sealed to the sites and to itself", 1, made[1], told)
        outcome, why = outcomes.get(number, ("", ""))
        add_papers(number, {"vote": ("signed votes", f"who accepts, and a word why; {why or outcome}")})
    return rows


_HELD: Final = (
    ("train", "masked changes", "nothing: words that look random, deleted once the sum is formed"),
    ("help", "helpers' sums of masks", "masks alone; with all masked changes, their sum"),
)
_SEALED: Final = (("train", "sealed organs", "who, when, how large"),)
_UPLOADED: Final[Mapping[str, tuple[str, str]]] = {
    "train": ("signed uploads", "digests, and what each site claims about its privacy"),
    "capsules": ("capsules from site to site", "nothing: sealed to one site and one round each"),
    "reveal": ("shares in the place of a lost helper", "the masks of that helper for these sites, nothing else"),
}


def _count(prepared: Prepared, tap: Tap | None, progress: Progress) -> Tap:
    """Pass messages on to `tap`, and count answers for the progress bar: a greeting and an answer per step and site."""
    steps = prepared.rounds * (1 if prepared.mode == "bank" else 3)
    done, total = 0, len(prepared.sites) * (steps + 2)

    def counted(direction: Literal["sent", "received"], data: bytes) -> None:
        nonlocal done
        if tap is not None:
            tap(direction, data)
        if direction == "received":
            done += 1
            progress("federation", done=min(done, total), total=total)

    return counted
