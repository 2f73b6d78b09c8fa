"""Adversary: a site, or anybody who may open a connection, whose messages are not what a site would send.

Powers: sends any record to the coordinator; a hostile coordinator, any record to a site.
Always: a missing answer there, a typed refusal here; the run goes on, and its log says what happened and nothing else.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from not_fed.coordinator import flower as coordinator
from not_fed.coordinator.rounds import Reply, Rounds, clean_code
from not_fed.coordinator.state import Step
from not_fed.envelope.task import PROTOCOL
from not_fed.processes.bundle import load_app
from not_fed.simulation import LocalGrid, Prepared
from not_fed.site import flower as site
from not_fed.site.flower import BadMessage
from tests.support.federation import a_task, an_organ, ref, refusal, seal_as, signed, state_of, tiny_prepared

SHAPES = ["(10000000000000,)", "(-1,)", f"({1 << 62}, 4)", f"({(1 << 63) - 1},)", f"({1 << 70},)", "(3, 'a')", "(4,)",
          "()", "(1, 3)", "(3,]", "(" * 400, "'" + "9" * 5000 + "'"]  # fmt: skip
FORGED = "x\n2026-11-25 01:00 round 3: clinic answered sealed\x1b[2J"


def numpy_file(shape: str, *, descr: str = "'|u1'", body: bytes = b"abc") -> bytes:
    """A numpy file whose header says anything."""
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + body


def reply(array: Array) -> Message:
    """A site's answer with one parcel."""
    content = RecordDict({"answer": ConfigRecord({"label": b"label"}), "parcels": ArrayRecord({"0": array})})
    return message(content)


def message(content: RecordDict) -> Message:
    """A message as far as the adapter looks at it."""
    return cast("Message", SimpleNamespace(content=content, has_content=lambda: True, has_error=lambda: False))


def raw(data: bytes) -> Array:
    """An array whose bytes nobody looked at."""
    return Array(dtype="uint8", shape=(3,), stype="numpy.ndarray", data=data)


def honest(data: bytes) -> Array:
    """An array as Flower makes it."""
    return Array(np.frombuffer(data, dtype=np.uint8))


def test_an_array_that_announces_more_than_it_has_ends_nothing() -> None:
    """Own. A hundred and twenty-eight bytes whose header announces terabytes, or a shape that no array has.

    Powers: an enrolled site, or a coordinator, that sends any record. Control: arrays of bytes as numpy writes them,
    an empty one too, arrive as they were sent.
    """
    good = numpy_file("(3,)")
    files = [numpy_file(shape) for shape in SHAPES]
    files += [numpy_file("(3,)", descr=descr) for descr in ("'|i1'", "'|O'", "'<u8'", "[('a', '|u1')]")]
    files += [good[:40], good[:-1], good + b"d", b"", b"PK\x03\x04", b"\x80\x04."]
    for data in files:
        assert coordinator._reply(reply(raw(data))).sealed is None
        with pytest.raises(BadMessage):
            site._bytes(raw(data))
    for body in (b"abc", b"", bytes(range(256)) * 5000):
        for array in (honest(body), raw(numpy_file(f"({len(body)},)", body=body))):
            assert coordinator._reply(reply(array)).sealed == body
            assert site._bytes(array) == body


@pytest.fixture
def rounds(tmp_path: Path) -> Rounds:
    """A coordinator at the beginning of a run."""
    return Rounds(tiny_prepared(tmp_path).coordinator, now=datetime.now(UTC))


