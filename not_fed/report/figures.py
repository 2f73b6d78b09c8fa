"""The report's pictures: perplexity for each speciality, the loss, and who sent what to whom.

Each is drawn about as wide as a telephone, so that its text keeps its size there; wider screens put two side by side.
Whatever a picture shows stands in a table of the page too, the loss aside.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from not_fed.errors import InputError
from not_fed.report import claims, words
from not_fed.report.shape import AGGREGATE, BASE, Delivery, Federated, Run, Score
from not_fed.report.svg import POINTS_PER_INCH, SERIES, SETTINGS, THEME, to_svg

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 390
ROW = 21
SMALL, NORMAL = 10.5, 11.5
MAX_LANES, MAX_ARROWS = 7, 24
TICKS = (
    1,
    1.5,
    2,
    3,
    4,
    5,
    7,
    10,
    15,
    20,
    25,
    30,
    40,
    50,
    60,
    80,
    100,
    150,
    200,
    300,
    500,
    700,
    1000,
    2000,
    5000,
    10000,
)


class PicturesMissing(InputError):
    """The report's pictures need a package that is not installed."""

    code = "report-extra"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a perplexity picture; without a score it is the heading of a run."""

    label: str
    score: Score | None = None
    colour: str = "ink"
    marker: str = "o"
    hollow: bool = False


def perplexity_picture(result: Federated, domain: str, *, name: str) -> Markup:
    """Dot and 95 % interval of every model on one speciality; the dashed line is the base model."""
    rows = _rows(result, domain)
    limits = _limits(result)
    with _figure(height=ROW * len(rows) + 34) as (figure, axes):
        axes.set_xlim(*limits)
        axes.set_xscale("log")
        axes.set_ylim(len(rows) - 0.4, -0.6)
        _ticks(axes, limits)
        base = result.score(BASE, domain)
        if base and math.isfinite(base.value):
            axes.axvline(base.value, color=THEME["base"], linewidth=1, linestyle=(0, (3, 3)), zorder=1)
        for place, row in enumerate(rows):
            _draw_row(axes, place, row, right=limits[1])
        _margins(figure, left=130, right=46, bottom=26)
        return to_svg(figure, name=name, label=_read_aloud(result, domain))


def loss_picture(run: Run, sites: Sequence[str], *, name: str) -> Markup:
    """Each site's loss over the rounds: every step thin, the running mean bold, named at its end."""
    with _figure(height=230) as (figure, axes):
        ends = []
        for site, curve in run.loss_curves.items():
            xs, ys = _over_rounds(curve)
            if not ys:
                continue
            colour = THEME[colour_of(site, sites)]
            axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.3)
            smooth = _running_mean(ys)
            axes.plot(xs, smooth, color=colour, linewidth=2)
            ends.append((smooth[-1], site, colour))
        rounds = max((number for curve in run.loss_curves.values() for number, _, _ in curve), default=1)
        _round_axis(axes, rounds)
        _name_ends(axes, ends, x=rounds)
        _margins(figure, left=36, right=96, bottom=26)
        return to_svg(figure, name=name, label=_losses_aloud(run))


def sequence_picture(run: Run, result: Federated, *, name: str) -> Markup | None:
    """The first round as a sequence of arrows between the parties; None where that would be too crowded."""
    first = min((delivery.round for delivery in run.deliveries), default=0)
    arrows = _merged([delivery for delivery in run.deliveries if delivery.round == first])
    lanes = _lanes(arrows, result)
    if not arrows or len(lanes) > MAX_LANES or len(arrows) > MAX_ARROWS or len(lanes) < 2:
        return None
    with _figure(height=34 * len(arrows) + 40) as (figure, axes):
        axes.set_xlim(-0.5, len(lanes) - 0.5)
        axes.set_ylim(len(arrows) + 0.2, -0.9)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
        for place, lane in enumerate(lanes):
            axes.plot([place, place], [-0.4, len(arrows) + 0.1], color=THEME["line"], linewidth=1, zorder=1)
            axes.text(place, -0.6, _short(lane, 13), ha="center", va="bottom", fontsize=SMALL, color=THEME["ink"])
        for place, arrow in enumerate(arrows):
            _draw_arrow(axes, place + 0.35, arrow, lanes)
        _margins(figure, left=4, right=4, bottom=2)
        what = words.listed(list(dict.fromkeys(arrow.kind for arrow in arrows)))
        return to_svg(
            figure, name=name, label=f"Round {first} in {len(arrows)} steps: {what}; the table below lists them."
        )


def colour_of(site: str, sites: Sequence[str]) -> str:
    """The same colour for a site in every picture."""
    return SERIES[list(sites).index(site) % len(SERIES)] if site in sites else "soft"


