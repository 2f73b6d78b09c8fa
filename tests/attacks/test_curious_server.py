"""A curious server in mode bank. Powers: keeps every byte it receives and stores. Lacks: any key of a site."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from not_fed.coordinator.bank import Bank
from not_fed.envelope.open import open_organ
from not_fed.errors import NotFedError
from not_fed.home import Home
from not_fed.organ.anatomy import Span
from not_fed.organ.data import read_records
from not_fed.simulation import PlaintextCheck, Recorder, SimulationResult, check_server, run, search_plaintext
from not_fed.simulation.server_check import base_tensors, site_secrets
from tests.support.federation import SITES, tiny_prepared


@dataclass(frozen=True)
class Seen:
    """A finished run, and all that the server received in it."""

    result: SimulationResult
    received: Path

    def check(self, *extra: Path) -> PlaintextCheck:
        """The search, over all of it and whatever was planted."""
        prepared = self.result.prepared
        return search_plaintext(
            [prepared.coordinator, self.received, *extra],
            texts=[text for home in prepared.sites.values() for text in read_records(home / "records.jsonl")],
            organs=[path for rounds in self.result.own.values() for path in rounds.values()],
            base=base_tensors(prepared.base, Span(*prepared.span)),
            keys=[secret for home in prepared.sites.values() for secret in site_secrets(home)],
        )


@pytest.fixture(scope="module")
def seen(tmp_path_factory: pytest.TempPathFactory) -> Seen:
    folder = tmp_path_factory.mktemp("curious")
    recorder = Recorder(folder / "received")
    return Seen(run(tiny_prepared(folder), tap=recorder), recorder.path)


def test_the_server_holds_no_text_no_organ_and_no_key(seen: Seen) -> None:
    """Own. The coordinator searches all that it received and stored in a whole run for records, weights and keys.

    Powers: keeps every byte of a federation in mode bank; knows the base model and every format of numbers and texts.
    Control: it does have the sealed organs, once received and once stored, and thousands of patterns were searched for.
    """
    check = check_server(seen.result, recorded=seen.received)
    assert check.found == {}
    assert check.clean
    bank = sum(path.stat().st_size for path in (seen.result.prepared.coordinator / "bank").rglob("*"))
    assert check.bytes_searched > 2 * bank > 500_000  # what it stored and, once more, what it received
    for kind in ("text, utf-8", "text, utf-16", "text, base64", "organ, float32", "organ, bfloat16", "organ, float16"):
        assert check.patterns[kind] > 100, kind
    for kind in ("difference, float32", "difference, bfloat16", "difference, float16", "key, raw", "key, hex"):
        assert check.patterns[kind] > 10, kind


def record(result: SimulationResult) -> bytes:
    """One of a site's records."""
    return read_records(result.prepared.sites["ward"] / "records.jsonl")[3].encode()


def tensor(result: SimulationResult) -> torch.Tensor:
    """One tensor of a site's organ."""
    found: torch.Tensor = load_file(result.own["ward"][2])["layers.1.mlp.down_proj.weight"]
    return found


def difference(result: SimulationResult) -> torch.Tensor:
    """What training changed in it: as good as a gradient."""
    base = base_tensors(result.prepared.base, Span(*result.prepared.span))["layers.1.mlp.down_proj.weight"]
    return tensor(result) - torch.from_numpy(base).reshape(tensor(result).shape)


def secret(result: SimulationResult, number: int) -> bytes:
    """One of a site's secrets, as `site_secrets` lists them."""
    return list(site_secrets(result.prepared.sites["ward"]))[number]


def raw(values: torch.Tensor, dtype: torch.dtype) -> bytes:
    """Its bytes in a number format."""
    return values.to(dtype).contiguous().view(torch.uint8).numpy().tobytes()


Plant = Callable[[SimulationResult], bytes]
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def plants() -> Iterator[tuple[str, Plant]]:
    """What a careless or dishonest site might send, each in whole, as it would really look."""
    yield "text", record
    yield "text in UTF-16", lambda r: record(r).decode().encode("utf-16")
    yield "text in JSON", lambda r: json.dumps({"loss": 1.0, "text": record(r).decode()}).encode()
    for shift in range(3):
        yield f"text in base64, shift {shift}", partial(_in_base64, shift)
    yield "text in hex", lambda r: record(r).hex().encode()
    for dtype in DTYPES:
        yield f"organ, {dtype}", partial(_numbers, tensor, dtype)
        yield f"difference, {dtype}", partial(_numbers, difference, dtype)
    yield "organ in base64", lambda r: base64.b64encode(raw(tensor(r), torch.float32))
    yield "whole organ file", lambda r: r.own["ward"][2].read_bytes()
    yield "pass phrase", lambda r: secret(r, 0)
    yield "age identity", lambda r: b"# my key\n" + secret(r, 1)
    yield "raw sealing seed", lambda r: secret(r, 2)
    yield "PEM of Ed25519", lambda r: b"-----BEGIN PRIVATE KEY-----\n" + secret(r, 3)
    yield "raw Ed25519 seed", lambda r: secret(r, 4)
    yield "raw ML-DSA seed", lambda r: secret(r, 6)


def _in_base64(shift: int, result: SimulationResult) -> bytes:
    return base64.b64encode(b"x" * shift + record(result))


def _numbers(what: Callable[[SimulationResult], torch.Tensor], dtype: torch.dtype, result: SimulationResult) -> bytes:
    return raw(what(result), dtype)


PLANTS = dict(plants())


@pytest.mark.parametrize("what", PLANTS)
def test_the_same_search_finds_what_is_planted(seen: Seen, tmp_path: Path, what: str) -> None:
    """Own. A careless or dishonest site sends a record, weights or a key in the clear, in some encoding.

    Powers: a site's own program, sending what it likes. Control, which is the point: the search that found nothing in
    an honest run finds each of these, so that it cannot be said to be blind.
    """
    planted = tmp_path / "planted"
    soil = np.random.default_rng(0).bytes(4099)
    planted.write_bytes(soil + PLANTS[what](seen.result) + soil)
    found = seen.check(planted).found
    assert found
    assert all(place.startswith("planted, ") for places in found.values() for place in places)


def test_a_server_with_a_sites_key_would_see_organs(seen: Seen, tmp_path: Path) -> None:
    """Own. The coordinator gets hold of one site's key folder and passphrase, and opens what it stored.

    Powers: every sealed file of a run and one site's sealing key. Control, which is the point: then it sees the organs
    that were sealed to that site, so what it relays is the organs, and only the keys stand between.
    """
    result = seen.result
    now = datetime.now(UTC)
    home = Home(result.prepared.sites["clinic"])
    opened = 0
    for place in sorted((result.prepared.coordinator / "bank").iterdir()):
        sealed, out = tmp_path / f"{place.name[:8]}.sealed", tmp_path / f"{place.name[:8]}.organ"
        Bank.at(result.prepared.coordinator).fetch(place.name, sealed)
        try:
            open_organ(sealed, opener=home.opener(), roster=home.roster(now), out=out, now=now)
        except NotFedError as error:  # its own organ is not sealed to itself
            assert error.code == "not-for-this-key"
            continue
        opened += 1
        assert seen.check(out).found
    assert opened == 2 * (len(SITES) - 1)
