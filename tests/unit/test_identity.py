"""Two data sets that share something are recognised, and nothing else can be read from what is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from not_fed.privacy.ledger.identity import KEY_FILE, HashKey, LedgerKeyUnusable


@pytest.fixture
def key(tmp_path: Path) -> HashKey:
    HashKey.create(tmp_path)
    return HashKey.load(tmp_path)


def test_order_copies_and_spelling_do_not_make_other_data(key: HashKey) -> None:
    plain = key.identify(["the knee", "the caf\u00e9"])
    for same in (
        ["the caf\u00e9", "the knee"], ["the knee", "the knee", "the caf\u00e9"], ["The  Knee\n", "the cafe\u0301"],
        ["\u3000the knee", "THE CAF\u00c9"],
    ):  # fmt: skip
        assert key.identify(same) == plain
    for other in (["the knee"], ["the knee", "the cafe"], ["the knee", "the caf\u00e9", ""]):
        assert key.identify(other).fingerprint != plain.fingerprint


def test_people_are_part_of_it(key: HashKey) -> None:
    without, named = key.identify(["a", "b"]), key.identify(["a", "b"], ["p1", "p2"])
    assert without.fingerprint != named.fingerprint
    assert set(without.members) < set(named.members)
    assert key.identify(["p1"]).members[0][1:] not in {member[1:] for member in named.members}  # a text is no person
    assert key.identify(["b", "a"], ["p2", "p1"]) == named


def test_nothing_that_is_kept_says_what_a_record_is(key: HashKey, tmp_path: Path) -> None:
    """Other keys give other hashes, and neither key nor counts are printed."""
    (tmp_path / "other").mkdir()
    HashKey.create(tmp_path / "other")
    other = HashKey.load(tmp_path / "other")
    assert not set(key.identify(["a"]).members) & set(other.identify(["a"]).members)
    assert key.mark() != other.mark()
    assert repr(key) == "HashKey(hidden)"
    secret = (tmp_path / KEY_FILE).read_bytes()
    assert secret.hex() not in key.mark()
    assert len(repr(key.identify(["a"] * 7))) == len(repr(key.identify([str(number) for number in range(500)])))


def test_a_key_that_others_may_open_or_that_was_cut_is_refused(key: HashKey, tmp_path: Path) -> None:
    path = tmp_path / KEY_FILE
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o640)
    with pytest.raises(LedgerKeyUnusable, match="others may open"):
        HashKey.load(tmp_path)
    path.chmod(0o600)
    path.write_bytes(path.read_bytes()[:31])
    with pytest.raises(LedgerKeyUnusable, match="31 bytes"):
        HashKey.load(tmp_path)
    path.unlink()
    with pytest.raises(LedgerKeyUnusable):
        HashKey.load(tmp_path)


def test_a_key_is_never_written_over(key: HashKey, tmp_path: Path) -> None:
    before = (tmp_path / KEY_FILE).read_bytes()
    HashKey.create(tmp_path)
    assert (tmp_path / KEY_FILE).read_bytes() == before