@contextmanager
def _figure(*, height: float) -> Iterator[tuple[Figure, Axes]]:
    """A figure in our style, without pyplot and its global state."""
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise PicturesMissing(
            where="report", expected="matplotlib", got="not installed", hint="pip install 'not-fed[demo]'"
        ) from None
    with matplotlib.rc_context(SETTINGS):
        figure = Figure(figsize=(WIDTH / POINTS_PER_INCH, height / POINTS_PER_INCH), dpi=POINTS_PER_INCH)
        axes = figure.add_subplot()
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.spines["bottom"].set_color(THEME["line"])
        axes.set_yticks([])
        axes.tick_params(colors=THEME["soft"], labelsize=SMALL, length=0, pad=5)
        yield figure, axes


def _margins(figure: Figure, *, left: float, right: float, bottom: float) -> None:
    width, height = figure.get_size_inches() * POINTS_PER_INCH
    figure.subplots_adjust(left=left / width, right=1 - right / width, bottom=bottom / height, top=1 - 4 / height)


def _rows(result: Federated, domain: str) -> list[Row]:
    """The base, then a heading and the organs of each run; models of no run come last."""
    sites = [site.name for site in result.sites] or result.specialities
    rows, placed = [], set[str]()
    if base := result.score(BASE, domain):
        rows.append(Row("base model", base, "base", "s"))
        placed.add(BASE)
    for run in result.runs:
        own = [(model, score) for model in result.perplexity
               if model.startswith(f"{run.name}: ") and (score := result.score(model, domain))]  # fmt: skip
        rows += [Row(_short(run.name, 18))] if own else []
        rows += [_row(model.partition(": ")[2], score, sites, hollow=run.epsilon is not None) for model, score in own]
        placed |= {model for model, _ in own}
    rest = [
        (model, score) for model in result.perplexity if model not in placed and (score := result.score(model, domain))
    ]
    return rows + [_row(model, score, sites, hollow=False) for model, score in rest]


def _row(organ: str, score: Score, sites: Sequence[str], *, hollow: bool) -> Row:
    if organ == AGGREGATE:
        return Row(AGGREGATE, score, "accent", "D", hollow)
    return Row(_short(organ, 17), score, colour_of(organ, sites), "o", hollow)


def _draw_row(axes: Axes, place: int, row: Row, *, right: float) -> None:
    beside: dict[str, Any] = {"xycoords": ("axes fraction", "data"), "textcoords": "offset points", "va": "center"}
    loud = row.marker == "D"
    if row.score is None:
        axes.annotate(
            row.label, (0, place), xytext=(-124, -1), ha="left", fontsize=SMALL, color=THEME["soft"], **beside
        )
        return
    weight, colour = ("bold", THEME[row.colour]) if loud else ("normal", THEME["ink"])
    indent = -124 if row.marker == "s" else -114
    axes.annotate(
        row.label, (0, place), xytext=(indent, 0), ha="left", fontsize=NORMAL, color=colour, weight=weight, **beside
    )
    value = words.perplexity(row.score.value)
    axes.annotate(value, (1, place), xytext=(42, 0), ha="right", fontsize=NORMAL, color=colour, weight=weight, **beside)
    if not math.isfinite(row.score.value):
        return
    if math.isfinite(row.score.ci_low) and math.isfinite(row.score.ci_high):
        axes.plot([row.score.ci_low, min(row.score.ci_high, right)], [place, place], color=THEME[row.colour],
                  linewidth=2.4 if loud else 1.6, solid_capstyle="butt", zorder=2)  # fmt: skip
    axes.plot([row.score.value], [place], marker=row.marker, markersize=8 if loud else 7, markeredgewidth=1.8, zorder=3,
              color=THEME[row.colour], markerfacecolor=THEME["card" if row.hollow else row.colour])  # fmt: skip


def _limits(result: Federated) -> tuple[float, float]:
    """One scale for all specialities, so that dots can be compared from picture to picture."""
    ends = [end for scores in result.perplexity.values() for score in scores.values()
            for end in (score.value, score.ci_low, score.ci_high) if math.isfinite(end) and end > 0]  # fmt: skip
    low, high = min(ends, default=1.0), max(ends, default=10.0)
    high = min(high, low * 100)  # one model that almost diverged must not flatten all others
    return low / 1.06, high * 1.06


def _ticks(axes: Axes, limits: tuple[float, float]) -> None:
    inside = [tick for tick in TICKS if limits[0] <= tick <= limits[1]]
    inside = inside[:: max(1, math.ceil(len(inside) / 6))]
    axes.set_xticks(inside, [f"{tick:,g}" for tick in inside])
    axes.set_xticks([], minor=True)
    axes.grid(axis="x", color=THEME["line"], linewidth=0.7)
    axes.set_axisbelow(True)


