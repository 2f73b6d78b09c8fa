"""The secure sum beside Flower's SecAgg+ and a plain mean: CPU seconds, bytes and memory of each side of a round.

All is measured in one run on one machine, each piece in processes of its own (aggregation_work.py, and
secaggplus_work.py beside the simulation, which may know Flower). Carrying counts on no side: no network, no files, no
serialisation. SecAgg+ runs whole: every site's vector is really masked, and the server's part is repeated on them.
"""

from __future__ import annotations

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from not_fed.bench.aggregation_work import make_plan
from not_fed.bench.harness import Times, machine
from not_fed.errors import PeerError
from not_fed.progress import Progress, silent
from not_fed.trust.plans import SumPlan

SCHEMA = "not-fed/bench-aggregation/1"
LIBRARIES = ("not-fed", "flwr", "numpy", "cryptography")
OURS, PEER = "not_fed.bench.aggregation_work", "not_fed.simulation.secaggplus_work"
NAMES = {
    "ours": "secure sum",
    "secagg+": "SecAgg+, all neighbours",
    "secagg+ sparse": "SecAgg+, sparse",
    "plain": "plain mean",
}
MIB = 1 << 20
LAYERS = 3
LAYER = ((576,), (576,), (576, 576), (192, 576), (192, 576), (576, 576), (1536, 576), (1536, 576), (576, 1536))
CLIP = 2.0**-4
SITE_TARGET, SERVER_TARGET, SITE_MIB_TARGET, VECTORS_TARGET = 5.0, 10.0, 48.0, 3.0
SITE, HELPER, REVEAL, SERVER = "site", "helper, in addition", "reveal, each site", "server"
HELPER_LOST = "server, a helper lost"
SMALL = ("sign", "verify", "seal", "unseal")
MISSING = "server, uploads missing"


class PieceFailed(PeerError):
    """A piece of the benchmark ended before it had measured anything."""

    code = "bench-aggregation-piece"


@dataclass(frozen=True, slots=True, kw_only=True)
class Cohort:
    """How many sites, how many of them may collude with the server, and what is lost in the repeats with losses.

    Attributes:
        vanish: helpers that may be lost after the uploads.
        lost: uploads that are missing.
    """

    sites: int
    collude: int
    vanish: int
    lost: int

    @property
    def threshold(self) -> int:
        """How many shares open a secret, on both sides: more than half of all sites and colluders together."""
        return (self.sites + self.collude) // 2 + 1

    def plan(self) -> SumPlan:
        """The plan of our secure sum for it."""
        return make_plan(self.sites, collude=self.collude, vanish=self.vanish, clip=CLIP)

    @property
    def sparse(self) -> tuple[int, int] | None:
        """Shares and threshold of the thinnest graph that promises the same; None when that is all neighbours.

        Each site's secrets lie with itself and its neighbours: they must open after `lost` of them are gone, and not
        for two answers to two questions with `collude` among them; and without these and those, whoever they are, the
        ring of neighbours must hold together.
        """
        for shares in range(3, self.sites, 2):
            threshold = (shares + self.collude) // 2 + 1
            if shares - self.lost >= threshold and shares - 1 > self.collude + self.lost:
                return shares, threshold
        return None


