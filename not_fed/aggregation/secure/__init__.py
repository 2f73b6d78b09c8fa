"""The secure sum: sites send masked changes, and the coordinator learns their sum and nothing else.

Two state machines without I/O, `SiteSum` and `ServerSum`: they check, compute and decide; who carries bytes and who
keeps files is no matter of theirs. The protocol, its rule and its argument: docs/secure-sum.md. It composes named
standards (HPKE, HKDF, ChaCha20, Shamir's scheme, Ed25519 with ML-DSA-65) and has had no outside review.
"""

from __future__ import annotations

from not_fed.aggregation.secure.ledger import SumLedger
from not_fed.aggregation.secure.ring import Ring
from not_fed.aggregation.secure.server import Active, ServerSum, Total
from not_fed.aggregation.secure.site import Helped, SiteSum, Uploaded

__all__ = ["Active", "Helped", "Ring", "ServerSum", "SiteSum", "SumLedger", "Total", "Uploaded"]
