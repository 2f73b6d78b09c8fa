"""docs/format.md against the code: its examples, limits and codes; and the reader that was written from it alone."""

from __future__ import annotations

import ast
import base64
import hashlib
import json
import re
import sys
from datetime import UTC, datetime
from io import BytesIO
from pathlib import Path

import pytest

from not_fed.age import HybridIdentity, StreamWriter
from not_fed.age import header as age_header
from not_fed.age.header import write_header
from not_fed.age.hybrid import identity_text, wrap
from not_fed.age.scrypt import MAX_WORK_FACTOR
from not_fed.envelope import frame, header, label, passport, receipt, task, waybill
from not_fed.envelope.dsse import MAX_VALIDITY, Statement
from not_fed.envelope.finite import MAX_WEIGHT
from not_fed.keys import identity, steward, succession
from not_fed.keys.dsse import pae
from not_fed.keys.signing import FileSigner, key_fingerprint
from not_fed.trust import recall
from not_fed.trust.members import CLOCK_SKEW, MemberEntry
from not_fed.trust.plans import SumPlan
from tests.support import second_age, second_json, second_reader, second_writer
from tests.support.typage import HERE

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "format.md").read_text()
NOW = datetime(2026, 11, 25, tzinfo=UTC)
SEED = hashlib.sha256(b"example").digest()
FILE_KEY, NONCE = bytes(range(16)), bytes(range(16, 32))
SECOND = (second_reader, second_age, second_json, second_writer)


