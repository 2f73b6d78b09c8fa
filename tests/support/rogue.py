"""A site that does not keep to the protocol: the client app that a site installs, with one thing changed.

`put_in_place` writes it where the site's superexec looks for `flwr-clientapp`; the site's own supervisor stays.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

from not_fed.arrays import bytes_of_array

ROOT: Final = Path(__file__).parents[2]
Vice = Literal["late", "another-round", "old-version"]
GO: Final = "go"  # a late site answers when its home has this file
PATIENCE_S: Final = 120.0
_SCRIPT: Final = """#!{python}
import sys
sys.path.insert(0, {root!r})
from tests.support.rogue import main
main({vice!r})
"""


def put_in_place(home: Path, vice: Vice) -> Path:
    """From the next message on, the site at `home` misbehaves; the shim that was there lies beside it."""
    shim = home / "flower" / "bin" / "flwr-clientapp"
    honest = home / "flower" / "honest-clientapp"
    if not honest.exists():
        honest.write_bytes(shim.read_bytes())
    _replace(shim, _SCRIPT.format(python=sys.executable, root=str(ROOT), vice=vice).encode())
    return shim


def reform(home: Path) -> None:
    """From the next message on, it behaves."""
    shim = home / "flower" / "bin" / "flwr-clientapp"
    _replace(shim, (home / "flower" / "honest-clientapp").read_bytes())


def main(vice: Vice) -> None:
    """Run the installed client app, changed."""
    from not_fed.site import clientapp, flower

    if vice == "old-version":
        import not_fed

        not_fed.__version__ = "0.0.1"
    else:
        setattr(flower, "answer_order", _VICES[vice](flower.answer_order))  # noqa: B010  mypy knows it as a function
    clientapp.main()


Answer = Callable[[RecordDict, Context], RecordDict]


def _late(real: Answer) -> Answer:
    def answer(content: RecordDict, context: Context) -> RecordDict:
        found, deadline = real(content, context), time.monotonic() + PATIENCE_S
        while not (_home() / GO).exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    return answer


def _another_round(real: Answer) -> Answer:
    """The first answer is kept, and given again later on."""

    def answer(content: RecordDict, context: Context) -> RecordDict:
        found, label, sealed = real(content, context), _home() / "first.label", _home() / "first.sealed"
        record, parcels = found["answer"], found.get("parcels")
        if not isinstance(record, ConfigRecord) or not isinstance(parcels, ArrayRecord) or "label" not in record:
            return found
        if label.exists():
            record["label"] = label.read_bytes()
            found["parcels"] = ArrayRecord({"0": Array(np.frombuffer(sealed.read_bytes(), np.uint8))})
        else:
            sealed.write_bytes(bytes_of_array(next(iter(parcels.values())).data) or b"")
            label.write_bytes(bytes(record["label"]))  # type: ignore[arg-type]
        return found

    return answer


_VICES: Final[dict[str, Callable[[Answer], Answer]]] = {"late": _late, "another-round": _another_round}


def _home() -> Path:
    return Path(os.environ["NOT_FED_SITE"])


def _replace(path: Path, data: bytes) -> None:
    new = path.with_name(f"{path.name}.new")
    new.write_bytes(data)
    new.chmod(0o755)
    new.replace(path)
