"""A screenful for the terminal: 80 columns, 24 lines, no colour, no control characters."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from not_fed.report import claims, words
from not_fed.report.shape import AGGREGATE, BASE, MEAN, Federated, Score, read_result

COLUMNS, LINES = 80, 24
MAX_HEADLINE, MAX_TABLE, MAX_DOMAINS = 3, 12, 4
LABEL, DOMAIN = 11, 14


def terminal_summary(result: Mapping[str, Any], *, report: Path | None = None) -> str:
    """The result in at most 24 lines of 80 columns.

    Args:
        report: where the page was written, named in the last line.
    Raises:
        BadResult: a field has the wrong type.
    """
    read = read_result(result)
    lines = textwrap.wrap(words.printable(claims.headline(read)), COLUMNS, max_lines=MAX_HEADLINE, placeholder=" …")
    table = _table(read)
    lines += ["", *table, ""] if table else [""]
    for label, value in _facts(read):
        lines.append(_cut(f"{label:<{LABEL}}{words.printable(value)}", COLUMNS))
    if report is not None:
        lines = [
            *lines[: LINES - 1],
            f"{'report':<{LABEL}}{words.printable(str(report))}",
        ]  # whole, so that it can be copied
    return "\n".join(lines[:LINES]).rstrip()


def _facts(result: Federated) -> list[tuple[str, str]]:
    facts = []
    if result.bytes_sent is not None:
        facts.append(("sent", words.size(result.bytes_sent)))
    if result.seconds is not None:
        facts.append(("took", words.duration(result.seconds)))
    if result.runs:
        facts.append(("privacy", claims.privacy_heading(result)))
    if result.server_saw:
        kinds: dict[str, int] = {}
        for stored in result.server_saw:
            kinds[stored.kind] = kinds.get(stored.kind, 0) + stored.count
        facts.append(("server saw", words.listed([f"{count:,} {kind}" for kind, count in kinds.items()], at_most=5)))
    if search := result.plaintext_check:
        facts.append(("searched", _searched(search.bytes_searched, search.found, planted_found=search.planted_found)))
    if result.refused:
        facts.append(("attacks", claims.refused_heading(result)))
    return facts


def _searched(count: int, found: list[str], *, planted_found: bool) -> str:
    if found:
        return f"{words.size(count)} on the server: {words.counted(len(found), 'piece')} of plaintext FOUND"
    if not planted_found:
        return f"{words.size(count)} on the server, but the search missed what was planted to test it"
    return f"{words.size(count)} on the server: no plaintext (and a planted copy was found)"


def _table(result: Federated) -> list[str]:
    """The base, then each run and its organs; the aggregates alone where that is too long."""
    domains = result.domains
    if len(domains) > MAX_DOMAINS:
        domains = [MEAN] if MEAN in domains else domains[:MAX_DOMAINS]
    rows = _rows(result, list(result.perplexity))
    if len(rows) >= MAX_TABLE:
        rows = _rows(result, [m for m in result.perplexity if m == BASE or m.endswith(f": {AGGREGATE}")])[
            : MAX_TABLE - 1
        ]
    if not domains or not rows:
        return []
    cells = [[_cell(result.score(model, domain)) for domain in domains] for _, model in rows]
    head = [_cut(words.printable(domain), DOMAIN) for domain in domains]
    width = max(len(text) for row in [head, *cells] for text in row)
    first = min(COLUMNS - (width + 1) * len(domains), max(len("perplexity"), *(len(label) for label, _ in rows)))
    return [_row("perplexity", head, first, width),
            *(_row(label, row, first, width) for (label, _), row in zip(rows, cells, strict=True))]  # fmt: skip


def _rows(result: Federated, models: list[str]) -> list[tuple[str, str]]:
    """(label, model); a run's own line has no model."""
    rows, placed = [], set[str]()
    for run in (None, *result.runs):
        mine = [m for m in models if (m == BASE if run is None else m.startswith(f"{run.name}: "))]
        rows += [(words.printable(run.name), "")] if run and mine else []
        rows += [("base model" if run is None else f"  {words.printable(m.partition(': ')[2])}", m) for m in mine]
        placed |= set(mine)
    return rows + [(words.printable(model), model) for model in models if model not in placed]


def _row(label: str, cells: list[str], first: int, width: int) -> str:
    return (f"{_cut(label, first):<{first}}" + "".join(f" {cell:>{width}}" for cell in cells)).rstrip()


def _cell(score: Score | None) -> str:
    """`31.2 (29-34)`: the interval is rounded outwards."""
    if score is None:
        return ""
    value = words.perplexity(score.value)
    if not math.isfinite(score.ci_low) or not math.isfinite(score.ci_high):
        return value
    if score.value < 10:
        return f"{value} ({score.ci_low:.1f}-{score.ci_high:.1f})"
    return f"{value} ({math.floor(score.ci_low)}-{math.ceil(score.ci_high)})"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[: max(0, longest - 1)]}…"
