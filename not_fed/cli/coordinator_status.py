"""`coordinator status` for a person: what is going on, who is awaited, what went wrong."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

Line = tuple[str, str]
_WORDS = {
    "train": "round {}", "help": "  masks off", "reveal": "  stand-ins", "vote": "  vote", "receive": "result",
}  # fmt: skip


def lines_of(status: Mapping[str, Any]) -> list[Line]:
    """Aligned lines, the most important first."""
    return [*_head(status), *_run(status["run"]), *_sites(status["sites"]), *_tail(status)]


def _head(status: Mapping[str, Any]) -> Iterator[Line]:
    serving, certificate, roster = status["serving"], status["certificate"], status["roster"]
    yield "coordinator", f"{status['name'] or '?'} of {status['federation'] or '?'}, at {status['address']}"
    yield "serving", "no" if serving is None else f"yes, process {serving.get('pid', '?')}"
    if certificate:
        yield "certificate", f"until {certificate['not_after']}, {certificate['days_left']} days"
    if roster:
        yield "roster", f"version {roster['version']}, until {roster['expires']}{', out of date' * roster['stale']}"


def _run(run: Mapping[str, Any] | None) -> Iterator[Line]:
    if run is None:
        return
    yield "run", f"{run['name']}, mode {run['mode']}, {run['rounds']} rounds: {run['outcome'] or 'not begun'}"
    for step in run["steps"]:
        yield _WORDS[step["kind"]].format(step["round"]), _step(step)
        for attempt in step["attempts"]:
            if attempt["outcome"] == "too-few":
                missing = ", ".join(f"{site} ({why})" for site, why in attempt["missing"].items())
                yield "", f"attempt {attempt['number']} closed with too few answers; missing: {missing}"
    for one in run["outcomes"]:
        yield f"round {one['round']}", f"{one['outcome']}{': ' * bool(one['why'])}{one['why']}"
    for one in run["awaited"]:
        yield "awaited", f"{one['site']}, since {one['since']}{', which said ' + one['said'] if one['said'] else ''}"


def _step(step: Mapping[str, Any]) -> str:
    answers = [f"{one['site']} {one['status']}{' ' + one['code'] if one['code'] else ''}" for one in step["answers"]]
    return f"{'over' if step['closed'] else 'open'}; {', '.join(answers) or 'no answer yet'}"


def _sites(sites: list[Mapping[str, Any]]) -> Iterator[Line]:
    for one in sites:
        seen = f"last seen {one['last_seen']}" if one["last_seen"] else "never seen"
        version = f", not-fed {one['not_fed']}" if one["not_fed"] else ""
        stands = one["why_not"] or ("may connect" if one["in_plan"] else "may connect, not in this run")
        yield one["site"], f"{stands}; {seen}{version}"


def _tail(status: Mapping[str, Any]) -> Iterator[Line]:
    bank = status["bank"]
    if bank:
        yield "bank", f"{bank['organs']} sealed organs, {bank['bytes']:,} bytes"
    for one in status["problems"]:
        times = f", {one['count']} times since {one['first']}" if one["count"] > 1 else ""
        yield "problem", f"{one['last']} {one['site'] + ': ' if one['site'] else ''}{one['text']}{times}"
