"""`flwr run .` with nothing prepared: the quick example, in a fresh folder of the cache that is named in the log."""

from __future__ import annotations

import logging
import time
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid

from not_fed.home import simulation_folder
from not_fed.processes.bundle import hospitals_folder
from not_fed.simulation.federation import load_federation
from not_fed.simulation.prepare import prepare

log = logging.getLogger("not_fed.coordinator")
NODES_TIMEOUT_S = 30.0


def prepare_example(grid: Grid, context: Context) -> Path:
    """Prepare the quick example for as many sites as there are nodes; returns the coordinator's home.

    The nodes of Flower's simulation engine find the same folder by the number of the run, which both sides know.
    """
    out = simulation_folder(context.run_id)
    deadline = time.monotonic() + NODES_TIMEOUT_S
    while len(nodes := list(grid.get_node_ids())) < 2 and time.monotonic() < deadline:
        time.sleep(0.2)
    out.parent.mkdir(parents=True, exist_ok=True)
    federation = load_federation(hospitals_folder() / "quick.toml")
    federation = federation.model_copy(update={"sites": federation.sites[: max(2, len(nodes))]})
    log.warning("no home is configured: preparing the quick example with %d sites in %s", len(federation.sites), out)
    prepared = prepare(federation, out=out, plan={"join_timeout_s": 30.0, "round_timeout_s": 3600.0})
    return prepared.coordinator
