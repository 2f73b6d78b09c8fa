"""The report: one HTML page with everything inside, that needs no network, no script and no second file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from not_fed import files
from not_fed.report import claims, figures, words
from not_fed.report.shape import AGGREGATE, BASE, MEAN, Delivery, Federated, Run, Score, read_result

MAX_ROWS = 80  # of one table; result.json has them all
MAX_PARTIES = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """One part of the page: `kind` picks its body in the template, `title` is the conclusion."""

    kind: str
    label: str
    title: str
    parts: Mapping[str, Any]


def write_report(result: Mapping[str, Any], *, out: Path, overwrite: bool = False) -> None:
    """Write the page for a finished federation.

    Args:
        result: the object `not-fed/federated/1`; parts that are missing are left out of the page.
        overwrite: replace an older report at `out`.
    Raises:
        BadResult: a field has the wrong type.
        PicturesMissing: matplotlib is not installed.
        OutputExists: `out` exists and `overwrite` is false.
    Guarantees:
        nothing in the page is loaded from elsewhere; text from `result` is shown as text, whatever it holds; the same
        result gives the same bytes.
    Proved by: tests/unit/test_report.py::test_hostile_names_are_shown_as_text
    """
    files.write_atomic(out, render(read_result(result)).encode("utf-8"), overwrite=overwrite, mode=0o644)


def render(result: Federated) -> str:
    """The page as text."""
    environment = Environment(
        loader=PackageLoader("not_fed.report", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True, finalize=lambda value: words.printable(value) if type(value) is str else value,
    )  # fmt: skip
    environment.filters |= {
        "size": words.size,
        "duration": words.duration,
        "moment": words.moment,
        "epsilon": words.epsilon,
        "listed": words.listed,
    }
    page = environment.get_template("page.html.j2")
    return page.render(
        result=result, headline=claims.headline(result), facts=_facts(result), sections=_sections(result)
    )


def _facts(result: Federated) -> list[tuple[str, str]]:
    """The figures under the headline."""
    found = [
        ("hospitals", f"{len(result.sites)}" if result.sites else ""),
        ("rounds", f"{result.rounds}" if result.rounds else ""),
        ("base model", result.base.name),
        ("trained", words.layers(result.span)),
        ("mode", result.mode),
        ("sent", words.size(result.bytes_sent) if result.bytes_sent is not None else ""),
        ("took", words.duration(result.seconds) if result.seconds is not None else ""),
    ]
    return [(name, value) for name, value in found if value]


def _sections(result: Federated) -> list[Section]:
    """The sections there is something to say in, in reading order."""
    makers = (_perplexity, _losses, _traffic, _held, _server, _privacy, _passports, _refused, _time, _again)
    return [section for maker in makers if (section := maker(result)) is not None]


def _perplexity(result: Federated) -> Section | None:
    if not result.domains:
        return None
    pictures = [(domain, figures.perplexity_picture(result, domain, name=f"ppl{number}"))
                for number, domain in enumerate(result.domains)]  # fmt: skip
    lowest = {domain: _lowest(result, domain) for domain in result.domains}
    rows = [_perplexity_row(result, model, lowest) for model in result.perplexity]
    parts = {"notes": claims.perplexity_notes(result), "pictures": pictures, "domains": result.domains, "rows": rows,
             "titles": result.titles}  # fmt: skip
    return Section(kind="perplexity", label="Perplexity", title=claims.perplexity_heading(result), parts=parts)


def _perplexity_row(result: Federated, model: str, lowest: Mapping[str, float]) -> dict[str, Any]:
    cells = [_cell(result.score(model, domain), lowest[domain]) for domain in result.domains]
    label = "base model" if model == BASE else model
    return {"label": label, "loud": model.endswith(f": {AGGREGATE}"), "cells": cells}


def _lowest(result: Federated, domain: str) -> float:
    values = [score.value for model in result.perplexity if (score := result.score(model, domain))]
    return min((value for value in values if math.isfinite(value)), default=math.nan)


def _cell(score: Score | None, lowest: float) -> dict[str, Any]:
    if score is None:
        return {"value": "", "interval": "", "lowest": False}
    finite = math.isfinite(score.ci_low) and math.isfinite(score.ci_high)
    interval = f"{words.perplexity(score.ci_low)} to {words.perplexity(score.ci_high)}" if finite else ""
    return {"value": words.perplexity(score.value), "interval": interval, "lowest": score.value == lowest}


def _losses(result: Federated) -> Section | None:
    runs = [run for run in result.runs if any(claims.loss_ends(curve) for curve in run.loss_curves.values())]
    if not runs:
        return None
    sites = [site.name for site in result.sites] or [site for run in runs for site in run.loss_curves]
    pictures = [(run, figures.loss_picture(run, sites, name=f"loss{number}")) for number, run in enumerate(runs)]
    return Section(kind="losses", label="Training", title=claims.loss_heading(result), parts={"pictures": pictures})


def _traffic(result: Federated) -> Section | None:
    runs = [run for run in result.runs if run.deliveries]
    if not runs:
        return None
    deliveries = [delivery for run in runs for delivery in run.deliveries]
    parts = {"picture": figures.sequence_picture(runs[0], result, name="flow"), "run": runs[0],
             "matrix": _matrix(deliveries, result), "kinds": _kinds(runs)}  # fmt: skip
    return Section(kind="traffic", label="Traffic", title=claims.traffic_heading(result), parts=parts)


def _matrix(deliveries: Sequence[Delivery], result: Federated) -> dict[str, Any] | None:
    """Bytes from each sender to each recipient; None for more parties than a page is wide.

    What goes to several recipients counts for each of them here: it is one parcel on the server.
    """
    sites = [site.name for site in result.sites]
    senders = _in_order((delivery.sender for delivery in deliveries), sites)
    recipients = _in_order((party for delivery in deliveries for party in delivery.to), sites)
    if len(senders) > MAX_PARTIES or len(recipients) > MAX_PARTIES:
        return None
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for delivery in deliveries:
        for party in delivery.to:
            number, total = counts.get((delivery.sender, party), (0, 0))
            counts[delivery.sender, party] = (number + 1, total + delivery.bytes)
    most = max((total for _, total in counts.values()), default=1) or 1
    rows = [(sender, [_matrix_cell(counts.get((sender, party)), most) for party in recipients]) for sender in senders]
    return {"recipients": recipients, "rows": rows}


def _matrix_cell(count: tuple[int, int] | None, most: int) -> dict[str, Any]:
    if count is None:
        return {"text": "", "number": 0, "share": 0}
    return {"text": words.size(count[1]), "number": count[0], "share": round(100 * count[1] / most)}


def _in_order(parties: Iterable[str], sites: Sequence[str]) -> list[str]:
    seen = dict.fromkeys(parties)
    return [party for party in seen if party not in sites] + [site for site in sites if site in seen]


def _kinds(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Deliveries by run, round and kind."""
    groups: dict[tuple[str, int, str], list[Delivery]] = {}
    for run in runs:
        for delivery in run.deliveries:
            groups.setdefault((run.name, delivery.round, delivery.kind), []).append(delivery)
    return [
        {
            "run": run, "round": number, "kind": kind, "count": len(group), "bytes": sum(one.bytes for one in group),
            "seconds": sum(timed) if (timed := [one.seconds for one in group if one.seconds is not None]) else None,
        }
        for (run, number, kind), group in list(groups.items())[:MAX_ROWS]
    ]  # fmt: skip


