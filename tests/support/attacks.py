"""What attack tests share: the honest control, lines put where they do not belong, containers built chunk by chunk."""

from __future__ import annotations

import hmac
import json
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, Literal

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from not_fed.age.header import Stanza, encode64, write_header
from not_fed.age.hybrid import wrap
from not_fed.envelope import Label, check_label, passport_path, seal_organ
from not_fed.envelope.label import PAYLOAD_TYPE as LABEL_TYPE
from not_fed.envelope.open import Opened
from not_fed.envelope.passport import PAYLOAD_TYPE as PASSPORT_TYPE
from not_fed.envelope.seal import Sealed
from not_fed.envelope.waybill import PAYLOAD_TYPE as WAYBILL_TYPE
from not_fed.errors import NotFedError
from tests.support.trust import FEDERATION, NOW, Forger, Parcel, Site, assert_refused, listing, payload_of

Place = Literal["waybill", "passport", "label"]
Kinds = type[NotFedError] | tuple[type[NotFedError], ...]
PLACES: Final[tuple[Place, ...]] = ("waybill", "passport", "label")
TYPES: Final[dict[Place, str]] = {"waybill": WAYBILL_TYPE, "passport": PASSPORT_TYPE, "label": LABEL_TYPE}


def assert_opens(parcel: Parcel, by: Site | None = None, *, organ: bytes | None = None, **more: Any) -> Opened:  # noqa: ANN401
    """The honest control: what lies at the parcel's path opens, and the organ comes out as it went in.

    Its outputs are taken away again, so that the next attempt may use the same names.
    """
    out = more.pop("out", parcel.folder / f"control-{secrets.token_hex(4)}.organ")
    opened = parcel.open(by, out=out, **more)
    assert opened.organ.read_bytes() == (parcel.organ if organ is None else organ)
    assert passport_path(opened.organ).read_bytes() == opened.passport_bytes + b"\n"
    opened.organ.unlink()
    passport_path(opened.organ).unlink()
    return opened


def check_outside(parcel: Parcel, label: bytes, **more: Any) -> Label:  # noqa: ANN401
    """What a relay checks, of what the parcel was when it was sealed."""
    arguments: dict[str, Any] = {
        "sealed_sha256": parcel.sealed.sha256, "size_bytes": parcel.sealed.size_bytes, "now": NOW,
        "roster": parcel.federation.roster,
    } | more  # fmt: skip
    return check_label(label, **arguments)


def honest_payload(forger: Forger, place: Place) -> dict[str, Any]:
    """What the clinic really says there."""
    honest: dict[Place, dict[str, Any]] = {
        "waybill": forger.waybill, "passport": forger.passport, "label": payload_of(forger.parcel.sealed.label),
    }  # fmt: skip
    return honest[place]


def honest_line(forger: Forger, place: Place) -> bytes:
    """The line that the clinic really signed there."""
    parcel = forger.parcel
    lines = {"waybill": forger.waybill_line, "passport": forger.passport_line, "label": parcel.sealed.label}
    return lines[place]


def assert_line_refused(forger: Forger, place: Place, line: bytes, kind: Kinds) -> None:
    """`line` in that place of an otherwise honest parcel is refused: by the relay and by the recipient."""
    parcel = forger.parcel
    if place == "label":
        with pytest.raises(kind):
            check_outside(parcel, line)
        forger.write()
        assert_refused(parcel, NotFedError, label=line)
    elif place == "waybill":
        forger.write(waybill=line)
        assert_refused(parcel, kind)
    else:
        forger.rewrite(passport=line)
        assert_refused(parcel, kind)


def assert_line_holds(forger: Forger, place: Place) -> None:
    """Control: the honest line, put into its place by the same workbench, is accepted."""
    parcel = forger.parcel
    if place == "label":
        assert check_outside(parcel, parcel.sealed.label).sender == "clinic"
    elif place == "waybill":
        forger.write(waybill=forger.waybill_line)
        assert_opens(parcel)
    else:
        forger.rewrite(passport=forger.passport_line)
        assert_opens(parcel)


