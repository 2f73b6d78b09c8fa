"""Key folders for attacks: keys for every purpose, and what somebody does with them who knows the passphrase."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

from not_fed.age import (
    decrypt_with_passphrase,
    encrypt,
    encrypt_with_passphrase,
    read_header,
)
from not_fed.keys import (
    Secret,
    load_log_signer,
    load_opener,
    load_signer,
    load_steward,
)

CANARY = "canary-zebra-quartz-1789"
PASSPHRASE = Secret(CANARY.encode())
MAIN = "from not_fed.cli.main import main; main()"
LOADS: dict[str, Callable[..., Any]] = {
    "seal.key": load_opener, "sign.key": load_signer, "roster.key": load_steward, "log.key": load_log_signer,
}  # fmt: skip


def load_all(folder: Path) -> None:
    """The control: every key of the folder serves its purpose."""
    for load in LOADS.values():
        assert load(folder, passphrase=PASSPHRASE).name == "clinic"


def plain_of(folder: Path, name: str) -> bytes:
    return decrypt_with_passphrase((folder / name).read_bytes(), passphrase=PASSPHRASE.reveal())


def put(folder: Path, name: str, plain: bytes) -> None:
    """A key file under the right passphrase, with any content."""
    (folder / name).write_bytes(encrypt_with_passphrase(plain, passphrase=PASSPHRASE.reveal(), work_factor=2))


def sealed_to(recipient: str) -> Any:  # noqa: ANN401  a header
    return read_header(BytesIO(encrypt(b"organ", recipients=[recipient])))
