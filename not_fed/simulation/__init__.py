"""A whole federation on this machine: real homes, real keys, the bundle's own two apps, Flower in process or with Ray.

federation = load_federation(Path("federation.toml"))
prepared = prepare(federation, out=Path("out/plain"), run=federation.run("plain"))
result = run(prepared)
perplexity = evaluate([result])
"""

from __future__ import annotations

from not_fed.simulation.evaluation import evaluate, server_saw, summarise
from not_fed.simulation.example import prepare_example
from not_fed.simulation.federation import FederationFile, RunTable, load_federation
from not_fed.simulation.grid import LocalGrid, Tap
from not_fed.simulation.plaintext import PlaintextCheck, search_plaintext
from not_fed.simulation.prepare import Prepared, prepare
from not_fed.simulation.running import Delivery, Engine, SimulationResult, collect, run
from not_fed.simulation.server_check import Recorder, check_server

__all__ = [
    "Delivery",
    "Engine",
    "FederationFile",
    "LocalGrid",
    "PlaintextCheck",
    "Prepared",
    "Recorder",
    "RunTable",
    "SimulationResult",
    "Tap",
    "check_server",
    "collect",
    "evaluate",
    "load_federation",
    "prepare",
    "prepare_example",
    "run",
    "search_plaintext",
    "server_saw",
    "summarise",
]