FULL = (
    Cohort(sites=4, collude=1, vanish=1, lost=1),
    Cohort(sites=16, collude=5, vanish=2, lost=2),
    Cohort(sites=50, collude=3, vanish=2, lost=5),
)
QUICK, QUICK_SHAPES = FULL[:1], ((64, 576), (576,))


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One side's part of a round.

    Attributes:
        way: ours, secagg+, secagg+ sparse or plain.
        part: who does what; a server's name says what was lost.
        cpu_s: of its process, best, median and worst of the repeats.
        extra_mib: its memory beyond what it held when it began: its input, the program and its keys.
        vectors: the same as a multiple of the vector that each site sends, in four bytes a number.
    """

    sites: int
    way: str
    part: str
    cpu_s: Times
    repeats: int
    bytes_out: int | None = None
    bytes_in: int | None = None
    extra_mib: float | None = None
    vectors: float | None = None


def bench_aggregation(
    *, cohorts: Sequence[Cohort] = FULL, repeats: int = 5, shapes: Sequence[Sequence[int]] = LAYER * LAYERS,
    folder: Path | None = None, progress: Progress = silent,
) -> dict[str, Any]:  # fmt: skip
    """Measure all of it, and leave nothing behind.

    Args:
        shapes: of one update's tensors.
        folder: where temporary files go: a vector for each of the sites.
    Raises:
        PieceFailed.
    """
    parameters = sum(math.prod(shape) for shape in shapes)
    pieces = list(_pieces(cohorts, shapes=shapes, parameters=parameters, repeats=repeats))
    found: list[tuple[_Piece, dict[str, Any]]] = []
    with tempfile.TemporaryDirectory(dir=folder, prefix="not-fed-aggregation-") as name:
        for number, piece in enumerate(pieces):
            progress("bench aggregation", done=number, total=len(pieces), note=piece.name)
            with tempfile.TemporaryDirectory(dir=name) as own:
                found.append((piece, _run(piece, Path(own))))
        progress("bench aggregation", done=len(pieces), total=len(pieces))
    rows = _rows(found, parameters)
    limits = next(_speeds(what) for piece, what in found if piece.way == "limits")
    return {
        "schema": SCHEMA, "machine": machine(LIBRARIES), "parameters": parameters, "repeats": repeats,
        "cohorts": [_describe(cohort) for cohort in cohorts], "rows": [asdict(row) for row in rows], "limits": limits,
        "floors": [floor for cohort in cohorts for floor in _floors(cohort, rows, limits)],
        "ratios": [ratio for cohort in cohorts for ratio in _ratios(cohort, rows)],
        "checks": [_check(piece, what) for piece, what in found if "check" in what],
    }  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    way: str
    piece: str
    cohort: Cohort
    module: str
    settings: Mapping[str, Any]

    @property
    def name(self) -> str:
        return f"{self.way}, {self.piece}, {self.cohort.sites} sites"


def _pieces(
    cohorts: Sequence[Cohort], *, shapes: Sequence[Sequence[int]], parameters: int, repeats: int
) -> Iterator[_Piece]:
    def own(piece: str, way: str, cohort: Cohort) -> _Piece:
        facts = asdict(cohort) | {"piece": piece, "parameters": parameters, "clip": CLIP, "repeats": repeats}
        return _Piece(way=way, piece=piece, cohort=cohort, module=OURS, settings=facts)

    yield own("limits", "limits", cohorts[0])
    for cohort in cohorts:
        yield own("ours", "ours", cohort)
        graphs = {"secagg+": (cohort.sites, cohort.threshold), "secagg+ sparse": cohort.sparse}
        for way, graph in graphs.items():
            if graph is None:
                continue
            facts = {
                "shapes": shapes, "sites": cohort.sites, "shares": graph[0], "threshold": graph[1], "lost": cohort.lost,
                "clip": CLIP,
            }  # fmt: skip
            for _ in range(repeats):
                yield _Piece(
                    way=way, piece="site", cohort=cohort, module=PEER, settings=facts | {"piece": "site", "repeats": 1}
                )
            yield _Piece(
                way=way, piece="round", cohort=cohort, module=PEER,
                settings=facts | {"piece": "round", "repeats": repeats},
            )  # fmt: skip
        yield own("plain", "plain", cohort)


def _run(piece: _Piece, folder: Path) -> dict[str, Any]:
    """One piece in a process of its own, with one thread."""
    environment = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    settings = dict(piece.settings) | ({"folder": str(folder)} if piece.module == OURS else {})
    words = [sys.executable, "-m", piece.module, json.dumps(settings)]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)  # noqa: S603
    try:
        found: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
    except ValueError:
        said = " ".join(done.stderr.split())[-300:]
        raise PieceFailed(
            where=f"bench aggregation, {piece.name}", expected="a result", got=said, hint="report this"
        ) from None
    return found


def _rows(found: Sequence[tuple[_Piece, Mapping[str, Any]]], parameters: int) -> list[Row]:
    """One row for all repeats of a part, in the order of the cohorts and ways."""
    parts: dict[tuple[int, str, str], list[Mapping[str, Any]]] = {}
    for piece, what in found:
        for part, numbers in _parts(piece, what):
            parts.setdefault((piece.cohort.sites, piece.way, part), []).append(numbers)
    return [_row(key, turns, parameters) for key, turns in parts.items()]


def _parts(piece: _Piece, found: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if piece.way in ("plain", "ours"):
        yield from ((part, numbers) for part, numbers in found.items() if part != "check")
    elif piece.piece == "site":
        yield SITE, {**found, "cpu_s": [found["cpu_s"]], "bytes_out": found["bytes_up"]}
    elif piece.piece == "round":
        for case, part in (("all", SERVER), ("lost", missing(piece.cohort.lost))):
            for turn in found["server"].get(case, ()):
                gone = piece.cohort.lost if case == "lost" else 0
                received = found["bytes_in"] * (piece.cohort.sites - gone) // piece.cohort.sites
                yield part, {**turn, "cpu_s": [turn["cpu_s"]], "bytes_in": received}


def _row(key: tuple[int, str, str], turns: Sequence[Mapping[str, Any]], parameters: int) -> Row:
    seconds = [value for turn in turns for value in turn["cpu_s"]]
    extra = max((turn["extra_mib"] for turn in turns if turn.get("extra_mib") is not None), default=None)
    return Row(
        sites=key[0], way=key[1], part=key[2], cpu_s=Times.of(seconds), repeats=len(seconds), extra_mib=extra,
        vectors=None if extra is None else extra * MIB / (4 * parameters),
        bytes_out=turns[0].get("bytes_out"), bytes_in=turns[0].get("bytes_in"),
    )  # fmt: skip


def missing(uploads: int) -> str:
    """What the server's part is called when that many sites did not upload."""
    return f"{SERVER}, {uploads} upload{'s' if uploads > 1 else ''} missing"