def _read_aloud(result: Federated, domain: str) -> str:
    parts = [f"{claims.model_name(model)} {words.perplexity(score.value)}"
             for model in result.perplexity if (score := result.score(model, domain))]  # fmt: skip
    return f"Perplexity, {domain}: {', '.join(parts)}."


def _over_rounds(curve: Sequence[tuple[int, int, float]]) -> tuple[list[float], list[float]]:
    """Steps spread evenly over their round: round 1 fills 0 to 1."""
    xs, ys = [], []
    for number, steps in groupby(sorted(curve), key=lambda step: step[0]):
        losses = [loss for _, _, loss in steps]
        for place, loss in enumerate(losses):
            if math.isfinite(loss):
                xs.append(number - 1 + (place + 0.5) / len(losses))
                ys.append(loss)
    return xs, ys


def _running_mean(values: Sequence[float]) -> list[float]:
    reach = max(1, len(values) // 16)
    windows = (values[max(0, i - reach) : i + reach + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def _round_axis(axes: Axes, rounds: int) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_xlim(0, rounds)
    shown = [number for number in range(1, rounds + 1) if rounds <= 6 or number % math.ceil(rounds / 6) == 0]
    axes.set_xticks([number - 0.5 for number in shown], [f"round {number}" for number in shown])
    for border in range(1, rounds if rounds <= 12 else 0):
        axes.axvline(border, color=THEME["line"], linewidth=1)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.grid(axis="y", color=THEME["line"], linewidth=0.7)
    axes.set_axisbelow(True)


def _name_ends(axes: Axes, ends: Sequence[tuple[float, str, str]], *, x: float) -> None:
    """Names at the curves' ends, pushed apart where they would overlap."""
    low, high = axes.get_ylim()
    gap = (high - low) * 0.075
    place = -math.inf
    for value, site, colour in sorted(ends)[:12]:
        place = max(value, place + gap)
        axes.annotate(_short(site, 14), (x, place), xytext=(6, 0), textcoords="offset points", va="center",
                      fontsize=NORMAL, color=colour, annotation_clip=False)  # fmt: skip


def _losses_aloud(run: Run) -> str:
    parts = [f"{site} from {ends[0]:.2f} to {ends[1]:.2f}"
             for site, curve in run.loss_curves.items() if (ends := claims.loss_ends(curve))]  # fmt: skip
    return f"Training loss of the run {run.name}, nats a token: {', '.join(parts)}."


def _merged(deliveries: Sequence[Delivery]) -> list[Delivery]:
    """The same thing sent to several parties in a row is one arrow with several heads."""
    merged: list[Delivery] = []
    for delivery in deliveries:
        last = merged[-1] if merged else None
        if last and (last.sender, last.kind, last.bytes) == (delivery.sender, delivery.kind, delivery.bytes):
            merged[-1] = last.model_copy(update={"to": [*last.to, *delivery.to]})
        else:
            merged.append(delivery)
    return merged


def _lanes(arrows: Sequence[Delivery], result: Federated) -> list[str]:
    """Parties that are no site on the left, then the sites in their order."""
    seen = dict.fromkeys(party for arrow in arrows for party in (arrow.sender, *arrow.to))
    sites = [site.name for site in result.sites]
    return [party for party in seen if party not in sites] + [site for site in sites if site in seen]


def _draw_arrow(axes: Axes, y: float, arrow: Delivery, lanes: Sequence[str]) -> None:
    start = lanes.index(arrow.sender)
    ends = sorted({lanes.index(party) for party in arrow.to} - {start})
    if not ends:
        return
    colour = THEME["accent" if "organ" in arrow.kind else "ink" if "aggregate" in arrow.kind else "soft"]
    axes.plot([min(start, *ends), max(start, *ends)], [y, y], color=colour, linewidth=1.4, zorder=2)
    axes.plot([start], [y], marker="o", markersize=5, color=colour, zorder=3)
    for end in ends:
        axes.plot([end], [y], marker=">" if end > start else "<", markersize=7, color=colour, zorder=3)
    middle = (min(start, *ends) + max(start, *ends)) / 2
    label = f"{_short(arrow.kind, 20)}, {words.size(arrow.bytes)}"
    behind = {"facecolor": THEME["card"], "edgecolor": "none", "pad": 1.5}  # keeps lanes from crossing words
    axes.text(middle, y - 0.2, label, ha="center", va="bottom", fontsize=SMALL, color=colour, bbox=behind)


def _short(text: str, longest: int) -> str:
    """Printable and of bounded length; the tables have the whole name."""
    clean = words.printable(text)
    return clean if len(clean) <= longest else f"{clean[: longest - 1]}…"
