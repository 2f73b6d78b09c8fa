"""Flower's side of a site: a message in, a message's content out. Decides nothing; see `work`.

Whatever goes wrong, only an error's code goes out; the whole story is in the site's own log, which only it can read.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

from not_fed.arrays import bytes_of_array
from not_fed.errors import InputError, NotFedError
from not_fed.home import simulation_folder
from not_fed.progress import current
from not_fed.site.parcels import Parcel
from not_fed.site.work import Answer, answer_task, greet

LOG_FILE = "log"
MAX_LOG_BYTES = 16 << 20


class NoSite(InputError):
    """This Flower node does not say which site it is."""

    code = "no-site"


class BadMessage(InputError):
    """A message from the coordinator does not have the shape of an order."""

    code = "bad-message"


def answer_order(content: RecordDict, context: Context) -> RecordDict:
    """Do what an order asks: `order` has the task, labels, proofs and the log's growth, `parcels` the sealed bytes."""
    home = home_of(context)

    def answer() -> RecordDict:
        line, parcels, papers = _read(content)
        now = datetime.now(UTC)
        return _content(answer_task(line, parcels=parcels, **papers, home=home, now=now, progress=current.get()))

    return _logged(home, answer)


def answer_greeting(content: RecordDict, context: Context) -> RecordDict:
    """Say who this site is."""
    home = home_of(context)

    def answer() -> RecordDict:
        record = content.get("greeting")
        nonce = record.get("nonce") if isinstance(record, ConfigRecord) else None
        if not isinstance(nonce, str):
            raise _bad("a nonce")
        return RecordDict({"answer": ConfigRecord({"greeting": greet(nonce, home=home, now=datetime.now(UTC))})})

    return _logged(home, answer)


def home_of(context: Context) -> Path:
    """The site's home: `home` in the node's own configuration, which the coordinator cannot change.

    In Flower's simulation engine nodes have no configuration of their own but a number: there, and only there, it is
    the folder of that number under $NOT_FED_SIMULATION/sites, in the order of their names.

    Raises:
        NoSite: neither is given.
    """
    home, number = context.node_config.get("home"), context.node_config.get("partition-id")
    if isinstance(home, str):
        return Path(home)
    if not isinstance(number, int):
        raise _no_site("nothing of the kind")
    sites = sorted((simulation_folder(context.run_id) / "sites").glob("*"))
    if not 0 <= number < len(sites):
        raise _no_site(f"number {number} of {len(sites)} prepared sites")
    return sites[number]


def _read(content: RecordDict) -> tuple[bytes, list[Parcel], dict[str, bytes | None]]:
    order, parcels = content.get("order"), content.get("parcels")
    if not isinstance(order, ConfigRecord) or not isinstance(parcels, ArrayRecord):
        raise _bad("order and parcels")
    line, labels = order.get("task"), order.get("labels")
    if not isinstance(line, bytes) or not isinstance(labels, list) or len(labels) != len(parcels):
        raise _bad("a task, and a label for each parcel")
    growth, receipt, proofs = order.get("log"), order.get("receipt"), order.get("proofs", [b""] * len(labels))
    if not isinstance(growth, bytes | None) or not isinstance(proofs, list) or len(proofs) != len(labels):
        raise _bad("the log's growth, and a proof for each parcel")
    if not isinstance(receipt, bytes | None):
        raise _bad("a receipt as bytes, or none")
    found = [
        Parcel(label=_checked(label), sealed=_bytes(array), proof=_checked(proof) or None)
        for label, array, proof in zip(labels, parcels.values(), proofs, strict=True)
    ]
    return line, found, {"growth": growth, "receipt": receipt}


def _bytes(array: Array) -> bytes:
    data = bytes_of_array(array.data)
    if data is None:
        raise _bad("arrays of bytes")
    return data


def _checked(paper: object) -> bytes:
    if not isinstance(paper, bytes):
        raise _bad("labels and proofs as bytes")
    return paper


def _content(answer: Answer) -> RecordDict:
    record = ConfigRecord({"received": answer.received, "left-out": list(answer.left_out)})
    arrays = ArrayRecord()
    if answer.sealed is not None and answer.label is not None:
        record["label"] = answer.label
        arrays["0"] = Array(np.frombuffer(answer.sealed.read_bytes(), dtype=np.uint8))
    if answer.receipt is not None:
        record["receipt"] = answer.receipt
    return RecordDict({"answer": record, "parcels": arrays})


def _logged(home: Path, work: Callable[[], RecordDict]) -> RecordDict:
    """Run `work`; when it fails, tell the site's own log before the error goes on to become a code."""
    try:
        return work()
    except NotFedError as error:
        _log(home, f"refused: {error.code}: {error}")
        raise
    except Exception:
        _log(home, traceback.format_exc())
        raise


def _log(home: Path, text: str) -> None:
    descriptor = os.open(home / LOG_FILE, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "a", encoding="utf-8") as file:
        if os.fstat(file.fileno()).st_size < MAX_LOG_BYTES:  # a coordinator that asks for ever must not fill the disk
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} {text.rstrip()}\n")


def _bad(expected: str) -> BadMessage:
    return BadMessage(where="message", expected=expected, got="something else", hint="both sides need the same not-fed")


def _no_site(got: str) -> NoSite:
    return NoSite(
        where="node configuration",
        expected="home, the site's folder",
        got=got,
        hint="start the SuperNode with --node-config 'home=\"/path/to/home\"'",
    )
