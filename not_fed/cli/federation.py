"""simulate: a whole federation from one file, on this machine."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.output import AsJson, say, show
from not_fed.cli.progress import shown

if TYPE_CHECKING:
    from not_fed.simulation import SimulationResult


class EngineName(StrEnum):
    """What runs the two apps."""

    INLINE = "inline"
    RAY = "ray"
    PROCESSES = "processes"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("simulate")(simulate_command)


def simulate_command(
    federation: Annotated[Path, typer.Argument(help="The federation: a TOML file.", exists=True, dir_okay=False)],
    out: Annotated[
        Path | None, typer.Option("--out", help="New folder for homes, organs and result.json. [default: NAME-out]")
    ] = None,
    engine: Annotated[
        EngineName,
        typer.Option(
            "--engine", help="inline: in this process. ray: Flower's simulation engine. processes: a deployment."
        ),
    ] = EngineName.INLINE,
    as_json: AsJson = False,
) -> None:
    """Run a federation from a file: real keys, roster, policies and seals, everybody on this machine."""
    from not_fed import files
    from not_fed.simulation import evaluate, load_federation, prepare, run, summarise

    started = time.monotonic()
    plan = load_federation(federation)
    folder = out or Path(f"{federation.stem}-out")
    _create(folder)
    results = []
    with shown() as progress:
        for chosen in plan.runs:
            prepared = prepare(plan, out=folder / chosen.name, run=chosen, progress=progress)
            results.append(run(prepared, engine=engine.value, progress=progress))
        perplexity = evaluate(results, progress=progress)
    result = summarise(results, perplexity, seconds=time.monotonic() - started)
    files.write_atomic(folder / "result.json", (json.dumps(result, indent=2, allow_nan=False) + "\n").encode())
    show(result, as_json=as_json, lines=_lines(result, results))
    if not as_json:
        say(f"all of it is in {folder}")


def _create(folder: Path) -> None:
    from not_fed import files

    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise files.OutputExists(
            where=str(folder),
            expected="no folder of that name",
            got="one",
            hint="move it away, or choose another --out",
        ) from None
    except OSError as error:
        raise files.NotAFile(
            where=str(folder), expected="a folder that can be made", got=str(error.strerror).lower(), hint="check --out"
        ) from None


def _lines(result: Mapping[str, Any], results: Sequence[SimulationResult]) -> Iterator[tuple[str, str]]:
    yield "sites", ", ".join(result["sites"])
    yield "rounds", f"{result['rounds']}, mode {result['mode']}"
    for model, domains in result["perplexity"].items():
        yield f"perplexity {model}", ", ".join(f"{domain} {row['value']:.2f}" for domain, row in domains.items())
    for one in results:
        for site, epsilon in one.epsilon.items():
            if epsilon is not None:
                yield f"epsilon {one.prepared.run}", f"{epsilon:.2f} at {site}, all rounds together"
    yield "sent", f"{result['bytes_sent']:,} bytes, sealed"
    yield "server stored", ", ".join(f"{row['count']} {kind}" for kind, row in result["server_saw"].items())
    refused = [answer for run in result["runs"] for answer in run["answers"] if answer["code"]]
    for answer in refused:
        yield "refused", f"{answer['site']}, round {answer['round']}: {answer['code']}"
    yield "time", f"{result['seconds']:.1f} s"
