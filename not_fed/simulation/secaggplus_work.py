"""Flower's SecAgg+ as it comes, for `bench aggregation`: `python -m not_fed.simulation.secaggplus_work SETTINGS`.

Every site is Flower's own `secaggplus_mod` answering real messages; the server is Flower's own `SecAggPlusWorkflow`,
stage by stage; in between there is no network and no serialisation, on this side as on ours. Its best settings: an
update as its parameters (so that the clip can be as narrow as ours), equal weights, and a strategy that takes the sum
as it is, where FedAvg would average as many copies of it as there are sites.

`site` is one site of a round in a process of its own; `round` is a whole round, every site's masks included, whose
server's part is then repeated on the same vectors, with all of them and with some missing. SETTINGS is one JSON object;
what was measured goes to stdout as another.
"""

from __future__ import annotations

import copy
import ctypes
import gc
import json
import logging
import resource
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.client.mod import secaggplus_mod
from flwr.clientapp import ClientApp
from flwr.common import Code, FitIns, FitRes, Parameters, Status, ndarrays_to_parameters, parameters_to_ndarrays
from flwr.common.constant import ErrorCode
from flwr.common.secure_aggregation.secaggplus_constants import RECORD_KEY_CONFIGS, Key, Stage
from flwr.common.serde import message_to_proto
from flwr.compat.common.recorddict_compat import fitres_to_recorddict, parameters_to_arrayrecord
from flwr.server.client_manager import SimpleClientManager
from flwr.server.client_proxy import ClientProxy
from flwr.server.compat.legacy_context import LegacyContext
from flwr.server.strategy import FedAvg
from flwr.server.workflow import SecAggPlusWorkflow
from flwr.server.workflow.constant import MAIN_CONFIGS_RECORD, MAIN_PARAMS_RECORD
from flwr.server.workflow.constant import Key as RoundKey
from flwr.server.workflow.secure_aggregation.secaggplus_workflow import WorkflowState
from numpy.typing import NDArray

from not_fed.simulation.grid import FIRST_NODE, RUN_ID, LocalGrid

SCALE = np.float32(4.4e-4)  # rms of a round's change of a weight
LEVELS, MODULUS = 1 << 24, 1 << 32  # 2^32: words as wide as they come
STAGES = (Stage.SETUP, Stage.SHARE_KEYS, Stage.COLLECT_MASKED_VECTORS, Stage.UNMASK)
EMPTY = Parameters(tensors=[], tensor_type="numpy.ndarray")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a piece is to do.

    Attributes:
        piece: site or round.
        shapes: of the tensors of one update.
        shares, threshold: how many hold a part of a site's secrets, itself included, and how many parts open them.
        lost: how many uploads are missing in the second half of a round's repeats.
        clip: what an update's numbers are cut at.
    """

    piece: str
    shapes: Sequence[Sequence[int]]
    sites: int
    shares: int
    threshold: int
    lost: int
    clip: float
    repeats: int


def main(settings: Settings) -> None:
    """Do one piece and print what was measured as one JSON object."""
    logging.getLogger("flwr").setLevel(logging.CRITICAL)
    pieces: Mapping[str, Callable[[Settings], dict[str, Any]]] = {"site": _site, "round": _round}
    sys.stdout.write(json.dumps(pieces[settings.piece](settings)) + "\n")


def update(settings: Settings, site: int) -> list[NDArray[np.float32]]:
    """What a site would send, were it not masked; the same for the same number."""
    draw = np.random.default_rng(site)
    return [draw.standard_normal(shape, dtype=np.float32) * SCALE for shape in settings.shapes]


@dataclass(slots=True)
class Site:
    """One SuperNode's app: Flower's mod and its state, and the clock of both."""

    node: int
    context: Context
    answer: Callable[[], RecordDict]  # what training would give
    cpu_s: dict[str, float] = field(default_factory=dict)
    bytes_up: int = 0
    peak_mb: float = 0.0
    training_s: float = 0.0

    def __call__(self, message: Message) -> Message:
        """The mod's answer; what training costs does not count."""
        stage = str(message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE])
        self.training_s, began = 0.0, time.process_time()
        reply = secaggplus_mod(message, self.context, self._train)
        self.cpu_s[stage] = time.process_time() - began - self.training_s
        return reply

    def _train(self, message: Message, context: Context) -> Message:
        began = time.process_time()
        answer = Message(self.answer(), reply_to=message)
        self.training_s = time.process_time() - began
        return answer


