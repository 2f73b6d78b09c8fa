"""A sealed organ as it came, with the papers that came beside it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from not_fed import files
from not_fed.envelope.label import MAX_LABEL_BYTES, label_path
from not_fed.trust.log_proof import MAX_PROOF_BYTES, proof_path


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The sealed file; the label's signed line and the log's proof, where they came along."""

    sealed: Path
    label: bytes | None = field(default=None, repr=False)
    proof: bytes | None = field(default=None, repr=False)


def find_delivery(sealed: Path) -> Delivery:
    """The sealed file with what lies beside it under its name; raises NotAFile, FileTooLarge for what is no paper."""

    def read(path: Path, max_bytes: int) -> bytes | None:
        return files.read_regular(path, max_bytes=max_bytes) if os.path.lexists(path) else None

    label, proof = read(label_path(sealed), MAX_LABEL_BYTES + 1), read(proof_path(sealed), MAX_PROOF_BYTES)
    return Delivery(sealed=sealed, label=label, proof=proof)
