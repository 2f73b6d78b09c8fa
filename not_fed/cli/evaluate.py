"""evaluate: how well a model reads held-out records; for the site's own eyes, or with noise and charged."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from not_fed.cli.options import BASE_HELP, Device, TextField, device_of
from not_fed.cli.output import AsJson, say, show
from not_fed.cli.progress import shown
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.organ.evaluate import Perplexity
    from not_fed.privacy.accounting import DpPlan, Epsilon
    from not_fed.privacy.release import Released

SCHEMA = "not-fed/evaluated/1"
TWO_SIDED = 1.959964  # deviations of a normal that hold 95 %


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    app.command("evaluate")(evaluate_command)


def evaluate_command(
    base: Annotated[str, typer.Argument(help=BASE_HELP)],
    data: Annotated[Path, typer.Option("--data", help="Held-out records.")],
    organ: Annotated[
        Path | None, typer.Option("--organ", help="Evaluate with this organ in place, without writing a model.")
    ] = None,
    release_noise: Annotated[
        float | None,
        typer.Option(
            "--release-noise", help="A number that may leave: the mean loss with noise of this multiplier, charged."
        ),
    ] = None,
    declared_units: Annotated[
        float | None,
        typer.Option("--declared-units", help="With --release-noise: about how many units; never counted."),
    ] = None,
    delta: Annotated[
        float | None, typer.Option("--delta", help="With --release-noise. [default: the budget's, or 1e-5]")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option("--unit", help="With --release-noise: record, or the column that names the person."),
    ] = None,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer records are cut.")] = 512,
    text_field: TextField = "text",
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Perplexity on held-out records with its 95 % interval: exact, for your own eyes.

    With --release-noise a number that may leave, or that a choice may rest on: charged to the records' budget.
    """
    if release_noise is None:
        _show_exact(_exact(base, data, organ, max_tokens, text_field, device), as_json=as_json)
        return
    if declared_units is None:
        raise UsageError(
            where="not-fed evaluate", expected="--declared-units together with --release-noise", got="no such option",
            hint="declare about how many units there are: a public number, never counted",
        )  # fmt: skip
    from not_fed.organ.data import identify_records, read_data
    from not_fed.organ.measured import measure, plan_measurement
    from not_fed.privacy.ledger.ledger import Ledger, ledger_folder
    from not_fed.resources.bases import find_base

    records = read_data(data, text_field=text_field, unit=unit)
    ledger = Ledger.at(ledger_folder())
    identity = identify_records(ledger, records, unit=records.unit)
    standing = ledger.standing(identity, unit=records.unit)
    plan = plan_measurement(
        records, noise_multiplier=release_noise, declared_units=declared_units, delta=delta or standing.cap.delta
    )
    with shown() as progress:
        released = measure(
            find_base(base, progress=progress), records=records, organ=organ, plan=plan, ledger=ledger, name=data.name,
            max_tokens=max_tokens, device=device_of(device), progress=progress,
        )  # fmt: skip
    _show_released(released, plan, ledger.standing(identity, unit=records.unit).spent, as_json=as_json)


def _exact(
    base: str, data: Path, organ: Path | None, max_tokens: int, text_field: str, device: str
) -> Perplexity:  # fmt: skip
    from not_fed.organ.anatomy import Span
    from not_fed.organ.data import read_records
    from not_fed.organ.evaluate import Evaluator
    from not_fed.organ.organ import read_organ
    from not_fed.resources.bases import find_base

    records = read_records(data, text_field=text_field)
    with shown() as progress:
        found = find_base(base, progress=progress)
        span = Span(0, 1) if organ is None else read_organ(organ).span
        evaluator = Evaluator(
            found, records=records, span=span, max_tokens=max_tokens, device=device_of(device), progress=progress
        )
        return evaluator.perplexity(organ)


def _show_exact(measured: Perplexity, *, as_json: bool) -> None:
    facts = {name: value for name, value in asdict(measured).items() if name != "value"}
    show(
        {"schema": SCHEMA, "perplexity": measured.value, **facts},
        as_json=as_json,
        lines=[
            ("perplexity", f"{measured.value:.2f}  (95 % interval {measured.ci_low:.2f} to {measured.ci_high:.2f})"),
            (
                "measured on",
                f"{measured.records:,} records, {measured.tokens:,} predicted tokens, {measured.seconds:.1f} s",
            ),
            ("exact", "for your own eyes; --release-noise gives a number that may leave"),
        ],
    )


def _show_released(released: Released, plan: DpPlan, spent: Epsilon, *, as_json: bool) -> None:
    """The interval is that of the noise alone; nothing exact stands beside it."""
    low, high = (math.exp(released.value + side * TWO_SIDED * released.deviation) for side in (-1, 1))
    cost = plan.epsilon()
    show(
        {
            "schema": SCHEMA, "perplexity": math.exp(released.value), "ci_low": low, "ci_high": high, "tokens": None,
            "records": None, "seconds": None, "mean_loss": released.value, "noise_multiplier": plan.noise_multiplier,
            "declared_units": released.divisor, "unit": plan.unit, "epsilon": cost.value, "delta": cost.delta,
            "epsilon_spent": spent.value,
        },
        as_json=as_json,
        lines=[
            ("perplexity", f"{math.exp(released.value):.2f}  (95 % interval of the noise {low:.2f} to {high:.2f})"),
            ("mean loss", f"{released.value:.4f} nats a token, mean over {plan.unit}s of their means clipped to 0..8"),
            ("cost", f"{cost}; spent on these records in all: {spent}"),
        ],
    )  # fmt: skip
    say("the exponential of a mean over units, not the corpus' perplexity; it may leave, and a choice may rest on it")