class Sites(LocalGrid):
    """The server's view of the sites, whose time and memory are not the server's."""

    def __init__(self, sites: Mapping[int, Site]) -> None:
        super().__init__(ClientApp(), [])  # sites are asked by `_ask`
        self.sites = sites
        self.silent: Collection[int] = ()  # nodes whose uploads do not come
        self.spent_s = 0.0
        self._vectors: dict[int, Message] = {}
        self._after: dict[int, RecordDict] = {}

    def get_node_ids(self) -> list[int]:
        """All of them."""
        return list(self.sites)

    def vectors(self) -> Iterator[Message]:
        """What the sites sent instead of their updates."""
        return iter(self._vectors.values())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Ask one after the other. Vectors are asked for once and kept; so is what a site knows after it."""
        began = time.process_time()
        replies = [self._ask(message) for message in messages]
        tidy()
        self.spent_s += time.process_time() - began
        return replies

    def _ask(self, sent: Message) -> Message:
        message = copy.deepcopy(sent)  # the mod changes what it is given, and one content may be everybody's
        message.metadata.__dict__["_message_id"] = f"m{message.metadata.dst_node_id}"  # the SuperLink's part
        node = message.metadata.dst_node_id
        stage = message.content.config_records[RECORD_KEY_CONFIGS][Key.STAGE]
        if stage == Stage.COLLECT_MASKED_VECTORS:
            if node not in self._vectors:
                self._vectors[node] = self.sites[node](message)
                self._after[node] = copy.deepcopy(self.sites[node].context.state)
            if node in self.silent:
                return Message(Error(ErrorCode.UNKNOWN, "lost"), reply_to=message)
            return self._vectors[node]
        if stage == Stage.UNMASK:
            self.sites[node].context.state = copy.deepcopy(self._after[node])
        return self.sites[node](message)


class AsItIs(FedAvg):
    """A strategy that takes the workflow's result without another computation."""

    def __init__(self, nodes: Sequence[int]) -> None:
        super().__init__()
        self.nodes = nodes
        self.result: Parameters | None = None

    def configure_fit(self, *_: Any, **__: Any) -> list[tuple[ClientProxy, FitIns]]:  # noqa: ANN401
        """Every node."""
        return [(_Proxy(node), FitIns(EMPTY, {})) for node in self.nodes]

    def aggregate_fit(
        self,
        server_round: int,
        results: list[tuple[ClientProxy, FitRes]],
        failures: Any,  # noqa: ANN401
    ) -> tuple[Parameters | None, dict[str, Any]]:
        """Each result is the mean already."""
        self.result = results[0][1].parameters
        return None, {}


class _Proxy(ClientProxy):
    """A node's number, which is all that the workflow asks for."""

    def __init__(self, node: int) -> None:
        super().__init__(str(node))
        self.node_id = node

    def _no(self, *_: Any, **__: Any) -> Any:  # noqa: ANN401
        raise NotImplementedError

    get_properties = get_parameters = fit = evaluate = reconnect = _no


