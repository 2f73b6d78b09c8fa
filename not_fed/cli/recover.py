"""recover: heal a model on public text after a transplant."""

from __future__ import annotations

import math
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.options import Device, TextField, device_of
from not_fed.cli.output import AsJson, show
from not_fed.cli.progress import shown
from not_fed.cli.train import require_no_account
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.organ.evaluate import Perplexity
    from not_fed.organ.recover import Recovered, RecoveryPlan


class WhatName(StrEnum):
    """Which weights learn."""

    NORMS = "norms"
    NEIGHBOURS = "neighbours"
    ORGAN = "organ"


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("recover")(recover_command)


def recover_command(
    model: Annotated[str, typer.Argument(help="Model folder that transplant wrote, or any other; or a hub id.")],
    data: Annotated[Path, typer.Option("--data", help="Public text: .jsonl, .txt, .csv or .parquet.")],
    out: Annotated[Path | None, typer.Option("--out", help="The new model folder.")] = None,
    what: Annotated[
        WhatName,
        typer.Option(
            "--what",
            help="What learns: the norms of all layers; the neighbours, one layer before and one after each place "
            "where layers were put in; or the organ, those layers themselves.",
        ),
    ] = WhatName.NORMS,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            "--layers", help="Layers START:STOP that were put in. Repeatable. [default: the last transplant's record]"
        ),
    ] = None,
    lr: Annotated[float, typer.Option("--lr", help="Peak learning rate.")] = 2e-3,
    steps: Annotated[int, typer.Option("--steps", min=1, help="At most so many.")] = 64,
    max_seconds: Annotated[
        float | None, typer.Option("--max-seconds", help="At most so long in steps, whichever ends first.")
    ] = None,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", help="Predicted tokens in a step.")] = 1024,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer records are cut.")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Order of the records.")] = 0,
    keep_worse: Annotated[
        bool, typer.Option("--keep-worse", help="Write the model even if it reads the held-out tenth worse.")
    ] = False,
    text_field: TextField = "text",
    device: Device = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would learn; train and write nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Heal a model after a transplant: a few of its weights learn from PUBLIC text, a tenth of which is held out.

    No privacy is charged: records that have a budget are refused. `not-fed undo` takes a recovery back.
    """
    from not_fed.organ.anatomy import Span
    from not_fed.organ.data import read_data
    from not_fed.organ.recover import RecoverySettings, plan_recovery, recover
    from not_fed.organ.train import Speed
    from not_fed.resources.bases import find_base

    if out is None and not dry_run:
        raise UsageError(where="not-fed recover", expected="--out, or --dry-run", got="neither", hint="add --out DIR")
    settings = RecoverySettings(
        what=what.value, layers=tuple(Span.parse(span) for span in layers or ()), lr=lr, steps=steps,
        max_seconds=math.inf if max_seconds is None else max_seconds, batch_tokens=batch_tokens,
        max_tokens=max_tokens, seed=seed,
    )  # fmt: skip
    where, records = device_of(device), read_data(data, text_field=text_field, unit="record")
    require_no_account(records)
    with shown() as progress:
        plan = plan_recovery(find_base(model, progress=progress), texts=records.texts, settings=settings)
        recovered = None
        if out is not None and not dry_run:
            recovered = recover(plan, out=out, keep_worse=keep_worse, speed=Speed(device=where), progress=progress)
    _show(plan, recovered, as_json=as_json)


def _show(plan: RecoveryPlan, recovered: Recovered | None, *, as_json: bool) -> None:
    result: dict[str, Any] = {
        "schema": "not-fed/recovered/1", "what": plan.settings.what, "replaced": list(plan.tensors),
        "parameters": plan.parameters, "dry_run": recovered is None,
    }  # fmt: skip
    lines = [
        ("model", str(plan.base.folder)),
        ("learns", f"{plan.settings.what}: {plan.parameters:,} numbers in {len(plan.tensors)} tensors"),
        ("held out", f"{len(plan.held_out.rows):,} records, {sum(plan.held_out.predictions):,} predicted tokens"),
    ]
    if recovered is None:
        result |= {
            "steps": len(plan.batches),
            **dict.fromkeys(("out", "tokens", "seconds", "before", "after", "worse")),
        }
        lines += [("steps", f"{len(plan.batches):,}"), ("out", "dry run: nothing was trained or written")]
    else:
        result |= {
            "steps": recovered.steps, "out": str(recovered.out), "tokens": recovered.tokens,
            "seconds": round(recovered.seconds, 3), "before": _measured(recovered.before),
            "after": _measured(recovered.after), "worse": recovered.worse,
        }  # fmt: skip
        lines += [
            ("trained", f"{recovered.steps:,} steps, {recovered.tokens:,} tokens, {recovered.seconds:.0f} s"),
            ("before", _said(recovered.before)),
            ("after", _said(recovered.after) + ("; WORSE, and kept as you said" if recovered.worse else "")),
            ("out", str(recovered.out)),
            ("undo", f"not-fed undo {recovered.out} --out BEFORE"),
        ]
    show(result, as_json=as_json, lines=lines)


def _measured(found: Perplexity) -> dict[str, float]:
    return {
        "perplexity": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high, "tokens": found.tokens,
        "records": found.records,
    }  # fmt: skip


def _said(found: Perplexity) -> str:
    return (
        f"perplexity {found.value:.2f} on the held-out tenth (95 % interval {found.ci_low:.2f} to {found.ci_high:.2f})"
    )
