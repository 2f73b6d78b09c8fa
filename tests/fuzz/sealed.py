"""Targets: age files, signed lines, JSON, organ files."""

from __future__ import annotations

import base64
import hashlib
import json
from contextlib import suppress
from functools import cache
from io import BytesIO
from typing import Any

from not_fed import canonical
from not_fed.age import (
    bech32,
    check_recipient,
    decrypt_with_passphrase,
    read_header,
    write_header,
)
from not_fed.age.bech32 import BadKeyText
from not_fed.envelope import verify_sealed
from not_fed.envelope.dsse import Statement, parse_statement
from not_fed.envelope.header import check_header
from not_fed.envelope.label import MAX_LABEL_BYTES, Label
from not_fed.envelope.manifest import read_manifest
from not_fed.envelope.passport import parse_passport
from not_fed.envelope.task import MAX_TASK_BYTES
from not_fed.envelope.waybill import MAX_WAYBILL_BYTES, Waybill
from not_fed.keys import dsse
from not_fed.keys.identity import read_identity, sign_identity
from not_fed.keys.log_keys import LogSigner
from not_fed.keys.signing import FileSigner, Steward
from not_fed.keys.steward import PAYLOAD_TYPE as STEWARD
from not_fed.keys.succession import sign_succession
from not_fed.trust.recall import read_withdrawal, sign_withdrawal
from tests.fuzz.target import ALPHABET, KINDS, NOW, both, plain, scratch, signer
from tests.support import second_age, second_json, second_reader
from tests.support.second_json import Json, Refused
from tests.support.second_writer import Draft, Party, bech32_of, header, payload, stanza, tensor_file
from tests.support.vectors import ORGANS, SEALED, SIGNED, Vector, files_in, members, unpack


