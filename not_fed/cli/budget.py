"""budget: what a data set may spend, what it has spent, line by line, and whether the ledger is whole."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from not_fed.cli.ceremony import Yes, ask
from not_fed.cli.output import AsJson, say, show

if TYPE_CHECKING:
    from not_fed.privacy.accounting import Unit
    from not_fed.privacy.ledger.identity import DataIdentity
    from not_fed.privacy.ledger.ledger import Ledger
    from not_fed.privacy.ledger.statement import Entry, Standing

SCHEMA = "not-fed/budget/1"
LIST_SCHEMA = "not-fed/budgets/1"
HISTORY_SCHEMA = "not-fed/budget-history/1"
VERIFIED_SCHEMA = "not-fed/budget-verified/1"
UNSET = "; the default, since nobody has set it (not-fed budget set)"

Data = Annotated[Path, typer.Argument(metavar="D", help="The records: .jsonl, .txt, .csv or .parquet.")]
MaybeData = Annotated[Path | None, typer.Argument(metavar="D", help="The records; without them, every account.")]
HomeOption = Annotated[Path | None, typer.Option("--home", help="A site's home: its ledger, not yours.")]
UnitOption = Annotated[
    str | None, typer.Option("--unit", help="record, or the column that names the person; a known one is found.")
]
TextField = Annotated[str, typer.Option("--text-field", help="Field or column that holds the text.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this group."""
    group = typer.Typer(no_args_is_help=True, help="The privacy budget of a data set, and the ledger that keeps it.")
    commands = (("show", show_command), ("set", set_command), ("history", history_command), ("verify", verify_command))
    for name, command in commands:
        group.command(name)(command)
    app.add_typer(group, name="budget")


