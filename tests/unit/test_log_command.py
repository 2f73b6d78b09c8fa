"""log create, add, show, prove, check, compare, consistency as a person or a script runs them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from not_fed import keys
from not_fed.keys import Secret
from not_fed.trust.log import entry_of
from tests.support.trust import organ_bytes

MAIN = "from not_fed.cli.main import main; main()"
PW = ("--passphrase-file", "pw")
FIELDS = ["schema", "origin", "size", "root", "issued"]


def run(folder: Path, *words: str, as_json: bool = True) -> tuple[int, Any, str]:
    """The command: exit code, the object (or the lines) that it printed, and what it said."""
    more = ["--json"] if as_json else []
    done = subprocess.run(
        [sys.executable, "-c", MAIN, *words, *more],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        text=True,
        capture_output=True,
    )
    assert "Traceback" not in done.stderr
    if not as_json:
        return done.returncode, done.stdout, done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


def refusal(folder: Path, *words: str) -> tuple[int, str]:
    """Exit code and error code."""
    code, shown, said = run(folder, *words)
    assert shown is None
    return code, json.loads(said)["code"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hub that keeps a log, a clinic that seals, a roster R of the hub and R2 of the clinic; two sealed organs."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "pw").write_text("correct horse\n")
    (folder / "pw").chmod(0o600)
    for name in ("clinic", "hub"):
        keys.create_keys(folder / name, name=name, passphrase=Secret(b"correct horse"), work_factor=2,
                         steward=name == "clinic", log=name == "hub")  # fmt: skip
    members = ("--member", "clinic/identity.json:author,receiver", "--member", "hub:receiver,relay")
    code, made, said = run(
        folder, "roster", "create", "R", "--federation", "demo", "--steward", "clinic", *members, *PW
    )
    assert code == 0, said
    assert run(folder, "roster", "pin", "R", "--root-sha256", made["root_sha256"], "--out", "R2")[0] == 0
    for number in (1, 2):
        (folder / f"{number}.organ").write_bytes(organ_bytes(value=number / 3))
        code, _, said = run(folder, "seal", f"{number}.organ", "--to", "hub", "--identity", "clinic", "--roster", "R",
                            *PW, "--out", f"{number}.sealed")  # fmt: skip
        assert code == 0, said
    return folder


def test_a_log_from_its_first_entry_to_a_site_that_follows_it(world: Path) -> None:
    code, made, said = run(world, "log", "create", "log", "--identity", "hub", "--federation", "demo", *PW)
    assert (code, list(made), made["origin"], made["size"]) == (0, FIELDS, "not-fed/demo/hub", 0), said
    add = ("log", "add", "log", "--identity", "hub", *PW, "--roster", "R")
    code, added, said = run(world, *add, "1.sealed.label", "R")
    assert (code, list(added), added["size"]) == (0, [*FIELDS, "entries"], 2), said
    expected = [entry_of(world / name) for name in ("1.sealed.label", "R")]
    got = [(row["kind"], row["digest"], row["index"]) for row in added["entries"]]
    assert got == [(item.kind, item.digest, index) for index, item in enumerate(expected)]
    assert run(world, *add, "1.sealed.label")[1]["entries"][0]["index"] == 0  # once is enough
    code, proved, said = run(world, "log", "prove", "log", "1.sealed.label")
    assert (code, proved["proof"], proved["index"], proved["kind"]) == (0, "1.sealed.tlog-proof", 0, "seal"), said
    code, checked, said = run(world, "log", "check", "1.sealed.tlog-proof", "1.sealed.label", "--roster", "R2")
    assert (code, checked["logged"], checked["index"], checked["remembered"]) == (0, True, 0, "first"), said
    assert list(checked) == [*FIELDS, "logged", "kind", "digest", "index", "remembered"]

    code, compared, said = run(world, "log", "compare", "R2", "log")
    assert (code, compared["relation"], compared["known"]) == (0, "first", None), said
    assert run(world, *add, "2.sealed.label")[1]["size"] == 3
    assert refusal(world, "log", "compare", "R2", "log/checkpoint") == (6, "log-unproven")
    code, grown, _ = run(world, "log", "consistency", "log", "--from", "2", "--out", "growth")
    assert (code, grown["from"], grown["size"], grown["consistency"]) == (0, 2, 3, "growth")
    code, compared, said = run(world, "log", "compare", "R2", "log/checkpoint", "--consistency", "growth")
    assert (code, compared["relation"], compared["size"], compared["known"]["size"]) == (0, "newer", 3, 2), said
    assert run(world, "log", "compare", "R2", "growth")[1]["relation"] == "same"
    assert refusal(world, "log", "compare", "R2", "1.sealed.tlog-proof") == (6, "log-truncated")
    code, compared, _ = run(world, "log", "compare", "R2", "1.sealed.tlog-proof", "--consistency", "log")
    assert (code, compared["relation"]) == (0, "older")

    code, shown, said = run(world, "log", "show", "log", "--roster", "R2")
    assert (code, list(shown)) == (0, [*FIELDS, "remembered", "entries", "verifier_keys"]), said
    assert (shown["remembered"], shown["entries"]) == ("same", {"seal": 2, "roster": 1, "recall": 0})
    assert [text.split("+")[0] for text in shown["verifier_keys"]] == ["not-fed/demo/hub"] * 2
    for name in ("log/checkpoint", "1.sealed.tlog-proof", "growth"):
        assert run(world, "log", "show", name, "--roster", "R2")[1]["entries"] is None

    code, text, _ = run(world, "log", "check", "1.sealed.tlog-proof", "1.sealed.label", "--roster", "R2", as_json=False)
    assert (code, text.splitlines()[0]) == (0, "logged      yes, entry 0")
    assert "Ed25519 and ML-DSA-44" in text


def test_a_fork_ends_with_exit_code_6_and_names_the_evidence(world: Path, tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert run(world, "log", "create", name, "--identity", "hub", "--federation", "demo", *PW)[0] == 0
    assert run(world, "log", "add", "one", "1.sealed.label", "--identity", "hub", *PW)[0] == 0
    assert run(world, "log", "add", "two", "2.sealed.label", "--identity", "hub", *PW)[0] == 0
    site = Path(shutil.copytree(world / "R2", tmp_path / "R3", symlinks=True))
    for path in (site / "trusted").glob("log.*"):
        path.unlink()
    assert run(world, "log", "compare", str(site), "one")[1]["relation"] == "first"
    code, shown, said = run(world, "log", "compare", str(site), "two/checkpoint", as_json=False)
    assert (code, shown) == (6, "")
    assert said.startswith("error[log-forked] The log signed two different trees of one size: it shows two faces.\n")
    for word in ("size 1, root ", "log.evidence.1", "show both signed checkpoints"):
        assert word in said
    assert (site / "trusted" / "log.evidence.1").is_file()


REFUSALS = {
    "log create log2 --identity clinic --federation demo --passphrase-file pw": (4, "not-a-file"),
    "log create log2 --identity hub --federation a/b --passphrase-file pw": (4, "bad-name"),
    "log add nowhere 1.sealed.label --identity hub --passphrase-file pw": (4, "not-a-file"),
    "log add fresh 1.sealed --identity hub --passphrase-file pw": (4, "not-loggable"),
    "log add fresh missing --identity hub --passphrase-file pw": (4, "not-a-file"),
    "log prove fresh 1.sealed.label --out p": (6, "not-logged"),
    "log prove R 1.sealed.label --out p": (4, "not-a-file"),
    "log check 1.sealed.label 1.sealed.label --roster R2": (6, "log-note-malformed"),
    "log check missing 1.sealed.label --roster R2": (4, "not-a-file"),
    "log show pw --roster R2": (6, "log-note-malformed"),
    "log show fresh --roster nowhere": (6, "roster-not-pinned"),
    "log compare R2 missing": (4, "not-a-file"),
    "log consistency fresh --from 5 --out p": (6, "not-logged"),
}


@pytest.mark.parametrize("words", REFUSALS)
def test_each_refusal_has_its_exit_code(world: Path, words: str) -> None:
    if not (world / "fresh").is_dir():
        assert run(world, "log", "create", "fresh", "--identity", "hub", "--federation", "demo", *PW)[0] == 0
    assert refusal(world, *words.split()) == REFUSALS[words]
    assert not (world / "p").exists()
    assert not (world / "log2").exists()