def run_bech32(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    with suppress(BadKeyText):
        check_recipient(text)
    made, other = both(lambda: bech32.decode(text, prefix="age1pq"), lambda: second_age.bech32(text, "age1pq"))
    assert made == other
    assert bech32.encode("age1pq", made) == text


def wrap_bech32(data: bytes) -> bytes:
    """Any groups of five bits, under a right checksum."""
    return bech32_of([byte % 32 for byte in data], "age1pq").encode()


def age_header_seeds() -> list[bytes]:
    """Vectors; and three with base64 that has another spelling of the same bytes."""
    seeds = [data[:2500] for data in sealed_seeds()]
    whole = plain().sealed()[:2500]
    odd = []
    for end in (whole.index(b"\n", 23), whole.index(b"\n---"), whole.index(b"\n", whole.index(b"\n---") + 1)):
        value = ALPHABET.index(whole[end - 1])
        odd.append(whole[: end - 1] + ALPHABET[value ^ 1 : (value ^ 1) + 1] + whole[end:])
    return [*seeds, *odd]


def run_age_header(data: bytes) -> None:
    made, (stanzas, mac, signed, _) = both(lambda: read_header(BytesIO(data)), lambda: second_age.read_header(data))
    assert (made.mac, made.signed) == (mac, signed)
    assert write_header(made.stanzas, file_key=bytes(16)).partition(b"\n--- ")[0] + b"\n---" == made.signed
    assert [stanza.body for stanza in made.stanzas] == [body for _, body in stanzas]


def run_key_file(data: bytes) -> None:
    decrypt_with_passphrase(data, passphrase=b"secret", max_work_factor=2)


def run_sealed(data: bytes) -> None:
    """A whole file through the whole order of checks, by both readers."""
    path = scratch() / "sealed"
    path.write_bytes(data)
    vector = plain()
    both(
        lambda: verify_sealed(path, opener=vector.opener(), roster=vector.roster(), now=NOW, label=None),
        lambda: second_reader.open_sealed(data, vector.second_reader()),
    )


def sealed_seeds() -> list[bytes]:
    vectors = [Vector.load(path) for path in files_in(SEALED) if path.stat().st_size < 40_000]
    return [vector.sealed() for vector in vectors if vector.content["reader"] == "hub"]


@cache
def seal_header() -> tuple[bytes, bytes, bytes]:
    key, nonce = bytes(range(16)), bytes(range(16, 32))
    return header([stanza(key, Party("hub").seal)], key), key, nonce


def wrap_frame(inside: bytes) -> bytes:
    """Sealed by an insider."""
    head, key, nonce = seal_header()
    return head + nonce + payload(key, nonce, inside)


def frame_seeds() -> list[bytes]:
    return [Draft(pad=pad).write().plain for pad in (0, 64)]


def run_line(data: bytes) -> None:
    kind = second_reader.WAYBILL
    made, other = both(
        lambda: dsse.parse(data, payload_type=kind, where="line", max_bytes=1 << 20),
        lambda: second_reader.read_line(data, kind),
    )
    assert made.payload == other.payload
    assert list(zip(made.key_ids, made.signatures, strict=True)) == list(other.signatures)


def run_statement(kind: str, data: bytes) -> None:
    """A payload of one of the three kinds, signed by its author."""

    def first() -> Statement:
        if kind == "passport":
            return parse_passport(data)[1]
        model, size = (Waybill, MAX_WAYBILL_BYTES) if kind == "waybill" else (Label, MAX_LABEL_BYTES)
        return parse_statement(data, model, payload_type=KINDS[kind][0], where=kind, max_bytes=size)[1]

    def second() -> object:
        second_json.need(len(data) <= (1 << 20 if kind == "passport" else 65_536), "signed-malformed")
        _, value = second_reader.signed_object(data, *KINDS[kind])
        if kind == "passport":
            newest = value["predicateType"] == "urn:not-fed:passport:v1"
            second_json.need(newest and second_json.IS_PREDICATE(value["predicate"]), "signed-malformed")
        return value

    made, _ = both(first, second)
    if kind == "passport":
        assert parse_passport(signed(KINDS[kind][0], made.to_payload()))[1] == made
    else:
        assert type(made).from_payload(made.to_payload(), where=kind) == made


def statement_seeds(kind: str) -> list[bytes]:
    said = [json.loads(path.read_bytes()) for path in files_in(SIGNED)]
    return [unpack(case["payload"]) for case in said if case["kind"] == kind and "payload" in case]


def line_seeds() -> list[bytes]:
    said = [json.loads(path.read_bytes()) for path in files_in(SIGNED)]
    return [
        signed(second_reader.WAYBILL, statement_seeds("waybill")[0]),
        *(unpack(c["line"]) for c in said if "line" in c),
    ]


def signed(kind: str, data: bytes) -> bytes:
    return dsse.sign(data, payload_type=kind, signer=signer())


def run_model(model: type[Statement], kind: str, data: bytes) -> None:
    made = parse_statement(data, model, payload_type=kind, where="statement", max_bytes=MAX_TASK_BYTES)[1]
    assert model.from_payload(made.to_payload(), where="statement") == made


def task_seeds() -> list[bytes]:
    common: dict[str, Any] = {
        "v": 1, "id": "ab" * 16, "federation": "lowlands", "run": "first", "round": 2, "rounds": 3, "mode": "bank",
        "kind": "train", "base_sha256": "ab" * 32, "span": [2, 4], "spans": [[2, 4]],
        "privacy": {"epsilon": 3.0, "delta": 1e-5},
        "training": {"lr": 0.001, "epochs": 1, "batch_tokens": 4096, "max_tokens": 512, "warmup": 0.1, "seed": 0},
        "sites": ["clinic", "lab"], "recipients": ["clinic", "lab"], "coordinator": "hub", "roster_version": 7,
        "issued": "2026-11-25T07:00:00Z", "expires": "2026-11-26T07:00:00Z",
        "parcels": [{"sender": "lab", "round": 1, "sealed_sha256": "cd" * 32, "size_bytes": 7, "weight": 1.5}],
    }  # fmt: skip
    return [canonical.dumps(common), canonical.dumps(common | {"mode": "trusted", "recipients": ["hub"]})]


def greeting_seeds() -> list[bytes]:
    said = {
        "v": 1, "federation": "lowlands", "site": "clinic", "coordinator": "hub", "nonce": "ab" * 16, "log_size": 7,
        "not_fed": "0.1.0", "protocol": 1, "issued": "2026-11-25T07:00:00Z",
    }  # fmt: skip
    return [canonical.dumps(said)]


def payload_in(line: bytes) -> bytes:
    return base64.b64decode(json.loads(line)["payload"])


def identity_seeds() -> list[bytes]:
    own, log = signer(), LogSigner.generate("clinic")
    return [
        payload_in(sign_identity(own, seal=members()["clinic"]["seal"], now=NOW, log=with_log))
        for with_log in (None, log)
    ]


def run_identity(data: bytes) -> None:
    identity = read_identity(data, where="identity")
    assert identity.signing == signer().public
    assert len(identity.fingerprint) == 64


@cache
def steward() -> Steward:
    return Steward.generate("steward")


def wrap_steward(data: bytes) -> bytes:
    ed25519, ml_dsa_65 = steward().private_keys()
    return dsse.sign(data, payload_type=STEWARD, signer=FileSigner("steward", ed25519=ed25519, ml_dsa_65=ml_dsa_65))


def succession_seeds() -> list[bytes]:
    line = sign_identity(signer(), seal=members()["clinic"]["seal"], now=NOW)
    one = read_identity(line, where="identity")
    return [payload_in(sign_succession(signer(), old=one, new=one, now=NOW))]


def recall_seeds() -> list[bytes]:
    line = sign_withdrawal(signer(), federation="lowlands", organ_sha256="ab" * 32, reason="a wrong base", now=NOW)
    return [payload_in(line)]


def run_recall(data: bytes) -> None:
    withdrawal = read_withdrawal(data, roster=plain().roster(), now=NOW)
    assert withdrawal.recall.by == "clinic"
    assert withdrawal.line_sha256 == hashlib.sha256(data).hexdigest()


def run_json(data: bytes) -> None:
    made, other = both(lambda: canonical.loads(data, where="json"), lambda: Json(data, "bad-json").document())
    assert same(made, other)
    assert same(canonical.loads(canonical.dumps(made), where="json"), made)


def same(one: object, other: object) -> bool:
    """Equal, and of the same types: 1 is not true, nor 1.0."""
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    return type(one) is type(other) and one == other


def run_organ(data: bytes) -> None:
    """The header profile and the manifest, by both readers."""

    def second() -> None:
        try:
            second_reader.check_organ(data, {"base_sha256": "", "span": [], "family": ""})
        except Refused as error:
            if error.code == "organ-malformed":
                raise

    def first() -> object:
        file = BytesIO(data)
        return read_manifest(check_header(file, len(data)))

    both(first, second)


def organ_seeds() -> list[bytes]:
    return [unpack(json.loads(path.read_bytes())["organ"]) for path in files_in(ORGANS)]


def organ_header(organ: bytes) -> bytes:
    return organ[8 : 8 + int.from_bytes(organ[:8], "little")]


def honest_organ() -> bytes:
    return next(organ for organ in organ_seeds() if len(organ) > 500)


def manifest_seed() -> bytes:
    text: str = json.loads(organ_header(Draft().organ))["__metadata__"]["not-fed"]
    return text.encode()


def wrap_manifest(data: bytes) -> bytes:
    organ = Draft().organ
    entries = json.loads(organ_header(organ))
    entries["__metadata__"] = {"not-fed": data.decode("utf-8", "replace")}
    return tensor_file(json.dumps(entries).encode(), organ[-32:])
