"""What Flower loads at the coordinator: the grid goes to the not_fed that the coordinator installed."""

from __future__ import annotations

import logging

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from not_fed.coordinator.flower import home_of, run_federation

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Run the federation whose plan is in the coordinator's home, from the step where it stopped."""
    if not logging.getLogger("not_fed").hasHandlers():  # what is printed here is what `flwr log` shows
        logging.basicConfig(level=logging.INFO, format="%(message)s")
    home = home_of(context)
    if home is None:  # plain `flwr run .`
        from not_fed.simulation import prepare_example

        home = prepare_example(grid, context)
    run_federation(grid, home=home)