def show_command(
    data: MaybeData = None, unit: UnitOption = None, text_field: TextField = "text", home: HomeOption = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """What is allowed, spent and enforced."""
    ledger = _ledger(home)
    if data is not None:
        identity, chosen = _identified(ledger, data, unit, text_field)
        _show(data.name, ledger.standing(identity, unit=chosen), as_json=as_json)
        return
    standings = ledger.standings()
    if as_json:
        found = [_as_json(one.name or "", one) for one in standings]
        show({"schema": LIST_SCHEMA, "datasets": found}, as_json=True)
        return
    for standing in standings:
        _show(standing.name or "", standing, as_json=False)
    if not standings:
        say("no account yet; nothing was spent")


def set_command(
    data: Data,
    epsilon: Annotated[float, typer.Option("--epsilon", help="What all runs together may cost; 1 to 8 is usual.")],
    delta: Annotated[float, typer.Option("--delta", help="Below one over the number of records, such as 1e-5.")],
    unit: UnitOption = None,
    text_field: TextField = "text",
    allow_weak: Annotated[bool, typer.Option("--weak", help="Though epsilon is above 10.")] = False,
    yes: Yes = False,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    """Set the budget of these records, and of every earlier data set that they contain."""
    ledger = _ledger(home)
    identity, chosen = _identified(ledger, data, unit, text_field, new=True)
    before = ledger.standing(identity, unit=chosen, new_budget=True)
    if before.runs and epsilon > before.cap.epsilon:
        ask(f"raise it to {epsilon:g}, though {before.runs} runs have used these records?", yes=yes)
    ledger.set_budget(
        identity, name=data.name, unit=chosen, epsilon=epsilon, delta=delta, allow_weak=allow_weak
    )  # fmt: skip
    _show(data.name, ledger.standing(identity, unit=chosen), as_json=as_json)


def history_command(
    data: MaybeData = None, unit: UnitOption = None, text_field: TextField = "text", home: HomeOption = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Every run that counts: when, for what, with which noise, alone and composed with those before."""
    ledger = _ledger(home)
    if data is None:
        entries = ledger.history()
    else:
        identity, chosen = _identified(ledger, data, unit, text_field)
        entries = ledger.history(identity, unit=chosen)
    rows = [_entry_as_json(entry) for entry in entries]
    show(
        {"schema": HISTORY_SCHEMA, "accountant": _accountant(), "rows": rows}, as_json=as_json,
        lines=[(entry.charge.time, _sentence(entry)) for entry in entries],
    )  # fmt: skip
    if not rows and not as_json:
        say("nothing was reserved")


def verify_command(
    organ: Annotated[
        list[Path] | None, typer.Option("--organ", help="An organ of yours or its passport; as often as you like.")
    ] = None,
    home: HomeOption = None,
    as_json: AsJson = False,
) -> None:
    """Is the ledger whole, and no older than these organs? Exit code 6 if not."""
    ledger = _ledger(home, must_exist=True)
    heads = {str(path): _head_of(path) for path in organ or []}
    rows = ledger.verify(head for head in heads.values() if head is not None)
    without = sorted(path for path, head in heads.items() if head is None)
    result = {
        "schema": VERIFIED_SCHEMA, "whole": True, "rows": rows, "head": ledger.head,
        "organs": len(heads) - len(without), "without_head": without,
    }  # fmt: skip
    lines = [
        ("ledger", f"whole: {rows} rows, each follows from the one before"),
        ("head", ledger.head),
        ("organs", f"{result['organs']} of {len(heads)} name a row of it"),
    ]
    show(result, as_json=as_json, lines=lines)
    if not heads:
        say("an old copy is whole, too: name the newest organs with --organ")


def _ledger(home: Path | None, *, must_exist: bool = False) -> Ledger:
    from not_fed.privacy.ledger.ledger import Ledger, ledger_folder

    if home is None:
        return Ledger.at(ledger_folder(), must_exist=must_exist)
    from not_fed.site.policy import load_policy

    policy = load_policy(home)
    return Ledger.at(home / (policy.privacy.ledger if policy.privacy else "ledger"), must_exist=must_exist)


def _identified(
    ledger: Ledger, data: Path, unit: str | None, text_field: str, *, new: bool = False
) -> tuple[DataIdentity, Unit]:
    from not_fed.organ.data import identify_records, read_data

    records = read_data(data, text_field=text_field, unit=unit)
    if new and records.unit == "record" and records.most_of_a_person > 1:
        from not_fed.organ.units import UnitUnderstates

        raise UnitUnderstates(
            where="--unit", expected="the field that names the person, since somebody has several records",
            got="record", hint="leave --unit out; an epsilon per record says little about such a person",
        )  # fmt: skip
    return identify_records(ledger, records, unit=records.unit), records.unit


def _head_of(path: Path) -> str | None:
    """The ledger's head in an organ's manifest or in a passport."""
    from not_fed import files
    from not_fed.cli.audit import require_open
    from not_fed.envelope.claims import ledger_head_from_training
    from not_fed.envelope.header import check_organ_header
    from not_fed.envelope.manifest import read_manifest
    from not_fed.envelope.passport import MAX_PASSPORT_BYTES, parse_passport

    if path.name.endswith(".passport"):
        line = files.read_regular(path, max_bytes=MAX_PASSPORT_BYTES + 1).removesuffix(b"\n")
        return parse_passport(line)[1].ledger_head
    with files.open_regular(path) as file:
        require_open(file, where=path.name)
        header = check_organ_header(file, path.stat().st_size, where=str(path))
    return ledger_head_from_training(read_manifest(header, where=str(path)).training)


def _show(name: str, standing: Standing, *, as_json: bool) -> None:
    further = "one further run like the last" if standing.runs else "a first run"
    lines = [
        ("dataset", name),
        ("unit", f"per {standing.unit}: neighbouring data sets differ by {standing.relation}"),
        ("allowed", _said(standing, standing.cap.epsilon) + ("" if standing.explicit else UNSET)),
        ("spent", f"{_said(standing, standing.spent.value)}; by PLD, the number to report"),
        ("enforced", _enforced(standing)),
        ("left", f"{_said(standing, standing.left, up=False)} for {further}"),
        ("runs", str(standing.runs)),
    ]
    if len(standing.accounts) > 1:
        lines.append(("together", f"with {len(standing.accounts) - 1} other data sets that share some of it"))
    show(_as_json(name, standing), as_json=as_json, lines=lines)


def _enforced(standing: Standing) -> str:
    if standing.by_pld and standing.spent.value > standing.cap.epsilon:
        return "more was spent than is allowed now, and nothing can follow"
    if standing.by_pld:
        return f"one run fills it by PLD, and nothing can follow (filter of Renyi order {standing.cap.order})"
    said = _said(standing, standing.enforced)
    return f"{said}; by the filter of Renyi order {standing.cap.order}, the hard stop"


def _said(standing: Standing, value: float, *, up: bool = True) -> str:
    from not_fed.privacy.accounting import Epsilon

    rounded = value if up else math.floor(100 * value) / 100  # what is left is never said larger
    epsilon = Epsilon(value=rounded, delta=standing.cap.delta, unit=standing.unit, noise_added_at="site")
    return str(epsilon)


def _as_json(name: str, standing: Standing) -> dict[str, Any]:
    return {
        "schema": SCHEMA, "dataset": name, "unit": standing.unit, "relation": standing.relation,
        "allowed": standing.cap.epsilon, "set": standing.explicit, "spent": standing.spent.value,
        "delta": standing.cap.delta, "accountant": _accountant(), "enforced": standing.enforced,
        "order": standing.cap.order, "by_pld": standing.by_pld, "left": standing.left, "runs": standing.runs,
        "accounts": list(standing.accounts),
    }  # fmt: skip


def _entry_as_json(entry: Entry) -> dict[str, Any]:
    charge = entry.charge
    return {
        "time": charge.time, "dataset": charge.name, "run": charge.run, "purpose": charge.purpose,
        "state": charge.state, "unit": charge.plan.unit, "delta": charge.plan.delta,
        "mechanisms": [
            {"sample_rate": rate, "noise_multiplier": noise, "steps": steps} for rate, noise, steps in charge.mechanisms
        ],
        "alone": entry.alone.value, "composed": entry.composed.value,
    }  # fmt: skip


def _sentence(entry: Entry) -> str:
    charge = entry.charge
    noises = ", ".join(f"{steps} x noise {noise:g} at rate {rate:g}" for rate, noise, steps in charge.mechanisms)
    alone, _, promised = str(entry.alone).partition(" at ")  # both numbers are at the same delta, of the same unit
    composed = str(entry.composed).partition(" at ")[0].removeprefix("epsilon ")
    return (
        f"{charge.purpose} {charge.name}, {charge.state}: {noises or 'nothing'}; "
        f"{alone}, with those before it {composed}, at {promised}"
    )


def _accountant() -> str:
    from not_fed.privacy.accounting import accountant

    return accountant()
