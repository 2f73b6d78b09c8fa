"""The paper's protocol on a model that is here: an organ trained stand-alone on 1,000 records, put in everywhere.

Neural Organ Transplantation (Al-Zuraiqi 2026, arXiv 2601.13580) trains three layers from a third of the depth between
the frozen embedding and head, inserts them at a position, and reports perplexity by position and across domains. Here
the same is done with our own train, transplant and recover, beside the same layers trained in place, and beside what
tells whether anything was learnt at all: the layers as they were, random ones, and recovery without an organ.
Every row writes an ordinary checkpoint and measures that.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from not_fed.bench.finished import Finished
from not_fed.bench.organ_texts import Texts
from not_fed.organ.anatomy import Span, third_span
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.evaluate import Evaluator
from not_fed.organ.extract import describe, extract
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.recover import RecoverySettings, plan_recovery, recover
from not_fed.organ.train import DTYPES, TrainSettings, train
from not_fed.organ.transplant import Insert, Replace, Way, apply_transplant, plan_transplant
from not_fed.organ.writing import write_safetensors
from not_fed.progress import Progress, silent

SCHEMA = "not-fed/bench-paper/1"
PAPER = (
    {"model": "GPT-2 124M", "layers": "4:7", "organ": 17.33, "lora": 668.40, "full": 1352.05, "best position": 1},
    {"model": "TinyLlama 1.1B", "layers": "7:10", "organ": 54.15, "lora": 460.41, "full": 788.36, "best position": 3},
    {"model": "GPT-OSS 20B", "layers": "8:11", "organ": 34.56, "lora": 98.37, "full": None, "best position": 4},
)
Mode = Literal["stand-alone", "in-place"]
MODES: tuple[Mode, ...] = ("stand-alone", "in-place")
RANDOM_SCALE = 0.02  # the deviation that these families draw their weights with


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much of it.

    Attributes:
        records: of each domain, to train an organ on.
        test: held-out records of each domain, at most.
        positions: where organs are inserted, as shares of the depth.
    """

    records: int
    test: int
    positions: tuple[float, ...]
    recovery_steps: int
    lr: float = 2e-3


QUICK = Size(records=60, test=20, positions=(0.0, 1 / 3), recovery_steps=4)
FULL = Size(records=1000, test=50, positions=(0.0, 0.1, 1 / 3, 2 / 3, 0.9, 1.0), recovery_steps=8)


def bench_paper(
    base: Base, *, domains: Mapping[str, Texts], size: Size, out: Path, progress: Progress = silent
) -> dict[str, Any]:
    """Run what is left of the protocol.

    Args:
        domains: by name; the first one's organ is put in everywhere, all of them make the matrix. Training records
            beyond `size.records` are what models recover on.
        out: the JSON file of finished rows; begun, or gone on with.
    Returns:
        the file's object with `table` (the first domain's rows) and `matrix` added.
    """
    span, first = third_span(base.layers), next(iter(domains))
    facts = {
        "schema": SCHEMA, "base_sha256": base.sha256, "span": str(span), "domains": list(domains),
        "records": size.records, "test_records": size.test, "source": next(iter(domains.values())).source,
        "lr": size.lr, "recovery_steps": size.recovery_steps, "others": len(domains[first].train) - size.records,
    }  # fmt: skip
    finished = Finished(out, facts=facts, kinds=("rows",))
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        protocol = _Protocol(base, span, domains, size, finished, Path(scratch), progress)
        protocol.positions()
        protocol.controls()
        protocol.recoveries()
        protocol.matrix()
    return finished.content