def signatures_of(line: bytes) -> list[dict[str, str]]:
    """Both signatures of a line: Ed25519, ML-DSA-65."""
    value: list[dict[str, str]] = json.loads(line)["signatures"]
    return value


def misshapen(honest: dict[str, Any]) -> list[dict[str, Any]]:
    """Each field missing, and of every other JSON type; and one field too many at the top."""
    attempts: list[dict[str, Any]] = [honest | {"extra": 1}]
    for field in honest:
        attempts.append({key: value for key, value in honest.items() if key != field})
        others: tuple[Any, ...] = (None, True, -1, 1.5, "", "x" * 5000, [], {}, ["a"], {"a": 1}, [[]], "\x1b[2J")
        for value in others:
            if value != honest[field]:
                attempts.append(honest | {field: value})
    return attempts


def seal_again(parcel: Parcel, **changes: object) -> Sealed:
    """The clinic seals the parcel's organ once more, to `again.sealed`, with arguments changed."""
    arguments: dict[str, object] = {
        "passport": parcel.passport_line, "sender": parcel.federation.clinic.signer, "recipients": ["hub", "lab"],
        "roster": parcel.federation.roster, "federation": FEDERATION, "round_number": 3, "now": NOW,
        "out": parcel.folder / "again.sealed",
    } | changes  # fmt: skip
    return seal_organ(parcel.organ_path, **arguments)  # type: ignore[arg-type]


def assert_not_sealed(parcel: Parcel, kind: Kinds, **changes: object) -> NotFedError:
    """Sealing raises `kind` and leaves nothing behind."""
    before = listing(parcel.folder)
    with pytest.raises(kind) as caught:
        seal_again(parcel, **changes)
    assert listing(parcel.folder) == before
    return caught.value


def assert_seals(parcel: Parcel, **changes: object) -> Sealed:
    """The honest control of sealing: it seals, and what was sealed opens. Its outputs are taken away again."""
    sealed, path = seal_again(parcel, **changes), parcel.path
    parcel.path = sealed.path
    assert_opens(parcel, label=sealed.label)
    parcel.path = path
    sealed.path.unlink()
    sealed.path.with_name(f"{sealed.path.name}.label").unlink()
    return sealed


def sealed_chunks(chunks: list[tuple[int, bool, bytes]], *, file_key: bytes, nonce: bytes) -> bytes:
    """Chunks as an insider may seal them: any number, any mark, any content. Shares no code with the library."""
    key = HKDF(algorithm=SHA256(), length=32, salt=nonce, info=b"payload").derive(file_key)
    cipher = ChaCha20Poly1305(key)
    return b"".join(
        cipher.encrypt(number.to_bytes(11, "big") + bytes([last]), content, None) for number, last, content in chunks
    )


def container_of_chunks(forger: Forger, chunks: list[tuple[int, bool, bytes]]) -> bytes:
    """A container for the parcel's recipients, sealed chunk by chunk."""
    file_key, nonce = os.urandom(16), os.urandom(16)
    header = write_header([wrap(file_key, recipient=text) for text in forger.to], file_key=file_key)
    return header + nonce + sealed_chunks(chunks, file_key=file_key, nonce=nonce)


def header_with_mac(text: bytes, *, file_key: bytes) -> bytes:
    """A right MAC under any header text, which ends with `---`."""
    key = HKDF(algorithm=SHA256(), length=32, salt=b"", info=b"header").derive(file_key)
    return text + b" " + encode64(hmac.digest(key, text, "sha256")).encode() + b"\n"


def header_with_foreign_mac(stanzas: list[Stanza], mac: bytes) -> bytes:
    """A header with these recipients under somebody else's MAC."""
    made = write_header(stanzas, file_key=bytes(16))
    return made[: made.rindex(b"--- ")] + b"--- " + encode64(mac).encode() + b"\n"


@contextmanager
def afterwards(monkeypatch: pytest.MonkeyPatch, where: object, name: str, then: Callable[[], object]) -> Iterator[None]:
    """While the block runs, `then` happens right after each call of the named function: the attacker's moment."""
    function = getattr(where, name)

    def both(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        result = function(*arguments, **more)
        then()
        return result

    with monkeypatch.context() as patch:
        patch.setattr(where, name, both)
        yield
