"""One piece of `not-fed bench scale`, in a process of its own: `python -m not_fed.simulation.scale_work FOLDER PIECE`.

`prepare` makes homes for everybody; `ours` runs the federation, `flower` runs Flower's own FedAvg on the same arrays on
the same LocalGrid; `real` runs two sites with the demo's model and real training. What was measured goes to stdout.
"""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg
from numpy.typing import NDArray

from not_fed import files
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, open_base
from not_fed.organ.extract import describe
from not_fed.organ.organ import read_organ
from not_fed.organ.train import Trained, TrainSettings
from not_fed.organ.writing import write_safetensors
from not_fed.processes.bundle import hospitals_folder, load_app
from not_fed.simulation.federation import FederationFile, load_federation
from not_fed.simulation.grid import LocalGrid, server_context
from not_fed.simulation.meter import Meter, replaced
from not_fed.simulation.prepare import prepare

SETTINGS = "settings.json"
PREPARED, BASE = "prepared", "base"
SPAN = Span(1, 2)
HIDDEN, INTERMEDIATE, LAYERS, HEADS = 256, 960, 2, 4  # a layer of 999,936 numbers
CHANGE = np.float32(1e-3)
TRAIN = "not_fed.organ.train:train"
STAGES: Mapping[str, Sequence[str]] = {
    "training": (TRAIN, "not_fed.site.making:_records"),
    "sealing": ("not_fed.envelope.seal:seal_organ", "not_fed.snapshots:take_snapshot"),
    "signing": (
        "not_fed.envelope.passport:new_passport", "not_fed.envelope.passport:issue_passport",
        "not_fed.envelope.waybill:write_waybill", "not_fed.envelope.label:write_label",
        "not_fed.envelope.task:sign_task", "not_fed.envelope.task:sign_greeting",
    ),
    "checking": (
        "not_fed.envelope.open:open_organ", "not_fed.envelope.label:check_label", "not_fed.envelope.task:verify_task",
        "not_fed.envelope.task:verify_greeting",
        "not_fed.organ.merge:check_claims", "not_fed.organ.fit:check_fit", "not_fed.site.parcels:check_parcels",
        "not_fed.site.policy:load_policy", "not_fed.site.policy:permit", "not_fed.organ.organ:read_organ",
    ),
    "log": (
        "not_fed.coordinator.kept_log:KeptLog.enter", "not_fed.coordinator.kept_log:KeptLog.newest",
        "not_fed.site.log_watch:watch_log", "not_fed.site.log_watch:seen_size",
        "not_fed.trust.log_folder:LogFolder.proof", "not_fed.trust.log_folder:LogFolder.consistency_text",
    ),
    "averaging": ("not_fed.organ.merge:OrganMean.add", "not_fed.organ.merge:OrganMean.write"),
    "keys and rosters": (
        "not_fed.home:Home.roster", "not_fed.home:Home.signer", "not_fed.home:Home.opener",
        "not_fed.home:Home.log_signer",
    ),
    "remembering": (
        "not_fed.site.state:SiteState.*", "not_fed.coordinator.state:CoordinatorState.*",
        "not_fed.coordinator.bank.bank:Bank.put", "not_fed.coordinator.bank.bank:Bank.get",
        "not_fed.coordinator.bank.bank:Bank.fetch", "not_fed.coordinator.bank.bank:Bank.label",
    ),
}  # fmt: skip
FLOWER_STAGES: Mapping[str, Sequence[str]] = {
    "training": ("not_fed.simulation.scale_work:changed",),
    "averaging": ("flwr.serverapp.strategy.fedavg:FedAvg.aggregate_train",),
}


def main(folder: Path, piece: str) -> None:
    """Do one piece and print what was measured as one JSON object."""
    settings = json.loads((folder / SETTINGS).read_text())
    pieces: dict[str, Callable[[Path, Mapping[str, Any]], dict[str, Any]]] = {
        "prepare": _prepare, "ours": _ours, "flower": _flower, "real": _real,
    }  # fmt: skip
    sys.stdout.write(json.dumps(pieces[piece](folder, settings)) + "\n")


