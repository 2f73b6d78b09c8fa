"""Flower's side of a site: a message in, a message's content out. Decides nothing; see `work`.

Small sealed organs come and go inside the messages, large ones through the coordinator's bank: the order says up to
which size. A label names a sealed organ; what the message does not hold under that digest is fetched when it is needed.
Whatever goes wrong, only an error's code goes out; the whole story is in the site's own log, which only it can read.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, RecordDict

from not_fed.arrays import bytes_of_array
from not_fed.envelope.label import parse_label
from not_fed.envelope.papers import RoundPapers
from not_fed.envelope.task import check_protocol
from not_fed.errors import InputError, NotFedError
from not_fed.home import simulation_folder
from not_fed.progress import current
from not_fed.site.answer import Answer
from not_fed.site.bank_access import BankAccess
from not_fed.site.log_file import note
from not_fed.site.parcels import Parcel
from not_fed.site.work import answer_task, greet

_Named = TypeVar("_Named", int, str)


class NoSite(InputError):
    """This Flower node does not say which site it is."""

    code = "no-site"


class BadMessage(InputError):
    """A message from the coordinator does not have the shape of an order."""

    code = "bad-message"


def answer_order(content: RecordDict, context: Context) -> RecordDict:
    """Do what an order asks.

    Args:
        content: `order` has protocol, task, labels, proofs, the log's growth and up to which size organs travel in
            messages; `parcels` has sealed bytes under their digests; `papers` what a secure sum or votes add.
    Proved by: tests/unit/test_exchange.py::test_large_organs_go_through_the_bank_both_ways
    """
    home = home_of(context)

    def answer() -> RecordDict:
        bank, now = BankAccess(home, progress=current.get()), datetime.now(UTC)
        order = _read(content, bank)
        done = answer_task(
            order.task, parcels=order.parcels, growth=order.growth, receipt=order.receipt, home=home, now=now,
            papers=order.papers, progress=current.get(),
        )  # fmt: skip
        return _content(done, bank, inline_bytes=order.inline_bytes)

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


@dataclass(frozen=True, slots=True, kw_only=True)
class _Order:
    """What came in a message, of the right types and of nothing else."""

    task: bytes
    parcels: list[Parcel]
    growth: bytes | None
    receipt: bytes | None
    inline_bytes: int | None
    papers: RoundPapers


def _read(content: RecordDict, bank: BankAccess) -> _Order:
    order, arrays = content.get("order"), content.get("parcels")
    if not isinstance(order, ConfigRecord) or not isinstance(arrays, ArrayRecord):
        raise _bad("order and parcels")
    check_protocol(order.get("protocol"), where="order, field protocol")
    task, labels = order.get("task"), order.get("labels")
    if not isinstance(task, bytes) or not isinstance(labels, list):
        raise _bad("a task, and a label for each parcel")
    growth, receipt, proofs = order.get("log"), order.get("receipt"), order.get("proofs", [b""] * len(labels))
    if not isinstance(growth, bytes | None) or not isinstance(proofs, list) or len(proofs) != len(labels):
        raise _bad("the log's growth, and a proof for each parcel")
    if not isinstance(receipt, bytes | None):
        raise _bad("a receipt as bytes, or none")
    inline_bytes = order.get("inline-bytes")
    if not isinstance(inline_bytes, int | None):
        raise _bad("a number of bytes, or none")
    parcels = [
        _parcel(_checked(label), _checked(proof) or None, arrays, bank)
        for label, proof in zip(labels, proofs, strict=True)
    ]
    if not set(arrays) <= {parcel.sha256 for parcel in parcels}:
        raise _bad("a label for each parcel")
    return _Order(
        task=task, parcels=parcels, growth=growth, receipt=receipt, inline_bytes=inline_bytes, papers=_papers(content)
    )


def _papers(content: RecordDict) -> RoundPapers:
    """What a secure sum or votes add to a task: lists of lines and of whose they are."""
    record = content.get("papers", ConfigRecord())
    if not isinstance(record, ConfigRecord):
        raise _bad("papers as lists")

    def pairs(names: str, lines: str, kind: type[_Named]) -> list[tuple[_Named, bytes]]:
        whose, found = record.get(names, []), record.get(lines, [])
        if not isinstance(whose, list) or not isinstance(found, list) or len(whose) != len(found):
            raise _bad("as many papers as names")
        if not all(type(name) is kind for name in whose):
            raise _bad("papers by name")
        return [(name, _checked(line)) for name, line in zip(whose, found, strict=True)]  # type: ignore[misc]

    votes: dict[int, tuple[bytes, ...]] = {}
    for number, line in pairs("vote-rounds", "votes", int):
        votes[number] = (*votes.get(number, ()), line)
    return RoundPapers(
        keys=dict(pairs("key-sites", "keys", str)),
        labels=_lines(record.get("uploads", [])),
        capsules=dict(pairs("capsule-sites", "capsules", str)),
        votes=votes,
    )


def _lines(found: object) -> tuple[bytes, ...]:
    if not isinstance(found, list):
        raise _bad("papers as lists")
    return tuple(_checked(line) for line in found)


def _parcel(label: bytes, proof: bytes | None, arrays: ArrayRecord, bank: BankAccess) -> Parcel:
    """The sealed organ that a label names: it came in the message, or is in the bank."""
    sealed = parse_label(label)[1].sealed
    if sealed.sha256 in arrays:
        parcel = Parcel.inline(_bytes(arrays[sealed.sha256]), label=label, proof=proof)
        if parcel.sha256 != sealed.sha256:
            raise _bad("each parcel under its own digest")
        return parcel
    return Parcel(label=label, sha256=sealed.sha256, source=bank.fetch(sealed), proof=proof)


def _bytes(array: Array) -> bytes:
    data = bytes_of_array(array.data)
    if data is None:
        raise _bad("arrays of bytes")
    return data


def _checked(paper: object) -> bytes:
    if not isinstance(paper, bytes):
        raise _bad("labels and proofs as bytes")
    return paper


def _content(answer: Answer, bank: BankAccess, *, inline_bytes: int | None) -> RecordDict:
    record = ConfigRecord({"received": answer.received, "left-out": list(answer.left_out)})
    arrays = ArrayRecord()
    if answer.sealed is not None and answer.label is not None:
        record["label"] = answer.label
        if inline_bytes is not None and answer.sealed.stat().st_size > inline_bytes:
            record["banked"] = bank.leave(answer.sealed, label=answer.label)
        else:
            arrays["0"] = Array(np.frombuffer(answer.sealed.read_bytes(), dtype=np.uint8))
    if answer.receipt is not None:
        record["receipt"] = answer.receipt
    papers = answer.papers
    if papers.statement is not None:
        record["statement"] = papers.statement
    if papers.round_key is not None:
        record["round-key"] = papers.round_key
    if papers.capsules:
        record["capsule-sites"], record["capsules"] = list(papers.capsules), list(papers.capsules.values())
    return RecordDict({"answer": record, "parcels": arrays})


def _logged(home: Path, work: Callable[[], RecordDict]) -> RecordDict:
    """Run `work`; when it fails, tell the site's own log before the error goes on to become a code."""
    try:
        return work()
    except NotFedError as error:
        note(home, f"refused: {error.code}: {error}")
        raise
    except Exception:
        note(home, traceback.format_exc())
        raise


def _bad(expected: str) -> BadMessage:
    return BadMessage(where="message", expected=expected, got="something else", hint="both sides need the same not-fed")


def _no_site(got: str) -> NoSite:
    return NoSite(
        where="node configuration",
        expected="home, the site's folder",
        got=got,
        hint="start the SuperNode with --node-config 'home=\"/path/to/home\"'",
    )
