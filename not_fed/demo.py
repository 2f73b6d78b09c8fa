"""Three hospitals, end to end, on this machine: train, sign, seal, relay, verify, average, transplant, measure, report.

Everything is the real thing, driven as `simulate` drives it; what the demo adds is looking: it records every byte that
the server received, searches it for what must not be there, tries to pass off altered organs, and writes the report.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from not_fed import __version__, files
from not_fed.aggregation.secure import SiteSum
from not_fed.bench.harness import cpu_name
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.state import CoordinatorState
from not_fed.coordinator.summing import SumRound
from not_fed.envelope import open_organ, passport_path
from not_fed.envelope.checks import Expectation
from not_fed.envelope.passport import parse_passport
from not_fed.errors import NotFedError
from not_fed.home import Home
from not_fed.organ.organ import read_organ
from not_fed.organ.transplant import apply_transplant, plan_body
from not_fed.processes.bundle import hospitals_folder
from not_fed.progress import Progress, silent
from not_fed.report import write_report
from not_fed.resources.hpo import SPECIALITIES, hospital_texts
from not_fed.simulation import (
    FederationFile,
    PlaintextCheck,
    Recorder,
    SimulationResult,
    check_server,
    evaluate,
    load_federation,
    prepare,
    run,
    summarise,
)
from not_fed.simulation.federation import HPO
from not_fed.simulation.prepare import COORDINATOR, Prepared
from not_fed.simulation.running import Engine
from not_fed.site.state import SiteState
from not_fed.site.sumkeys import sums

MARKER = ".not-fed-demo"
LIBRARIES = ("torch", "flwr", "transformers")
RAN_AS: dict[Engine, str] = {
    "inline": "In one process, through Flower's own serialisation; every byte that the server received was searched.",
    "ray": "On Flower's simulation engine; what the server stored was searched.",
    "processes": "As a deployment on this machine: gateway with TLS, Flower's SuperLink, a SuperNode at each site, all "
    "processes of their own, stopped afterwards; what the coordinator stored was searched, Flower's database too, not "
    "each message on its way.",
}


@dataclass
class Watch:
    """What took how long; `lap` names a stretch that just ended."""

    started: float = field(default_factory=time.monotonic)
    laps: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def lap(self, label: str) -> Iterator[None]:
        """Add the block's time to the stretch of that name."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.laps[label] = self.laps.get(label, 0.0) + time.monotonic() - began

    @property
    def total(self) -> float:
        """Since the start."""
        return time.monotonic() - self.started


