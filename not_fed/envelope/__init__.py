"""What travels: the passport of an organ, the waybill that names its recipients, the label for the relay, and the seal.

Loads without torch: a security officer opens an envelope on a plain laptop. The names below load on first use, so that
whoever needs only the tensor header does not pay for the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from not_fed.envelope.checks import Expectation
    from not_fed.envelope.claims import DpClaim, Mechanism
    from not_fed.envelope.delivery import Delivery, find_delivery
    from not_fed.envelope.label import Label, check_label, label_path
    from not_fed.envelope.logged import Inclusion
    from not_fed.envelope.open import Opened, Verified, open_organ, passport_path, verify_sealed
    from not_fed.envelope.passport import Passport, issue_passport, new_passport, read_passport
    from not_fed.envelope.policy import ImportPolicy, load_import_policy
    from not_fed.envelope.seal import Sealed, seal_organ
    from not_fed.envelope.seen import DiskSeen, MemorySeen, SeenWaybills
    from not_fed.envelope.waybill import WaybillReplayed

__all__ = [
    "Delivery", "DiskSeen", "DpClaim", "Expectation", "ImportPolicy", "Inclusion", "Label", "Mechanism", "MemorySeen",
    "Opened", "Passport", "Sealed", "SeenWaybills", "Verified", "WaybillReplayed", "check_label", "find_delivery",
    "issue_passport", "label_path", "load_import_policy", "new_passport", "open_organ", "passport_path",
    "read_passport", "seal_organ", "verify_sealed",
]  # fmt: skip
_HOMES = {
    "checks": ("Expectation",),
    "delivery": ("Delivery", "find_delivery"),
    "label": ("Label", "check_label", "label_path"),
    "logged": ("Inclusion",),
    "open": ("Opened", "Verified", "open_organ", "passport_path", "verify_sealed"),
    "claims": ("DpClaim", "Mechanism"),
    "passport": ("Passport", "issue_passport", "new_passport", "read_passport"),
    "policy": ("ImportPolicy", "load_import_policy"),
    "seal": ("Sealed", "seal_organ"),
    "seen": ("DiskSeen", "MemorySeen", "SeenWaybills"),
    "waybill": ("WaybillReplayed",),
}


def __getattr__(name: str) -> Any:  # noqa: ANN401  PEP 562
    for home, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"not_fed.envelope.{home}"), name)
    raise AttributeError(f"module {__name__} has no attribute {name}")