def _prepare(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    base = _write_base(folder / BASE)
    records = folder / "records.txt"
    records.write_text("a record\n", encoding="utf-8")
    table = {"name": "scale", "base": str(base.folder), "span": [SPAN.start, SPAN.stop]}
    table |= {name: settings[name] for name in ("mode", "rounds")}
    names = [f"site-{number:03}" for number in range(1, settings["sites"] + 1)]
    sites = [{"name": name, "data": str(records)} for name in names]
    prepare(FederationFile.model_validate({"federation": table, "sites": sites}), out=folder / PREPARED)
    places = base.span_places(SPAN).values()
    return {"parameters": sum((place.end - place.begin) // 4 for place in places), "tensors": len(places)}


def _write_base(folder: Path) -> Base:
    """A small Llama of random float32 weights; nobody runs it."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=64, hidden_size=HIDDEN, intermediate_size=INTERMEDIATE, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=HEADS, tie_word_embeddings=True,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    return open_base(folder)


def _ours(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    turn = folder / "turn"
    shutil.copytree(folder / PREPARED, turn)
    try:
        with replaced(TRAIN, lambda _: fixed_change):
            measured = _federation(turn)
        site = min((turn / "sites").iterdir())
        last = site / "organs" / "run" / f"aggregate-{settings['rounds']}.organ"
        return measured | {"mean": _means(np.frombuffer(place.read(), np.float32) for place in _in_order(last))}
    finally:
        shutil.rmtree(turn, ignore_errors=True)


def _federation(folder: Path) -> dict[str, Any]:
    """Run what is prepared in `folder`; the apps' own time and everybody else's, by stage."""
    clients, server = load_app("clients"), load_app("server")
    import not_fed.coordinator.trusted
    import not_fed.site.arrivals
    import not_fed.site.job
    import not_fed.site.making  # noqa: F401  whatever is imported later would not be measured

    grid = LocalGrid(clients, [{"home": str(home)} for home in sorted((folder / "sites").iterdir())])
    with _measured(STAGES) as found:
        server(grid, server_context({"home": str(folder / "coordinator")}))
    return found


def _flower(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Flower's own strategy, with arrays as any Flower app sends them, and no evaluation."""
    base = open_base(folder / BASE)
    places = sorted(base.span_places(SPAN).items())
    start = ArrayRecord({name: _array(place.read(), place.shape) for name, place in places})
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        arrays = message.content.array_records["arrays"].to_numpy_ndarrays()
        learnt = changed(arrays, site=int(context.node_config["site"]))
        content = RecordDict({"arrays": ArrayRecord(learnt), "metrics": MetricRecord({"num-examples": 1})})
        return Message(content, reply_to=message)

    grid = LocalGrid(app, [{"site": number} for number in range(1, settings["sites"] + 1)])
    with _measured(FLOWER_STAGES) as found:
        result = FedAvg(fraction_evaluate=0.0).start(
            grid, start, num_rounds=settings["rounds"], train_config=ConfigRecord({"lr": 0.1})
        )
    return found | {"mean": _means(iter(result.arrays.to_numpy_ndarrays()))}


def _array(data: bytes, shape: Sequence[int]) -> Any:  # noqa: ANN401  Flower's Array
    from flwr.app import Array

    return Array(np.frombuffer(data, np.float32).reshape(shape))


def _real(folder: Path, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The demo's model, span and records, truly trained: two sites and one round, in mode trusted."""
    del settings
    federation = load_federation(hospitals_folder() / "federation.toml")
    table = federation.federation.model_copy(update={"mode": "trusted", "rounds": 1})
    federation = federation.model_copy(update={"federation": table, "sites": federation.sites[:2]})
    prepared = prepare(federation, out=folder / "real")
    try:
        found = _federation(folder / "real")
    finally:
        shutil.rmtree(folder / "real", ignore_errors=True)
    return found | {"sites": len(federation.sites), "records": federation.data.records_per_site, "base": table.base,
                    "span": list(prepared.span)}  # fmt: skip


@contextmanager
def _measured(stages: Mapping[str, Sequence[str]]) -> Iterator[dict[str, Any]]:
    """CPU seconds by stage, wall seconds and the process's peak, when the block is over."""
    found: dict[str, Any] = {}
    with Meter(stages) as meter:
        started = time.perf_counter()
        yield found
        found["wall_s"] = time.perf_counter() - started
    found["cpu_s"] = meter.seconds
    found["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def fixed_change(base: Base, *, settings: TrainSettings, out: Path, init: Path | None = None, **_: object) -> Trained:
    """In the place of `train`: every number of the start plus what `changed` adds for this site."""
    files.require_free(out)
    start = None if init is None else read_organ(init)
    places = base.span_places(settings.span) if start is None else start.places
    arrays = [np.frombuffer(place.read(), np.float32) for _, place in sorted(places.items())]
    learnt = dict(zip(sorted(places), changed(arrays, site=_number(out)), strict=True))
    manifest = replace(
        describe(base, settings.span), training={"mode": "in-place", "lr": settings.lr, "dp": None},
        parents=() if start is None else (start.sha256,),
    )  # fmt: skip
    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in places.items()}
    write_safetensors(out, shapes, metadata=manifest.as_metadata(), blocks=lambda name: iter([learnt[name].tobytes()]))
    return Trained(
        organ=read_organ(out), loss_curve=[], records=1, steps=1, tokens=1, seconds=0.0, prefix_seconds=0.0, dp=None
    )


def changed(arrays: Sequence[NDArray[np.float32]], *, site: int) -> list[NDArray[np.float32]]:
    """What stands in for training on both sides of the comparison; another change for each site."""
    return [array + CHANGE * np.float32(site) for array in arrays]


def _number(out: Path) -> int:
    """The site's number, from its organ's place SITE/organs/RUN/own-N.organ."""
    return int(out.parents[2].name.removeprefix("site-"))


def _in_order(organ: Path) -> list[Any]:
    return [place for _, place in sorted(read_organ(organ).places.items())]


def _means(arrays: Iterator[NDArray[np.float32]]) -> list[float]:
    """A few numbers that tell whether both sides computed the same aggregate."""
    return [float(array.mean(dtype=np.float64)) for array in arrays]


if __name__ == "__main__":
    from not_fed.simulation.scale_work import main as _main  # by its own name, where the meter looks for functions

    _main(Path(sys.argv[1]), sys.argv[2])
