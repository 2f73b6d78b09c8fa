"""A finished attack on disk: one folder with the JSON object, the picture, and a page that needs no network."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from not_fed import files
from not_fed.bench.attack_membership import LIRA, REFERENCE
from not_fed.bench.attack_pictures import png, svg
from not_fed.bench.attack_words import named, sentences

TITLES = {
    "membership": "Can somebody tell who was in the training data?",
    "extraction": "Do planted secrets come out?",
}
FEW = "Where fewer than ten false alarms are expected, a true positive rate rests on a handful of others: shown as ~."


def write_attack(result: Mapping[str, Any], *, out: Path) -> None:
    """Write attack.json, attack.png and index.html into a new folder that only its owner can read.

    Raises:
        OutputExists: `out` is there already. PicturesMissing: matplotlib is not installed.
    """
    title = TITLES[result["attack"]]
    with files.new_folder(out) as part:
        part.chmod(0o700)
        for name, data in (
            ("attack.json", json.dumps(result, indent=1, allow_nan=False).encode() + b"\n"),
            ("attack.png", png(result)),
            ("index.html", _page(result, title=title).encode()),
        ):
            files.write_atomic(part / name, data)


def table(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Column heads and rows, for the terminal, the page and the documentation."""
    return _membership(result) if result["attack"] == "membership" else _extraction(result)


def markdown(result: Mapping[str, Any]) -> str:
    """The table as Markdown."""
    head, rows = table(result)
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (head, ["---"] * len(head), *rows))


def _page(result: Mapping[str, Any], *, title: str) -> str:
    environment = Environment(
        loader=PackageLoader("not_fed.bench", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True,
        lstrip_blocks=True,
    )  # fmt: skip
    head, rows = table(result)
    return environment.get_template("attack.html.j2").render(
        title=title,
        stays=result["stays"],
        sentences=sentences(result),
        picture=svg(result, label=result["conclusion"]),
        head=head,
        rows=rows,
        notes=_notes(result),
    )


def _notes(result: Mapping[str, Any]) -> list[str]:
    facts = result["machine"]
    first, stop = result["span"]
    about = (
        f"{result['records']:,} records, attacked per {result['unit']}; layers {first}:{stop}; {facts['date']}, "
        f"{facts['cpu']}, {facts['threads']} threads, {result['seconds']:.0f} s; "
        f"not-fed {facts['versions']['not-fed']}."
    )
    return [*([FEW] if result["attack"] == "membership" else []), about]


def _membership(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    head = ["organs", "attacker", "AUC (95 %)", "found at 1 % false alarms", "at 0.1 %", "epsilon refuted below",
            "claimed", "perplexity of members / others"]  # fmt: skip
    rows = [["base model", "", "", "", "", "", "", f"{result['base_perplexity']:.1f}"]]
    for row in result["kinds"]:
        for name in (REFERENCE, LIRA):
            if name in row["attacks"]:
                rows.append([row["name"], name, *_cells(row, row["attacks"][name])])
    return head, rows


def _cells(row: Mapping[str, Any], attack: Mapping[str, Any]) -> list[str]:
    auc, refuted, reads = attack["auc"], attack.get("refuted"), row["perplexity"]
    rates = [f"{'~' if one['few'] else ''}{100 * one['value']:.1f} % ({100 * one['ci_low']:.1f} to "
             f"{100 * one['ci_high']:.1f})" for one in attack["tpr"]]  # fmt: skip
    return [
        f"{auc['value']:.3f} ({auc['ci_low']:.3f} to {auc['ci_high']:.3f})",
        *rates,
        f"{refuted['epsilon']:.2f} of at most {refuted['most']:.2f}" if refuted else "not told",
        _claim(row),
        f"{reads['members']:.1f} / {reads['others']:.1f}",
    ]


def _claim(row: Mapping[str, Any]) -> str:
    return "none" if row.get("dp") is None else named(row)


def _extraction(result: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    repeats = [one["repeats"] for one in result["kinds"][0]["exposure"]]
    named = [f"planted {count} times: bits (luck below)" if count else "never planted" for count in repeats]
    rows = []
    for row in result["kinds"]:
        bits = [f"{one['mean_bits']['value']:.1f} ({one['chance_below']:.1f}); {one['written_out']} of "
                f"{one['secrets']} written out" for one in row["exposure"]]  # fmt: skip
        rows.append([row["name"], *bits, _claim(row)])
    return ["organs", *named, "claimed"], rows
