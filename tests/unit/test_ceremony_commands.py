"""Three stewards with a folder each, a site, and a stick: the ceremony and recalls as people type them."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from not_fed.keys import Secret, create_keys
from tests.support.trust import organ_bytes

PASSPHRASE = "correct horse"
MAIN = "from not_fed.cli.main import main; main()"


def said(folder: Path, *words: str) -> tuple[int, str, str]:
    """The command without a terminal: exit code, stdout, stderr."""
    done = subprocess.run([sys.executable, "-c", MAIN, *words], cwd=folder, input="y\n" * 3, text=True,
                          capture_output=True)  # fmt: skip
    assert "Traceback" not in done.stderr
    assert PASSPHRASE not in done.stdout + done.stderr
    return done.returncode, done.stdout, done.stderr


def run(folder: Path, *words: str) -> tuple[int, Any]:
    """The same with `--json`: exit code, and the object on stdout or, after an error, its code."""
    code, out, err = said(folder, *words, "--json")
    return code, json.loads(out) if out else json.loads(err)["code"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Key folders, made cheaply."""
    folder = tmp_path_factory.mktemp("ceremony")
    (folder / "pw").write_text(PASSPHRASE + "\n")
    (folder / "pw").chmod(0o600)
    for name in ("alice", "bob", "carol", "dave", "clinic", "hub", "north"):
        create_keys(folder / name, name=name, passphrase=Secret(PASSPHRASE.encode()), work_factor=2,
                    steward=name in ("alice", "bob", "carol", "dave"))  # fmt: skip
    (folder / "knee.organ").write_bytes(organ_bytes())
    return folder


PW = ("--passphrase-file", "pw")


def steward(name: str, *more: str) -> tuple[str, ...]:
    return ("--steward", name, *PW, *more)


CREATE = (
    "roster",
    "create",
    "RA",
    "--federation",
    "lowlands",
    *steward("alice"),
    "--steward-identity",
    "bob",
    "--steward-identity",
    "carol/steward.json",
    "--member",
    "clinic:author,receiver",
    "--member",
    "hub:receiver",
)


def test_a_roster_of_three_stewards_from_its_creation_to_a_change_of_stewards(world: Path) -> None:
    code, out, err = said(world, *CREATE)
    assert (code, out) == (2, "")  # no terminal and no --yes means no
    assert "steward added" in err
    assert not (world / "RA").exists()
    code, made = run(world, *CREATE, "--yes")
    assert (code, made["schema"], made["version"], made["complete"]) == (0, "not-fed/draft/1", 1, False)
    assert made["groups"] == [{"signed": ["alice"], "needed": 2, "awaited": ["bob", "carol"]}]
    kinds = [change["kind"] for change in made["changes"]]
    assert kinds.count("steward-added") == 3
    assert kinds.count("member-added") == 2
    shutil.copytree(world / "RA" / "draft", world / "stick")
    assert run(world, "roster", "check", "RA") == (6, "roster-not-pinned")
    code, shown = run(world, "roster", "diff", "RB", "--draft", "stick")
    assert (code, shown["fingerprint"]) == (0, made["fingerprint"])
    assert run(world, "roster", "sign", "RB", "--draft", "stick", *steward("bob")) == (2, "usage")
    code, published = run(world, "roster", "sign", "RB", "--draft", "stick", *steward("bob"), "--yes")
    assert (code, published["version"], published["root_sha256"]) == (0, 1, made["root_sha256"])
    assert run(world, "roster", "update", "RA", "--from", "stick")[1]["root_sha256"] == made["root_sha256"]
    for name in ("RC", "RS"):
        assert run(world, "roster", "pin", "RB", "--root-sha256", made["root_sha256"], "--out", name)[0] == 0
    code, out, err = said(world, "roster", "add", "RC", "north:author", *steward("carol"), "--yes")
    assert code == 0
    assert "member added" in err
    assert "awaited      1 of alice, bob" in out
    code, late = run(world, "roster", "revoke", "RB", "hub", *steward("bob"), "--yes")
    assert (code, late["complete"]) == (0, False)
    code, done = run(world, "roster", "sign", "RA", "--draft", "RC/draft", *steward("alice"), "--yes")
    assert (code, done["version"]) == (0, 2)
    assert run(world, "roster", "sign", "RA", "--draft", "RB/draft", *steward("alice"), "--yes") == (
        6,
        "draft-outdated",
    )
    shutil.copytree(world / "RA" / "repository", world / "copied")
    code, out, err = said(world, "roster", "update", "RS", "--from", "copied")
    assert code == 0
    assert "version 1 becomes version 2" in err
    assert "members      3" in out
    for name in ("RB", "RC"):
        assert run(world, "roster", "update", name, "--from", "copied")[0] == 0
        assert not (world / name / "draft").exists()
    words = ("roster", "stewards", "RA", "--add", "dave", "--remove", "carol")
    code, change = run(world, *words, *steward("alice"), "--yes")
    assert [group["needed"] for group in change["groups"]] == [2, 2]
    code, done = run(world, "roster", "sign", "RA", *steward("bob"), "--yes")
    assert (code, done["version"]) == (0, 3)
    code, shown = run(world, "roster", "stewards", "RA")
    assert [each["name"] for each in shown["stewards"]] == ["alice", "bob", "dave"]
    assert run(world, "roster", "renew", "RA", *steward("carol"), "--yes") == (6, "not-a-steward")