class _Protocol:
    def __init__(
        self, base: Base, span: Span, domains: Mapping[str, Texts], size: Size, finished: Finished, scratch: Path,
        progress: Progress,
    ) -> None:  # fmt: skip
        self.base, self.span, self.domains, self.size = base, span, domains, size
        self.finished, self.scratch, self.progress = finished, scratch, progress
        self.first = next(iter(domains))
        self._organs: dict[str, OrganInfo] = {}
        self._evaluated = 0

    def positions(self) -> None:
        """The base, and each organ in its own place and inserted at each position."""
        self._row("base model", lambda: self.base)
        places = sorted({round(share * self.base.layers) for share in self.size.positions})
        for mode in MODES:
            self._row(f"organ trained {mode}, replaced", partial(self._organ_put, mode, Replace()))
            for at in places:
                way = Insert(start="organ")
                self._row(f"organ trained {mode}, inserted at {at}", partial(self._organ_put, mode, way, at=at))

    def controls(self) -> None:
        """What is not an organ that learnt anything."""
        at = self.span.start
        again = Insert(start="organ")
        self._row(f"untouched layers, inserted at {at}", lambda: self._put(self._untouched(), again, at=at))
        self._row("random layers, replaced", lambda: self._put(self._random(), Replace()))

    def recoveries(self) -> None:
        """A short healing on other records of the same domain, which no organ has seen."""
        at = self.span.start
        self._row("recovery of norms without an organ", lambda: self._recovered(self.base, "norms"))
        self._row(
            "organ trained stand-alone, replaced, norms recovered",
            lambda: self._recovered(self._put(self._organ("stand-alone"), Replace()), "norms"),
        )
        for mode in MODES:
            name = f"organ trained {mode}, inserted at {at} from zero, its layers recovered"
            self._row(name, partial(self._inserted_and_recovered, mode, at))
        self._row(
            f"organ trained stand-alone, inserted at {at}, neighbours recovered",
            lambda: self._recovered(self._put(self._organ("stand-alone"), Insert(start="organ"), at=at), "neighbours"),
        )

    def matrix(self) -> None:
        """Every domain's in-place organ on every domain."""
        for domain in self.domains:
            self._row(f"organ of {domain}", partial(self._organ_put, "in-place", Replace(), domain=domain))

    def _row(self, name: str, make: Callable[[], Base]) -> None:
        """Perplexity of one model on every domain, once."""

        def measured() -> dict[str, Any]:
            model = make()
            found = {domain: self._perplexity(model, domain) for domain in self.domains}
            for folder in self.scratch.glob("model-*"):  # half a gigabyte each
                shutil.rmtree(folder)
            return found

        self.progress("rows", done=self._evaluated, total=self._evaluated + 1, note=name)
        self.finished.once("rows", name, measured)
        self._evaluated += 1

    def _perplexity(self, model: Base, domain: str) -> dict[str, float]:
        texts = self.domains[domain].test[: self.size.test]
        found = Evaluator(model, records=texts, span=Span(0, model.layers)).perplexity()
        return {"value": found.value, "ci_low": found.ci_low, "ci_high": found.ci_high}

    def _organ(self, mode: Mode, domain: str | None = None) -> OrganInfo:
        name = f"{mode}-{domain or self.first}"
        if name not in self._organs:
            settings = TrainSettings(span=self.span, mode=mode, lr=self.size.lr, precision="bfloat16")
            records = self.domains[domain or self.first].train[: self.size.records]
            out = self.scratch / f"{name}.organ"
            trained = train(self.base, records=records, settings=settings, out=out, progress=self.progress)
            self._organs[name] = trained.organ
        return self._organs[name]

    def _untouched(self) -> OrganInfo:
        path = self.scratch / "untouched.organ"
        return read_organ(path) if path.exists() else extract(self.base, span=self.span, out=path)

    def _random(self) -> OrganInfo:
        """Matrices drawn anew; norms and biases as they are."""
        places, source = self._untouched().places, torch.Generator().manual_seed(0)

        def blocks(name: str) -> Iterable[bytes]:
            place = places[name]
            if len(place.shape) < 2:
                return place.blocks()
            drawn = torch.empty(place.shape).normal_(std=RANDOM_SCALE, generator=source).to(DTYPES[place.dtype])
            return [drawn.view(torch.uint8).numpy().tobytes()]

        sizes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in places.items()}
        path = self.scratch / "random.organ"
        write_safetensors(path, sizes, metadata=describe(self.base, self.span).as_metadata(), blocks=blocks)
        return read_organ(path)

    def _organ_put(self, mode: Mode, way: Way, *, at: int | None = None, domain: str | None = None) -> Base:
        return self._put(self._organ(mode, domain), way, at=at)

    def _inserted_and_recovered(self, mode: Mode, at: int) -> Base:
        return self._recovered(self._put(self._organ(mode), Insert(), at=at), "organ")

    def _put(self, organ: OrganInfo, way: Way, *, at: int | None = None) -> Base:
        plan = plan_transplant(organ=organ, base=self.base, at=at, way=way)
        return open_base(apply_transplant(plan, out=self._folder()))

    def _recovered(self, model: Base, what: Literal["norms", "neighbours", "organ"]) -> Base:
        texts = self.domains[self.first]
        settings = RecoverySettings(what=what, steps=self.size.recovery_steps)
        plan = plan_recovery(model, texts=texts.train[self.size.records :], settings=settings)
        return open_base(recover(plan, out=self._folder(), keep_worse=True, progress=self.progress).out)

    def _folder(self) -> Path:
        return Path(tempfile.mkdtemp(prefix="model-", dir=self.scratch)) / "model"


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table, for people and for docs/benchmarks.md."""
    domains: Sequence[str] = result["domains"]
    lines = ["| model | " + " | ".join(domains) + " |", "|---|" + "---|" * len(domains)]
    for name, row in result["rows"].items():
        cells = (f"{row[d]['value']:,.1f} ({row[d]['ci_low']:,.1f} to {row[d]['ci_high']:,.1f})" for d in domains)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "| the paper says | organ, at its best position | LoRA | full fine-tuning |", "|---|---|---|---|"]
    for row in PAPER:
        full = "not given" if row["full"] is None else f"{row['full']:,}"
        organ = f"{row['organ']} at {row['best position']}"
        lines.append(f"| {row['model']}, layers {row['layers']} | {organ} | {row['lora']} | {full} |")
    return "\n".join(lines)
