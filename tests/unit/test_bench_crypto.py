"""`not-fed bench crypto` from end to end, small: its shape and that it cleans up, not its speed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from not_fed.bench import crypto
from not_fed.bench.crypto import NAMES, OPENSSL, PeerMissing, bench_crypto, table
from not_fed.bench.crypto_work import PREPARE
from not_fed.cli import main as command
from not_fed.files import NoSpace
from tests.support.trust import listing


def test_the_command_measures_everything_and_leaves_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "room").mkdir()
    words = ["not-fed", "bench", "crypto", "--size-mb", "2", "--repeats", "1", "--folder", str(tmp_path / "room")]
    monkeypatch.setattr("sys.argv", [*words, "--json", "--out", str(tmp_path / "result.json")])
    with pytest.raises(SystemExit) as done:
        command.main()
    assert not done.value.code
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((tmp_path / "result.json").read_text())
    assert not listing(tmp_path / "room")
    assert result["schema"] == "not-fed/bench-crypto/1"
    assert [row["name"] for row in result["rows"]] == list(PREPARE) == list(NAMES)
    for row in result["rows"]:
        assert row["cpu_s"]["low"] <= row["cpu_s"]["median"] <= row["cpu_s"]["high"]
        assert row["ratio"] > 0
        assert 0 <= row["extra_mib"] < row["peak_mib"]
    assert result["rows"][0]["ratio"] == 1
    assert set(result["machine"]["versions"]) >= {"not-fed", "cryptography", "pyrage", "PyNaCl", "model-signing"}
    assert result["filesystem"] != "unknown"
    assert set(result["openssl_speed"]) <= set(OPENSSL)
    lines = table(result).splitlines()
    assert len(lines) == 2 + len(PREPARE) + len(result["openssl_speed"]) + 1
    assert {line.count("|") for line in lines} == {len(crypto.COLUMNS) + 1}


def test_a_peer_that_is_not_there_is_named_with_the_extra_that_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(crypto, "PEERS", {"json": "there", "not_there_at_all": "the-peer"})
    with pytest.raises(PeerMissing, match="the-peer") as caught:
        bench_crypto(size_mb=1, repeats=1, folder=tmp_path)
    assert "not-fed[bench]" in caught.value.hint
    assert "there," not in caught.value.expected


def test_it_wants_room_before_it_begins(tmp_path: Path) -> None:
    with pytest.raises(NoSpace):
        bench_crypto(size_mb=1 << 40, repeats=1, folder=tmp_path)
    assert not listing(tmp_path)
