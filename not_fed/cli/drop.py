"""export and import, of `coordinator` and of `site`: the federation through a folder or a stick, without a network."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from not_fed.cli.output import AsJson, report_error, say, show
from not_fed.cli.progress import shown

if TYPE_CHECKING:
    from not_fed.coordinator.drop import Imported

HomeArgument = Annotated[Path, typer.Argument(metavar="HOME", help="The home folder.", exists=True, file_okay=False)]
StickArgument = Annotated[Path, typer.Argument(metavar="DIR", help="A folder on a stick, or one that is sent on.")]


def register_coordinator(app: typer.Typer) -> None:
    """Add the commands to the group `coordinator`."""
    app.command("export")(coordinator_export)
    app.command("import")(coordinator_import)


def register_site(app: typer.Typer) -> None:
    """Add the commands to the group `site`."""
    app.command("export")(site_export)
    app.command("import")(site_import)


def coordinator_export(home: HomeArgument, folder: StickArgument, as_json: AsJson = False) -> None:
    """Write the open round's orders for the sites that are awaited, to be carried to them."""
    from not_fed.coordinator.drop import export_orders

    done = export_orders(home, folder, now=datetime.now(UTC))
    if done.step is None:
        show(
            {"schema": "not-fed/orders-exported/1", "run": done.run, "round": None, "kind": None, "orders": []},
            as_json=as_json, lines=[("run", f"{done.run}, complete: there is nothing to carry")],
        )  # fmt: skip
        return
    step = done.step
    result = {
        "schema": "not-fed/orders-exported/1", "run": done.run, "round": step.round, "kind": step.kind,
        "orders": [{"site": site, "bytes": size} for site, size in done.orders.items()],
    }  # fmt: skip
    lines = [("run", f"{done.run}, round {step.round}, {step.kind}")]
    lines += [(site, f"{size:,} bytes") for site, size in done.orders.items()]
    show(result, as_json=as_json, lines=lines)
    if not as_json:
        say(f"carry {folder} to each of them, who types: not-fed site import HOME DIR")


def coordinator_import(
    home: HomeArgument,
    folder: StickArgument,
    close: Annotated[bool, typer.Option("--close", help="End the round with the answers that are there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Count the answers that were carried back; the round ends when the last one is there."""
    from not_fed.coordinator.drop import import_answers

    done = import_answers(home, folder, close=close, now=datetime.now(UTC))
    result = {
        "schema": "not-fed/answers-imported/1", "run": done.run,
        "round": done.step and done.step.round, "kind": done.step and done.step.kind,
        "counted": done.counted, "unusable": {site: error.code for site, error in done.errors.items()},
        "awaited": list(done.awaited), "closed": done.closed, "complete": done.complete,
    }  # fmt: skip
    show(result, as_json=as_json, lines=_imported(done))
    for error in done.errors.values():
        report_error(error, as_json=as_json)
    if not as_json and done.step is not None:
        say(_next(done))
    for error in done.errors.values():
        raise typer.Exit(error.exit_code)


def site_import(home: HomeArgument, folder: StickArgument, as_json: AsJson = False) -> None:
    """Do what the order for this site asks, as far as its policy allows; `export` writes the answer."""
    from not_fed.site.drop import import_order

    with shown() as progress:
        done = import_order(home, folder, now=datetime.now(UTC), progress=progress)
    result = {
        "schema": "not-fed/order-imported/1", "run": done.run, "round": done.round, "kind": done.kind,
        "received": done.received, "left_out": list(done.left_out), "bytes": done.size_bytes,
    }  # fmt: skip
    lines = [("run", f"{done.run}, round {done.round}, {done.kind}"), ("received", f"{done.received} organs of others")]
    lines += [("left out", f"{digest[:12]}: {code}") for digest, code in map(str.split, done.left_out)]
    if done.size_bytes:
        lines.append(("answer", f"a sealed organ, {done.size_bytes:,} bytes"))
    show(result, as_json=as_json, lines=lines)
    if not as_json:
        say("to write the answer for the coordinator: not-fed site export HOME DIR")


def site_export(home: HomeArgument, folder: StickArgument, as_json: AsJson = False) -> None:
    """Write this site's newest answer, to be carried to the coordinator."""
    from not_fed.site.drop import export_answer

    done = export_answer(home, folder)
    result = {
        "schema": "not-fed/answer-exported/1", "run": done.run, "round": done.round, "kind": done.kind,
        "refused": done.refused, "bytes": done.size_bytes,
    }  # fmt: skip
    what = f"refused: {done.refused}" if done.refused else f"{done.size_bytes:,} bytes, sealed"
    answer = what if done.size_bytes or done.refused else f"{done.received} organs received"
    show(result, as_json=as_json, lines=[("run", f"{done.run}, round {done.round}, {done.kind}"), ("answer", answer)])
    if not as_json:
        say(f"carry {folder} to the coordinator, who types: not-fed coordinator import HOME DIR")


def _imported(done: Imported) -> Iterator[tuple[str, str]]:
    if done.step is None:
        yield "run", f"{done.run}, complete: no answer is awaited"
        return
    yield "run", f"{done.run}, round {done.step.round}, {done.step.kind}"
    for site, status in done.counted.items():
        yield site, "was counted before" if status == "again" else status
    for site, error in done.errors.items():
        yield site, f"not used: {error.code}"
    if done.awaited:
        yield "awaited", ", ".join(done.awaited)


def _next(done: Imported) -> str:
    if done.complete:
        return f"run {done.run} is complete"
    if done.closed:
        return "the round is over; for the next: not-fed coordinator export HOME DIR"
    return "the round goes on; to end it with those who are there: add --close"