def _round(settings: Settings) -> dict[str, Any]:
    """Every site's part once, the server's part as often as it was asked for."""
    nodes = range(FIRST_NODE, FIRST_NODE + settings.sites)
    sites = {node: Site(node, _context(node), partial(_trained, settings, node)) for node in nodes}
    grid = Sites(sites)
    workflow, state, context = _workflow(settings), WorkflowState(), _server_context(list(nodes))
    rest_mb = memory_mb("VmRSS")
    began = time.process_time()
    for stage in (workflow.setup_stage, workflow.share_keys_stage):
        _require(stage(grid, context, state))
    keys_s = time.process_time() - began - grid.spent_s
    cases: dict[str, list[dict[str, float]]] = {case: [] for case in ("all", "lost")[: 1 + bool(settings.lost)]}
    errors = {}
    for case, found in cases.items():
        grid.silent = tuple(nodes)[: settings.lost] if case == "lost" else ()
        for _ in range(settings.repeats):
            turn = copy.deepcopy(state)
            found.append(_sum(workflow, grid, context, turn, keys_s=keys_s, rest_mb=rest_mb))
        errors[case] = _error(settings, context, [node for node in nodes if node not in grid.silent])
    costs = [site.cpu_s for site in sites.values()]
    return {
        "server": cases, "bytes_in": _held_bytes(grid),
        "check": {
            "error": errors, "step": 2 * settings.clip / LEVELS,
            "sites_cpu_s": [sum(cost.values()) for cost in costs],
        },
    }  # fmt: skip


def _sum(
    workflow: SecAggPlusWorkflow, grid: Sites, context: LegacyContext, state: WorkflowState, *, keys_s: float,
    rest_mb: float,
) -> dict[str, float]:  # fmt: skip
    context.strategy = AsItIs(grid.get_node_ids())  # the last turn's result goes
    grid.spent_s, began, peak_mb = 0.0, time.process_time(), 0.0
    for stage in (workflow.collect_masked_vectors_stage, workflow.unmask_stage):
        _require(stage(grid, context, state))
        peak_mb = max(peak_mb, memory_mb("VmHWM"))
    return {"cpu_s": keys_s + time.process_time() - began - grid.spent_s, "extra_mib": peak_mb - rest_mb}


def _error(settings: Settings, context: LegacyContext, nodes: Sequence[int]) -> float:
    """The largest difference between the workflow's result and the mean of what went in."""
    strategy = context.strategy
    if not isinstance(strategy, AsItIs) or strategy.result is None:
        raise RuntimeError("the workflow gave no result")
    means = [np.zeros(shape) for shape in settings.shapes]
    for node in nodes:
        for mean, array in zip(means, update(settings, node), strict=True):
            mean += array
    result = parameters_to_ndarrays(strategy.result)
    return max(float(np.abs(got - mean / len(nodes)).max()) for got, mean in zip(result, means, strict=True))


def _site(settings: Settings) -> dict[str, Any]:
    """One site, twice: its memory the first time; its CPU seconds the second, when memory need not be fetched."""
    first, second = _one_site(settings), _one_site(settings)
    return second | {"extra_mib": first["extra_mib"]}


def _one_site(settings: Settings) -> dict[str, Any]:
    """Setup, keys, vector and shares, with real answers of its neighbours."""
    nodes = range(FIRST_NODE, FIRST_NODE + settings.shares)  # itself, and who holds its shares
    trained = _trained(settings, nodes[0])
    me = Site(nodes[0], _context(nodes[0]), lambda: trained)
    others = [Site(node, _context(node), RecordDict) for node in nodes[1:]]
    LocalGrid(ClientApp(), [])  # lets messages be made outside a runtime
    gc.collect()
    reset_peak()
    rest_mb = memory_mb("VmRSS")
    keys, shares = {}, {}
    for site in (me, *others):
        answer = _told(me, site, _setup(settings))
        keys[str(site.node)] = [answer[Key.PUBLIC_KEY_1], answer[Key.PUBLIC_KEY_2]]
    for site in (me, *others):
        answer = _told(me, site, {**keys, Key.STAGE: Stage.SHARE_KEYS})
        if site is not me:
            sealed = dict(zip(answer[Key.DESTINATION_LIST], answer[Key.CIPHERTEXT_LIST], strict=True))
            shares[site.node] = sealed[me.node]
    _told(me, me, {
        Key.STAGE: Stage.COLLECT_MASKED_VECTORS, Key.SOURCE_LIST: list(shares),
        Key.CIPHERTEXT_LIST: list(shares.values()),
    })  # fmt: skip
    _told(me, me, {Key.STAGE: Stage.UNMASK, Key.ACTIVE_NODE_ID_LIST: list(nodes), Key.DEAD_NODE_ID_LIST: []})
    return {
        "cpu_s": sum(me.cpu_s.values()), "stages": me.cpu_s, "bytes_up": me.bytes_up,
        "extra_mib": me.peak_mb - rest_mb,
    }  # fmt: skip