@pytest.fixture(scope="module")
def alone(world: Path) -> Path:
    """A roster with one steward, and a site that pinned it."""
    code, made = run(world, "roster", "create", "R", "--federation", "lowlands", *steward("alice"), "--member",
                     "clinic:author,receiver", "--member", "hub:author,receiver")  # fmt: skip
    assert code == 0
    assert run(world, "roster", "pin", "R", "--root-sha256", made["root_sha256"], "--out", "site")[0] == 0
    return world


def test_an_author_withdraws_its_organ(alone: Path) -> None:
    digest = hashlib.sha256((alone / "knee.organ").read_bytes()).hexdigest()
    fields = ["schema", "recalled", "organ_sha256", "reason", "by", "when", "roster_version", "roster_stale"]
    code, before = run(alone, "recall", "check", digest, "--roster", "site")
    assert (code, list(before), before["recalled"]) == (0, fields, False)
    issue = (
        "recall",
        "issue",
        "knee.organ",
        "--reason",
        "wrong\x1b[2J records",
        "--identity",
        "clinic",
        "--roster",
        "R",
        *PW,
    )
    assert run(alone, *issue) == (2, "usage")
    code, done = run(alone, *issue, "--yes", "--out", "knee.recall")
    assert (code, done["schema"], done["by"], done["organ_sha256"]) == (0, "not-fed/recalled/1", "clinic", digest)
    assert run(alone, "recall", "add", "site", "knee.recall")[1]["by"] == "clinic"
    code, out, _ = said(alone, "recall", "check", digest, "--roster", "site")
    assert code == 6
    assert "\x1b" not in out
    code, found = run(alone, "recall", "check", "knee.organ", "--roster", "site")
    assert (code, found["recalled"], found["by"], found["schema"]) == (6, True, "clinic", "not-fed/recall-check/1")
    assert sorted(found) == sorted(fields)


def test_stewards_withdraw_anybodys_organ(alone: Path) -> None:
    issue = ("recall", "issue", "ab" * 32, "--reason", "poisoned", "--roster", "R", *steward("alice"))
    assert run(alone, *issue) == (2, "usage")
    code, done = run(alone, *issue, "--yes")
    assert (code, done["recalls"] >= 1) == (0, True)
    assert run(alone, "roster", "update", "site", "--from", "R")[0] == 0
    code, found = run(alone, "recall", "check", "ab" * 32, "--roster", "site")
    assert (code, found["by"], found["reason"]) == (6, "stewards", "poisoned")
    assert run(alone, "recall", "issue", "ab" * 32, "--reason", "x", "--roster", "R", *PW, "--yes") == (2, "usage")


def test_a_member_changes_its_keys(alone: Path) -> None:
    assert said(alone, "keys", "rotate", "hub", *PW, "--yes")[0] == 0
    rotate = ("roster", "rotate", "R", "hub/identity.json", *steward("alice"), "--yes")
    assert run(alone, *rotate, "--succession", "hub/succession.json", "--stolen") == (2, "usage")
    assert run(alone, *rotate, "--succession", "knee.organ")[0] == 6
    code, done = run(alone, *rotate, "--succession", "hub/succession.json")
    assert code == 0
    assert {row["name"]: row["former_keys"] for row in done["members"]} == {"clinic": 0, "hub": 1}
    code, done = run(alone, "roster", "extend", "R", "hub", "--valid-days", "700", *steward("alice"))
    assert code == 0