def run_demo(
    *, out: Path, quick: bool = False, engine: Engine = "inline", progress: Progress = silent,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:  # fmt: skip
    """Run the demo and write `out/result.json`, `out/report.html` and a transplanted model for each run.

    Args:
        out: replaced if an earlier demo made it; anything else there is left alone and refused.
        quick: fewer records and one round: the same in under three minutes on two cores.
        say: told in one line what happens next.
    Returns:
        the object of result.json, schema `not-fed/federated/1`.
    Raises:
        OutputExists: `out` is there and is not an earlier demo's. NotFedError: whatever stopped a run.
    """
    watch = Watch()
    with watch.lap("fetch, or find, base model and texts"):
        _start_folder(out)
        federation = load_federation(hospitals_folder() / ("quick.toml" if quick else "federation.toml"))
    results, checks = [], []
    for table in federation.runs:
        say(f"run {table.name}: {len(federation.sites)} hospitals, {federation.rounds_of(table)} round(s)")
        with watch.lap("homes, keys and rosters"):
            prepared = prepare(federation, out=out / table.name, run=table, progress=progress)
        with _recorded(out / f".{table.name}.received") as recorder:
            with watch.lap(f"run {table.name}"):
                results.append(
                    run(prepared, engine=engine, tap=recorder if engine == "inline" else None, progress=progress)
                )
            say("searching what the server had for text, organs and keys")
            with watch.lap("search what the server had"):
                checks.append(check_server(results[-1], recorded=recorder.path))
    say("trying to pass off altered organs")
    with watch.lap("attacks"):
        refused = _refusals(results[0], scratch=out)
    say("transplanting the aggregates into the base model")
    with watch.lap("transplant"):
        for result in results:
            _transplant(result, out=out / f"model-{result.prepared.run}")
    say("measuring every organ on every speciality's held-out text")
    with watch.lap("perplexity"):
        perplexity = evaluate(results, progress=progress)
    object_ = summarise(results, perplexity, seconds=round(watch.total, 1))
    object_ |= {"ran_as": RAN_AS[engine]}
    object_ |= _details(
        federation, results, checks=checks, refused=refused, watch=watch, command=_command(quick=quick, engine=engine)
    )
    files.write_atomic(out / "result.json", json.dumps(object_, indent=1, allow_nan=False).encode() + b"\n", mode=0o644)
    write_report(object_, out=out / "report.html")
    return object_


def _start_folder(out: Path) -> None:
    if (out / MARKER).is_file():
        shutil.rmtree(out)
    elif os.path.lexists(out):
        raise files.OutputExists(
            where=str(out),
            expected="a new folder, or an earlier demo's",
            got="something else",
            hint="choose another --out",
        )
    out.mkdir(parents=True, mode=0o700)
    (out / MARKER).touch()


@contextmanager
def _recorded(path: Path) -> Iterator[Recorder]:
    """What the server receives while the block runs; the file, as large as all organs, is gone afterwards."""
    try:
        yield Recorder(path)
    finally:
        path.unlink(missing_ok=True)


def _refusals(result: SimulationResult, *, scratch: Path) -> list[dict[str, Any]]:
    """What a malicious server could try with what it holds, tried on the receiving sites."""
    prepared = result.prepared
    bank, state = Bank.at(prepared.coordinator), CoordinatorState(prepared.coordinator)
    sent = next(one for one in state.deliveries(prepared.run) if one.recipient in prepared.sites)
    sealed, _label = bank.get(sent.sealed_sha256)
    turned = bytearray(sealed)
    turned[len(sealed) // 2] ^= 1
    home, now = prepared.sites[sent.recipient], Expectation()
    later = Expectation(round_number=sent.round + 1)
    attempts = [
        ("one bit of a sealed organ changed on its way", bytes(turned), now),
        ("a sealed organ cut short", sealed[:-65_552], now),
        ("yesterday's header before today's organ", sealed[:4096] + bytes(turned[4096:]), now),
        ("this round's organ passed off as the next one's", sealed, later),
    ]
    tried = [
        {"what": what, **_attempt(data, home=home, scratch=scratch, expect=expect)} for what, data, expect in attempts
    ]
    return [*tried, *(_asked_again(prepared, fewer) for fewer in (0, 1) if prepared.mode == "secure-sum")]


def _asked_again(prepared: Prepared, fewer: int) -> dict[str, Any]:
    """A helper of the first round is asked to take its masks off once more."""
    home, now = Home(prepared.coordinator), datetime.now(UTC)
    roster = home.roster(now)
    held = SumRound(
        state=CoordinatorState(prepared.coordinator), bank=Bank.at(prepared.coordinator), roster=roster,
        plan=roster.plans[prepared.run], run=prepared.run, round=1, now=now,
    )  # fmt: skip
    helper, uploads = held.helpers()[0], held.uploads()
    asked = dict(list(uploads.items())[: len(uploads) - fewer])
    capsules = {site: capsule for site, capsule in held.capsules_for(helper).items() if site in asked}
    site = Home(prepared.sites[helper])
    what = "for one site less, to learn it as the difference" if fewer else "after the round is over"
    try:
        with sums(site, SiteState(site.folder)) as ledger:
            SiteSum(
                plan=held.plan, signer=site.signer(), opener=site.opener(), roster=roster, ledger=ledger, now=now
            ).help(held.require_call(), labels=list(asked.values()), capsules_to_me=capsules, sink=lambda _: None)
    except NotFedError as error:
        return {"what": f"a helper asked once more, {what}", "code": error.code, "exit_code": error.exit_code}
    return {"what": f"a helper asked once more, {what}", "code": "HELPED", "exit_code": 0}


def _attempt(sealed: bytes, *, home: Path, scratch: Path, expect: Expectation) -> dict[str, Any]:
    place, now = Home(home), datetime.now(UTC)
    file, out = scratch / "attempt.sealed", scratch / "attempt.organ"
    files.write_atomic(file, sealed, overwrite=True)
    try:
        open_organ(file, opener=place.opener(), roster=place.roster(now), out=out, now=now, expect=expect)
    except NotFedError as error:
        return {"code": error.code, "exit_code": error.exit_code}
    finally:
        file.unlink()
        out.unlink(missing_ok=True)
    return {"code": "OPENED", "exit_code": 0}


def _transplant(result: SimulationResult, *, out: Path) -> None:
    if result.body:
        apply_transplant(plan_body([read_organ(organ) for organ in result.body], base=result.prepared.base), out=out)


def _details(
    federation: FederationFile, results: Sequence[SimulationResult], *, checks: Sequence[PlaintextCheck],
    refused: list[dict[str, Any]], watch: Watch, command: str,
) -> dict[str, Any]:  # fmt: skip
    """What the report shows beyond `summarise`."""
    first = results[0].prepared
    titles = {speciality.name: speciality.title for speciality in SPECIALITIES}
    epsilons = {table.name: table.epsilon for table in federation.runs}
    runs = [_run_details(result, federation=federation, epsilon=epsilons[result.prepared.run]) for result in results]
    return {
        "name": federation.federation.name,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "not_fed_version": __version__,
        "machine": {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}
        | {name: version(name) for name in LIBRARIES},
        "federation": federation.federation.name,
        "base": {"name": federation.federation.base, "sha256": first.base.sha256},
        "span": list(first.span),
        "site_titles": {site.name: titles.get(site.name, "") for site in federation.sites},
        "runs": runs,
        "plaintext_check": _merged(checks),
        "refused": refused,
        "timeline": [{"label": label, "seconds": round(seconds, 1)} for label, seconds in watch.laps.items()],
        "command": command,
        "sources": _sources(federation),
    }


def _sources(federation: FederationFile) -> list[str]:
    """Whom to acknowledge for the text."""
    if not any(site.data.startswith(HPO) for site in federation.sites):
        return []
    texts = hospital_texts(records_per_site=federation.data.records_per_site, held_out=federation.data.held_out)
    return sorted({text.source for text in texts.values()})


def _run_details(result: SimulationResult, *, federation: FederationFile, epsilon: float | None) -> dict[str, Any]:
    summary: dict[str, Any] = summarise([result], {}, seconds=result.seconds)["runs"][0]
    states = {site: SiteState(home) for site, home in result.prepared.sites.items()}
    received = {
        site: {organ.organ_sha256 for organ in state.organs(result.prepared.run)} for site, state in states.items()
    }
    if result.prepared.mode == "bank":
        authored = [(site, number, organ) for site, rounds in result.own.items() for number, organ in rounds.items()]
    else:
        first = next(iter(result.aggregates.values()), {})
        authored = [(COORDINATOR, number, organ) for number, organ in first.items()]
    passports = [
        _passport(organ, author=author, round_number=number, received=received)
        for author, number, organ in authored
        if passport_path(organ).is_file()  # a blind sum has none: nobody but the sites could sign for it
    ]
    return summary | {
        "epsilon": epsilon,
        "spent": result.epsilon,
        "delta": federation.privacy.delta if epsilon is not None and federation.privacy else None,
        "unit": next((account["unit"] for account in result.accounts.values()), "record"),
        "loss_curves": {site: curve for site, notes in result.notes.items() if (curve := list(_curve(notes)))},
        "passports": passports,
    }


def _passport(organ: Path, *, author: str, round_number: int, received: Mapping[str, set[str]]) -> dict[str, Any]:
    """What an organ's passport claims, and which sites opened the organ, hence checked its signatures."""
    passport = parse_passport(passport_path(organ).read_bytes().strip())[1]
    dp, digest = passport.dp, passport.organ_sha256
    return {
        "author": author,
        "round": round_number,
        "organ_sha256": digest,
        "span": list(passport.span),
        "contributors": [{"site": one.site, "epsilon": one.epsilon} for one in passport.contributors],
        "epsilon": dp.epsilon if dp else None,
        "delta": dp.delta if dp else None,
        "unit": dp.unit if dp else "record",
        "audit": passport.audit.model_dump(exclude_none=True) if passport.audit else None,
        "contradicted": passport.audit is not None and passport.audit.contradicts(dp),
        "releases": [release.model_dump(exclude_none=True) for release in passport.releases],
        "issued": passport.created.isoformat(),
        "verified_by": sorted(site for site, seen in received.items() if site != author and digest in seen),
    }


def _curve(notes: Sequence[Mapping[str, Any]]) -> Iterator[list[float]]:
    trained = [note["loss_curve"] for note in notes if note.get("loss_curve")]
    for number, losses in enumerate(trained, start=1):
        for step, loss in enumerate(losses):
            if loss is not None:
                yield [number, step, round(loss, 4)]


def _merged(checks: Sequence[PlaintextCheck]) -> dict[str, Any]:
    """Both runs' searches as one: clean only if each was, and each found what was planted."""

    def windows(kind: str) -> int:
        return sum(count for check in checks for name, count in check.patterns.items() if name.startswith(kind))

    return {
        "patterns_searched": sum(sum(check.patterns.values()) for check in checks),
        "bytes_searched": sum(check.bytes_searched for check in checks),
        "found": [f"{kind}: {place}" for check in checks for kind, places in check.found.items() for place in places],
        "planted_found": all(check.planted and set(check.planted) == set(check.planted_found) for check in checks),
        "texts": windows("text"),
        "tensors": windows("organ") + windows("difference"),
        "keys": windows("key"),
    }


def _command(*, quick: bool, engine: str) -> str:
    chosen = {"inline": "", "processes": " --processes"}.get(engine, f" --engine {engine}")
    return "not-fed demo" + (" --quick" if quick else "") + chosen
