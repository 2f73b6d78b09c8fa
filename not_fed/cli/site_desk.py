"""site: status, approve and forget-sums, for the person at a site's desk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.ceremony import ask
from not_fed.cli.output import AsJson, say, show

if TYPE_CHECKING:
    from not_fed.site.state import Asked

APPROVED_SCHEMA, WAITING_SCHEMA = "not-fed/approved/1", "not-fed/waiting/1"
FORGOTTEN_SCHEMA = "not-fed/sums-forgotten/1"
SiteFolder = Annotated[Path, typer.Argument(metavar="HOME", help="The site's folder.")]


def register(group: typer.Typer) -> None:
    """Add them to `not-fed site`."""
    group.command("status")(status_command)
    group.command("approve")(approve_command)
    group.command("forget-sums")(forget_sums_command)


def status_command(home: SiteFolder, as_json: AsJson = False) -> None:
    """Connection, tasks, what waits for a person, budget, and the site's last words to itself."""
    from not_fed.site.status import status_of

    status = status_of(home, now=datetime.now(UTC))
    show(status, as_json=as_json, lines=_status_lines(status))


def approve_command(
    home: SiteFolder,
    run: Annotated[str | None, typer.Argument(help="Which one; without it, what waits is listed.")] = None,
    round_number: Annotated[int | None, typer.Option("--round", help="Where each round is asked for.")] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Agree without being asked.")] = False,
    as_json: AsJson = False,
) -> None:
    """See a run's terms and agree to it, before anything of it is trained."""
    from not_fed.site.approval import approve, nothing, waiting

    waits = waiting(home)
    if run is None:
        listed = [{"run": one.run, "round": one.round or None, "asked": one.asked, "terms": one.terms} for one in waits]
        show({"schema": WAITING_SCHEMA, "waiting": listed}, as_json=as_json, lines=_waiting_lines(waits))
        return
    found = [one for one in waits if one.run == run and round_number in (None, one.round)]
    if not found:
        raise nothing(run, f"{len(waits)} that wait: {', '.join(sorted({one.run for one in waits})) or 'none'}")
    for asked in found:
        for label, value in _terms(asked):
            say(f"{label:<12} {value}")
        ask("have you compared all of this with what was agreed, and may it be trained here?", yes=yes)
        approve(home, asked, now=datetime.now(UTC))
    result = {"schema": APPROVED_SCHEMA, "run": run, "rounds": [one.round or None for one in found]}
    show(result, as_json=as_json, lines=[("approved", _named(one)) for one in found])
    if not as_json:
        say("the coordinator asks again by itself, within its retry time")


def forget_sums_command(
    home: SiteFolder,
    yes: Annotated[bool, typer.Option("--yes", help="Do it without being asked.")] = False,
    as_json: AsJson = False,
) -> None:
    """After this home was restored from a backup: begin a new memory of its secure sums.

    Rounds that are under way cannot be helped any more, since their keys are gone with the old one. Tell the other
    sites: in runs that go on from the same start this site is no longer bound by what it promised there.
    """
    from not_fed.home import Home
    from not_fed.site.not_now import at_work
    from not_fed.site.sumkeys import forget_sums

    say("the keys of rounds under way go, and what this site promised in them")
    ask("was this home restored from a backup, or is its sums folder lost?", yes=yes)
    with at_work(home):
        forget_sums(Home(home))
    show(
        {"schema": FORGOTTEN_SCHEMA, "folder": str(home / "sums")}, as_json=as_json, lines=[("new", str(home / "sums"))]
    )


def _named(asked: Asked) -> str:
    return f"{asked.run}, round {asked.round}" if asked.round else f"{asked.run}, all its rounds"


def _terms(asked: Asked) -> Iterator[tuple[str, str]]:
    """The signed terms of the run, as a person reads them; nothing is left out."""
    yield "run", _named(asked)
    for name, value in sorted(asked.terms.items()):
        if isinstance(value, Mapping):
            value = ", ".join(f"{key} {item}" for key, item in value.items())
        elif isinstance(value, list | tuple):
            pairs = name == "spans"
            value = ", ".join(f"{one[0]}:{one[1]}" if pairs else str(one) for one in value)
        yield name, "none: without differential privacy" if value is None else str(value)
    yield "asked", asked.asked


def _waiting_lines(waits: Sequence[Asked]) -> Iterator[tuple[str, str]]:
    if not waits:
        yield "waiting", "nothing"
    for asked in waits:
        yield from _terms(asked)


def _status_lines(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "site", f"{status['name']} of {status['federation']}, coordinator {status['coordinator']}"
    yield "connected", _connected(status)
    roster = status["roster"]
    yield "roster", roster.get("problem") or f"version {roster['version']}, until {roster['expires']}"
    yield "now", "at work on a task" if status["at_work"] else "no task at work"
    for one in status["waiting"]:
        what = f"round {one['round']} of {one['run']}" if one["round"] else one["run"]
        yield "waits", f"{what} for a person here, since {one['asked']}: not-fed site approve HOME {one['run']}"
    for one in status["tasks"]:
        done = f"answered {one['answered']}" if one["answered"] else "not answered yet"
        yield "task", f"{one['run']}, round {one['round']}, {one['kind']}: begun {one['started']}, {done}"
    for one in status["budget"]:
        yield (
            "budget",
            one.get("problem")
            or (
                f"{one['dataset']}, per {one['unit']}: {one['spent']:.2f} of {one['allowed']:g} spent, "
                f"{one['left']:.2f} left for one further run, delta {one['delta']:g}"
            ),
        )
    for line in status["log"]:
        yield "log", line


def _connected(status: Mapping[str, Any]) -> str:
    joined, address = status["joined"], status["address"] or "no address"
    if joined is None:
        return f"no; not-fed site join HOME connects to {address}"
    rehearsal = ", a rehearsal" if joined.get("rehearse") else ""
    return f"yes, to {address}, process {joined.get('pid', '?')}{rehearsal}"