def _describe(cohort: Cohort) -> dict[str, Any]:
    limits = cohort.plan().thresholds()
    return asdict(cohort) | {
        "shares": limits.shares, "helpers": limits.helpers, "min_sites": limits.min_sites, "sparse": cohort.sparse,
    }  # fmt: skip


def _check(piece: _Piece, found: Mapping[str, Any]) -> dict[str, Any]:
    """What says that both sides' results are right."""
    return {"sites": piece.cohort.sites, "way": piece.way, **found["check"]}


def _speeds(found: Mapping[str, Any]) -> dict[str, Any]:
    """Medians: GB/s of what works through a vector, milliseconds of the rest; and the seconds themselves."""
    medians = {name: statistics.median(seconds) for name, seconds in found["cpu_s"].items()}
    size = found["vector_bytes"]
    return {
        "vector_bytes": size, "cpu_s": medians,
        "gb_per_s": {name: size / seconds / 1e9 for name, seconds in medians.items() if name not in SMALL},
        "ms": {name: 1000 * medians[name] for name in SMALL},
    }  # fmt: skip


def _floors(cohort: Cohort, rows: Sequence[Row], limits: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """What this machine's own speeds say that each of our parts must cost at least, beside what it did cost."""
    cost, helpers, sites = limits["cpu_s"], cohort.plan().thresholds().helpers, cohort.sites
    taken = cost["sha256"] + cost["add"] + cost["verify"]
    floors = {
        SITE: cost["round"] + helpers * cost["chacha20 and add"] + cost["sha256"] + sites * cost["seal"] + cost["sign"],
        HELPER: sites * (cost["chacha20 and add"] + cost["verify"] + cost["unseal"]) + cost["sha256"] + cost["sign"],
        SERVER: (sites + helpers) * taken,
        missing(cohort.lost): (sites - cohort.lost + helpers) * taken,
        HELPER_LOST: (sites + helpers - 1) * taken + sites * cost["chacha20 and add"] + sites * cost["verify"],
    }
    for row in rows:
        if (row.sites, row.way) == (sites, "ours") and row.part in floors:
            share = floors[row.part] / row.cpu_s.median
            yield {"sites": sites, "part": row.part, "floor_s": floors[row.part], "share": share}


def _ratios(cohort: Cohort, rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """How many times a peer's CPU seconds ours are, by medians."""
    cost = {(row.way, row.part): row.cpu_s.median for row in rows if row.sites == cohort.sites}
    lost = missing(cohort.lost)
    for way in ("secagg+", "secagg+ sparse"):
        if (way, SITE) in cost:
            yield {
                "sites": cohort.sites, "peer": way,
                "site": cost[way, SITE] / cost["ours", SITE],
                "helper": cost[way, SITE] / (cost["ours", SITE] + cost["ours", HELPER]),
                "server": cost[way, SERVER] / cost["ours", SERVER],
                "server_lost": cost[way, lost] / cost["ours", lost],
                "server_helper_lost": cost[way, lost] / cost["ours", HELPER_LOST],
            }  # fmt: skip


def table(result: Mapping[str, Any]) -> str:
    """The result as Markdown, for people and for docs/benchmarks.md."""
    return "\n\n".join(
        "\n".join(part)
        for part in (_cost_table(result), _size_table(result), _ratio_table(result), _floor_table(result))
    )


def _table(words: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [words, ["---"] * len(words), *rows]
    return ["| " + " | ".join(map(str, line)) + " |" for line in lines]


def _by_part(result: Mapping[str, Any]) -> dict[tuple[str, str], dict[int, Mapping[str, Any]]]:
    """Way and part -> sites -> row; what the missing uploads' number is stands in the table's head."""
    found: dict[tuple[str, str], dict[int, Mapping[str, Any]]] = {}
    for way in NAMES:
        for row in result["rows"]:
            if row["way"] == way:
                part = MISSING if "missing" in row["part"] else row["part"]
                found.setdefault((way, part), {})[row["sites"]] = row
    return found


def _cost_table(result: Mapping[str, Any]) -> list[str]:
    """CPU seconds, medians with best and worst."""
    cohorts = result["cohorts"]

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return ""
        cpu = row["cpu_s"]
        return f"**{cpu['median']:.3f}** ({cpu['low']:.3f} to {cpu['high']:.3f})"

    heads = [f"{cohort['sites']} sites, {cohort['lost']} missing" for cohort in cohorts]
    return _table(
        ("CPU seconds", "part", *heads),
        ((NAMES[way], part, *(cell(rows.get(cohort["sites"])) for cohort in cohorts))
         for (way, part), rows in _by_part(result).items()),
    )  # fmt: skip


def _size_table(result: Mapping[str, Any]) -> list[str]:
    """Bytes that leave and come, and memory over what was there before, in MiB and in vectors of four bytes."""

    def cell(row: Mapping[str, Any] | None) -> str:
        if row is None:
            return ""
        told = [_bytes(row["bytes_out"]) + " out"] if row["bytes_out"] else []
        told += [_bytes(row["bytes_in"]) + " in"] if row["bytes_in"] else []
        told += [f"**{row['extra_mib']:,.0f} MiB** ({row['vectors']:.1f})"] if row["extra_mib"] is not None else []
        return "; ".join(told)

    cohorts = result["cohorts"]
    return _table(
        ("bytes; memory", "part", *(f"{cohort['sites']} sites" for cohort in cohorts)),
        ((NAMES[way], part, *(cell(rows.get(cohort["sites"])) for cohort in cohorts))
         for (way, part), rows in _by_part(result).items()),
    )  # fmt: skip


def _ratio_table(result: Mapping[str, Any]) -> list[str]:
    keys = {"site": "site", "helper": "a site that helps", "server": "server", "server_lost": MISSING,
            "server_helper_lost": "the same, ours with a helper lost"}  # fmt: skip
    return _table(
        ("sites", "CPU of", *keys.values()),
        ((ratio["sites"], f"{NAMES[ratio['peer']]}, over ours", *(f"**{ratio[key]:.1f}**" for key in keys))
         for ratio in result["ratios"]),
    )  # fmt: skip


def _floor_table(result: Mapping[str, Any]) -> list[str]:
    limits = result["limits"]
    speeds = [f"{name} {value:.1f} GB/s" for name, value in limits["gb_per_s"].items()]
    speeds += [f"{name} {value:.2f} ms" for name, value in limits["ms"].items()]
    floors = _table(
        ("sites", "our part", "floor", "of what was measured"),
        ((floor["sites"], floor["part"], f"{floor['floor_s']:.3f} s", f"{100 * floor['share']:.0f} %")
         for floor in result["floors"]),
    )  # fmt: skip
    return [*floors, "", f"One core of this machine: {', '.join(speeds)}."]


def conclusion(result: Mapping[str, Any]) -> str:
    """One line: which targets the largest cohort meets, against each of the peer's graphs."""
    sites = max(cohort["sites"] for cohort in result["cohorts"])
    rows = {row["part"]: row for row in result["rows"] if (row["sites"], row["way"]) == (sites, "ours")}
    vectors = max(row["vectors"] or 0 for row in rows.values() if row["part"].startswith(SERVER))
    memory = (
        ("site's memory over its input", f"{rows[SITE]['extra_mib']:.0f} MiB",
         rows[SITE]["extra_mib"] <= SITE_MIB_TARGET),
        ("server's memory", f"{vectors:.1f} vectors", vectors <= VECTORS_TARGET),
    )  # fmt: skip
    told = [f"{sites} sites: {_met(memory)}"]
    for ratio in result["ratios"]:
        if ratio["sites"] == sites:
            times = (
                ("site", f"{ratio['site']:.1f} times faster", ratio["site"] >= SITE_TARGET),
                ("server with drop-outs", f"{ratio['server_lost']:.1f} times faster",
                 ratio["server_lost"] >= SERVER_TARGET),
            )  # fmt: skip
            told.append(f"against {NAMES[ratio['peer']]}: {_met(times)}")
    return "; ".join(told)


def _met(targets: Iterable[tuple[str, str, bool]]) -> str:
    return ", ".join(f"{what} {number} ({'met' if met else 'MISSED'})" for what, number, met in targets)


def _bytes(value: int | None) -> str:
    if value is None:
        return ""
    return f"{value / 1e6:,.1f} MB" if value >= 1e5 else f"{value / 1e3:,.1f} kB"