def test_no_connection_writes_lines_into_the_log(rounds: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    """Own. A refusal that carries a line break, a forged line of the log, and commands for a terminal.

    Powers: opens a connection; needs no key and no place on the roster. Control: a code arrives in the log as it is.
    """
    seats = coordinator._Seats(cast("Any", None), rounds)
    for said, shown in ((FORGED, "bad-code"), (7, "bad-code"), ("no-site", "no-site")):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            assert seats._name(message(RecordDict({"answer": ConfigRecord({"refused": said})})), "nonce") is None
        assert [record.getMessage() for record in caplog.records] == [f"a connection did not say who it is: {shown}"]
    assert sorted((problem.code, problem.count) for problem in rounds.state.problems()) == [
        ("bad-code", 2),
        ("no-site", 1),
    ]


def test_a_code_is_a_code_or_is_not_repeated(rounds: Rounds, caplog: pytest.LogCaptureFixture) -> None:
    """Own. What a site says it has left out, and why, with line breaks and terminal commands in it.

    Powers: an enrolled site that sends any answer. Control: digests and codes are repeated.
    """
    for odd in (FORGED, FORGED[:12], "\x1b[2J", "a\n", "", "A", None, b"x", "a" * 65):
        assert clean_code(odd) == "bad-code"
    step, left_out = (
        Step(run="first", round=1, kind="train"),
        (FORGED, "\n\x1b[2J stale", f"{'ab' * 32} bad-signature"),
    )
    with caplog.at_level(logging.INFO):
        rounds.accept(step, "ward", Reply(refused="stale", left_out=left_out), seconds=1, now=datetime.now(UTC))
    assert [record.getMessage() for record in caplog.records] == [
        "round 1: ward answered refused (stale) in 1.0 s",
        "round 1: ward left out bad-code: bad-code",
        "round 1: ward left out bad-code: stale",
        "round 1: ward left out abababababab: bad-signature",
    ]


def test_what_an_administrator_is_shown_has_no_lines_of_a_sites_making(rounds: Rounds) -> None:
    """Own. Refusals, labels and digests that carry line breaks and terminal commands end in the list of problems.

    Powers: an enrolled site that sends any answer, as often as it likes. Control: what went wrong is in the list, named
    after the site, and the same again is counted instead of repeated.
    """
    step, now = Step(run="first", round=1, kind="train"), datetime.now(UTC)
    for number in range(2000):
        code = FORGED if number % 2 else f"odd-{number}"
        rounds.state.problem(clean_code(code), "round 1: it refused the train task", site="lab")
    for answer in (
        Reply(refused=FORGED),
        Reply(label=FORGED.encode(), banked=FORGED),
        Reply(label=b"x", sealed=b"\x1b"),
    ):
        rounds.accept(step, "ward", answer, seconds=1, now=now)
    problems = rounds.state.problems(5000)
    assert len(problems) == 1000
    assert {"bad-code", "signed-malformed"} <= {problem.code for problem in problems if problem.site == "ward"}
    assert max(problem.count for problem in problems if problem.site == "lab") == 1000
    assert all(character.isprintable() for problem in problems for character in problem.text + problem.code)


def order(prepared: Prepared, **changes: object) -> RecordDict:
    """An order for round 2 with one organ of another site, in which something is not as it should be."""
    parcel = seal_as(prepared, "ward", an_organ(prepared, prepared.folder / "x.organ"))
    task = signed(prepared, a_task(prepared, round=2, parcels=(ref("ward", parcel),)))
    fields: dict[str, Any] = {"protocol": PROTOCOL, "task": task, "labels": [parcel.label], "inline-bytes": None}
    arrays = changes.pop("arrays", {parcel.sha256: honest(parcel.sealed)})
    record = ConfigRecord({name: value for name, value in (fields | changes).items() if value is not None})
    return RecordDict({"order": record, "parcels": ArrayRecord(cast("dict[str, Array]", arrays))})


ORDERS: list[tuple[dict[str, object], str]] = [
    ({"protocol": None}, "protocol-version"),
    ({"protocol": PROTOCOL + 1}, "protocol-version"),
    ({"protocol": "1"}, "protocol-version"),
    ({"task": None}, "bad-message"),
    ({"task": "{}"}, "bad-message"),
    ({"labels": None}, "bad-message"),
    ({"labels": ["label"]}, "bad-message"),
    ({"labels": [b"label"]}, "signed-malformed"),
    ({"labels": []}, "bad-message"),
    ({"proofs": [b"", b""]}, "bad-message"),
    ({"log": "growth"}, "bad-message"),
    ({"receipt": 7}, "bad-message"),
    ({"inline-bytes": "all"}, "bad-message"),
    ({"arrays": {"ab" * 32: honest(b"another")}}, "no-bank"),
    ({"arrays": {}}, "no-bank"),
]


def test_an_order_of_another_shape_gets_a_code_and_nothing_is_done(tmp_path: Path) -> None:
    """Own. Orders whose fields are missing, doubled or of other types, and organs under a digest that is not theirs.

    Powers: the coordinator, which sends any record. Control: without a change the organ is opened and trained from.
    """
    prepared = tiny_prepared(tmp_path)
    home = prepared.sites["clinic"]
    grid = LocalGrid(load_app("clients"), [{"home": str(home)}])
    before = state_of(home)

    def ask(content: RecordDict) -> str | None:
        (answer,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "train")])
        return refusal(answer.content)

    for changes, code in ORDERS:
        assert ask(order(prepared, **changes)) == code, changes
    swapped = order(prepared)
    arrays = cast("ArrayRecord", swapped["parcels"])
    arrays[next(iter(arrays))] = honest(b"other bytes under the label's digest")
    assert ask(swapped) == "bad-message"
    assert state_of(home) == before
    assert ask(order(prepared)) is None
