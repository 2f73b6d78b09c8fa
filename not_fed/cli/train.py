"""train: a span on a site's records, with differential privacy where an epsilon is asked for, paid from the ledger."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from not_fed.cli.options import BaseOption, Device, TextField, device_of
from not_fed.cli.output import AsJson, say
from not_fed.cli.progress import shown
from not_fed.cli.train_output import show_planned, show_trained
from not_fed.errors import UsageError

if TYPE_CHECKING:
    from not_fed.organ.data import Records
    from not_fed.organ.train import Precision
    from not_fed.privacy.accounting import DpPlan
    from not_fed.privacy.ledger.ledger import Ledger
    from not_fed.privacy.ledger.statement import Standing


class EngineName(StrEnum):
    """How a private run clips."""

    AUTO = "auto"
    BOOK_KEEPING = "book-keeping"
    LOOP = "loop"
    OPACUS = "opacus"


class PrecisionName(StrEnum):
    """Of the arithmetic in span and suffix."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class ModeName(StrEnum):
    """What is around the span while it learns."""

    IN_PLACE = "in-place"
    STAND_ALONE = "stand-alone"


STAND_ALONE = (
    "warning: a span trained stand-alone has never met the layers around its place: put in as it is, it ruins the "
    "model. Heal the model afterwards (not-fed recover), or train in place"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What was asked of a private run, in the command's own words."""

    epsilon: float
    delta: float | None
    records_per_person: int
    sample_rate: float
    max_grad_norm: float
    divisor: float
    releases: tuple[str, ...]
    release_noise: float


def train_command(
    data: Annotated[Path, typer.Argument(help="Records: .jsonl, .txt (a record a line), .csv or .parquet.")],
    base: BaseOption,
    span: Annotated[
        str | None,
        typer.Option(
            "--span",
            help="Layers START:STOP, half-open: 20:23 is 20, 21, 22. [default: three from a third of the depth]",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="The organ file to write.")] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from this organ instead of the base's span.")
    ] = None,
    mode: Annotated[
        ModeName,
        typer.Option(
            "--mode",
            help="in-place: all other layers stay around the span, frozen. stand-alone: they are left out, as in the "
            "paper. WARNING: such an organ RUINS the model that it is put into, until something heals it.",
        ),
    ] = ModeName.IN_PLACE,
    epsilon: Annotated[float | None, typer.Option("--epsilon", help="Train with DP-SGD to this epsilon.")] = None,
    delta: Annotated[
        float | None,
        typer.Option("--delta", help="Below one over the number of units. [default: the budget's, or 1e-5]"),
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(
            "--unit",
            help="What epsilon protects: record, or the column that names the person. A known one, "
            "such as patient_id, is found.",
        ),
    ] = None,
    records_per_person: Annotated[
        int, typer.Option("--records-per-person", min=1, help="DP: a person's records in one step, at most.")
    ] = 4,
    sample_rate: Annotated[float, typer.Option("--sample-rate", help="DP: chance of a unit to join a step.")] = 0.1,
    max_grad_norm: Annotated[float, typer.Option("--max-grad-norm", help="DP: the clip, an L2 norm per unit.")] = 1.0,
    divisor: Annotated[
        float, typer.Option("--divisor", help="DP: declared batch size in units; never taken from the data.")
    ] = 100.0,
    release: Annotated[
        list[str] | None,
        typer.Option("--release", help="DP: let this number out, with noise, charged: mean_loss or units. Repeatable."),
    ] = None,
    release_noise: Annotated[
        float, typer.Option("--release-noise", help="DP: noise multiplier of what is let out.")
    ] = 10.0,
    declared_units: Annotated[
        float | None,
        typer.Option(
            "--declared-units", help="DP: public number that divides a mean. [default: divisor / sample rate]"
        ),
    ] = None,
    engine: Annotated[EngineName, typer.Option("--engine", help="DP: how units are clipped.")] = EngineName.AUTO,
    precision: Annotated[
        PrecisionName,
        typer.Option("--precision", help="Of the arithmetic; auto is bfloat16 on a GPU that has it, but not with DP."),
    ] = PrecisionName.AUTO,
    lr: Annotated[
        float | None,
        typer.Option("--lr", help="Peak learning rate. [default: 2e-3, with a rank 4e-3; five times that with DP]"),
    ] = None,
    epochs: Annotated[
        int | None, typer.Option("--epochs", min=1, help="Passes over the records. [default: 1; 2 with DP]")
    ] = None,
    batch_tokens: Annotated[int, typer.Option("--batch-tokens", help="Predicted tokens in a step, without DP.")] = 1024,
    max_tokens: Annotated[int, typer.Option("--max-tokens", help="Longer records are cut.")] = 512,
    seed: Annotated[int, typer.Option("--seed", help="Order of the records; never used for DP.")] = 0,
    rank: Annotated[
        int,
        typer.Option(
            "--rank",
            min=0,
            help="Learn through factors of this rank in place of all weights; for spans of many layers.",
        ),
    ] = 0,
    proximal: Annotated[
        float, typer.Option("--proximal", help="FedProx: hold the span near its start, with this mu.")
    ] = 0.0,
    body: Annotated[
        list[Path] | None, typer.Option("--body", help="An organ of other layers, to train beside. Repeatable.")
    ] = None,
    text_field: TextField = "text",
    device: Device = "auto",
    plain: Annotated[
        bool,
        typer.Option("--plain", help="Without privacy, though the records have a budget: for your own eyes alone."),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done and what it costs; train nothing.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Train a span on your records; all else stays frozen. An interrupted run goes on when started again."""
    from not_fed.organ.anatomy import Span, third_span
    from not_fed.organ.charging import ToLedger
    from not_fed.organ.data import identify_records, read_data
    from not_fed.organ.train import Speed, TrainSettings, train
    from not_fed.resources.bases import find_base

    _require_epsilon(epsilon, unit=unit, release=release)
    where = device_of(device)
    records = read_data(data, text_field=text_field, unit=unit if epsilon is not None else "record")
    passes = epochs or (1 if epsilon is None else 2)
    wish = None if epsilon is None else Wish(
        epsilon=epsilon, delta=delta, records_per_person=records_per_person, sample_rate=sample_rate,
        max_grad_norm=max_grad_norm, divisor=divisor, releases=tuple(release or ()), release_noise=release_noise,
    )  # fmt: skip
    if wish is None and not plain:
        require_no_account(records)
    ledger = None if wish is None else _ledger()
    identity = None if ledger is None else identify_records(ledger, records, unit=records.unit)
    dp = None
    if wish is not None and ledger is not None and identity is not None:
        dp = _plan(wish, records, ledger.standing(identity, unit=records.unit), epochs=passes)
    with shown() as progress:
        found = find_base(base, progress=progress)
    settings = TrainSettings(
        span=third_span(found.layers) if span is None else Span.parse(span), mode=mode.value, epochs=passes,
        lr=_default_rate(rank, private=dp is not None) if lr is None else lr,
        batch_tokens=batch_tokens, max_tokens=max_tokens, seed=seed, rank=rank, proximal=proximal, dp=dp,
        engine=engine.value,
        precision=_precision(precision, device=where, private=dp is not None),
        declared_units=divisor / sample_rate if declared_units is None and dp is not None else declared_units,
    )  # fmt: skip
    if mode is ModeName.STAND_ALONE:
        say(STAND_ALONE)
    with shown() as progress:
        settings.span.check_inside(found.layers, where=str(found.folder))
        if dry_run:
            cost = None
            if ledger is not None and identity is not None and dp is not None:
                cost = ledger.would_cost(identity, plan=dp)
            show_planned(found, records, settings, cost=cost, as_json=as_json)
            return
        if out is None:
            raise UsageError(
                where="not-fed train", expected="--out, or --dry-run", got="neither", hint="add --out my.organ"
            )
        trained = train(
            found,
            records=records,
            settings=settings,
            out=out,
            charge=None if ledger is None else ToLedger(ledger=ledger, name=data.name),
            init=init,
            body=body or (),
            speed=Speed(device=where),
            progress=progress,
            warn=say,
        )
    show_trained(trained, as_json=as_json)


def _default_rate(rank: int, *, private: bool) -> float:
    """Chosen on public text (docs/benchmarks.md): factors bear twice the rate of weights, noise five times."""
    return (4e-3 if rank else 2e-3) * (5 if private else 1)


def _require_epsilon(epsilon: float | None, *, unit: str | None, release: list[str] | None) -> None:
    """What only a private run can mean is not silently left out of another."""
    for option, value in (("--unit", unit), ("--release", release)):
        if epsilon is None and value:
            raise UsageError(
                where=option,
                expected="--epsilon beside it, which is what it is about",
                got="no --epsilon",
                hint="add --epsilon 3, or leave it out and train without privacy",
            )


def require_no_account(records: Records) -> None:
    """A run without privacy is refused on records that have a budget, unless --plain says that it is meant."""
    from not_fed.privacy.ledger.ledger import FILE, Ledger, ledger_folder

    if (ledger_folder() / FILE).is_file():
        ledger = Ledger.at(ledger_folder())
        ledger.require_no_account(ledger.identify(records.texts))


def _ledger() -> Ledger:
    from not_fed.privacy.ledger.ledger import Ledger, ledger_folder

    return Ledger.at(ledger_folder())


def _plan(wish: Wish, records: Records, standing: Standing, *, epochs: int) -> DpPlan:
    """Everything fixed before the records are looked at; only the unit follows from them, and the account's delta."""
    from not_fed.organ.units import require_unit
    from not_fed.privacy.accounting import NoisedRelease, plan_dp

    plan = plan_dp(
        epsilon=wish.epsilon,
        delta=standing.cap.delta if wish.delta is None else wish.delta,
        sample_rate=wish.sample_rate,
        steps=max(1, round(epochs / wish.sample_rate)) if wish.sample_rate > 0 else 1,
        max_grad_norm=wish.max_grad_norm,
        divisor=wish.divisor,
        unit=records.unit,
        records_per_person=wish.records_per_person if records.unit == "person" else 1,
        releases=tuple(NoisedRelease(name=name, noise_multiplier=wish.release_noise) for name in wish.releases),
    )
    require_unit(records, plan=plan)
    units = len(set(records.people)) if records.people else len(records.texts)
    if plan.delta * units >= 1:
        say(f"warning: delta {plan.delta:g} is not below one over the number of units, of which there are {units:,}")
    return plan


def _precision(wanted: PrecisionName, *, device: str, private: bool) -> Precision:
    """`auto` stays with float32 for a private run: in bfloat16 a unit's gradient moves with its company in a batch."""
    import torch

    if wanted is not PrecisionName.AUTO:
        return "bfloat16" if wanted is PrecisionName.BFLOAT16 else "float32"
    has_it = (
        not private and torch.device(device).type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    )
    return "bfloat16" if has_it else "float32"
