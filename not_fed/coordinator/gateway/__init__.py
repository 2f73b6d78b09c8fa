"""The one port that a coordinator opens: Flower's Fleet API for enrolled sites, health, the bank and the roster.

Flower's Control and Runtime APIs, which the open-source SuperLink does not authenticate, stay behind it on loopback.
"""

from __future__ import annotations

from not_fed.coordinator.gateway.app import build_gateway

__all__ = ["build_gateway"]
