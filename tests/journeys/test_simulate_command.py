"""`not-fed simulate FILE.toml`: one file in, one object and one folder out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from not_fed.settings import BadSettings
from not_fed.simulation import load_federation
from tests.support.federation import SITES, tiny_federation

FILE = """\
[federation]
name = "tiny"
base = "base"
span = "1:3"
rounds = 1

[training]
lr = 1e-2
batch_tokens = 64
max_tokens = 32

[privacy]
divisor = 4.0
sample_rate = 0.25

[[runs]]
name = "plain"
[[runs]]
name = "private"
epsilon = 8.0
mode = "trusted"
"""


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    tiny_federation(tmp_path)
    sites = [
        f'[[sites]]\nname = "{site}"\ndata = "{site}-records.jsonl"\nheld_out = "{site}-held_out.jsonl"\n'
        for site in SITES
    ]
    path = tmp_path / "federation.toml"
    path.write_text(FILE + "\n".join(sites))
    return path


def not_fed(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", "from not_fed.cli.main import main; main()", *arguments]
    return subprocess.run(
        command, cwd=cwd, capture_output=True, text=True, check=False, env={**os.environ, "COLUMNS": "80"}
    )


def test_a_federation_file_runs_to_one_object(federation: Path, tmp_path: Path) -> None:
    done = not_fed("simulate", str(federation), "--out", "out", "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result == json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["schema"] == "not-fed/federated/1"
    assert result["sites"] == list(SITES)
    assert (result["rounds"], result["mode"]) == (1, "bank")
    models = {f"{run}/{name}" for run in ("plain", "private") for name in (*SITES, "aggregate")}
    assert set(result["perplexity"]) == {"base", *models}
    assert result["server_saw"]["sealed organs"]["count"] == 6
    assert result["server_saw"]["sealed aggregates"]["count"] == 1
    assert result["bytes_sent"] > 0
    plain, private = result["runs"]
    assert set(plain["epsilon"].values()) == {None}
    assert all(0 < epsilon <= 8.0 for epsilon in private["epsilon"].values())
    again = not_fed("simulate", str(federation), "--out", "out", cwd=tmp_path)
    assert again.returncode == 4
    assert "output-exists" in again.stderr


def test_a_wrong_field_is_named_and_nothing_is_made(federation: Path, tmp_path: Path) -> None:
    federation.write_text(federation.read_text().replace('span = "1:3"', 'span = "3:1"'))
    done = not_fed("simulate", str(federation), "--out", "out", cwd=tmp_path)
    assert done.returncode == 4
    assert "field federation.span" in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("old", "new", "field"),
    [
        ('name = "ward"', 'name = "clinic"', "the file"),
        ('name = "ward"', 'name = "coordinator"', "the file"),
        ("[privacy]\ndivisor = 4.0\nsample_rate = 0.25\n", "", "the file"),
        ("rounds = 1", "rounds = 0", "federation.rounds"),
        ('mode = "trusted"', 'mode = "open"', "runs.1.mode"),
    ],
)
def test_a_federation_that_cannot_be_is_refused(federation: Path, old: str, new: str, field: str) -> None:
    text = federation.read_text()
    assert old in text
    federation.write_text(text.replace(old, new))
    with pytest.raises(BadSettings) as error:
        load_federation(federation)
    assert error.value.where == f"{federation}, field {field}"


def test_paths_are_relative_to_the_file(federation: Path, tmp_path: Path) -> None:
    loaded = load_federation(federation)
    assert loaded.federation.base == str(tmp_path / "base")
    assert {Path(site.data).parent for site in loaded.sites} == {tmp_path}