def section(title: str) -> str:
    return PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def table(text: str) -> list[list[str]]:
    rows = [
        [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in text.splitlines() if line[:1] == "|"
    ]
    return [row for row in rows if set(row[0]) - {"-", " "}][1:]


def ours() -> dict[tuple[str, str], str]:
    """What our code makes of the page's examples."""
    payload = BytesIO()
    writer = StreamWriter(payload.write, file_key=FILE_KEY, nonce=NONCE)
    writer.write(frame.MAGIC + b"\n")
    writer.finish()
    own = HybridIdentity(SEED)
    return {
        ("key name", "32 zero bytes"): key_fingerprint(bytes(32)),
        ("signed bytes", 'label type, payload `{"a":1}`'): pae(label.PAYLOAD_TYPE, b'{"a":1}').decode(),
        ("identity line", "seed = SHA-256(`example`)"): identity_text(SEED),
        ("`pkR`", "of that seed, SHA-256 of its text"): hashlib.sha256(own.recipient.encode()).hexdigest(),
        ("payload", "`not-fed.sealed/v1` LF alone, under that key"): payload.getvalue().hex(),
        ("pad", "an organ of 1,000,000 bytes"): str(frame.padme(1_000_000)),
    }


def theirs() -> dict[tuple[str, str], str]:
    """What the second reader and writer make of them."""
    made = second_writer.payload(FILE_KEY, NONCE, frame.MAGIC + b"\n")
    recipient = second_writer.bech32("age1pq", second_age.public_of(identity_text(SEED)))
    return {
        ("key name", "32 zero bytes"): second_reader.key_name(bytes(32)),
        ("signed bytes", 'label type, payload `{"a":1}`'): second_reader.pae(second_reader.LABEL, b'{"a":1}').decode(),
        ("identity line", "seed = SHA-256(`example`)"): second_writer.bech32("age-secret-key-pq-", SEED).upper(),
        ("`pkR`", "of that seed, SHA-256 of its text"): hashlib.sha256(recipient.encode()).hexdigest(),
        ("header key", "file key 000102...0f"): second_age.hkdf(FILE_KEY, b"", b"header").hex(),
        ("payload key", "file key 000102...0f, nonce 101112...1f"): second_age.hkdf(FILE_KEY, NONCE, b"payload").hex(),
        ("chunk nonce", "chunk 0 of several"): ((0).to_bytes(11, "big") + b"\0").hex(),
        ("chunk nonce", "chunk 1, the last"): ((1).to_bytes(11, "big") + b"\1").hex(),
        ("payload", "`not-fed.sealed/v1` LF alone, under that key"): made.hex(),
    }


def test_the_pages_examples_are_what_both_implementations_compute() -> None:
    said = {(row[0], row[1]): row[2].strip("`") for row in table(section("Byte by byte"))}
    computed = {**theirs(), **ours()}
    assert said == computed
    assert all(said[example] == value for example, value in theirs().items())


def test_the_pages_limits_are_the_codes() -> None:
    numbers = {row[0]: int(re.sub(r"\D", "", row[1].split(" plus ")[-1])) for row in table(section("Limits"))}
    assert numbers == {
        "sealed file": frame.MAX_SEALED_BYTES,
        "header, up to its last LF": age_header.MAX_HEADER_BYTES,
        "line of the header, with LF": age_header.MAX_LINE_BYTES,
        "stanzas": age_header.MAX_STANZAS,
        "recipients in a waybill or label": waybill.MAX_RECIPIENTS,
        "first line of the frame": len(frame.MAGIC) + 8,
        "waybill line": waybill.MAX_WAYBILL_BYTES,
        "label line": label.MAX_LABEL_BYTES,
        "passport line": passport.MAX_PASSPORT_BYTES,
        "padding": frame.max_pad(0),
        "validity of a waybill or label": MAX_VALIDITY.days,
        "difference of clocks": CLOCK_SKEW.seconds,
        "scrypt work factor of a key file": MAX_WORK_FACTOR,
    }
    organ = section("Organ file")
    for limit in (f"{header.MAX_TENSORS:,} tensors".replace(" tensors", ""), str(header.MAX_METADATA_BYTES),
                  f"at most {header.MAX_METADATA_ENTRIES} texts", f"at most {header.MAX_DIMENSIONS} integers",
                  f"{header.MAX_HEADER_BYTES >> 20} MiB", f"{MAX_WEIGHT:,}"):  # fmt: skip
        assert limit in organ, limit
    sizes = re.search(r"\| `dtype` \| `([A-Z0-9_ ]+)`, of ([0-9 ]+) bytes", organ)
    assert sizes is not None
    pairs = zip(sizes[1].split(), sizes[2].split(), strict=True)
    assert {name: int(size) for name, size in pairs} == header.ITEM_BYTES


def test_the_pages_types_of_lines_are_the_codes() -> None:
    rows = [row for row in table(section("Signed line").partition("\n### ")[0]) if "+json" in row[-1]]
    names = [name.strip() for row in rows for name in row[0].split(",")]
    types = [
        text.replace("...", "application/vnd.not-fed.") for row in rows for text in re.findall(r"`([^`]+)`", row[2])
    ]
    assert dict(zip(names, types, strict=True)) == {
        "passport": passport.PAYLOAD_TYPE, "waybill": waybill.PAYLOAD_TYPE, "label": label.PAYLOAD_TYPE,
        "identity": identity.PAYLOAD_TYPE, "steward": steward.PAYLOAD_TYPE, "succession": succession.PAYLOAD_TYPE,
        "recall": recall.PAYLOAD_TYPE, "task": task.TASK_TYPE, "greeting": task.GREETING_TYPE,
        "receipt": receipt.RECEIPT_TYPE,
    }  # fmt: skip
    assert f"type `{identity.LOG_KEYS_TYPE}`" in PAGE


def test_the_page_lists_every_field_of_a_member_a_plan_and_an_identity() -> None:
    member = {name for row in table(section("Roster")) for name in re.findall(r"`(\w+)`", row[0])}
    assert member == set(MemberEntry.model_fields)
    plan = {name for row in table(section("Plans")) for name in re.findall(r"`(\w+)`", row[0])}
    assert plan == set(SumPlan.model_fields)
    text = PAGE.partition("\n### Identity\n")[2].partition("\n##")[0]
    said = {name for row in table(text) for name in re.findall(r"`(\w+)`", row[0])}
    line = identity.sign_identity(FileSigner.generate("clinic"), seal=HybridIdentity(SEED).recipient, now=NOW)
    assert said == set(json.loads(base64.b64decode(json.loads(line)["payload"])))


@pytest.mark.parametrize(("title", "model"), [("Passport", passport.Passport), ("Waybill", waybill.Waybill),
                                              ("Label", label.Label)])  # fmt: skip
def test_the_page_lists_every_field_of_every_line(title: str, model: type[Statement]) -> None:
    text = PAGE.partition(f"\n### {title}\n")[2].partition("\n##")[0]
    said = {name for row in table(text) for name in re.findall(r"`(\w+)`", row[0])}
    fields = {field.alias or name for name, field in model.model_fields.items()}
    assert said == fields - {"organ_sha256"}


def test_the_second_implementation_shares_no_code_with_ours() -> None:
    """Only the standard library, `cryptography`, and its own three modules: seen in the source, and when it runs."""
    allowed = {"cryptography", *(module.__name__ for module in SECOND)}
    for module in SECOND:
        tree = ast.parse(Path(str(module.__file__)).read_text())
        for node in ast.walk(tree):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or "."] if isinstance(node, ast.ImportFrom) else []
            for name in names:
                assert "not_fed" not in name
                assert name in allowed or name.split(".")[0] in {"cryptography", *stdlib()}, (
                    f"{module.__name__}: {name}"
                )


def stdlib() -> set[str]:
    return set(sys.stdlib_module_names)


def test_what_was_not_run_is_said() -> None:
    assert "**Not run:** the `age`" in section("Vectors")
    assert '"age-encryption": "0.3.1"' in (HERE / "package.json").read_text()
    assert '"cctv-age": "0.2.0"' in (HERE / "package.json").read_text()
    assert "http" not in re.sub(
        r'"url": "https://paulmillr.com/funding/"', "", (HERE / "package-lock.json").read_text()
    )


def test_an_age_header_of_ours_is_the_pages_grammar() -> None:
    made = write_header([wrap(FILE_KEY, recipient=HybridIdentity(SEED).recipient)], file_key=FILE_KEY)
    grammar = (
        rb"age-encryption\.org/v1\n(-> mlkem768x25519 [A-Za-z0-9+/]{1494}\n[A-Za-z0-9+/]{43}\n)+--- [A-Za-z0-9+/]{43}\n"
    )
    assert re.fullmatch(grammar, made)