def _told(me: Site, site: Site, config: Mapping[str, Any]) -> Any:  # noqa: ANN401  Flower's ConfigRecord
    """One message to a site, and what stands in its answer; bytes are counted for the measured one, off its clock."""
    content = RecordDict({RECORD_KEY_CONFIGS: ConfigRecord(dict(config))})
    message = Message(content, site.node, "train")
    message.metadata.__dict__["_message_id"] = f"m{site.node}"
    reply = site(message)
    if site is me:
        me.peak_mb = max(me.peak_mb, memory_mb("VmHWM"))
        me.bytes_up += message_to_proto(reply).ByteSize()
        reset_peak()  # counting was not the site's work
    return reply.content.config_records[RECORD_KEY_CONFIGS]


def _setup(settings: Settings) -> dict[str, Any]:
    return {
        Key.STAGE: Stage.SETUP, Key.SAMPLE_NUMBER: settings.sites, Key.SHARE_NUMBER: settings.shares,
        Key.THRESHOLD: settings.threshold, Key.CLIPPING_RANGE: settings.clip, Key.TARGET_RANGE: LEVELS,
        Key.MOD_RANGE: MODULUS, Key.MAX_WEIGHT: 1.0,
    }  # fmt: skip


def _workflow(settings: Settings) -> SecAggPlusWorkflow:
    return SecAggPlusWorkflow(
        settings.shares, settings.threshold, max_weight=1.0, clipping_range=settings.clip, quantization_range=LEVELS,
        modulus_range=MODULUS,
    )  # fmt: skip


def _trained(settings: Settings, node: int) -> RecordDict:
    arrays = update(settings, node)
    return fitres_to_recorddict(FitRes(Status(Code.OK, ""), ndarrays_to_parameters(arrays), 1, {}), keep_input=False)


def _context(node: int) -> Context:
    return Context(run_id=RUN_ID, node_id=node, node_config={}, state=RecordDict(), run_config={}, series_id=1)


def _server_context(nodes: Sequence[int]) -> LegacyContext:
    context = LegacyContext(_context(0), strategy=AsItIs(nodes), client_manager=SimpleClientManager())
    context.state.config_records[MAIN_CONFIGS_RECORD] = ConfigRecord({RoundKey.CURRENT_ROUND: 1})
    context.state.array_records[MAIN_PARAMS_RECORD] = parameters_to_arrayrecord(EMPTY, keep_input=True) or ArrayRecord()
    return context


def _held_bytes(grid: Sites) -> int:
    total = 0
    for message in grid.vectors():
        parts: Any = message.content.config_records[RECORD_KEY_CONFIGS][Key.MASKED_PARAMETERS]
        total += sum(map(len, parts))
    return total


def _require(going_on: bool) -> None:  # noqa: FBT001
    if not going_on:
        raise RuntimeError("Flower's workflow ended early")


def memory_mb(name: str) -> float:
    """This process's VmRSS or VmHWM, MiB; where /proc does not tell, its largest size so far."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    lines = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
    return int(lines[name].split()[0]) / 1024


def tidy() -> None:
    """Give what is free back to the system, and look for the peak from now on."""
    gc.collect()
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)  # glibc
    reset_peak()


def reset_peak() -> None:
    """Let VmHWM count from now on, where the kernel can."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


if __name__ == "__main__":
    main(Settings(**json.loads(sys.argv[1])))
