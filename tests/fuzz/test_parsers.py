"""A short fuzz run over every parser that reads what others wrote; `make fuzz` runs the same for longer.

Powers: sends any bytes to any parser; where signatures are checked, is a member with keys of its own.
"""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.target import Target
from tests.fuzz.targets import TARGETS

EXAMPLES = 300
FOUND = sorted(path for path in (Path(__file__).parent / "found").rglob("*") if path.is_file())
SLOWEST_S = 3.0  # of processor time, for at most 200 KB; honest inputs take a millisecond or two


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_only_typed_refusals_escape_from_any_parser(target: Target) -> None:
    """A34, A42, A49. Honest inputs and known bad ones, broken further as bytes and as JSON, signed again where needed.

    Powers: sends any bytes to any parser; where signatures are checked, is a member with keys of its own.
    Control: of the honest seeds at least one is accepted by every parser.
    """
    seeds = list(target.seeds())
    honest = [seed for seed in seeds if target(seed)]
    assert honest

    @settings(max_examples=max(20, EXAMPLES // target.cost), deadline=None, suppress_health_check=list(HealthCheck))
    @given(number=st.integers(0, (1 << 64) - 1))
    def hold(number: int) -> None:
        chance = random.Random(number)
        data = target.mutate(chance.choice(honest if chance.random() < 0.7 else seeds), seeds, chance)
        started = time.process_time()
        target(data)
        assert time.process_time() - started < SLOWEST_S

    hold()


@pytest.mark.parametrize("target", TARGETS.values(), ids=lambda target: target.name)
def test_plain_noise_is_refused(target: Target) -> None:
    """Bytes without any structure, short and long."""
    for size in (0, 1, 7, 8, 64, 1000, 100_000):
        data = random.Random(size).randbytes(size)
        assert not target(data) or target.name in {"repository", "log-folder", "bech32-inside"}


@pytest.mark.parametrize("path", FOUND, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_what_was_once_found_stays_mended(path: Path) -> None:
    """found/TARGET/what-it-was: inputs that once made a parser fail; tools/fuzz.py says how they get there."""
    TARGETS[path.parent.name](path.read_bytes())


@pytest.mark.parametrize("name", ["repository", "draft"])
def test_a_number_that_tuf_reads_and_cannot_write_is_refused(name: str) -> None:
    """Fuzzing found it: 2.0 for a version, or a fraction in a field that TUF ignores, ended in a SerializationError.

    Powers: carries a roster or a draft to somebody, and has no key. Control: the untouched file is accepted.
    """
    target = TARGETS[name]
    seeds = {seed.partition(b"\n")[0]: seed for seed in target.seeds()}
    for old, new in ((b'"spec_version"', b'"more":1.5,"spec_version"'), (b'"version":2', b'"version":2.0')):
        for seed in seeds.values():
            target(seed.replace(old, new, 1))
        timestamp = seeds[b"metadata/timestamp.json"]
        assert target(timestamp)
        assert old in timestamp
        assert not target(timestamp.replace(old, new, 1))