def _held(result: Federated) -> Section | None:
    runs = [run for run in result.runs if run.held]
    if not runs:
        return None
    rows = [(run, one) for run in runs for one in run.held]
    parts = {"rows": rows[:MAX_ROWS], "runs": len(runs) > 1, "summed": any(run.mode == "secure-sum" for run in runs)}
    return Section(kind="held", label="Step by step", title=claims.held_heading(result), parts=parts)


def _server(result: Federated) -> Section | None:
    if not result.server_saw and result.plaintext_check is None:
        return None
    search, stored = result.plaintext_check, result.server_saw[:MAX_ROWS]
    parts = {
        "notes": claims.search_notes(search) if search else [], "stored": stored,
        "clean": search is not None and not search.found and search.planted_found,
        "runs": any(row.run for row in stored), "examples": any(row.example for row in stored),
    }  # fmt: skip
    return Section(kind="server", label="Server", title=claims.server_heading(result), parts=parts)


def _privacy(result: Federated) -> Section | None:
    if not result.runs:
        return None
    rows = [(run, words.promise(run.epsilon, run.delta, run.unit)) for run in result.runs]
    bounded = any(run.epsilon is not None for run in result.runs)
    accounts = [(run, site, account) for run in result.runs for site, account in run.accounts.items()]
    parts = {
        "rows": rows, "bounded": bounded, "open": any(run.epsilon is None for run in result.runs),
        "accounts": [
            (run, site, words.promise(one.spent, one.delta, one.unit), one) for run, site, one in accounts[:MAX_ROWS]
        ],
    }  # fmt: skip
    return Section(kind="privacy", label="Privacy", title=claims.privacy_heading(result), parts=parts)


def _passports(result: Federated) -> Section | None:
    passports = [(run, passport) for run in result.runs for passport in run.passports]
    if not passports:
        return None
    rows = [
        (
            run,
            passport,
            words.promise(passport.epsilon, passport.delta, passport.unit),
            words.audit(passport.audit, contradicted=passport.contradicted),
        )
        for run, passport in passports
    ]
    parts = {"rows": rows[:MAX_ROWS], "more": max(0, len(rows) - MAX_ROWS)}
    return Section(kind="passports", label="Passports", title=claims.passports_heading(result), parts=parts)


def _refused(result: Federated) -> Section | None:
    if not result.refused:
        return None
    return Section(
        kind="refused", label="Refused", title=claims.refused_heading(result), parts={"rows": result.refused[:MAX_ROWS]}
    )


def _time(result: Federated) -> Section | None:
    if not result.timeline:
        return None
    most = max(lap.seconds for lap in result.timeline) or 1.0
    rows = [(lap, round(100 * lap.seconds / most)) for lap in result.timeline[:MAX_ROWS]]
    return Section(kind="time", label="Time", title=claims.time_heading(result), parts={"rows": rows})


def _again(result: Federated) -> Section:
    command = result.command or ("not-fed demo" if result.name == "hospitals" else "not-fed simulate FEDERATION.toml")
    machine = result.machine
    facts = [
        ("not-fed", result.not_fed_version), ("Python", machine.python), ("torch", machine.torch),
        ("transformers", machine.transformers), ("flwr", machine.flwr), ("processor", machine.cpu),
        ("cores", str(machine.cores or "")), ("federation", result.federation), ("base model", result.base.name),
        ("its digest", result.base.sha256),
        ("ran", result.ran_as),
        ("mean of", words.listed(result.specialities) if MEAN in result.domains else ""),
    ]  # fmt: skip
    parts = {"command": command, "facts": [(name, value) for name, value in facts if value], "sources": result.sources,
             "private": any(run.epsilon is not None for run in result.runs)}  # fmt: skip
    title = f"Run it again with {'not-fed ' + result.not_fed_version if result.not_fed_version else 'one command'}"
    return Section(kind="again", label="Again", title=title, parts=parts)
