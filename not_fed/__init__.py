"""Federated training of neural organs: records stay home; a signed, sealed span of a model's layers travels."""

from importlib.metadata import version

__version__ = version("not-fed")
