"""Did the server see anything it must not? Search all that it stored and received for text, organs and keys.

Only a simulation can ask: it holds both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from not_fed.age import decrypt_with_passphrase
from not_fed.age.bech32 import decode
from not_fed.aggregation.secure import Ring
from not_fed.coordinator.plan import load_plan
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.data import read_records
from not_fed.organ.organ import read_organ
from not_fed.simulation.plaintext import PlaintextCheck, Tensors, Words, read_float32, search_plaintext
from not_fed.simulation.prepare import Prepared
from not_fed.simulation.running import SimulationResult
from not_fed.site.policy import load_policy

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_PEM_END = b"-----END PRIVATE KEY-----\n"


class Recorder:
    """A tap that appends every message the server receives to one file, as the bytes on the wire."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch(mode=0o600)

    def __call__(self, direction: Literal["sent", "received"], data: bytes) -> None:
        """Keep what the server receives; what it sends, it made or stored itself."""
        if direction == "received":
            with self.path.open("ab") as file:
                file.write(data)


def check_server(result: SimulationResult, *, recorded: Path | None = None) -> PlaintextCheck:
    """Search the coordinator's whole home, and what it received, for what belongs to the sites.

    Args:
        recorded: the file of a `Recorder`; without it only what was stored is searched.
    Proved by: tests/attacks/test_curious_server.py::test_the_server_holds_no_text_no_organ_and_no_key
    """
    prepared = result.prepared
    organs = [path for rounds in result.own.values() for path in rounds.values()]
    organs += [path for rounds in list(result.aggregates.values())[:1] for path in rounds.values()]
    return search_plaintext(
        [prepared.coordinator, *([] if recorded is None else [recorded])],
        texts=_texts(prepared.sites),
        organs=organs,
        base=lambda organ: _starts(result, organ),
        words=_words(prepared),
        keys=(secret for home in prepared.sites.values() for secret in site_secrets(home)),
    )


def _starts(result: SimulationResult, organ: Path) -> list[Tensors]:
    """All that a site could have sent an organ as a difference to: the base's layers, and the organ it began from."""
    info = read_organ(organ)
    aggregates = {read_organ(path).sha256: path for path in next(iter(result.aggregates.values()), {}).values()}
    began = [read_float32(aggregates[parent]) for parent in info.manifest.parents if parent in aggregates]
    return [base_tensors(result.prepared.base, info.span), *began]


def _words(prepared: Prepared) -> Words | None:
    """How a change would be spelled in a secure sum without its masks."""
    plan = load_plan(prepared.coordinator)
    if plan.secure_sum is None:
        return None
    ring = Ring.of(plan.sum_plan())
    return lambda change: ring.words(ring.round(change), weight=1).tobytes()


def _texts(sites: Mapping[str, Path]) -> Iterator[str]:
    for home in sites.values():
        policy = load_policy(home)
        yield from read_records(home / policy.data, text_field=policy.text_field or "text")


def base_tensors(base: Base, span: Span) -> dict[str, NDArray[np.float32]]:
    """The span as it is in the base: organ tensor name -> flat float32."""
    import torch

    dtypes = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    return {
        name: torch.frombuffer(bytearray(place.read()), dtype=dtypes[place.dtype]).to(torch.float32).numpy()
        for name, place in base.span_places(span).items()
        if place.dtype in dtypes
    }


def site_secrets(home: Path) -> Iterator[bytes]:
    """Every secret of a site in each of its spellings: pass phrase, age identity, PEM blocks, raw seeds."""
    passphrase = (home / "passphrase").read_bytes().strip()
    yield passphrase
    identity = decrypt_with_passphrase((home / "keys" / "seal.key").read_bytes(), passphrase=passphrase)
    text = next(line for line in identity.decode().splitlines() if line.startswith("AGE-SECRET-KEY"))
    yield text.encode()
    yield decode(text, prefix="AGE-SECRET-KEY-PQ-")
    pem = decrypt_with_passphrase((home / "keys" / "sign.key").read_bytes(), passphrase=passphrase)
    for block in pem.split(_PEM_END)[:2]:
        yield b"".join(line for line in block.splitlines() if not line.startswith(b"-----"))  # a header is no secret
        key = load_pem_private_key(block + _PEM_END, None)
        if isinstance(key, Ed25519PrivateKey | MLDSA65PrivateKey):
            yield key.private_bytes_raw()
