"""adapt: an organ for a model of another width."""

from __future__ import annotations

from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.options import BASE_HELP, Device, TextField, device_of
from not_fed.cli.output import AsJson, show
from not_fed.cli.progress import shown
from not_fed.cli.train import require_no_account
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.organ.adapt import AdaptPlan
    from not_fed.organ.adapt_fit import Adapted
    from not_fed.organ.organ import OrganInfo

SCHEMA = "not-fed/adapted/1"


class StartName(StrEnum):
    """Where the maps between the two models come from."""

    IDENTITY = "identity"
    LEAST_SQUARES = "least-squares"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("adapt")(adapt_command)


def adapt_command(
    organ: Annotated[Path, typer.Argument(help="The organ.")],
    base: Annotated[str, typer.Option("--base", help=f"What it was cut from. {BASE_HELP}")],
    into: Annotated[str, typer.Option("--into", help=f"Whom it should fit. {BASE_HELP}")],
    data: Annotated[
        Path | None,
        typer.Option("--data", help="Public text for least squares; what is fitted on it is in the organ."),
    ] = None,
    start: Annotated[
        StartName,
        typer.Option(
            "--start",
            help="least-squares: maps fitted on public text, for models of one tokenizer. identity: the first "
            "coordinates of both models mean the same, as where one was grown out of the other.",
        ),
    ] = StartName.LEAST_SQUARES,
    at: Annotated[
        int | None, typer.Option("--at", min=0, help="First layer of its place. [default: where it was cut]")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The organ file to write.")] = None,
    carry: Annotated[
        float | None,
        typer.Option(
            "--carry", help="How much of what the organ has learnt the fit aims at; 0: nothing of it. [default: 1]"
        ),
    ] = None,
    positions: Annotated[
        int | None, typer.Option("--positions", help="At most so many tokens of the text. [default: 8192]")
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", help="Longer records are cut. [default: 512]")
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Which records of the text. [default: 0]")] = None,
    text_field: TextField = "text",
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be made; fit and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Make an organ for a model of another width: an ordinary organ of that model comes out.

    Between strangers it is an approximation that can lose: recover the model that comes out, and compare it with one
    made with --carry 0 and with the recipient alone. docs/adapters.md says what was measured.
    """
    from not_fed.organ.adapt import adapt_identity, plan_adaptation
    from not_fed.organ.adapt_fit import FitSettings, adapt_by_least_squares, paired_tokens
    from not_fed.organ.data import read_data
    from not_fed.organ.organ import read_organ
    from not_fed.resources.bases import find_base

    if out is None and not dry_run:
        raise UsageError(where="not-fed adapt", expected="--out, or --dry-run", got="neither", hint="add --out FILE")
    fitted = start is StartName.LEAST_SQUARES
    if fitted is (data is None):
        raise UsageError(
            where="not-fed adapt", expected="--data with --start least-squares, and with it alone",
            got="neither" if data is None else "--data with --start identity",
            hint="give public text, or take --start identity" if data is None else "leave --data out",
        )  # fmt: skip
    told = {"carry": carry, "positions": positions, "max_tokens": max_tokens, "seed": seed}
    given: dict[str, Any] = {name: value for name, value in told.items() if value is not None}
    if given and not fitted:
        raise UsageError(
            where=f"--{next(iter(given)).replace('_', '-')}", expected="--start least-squares", got="--start identity",
            hint="leave it out: nothing is fitted there",
        )  # fmt: skip
    settings = FitSettings(**given)
    texts: tuple[str, ...] = ()
    if data is not None:
        records = read_data(data, text_field=text_field, unit="record")
        require_no_account(records)
        texts = records.texts
    adapted: Adapted | None = None
    written: OrganInfo | None = None
    with shown() as progress:
        donor, recipient = find_base(base, progress=progress), find_base(into, progress=progress)
        plan = plan_adaptation(read_organ(organ), donor=donor, recipient=recipient, start=start.value, at=at)
        if out is None or dry_run:
            if fitted:
                paired_tokens(plan, texts=texts, settings=settings)
        elif fitted:
            adapted = adapt_by_least_squares(
                plan, texts=texts, out=out, settings=settings, device=device_of(device), progress=progress
            )
            written = adapted.organ
        else:
            written = adapt_identity(plan, out=out, progress=progress)
    _show(plan, written, adapted, carry=settings.carry, as_json=as_json)


def _show(plan: AdaptPlan, written: OrganInfo | None, adapted: Adapted | None, *, carry: float, as_json: bool) -> None:
    quality = [] if adapted is None else [asdict(one) for one in adapted.quality]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "out": None if written is None else str(written.path),
        "start": plan.start,
        "at": [plan.at.start, plan.at.stop],
        "resized": {name: list(values) for name, values in plan.resized.items()},
        "exact": plan.exact,
        "organ_sha256": None if written is None else written.sha256,
        "parent_sha256": plan.organ.sha256,
        "base_sha256": plan.recipient.sha256,
        "positions": None if adapted is None else adapted.positions,
        "carry": carry if plan.start == "least-squares" else None,
        "quality": quality,
        "dry_run": written is None,
    }
    changes = ", ".join(f"{name} {old} to {new}" for name, (old, new) in plan.resized.items())
    show(
        result,
        as_json=as_json,
        lines=[
            ("organ", f"{plan.organ.path}, layers {plan.organ.span} of {plan.donor.folder}"),
            ("for", f"{plan.recipient.folder}, layers {plan.at}"),
            ("resized", changes or "nothing"),
            ("start", f"{plan.start}; {'its own numbers' if plan.exact else 'an approximation: recover it'}"),
            *(
                (f"layer {one['layer']} {one['branch']}", f"read {one['read']:.3f}, write {one['write']:.3f} explained")
                for one in quality
            ),
            ("out", "dry run: nothing was written" if written is None else str(written.path)),
        ],
    )
