"""The coordinator's half of the Flower app."""
