"""keys, roster, seal, verify, open as a person or a script runs them: exit codes, JSON fields, nothing secret shown."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from not_fed import keys
from not_fed.envelope import issue_passport, new_passport, passport_path
from not_fed.envelope.logged import label_entry
from not_fed.keys import FileSigner, Secret
from not_fed.trust.log_entries import entry
from not_fed.trust.log_folder import LogFolder, append_many, create_log
from tests.support.trust import DP, organ_bytes

PASSPHRASE = "correct horse"
MAIN = "from not_fed.cli.main import main; main()"
PW = ("--passphrase-file", "pw")


def run(folder: Path, *words: str, stdin: str = "", fds: tuple[int, ...] = ()) -> tuple[int, Any, str]:
    """The command with `--json`: exit code, the object it printed, and what it said."""
    done = subprocess.run([sys.executable, "-c", MAIN, *words, "--json"], cwd=folder, input=stdin, text=True,
                          capture_output=True, pass_fds=fds)  # fmt: skip
    assert "Traceback" not in done.stderr
    assert PASSPHRASE not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clinic that is steward too, a hub, a roster, an organ, sealed."""
    folder = tmp_path_factory.mktemp("world")
    (folder / "pw").write_text(PASSPHRASE + "\n")
    (folder / "pw").chmod(0o600)
    for name in ("clinic", "hub"):
        keys.create_keys(
            folder / name, name=name, passphrase=Secret(PASSPHRASE.encode()), work_factor=2, steward=name == "clinic"
        )
    (folder / "knee.organ").write_bytes(organ_bytes(dp=DP))
    code, made, _ = run(folder, "roster", "create", "R", "--federation", "demo", "--steward", "clinic", *PW,
                        "--member", "clinic/identity.json:author,receiver", "--member", "hub:receiver")  # fmt: skip
    assert code == 0
    code, _, _ = run(folder, "roster", "pin", "R", "--root-sha256", made["root_sha256"], "--out", "R2")
    assert code == 0
    code, sealed, _ = run(folder, "seal", "knee.organ", "--to", "hub", "--identity", "clinic", "--roster", "R",
                          *PW, "--out", "knee.sealed")  # fmt: skip
    assert (code, sealed["schema"], sealed["recipients"]) == (0, "not-fed/sealed/1", ["hub"])
    return folder


def test_verify_has_the_documented_fields(world: Path) -> None:
    fields = [
        "schema", "trusted", "sender", "author", "recipients", "federation", "round", "organ_sha256", "base_sha256",
        "span", "family", "size_bytes", "created", "epsilon", "delta", "unit", "neighbouring",
        "records_per_person", "recomputed_epsilon", "audit", "audit_contradicts", "releases", "ledger_head",
        "contributors", "recalled",
        "roster_version", "roster_expires", "roster_stale", "log", "policy",
    ]  # fmt: skip
    code, outside, _ = run(world, "verify", "knee.sealed", "--roster", "R2")
    assert (code, list(outside)) == (0, fields)
    assert (outside["sender"], outside["author"], outside["epsilon"], outside["recalled"]) == (
        "clinic",
        None,
        None,
        None,
    )
    code, inside, _ = run(
        world, "verify", "knee.sealed", "--roster", "R2", "--identity", "hub", "--passphrase-file", "pw"
    )
    assert (code, list(inside)) == (0, fields)
    assert (inside["author"], inside["span"], inside["epsilon"], inside["recalled"]) == ("clinic", [2, 4], 3.1, False)


def test_open_writes_the_organ_and_says_whose(world: Path, tmp_path: Path) -> None:
    out = tmp_path / "got.organ"
    words = ("open", "knee.sealed", "--identity", "hub", "--roster", "R2", *PW, "--out", str(out))
    code, opened, _ = run(world, *words)
    assert (code, opened["schema"], opened["sender"], opened["author"]) == (0, "not-fed/opened/1", "clinic", "clinic")
    assert out.read_bytes() == (world / "knee.organ").read_bytes()
    for again, expected in ((), (6, "waybill-replayed")), (("--again",), (4, "output-exists")):
        code, _, said = run(world, *words, *again)
        assert (code, json.loads(said)["code"]) == expected


REFUSALS = {
    "open knee.sealed --identity clinic --roster R2": (6, "not-for-this-key"),
    "open knee.sealed --identity hub --roster R2 --round 4": (6, "other-round"),
    "open knee.sealed --identity hub --roster R2 --again --base-sha256 00": (5, "base-not-expected"),
    "open missing --identity hub --roster R2": (4, "not-a-file"),
    "open knee.sealed --identity hub --roster nowhere": (6, "roster-not-pinned"),
    "seal knee.organ --to nobody --identity clinic --roster R": (6, "member-unknown"),
    "seal knee.organ --to clinic --identity clinic --roster R": (4, "bad-recipients"),
    "seal knee.organ --to hub --to hub --identity clinic --roster R": (4, "bad-recipients"),
    "seal pw --to hub --identity clinic --roster R": (4, "tensor-header"),
}


@pytest.mark.parametrize("words", REFUSALS)
def test_each_refusal_has_its_exit_code(world: Path, words: str) -> None:
    got, _, said = run(world, *words.split(), *PW, "--out", "x")
    assert (got, json.loads(said)["code"]) == REFUSALS[words]
    assert not (world / "x").exists()


@pytest.mark.parametrize("words", [("verify", "."), ("open", "knee.sealed", "--again", "--out", "."), ("verify", "")])
def test_a_name_that_is_no_file_is_refused_by_type(world: Path, words: tuple[str, ...]) -> None:
    code, _, said = run(world, *words, "--roster", "R2", "--identity", "hub", *PW)
    assert (code, json.loads(said)["code"]) == (4, "not-a-file")


def test_a_false_passport_beside_an_organ_hides_no_withdrawal(world: Path, tmp_path: Path) -> None:
    """Another author named in an unsigned passport; the true one, and none, find the withdrawal."""
    shutil.copytree(world / "R", tmp_path / "R")
    organ = tmp_path / "knee.organ"
    organ.write_bytes((world / "knee.organ").read_bytes())
    words = ("--identity", str(world / "clinic"), "--roster", "R", "--passphrase-file", str(world / "pw"), "--yes")
    assert run(tmp_path, "recall", "issue", "knee.organ", "--reason", "wrong records", *words)[0] == 0
    assert run(tmp_path, "recall", "check", "knee.organ", "--roster", "R")[0] == 6
    passport = new_passport(organ, author="nobody", federation="demo", round_number=0, now=datetime.now(UTC))
    line = issue_passport(passport, signer=FileSigner.generate("nobody"))
    passport_path(organ).write_bytes(line + b"\n")
    code, found, _ = run(tmp_path, "recall", "check", "knee.organ", "--roster", "R")
    assert (code, found["recalled"], found["by"]) == (6, True, "clinic")


def test_a_fork_that_this_site_has_seen_is_believed_by_no_command(world: Path, tmp_path: Path) -> None:
    """The log on the roster shows another tree of the size that was remembered: verify and open say so."""
    keeper = World(tmp_path)
    keeper.federate()
    first, second = keeper.log("first"), keeper.log("second")
    assert run(tmp_path, "log", "compare", "R", str(first))[0] == 0
    keeper.lay_proof(second)
    for words in (("verify",), ("open", "--identity", "hub", "--out", "x", "--passphrase-file", "pw")):
        code, _, said = run(tmp_path, words[0], "knee.sealed", "--roster", "R", *words[1:])
        assert (code, json.loads(said)["code"]) == (6, "log-forked")
    keeper.lay_proof(first)
    assert run(tmp_path, "verify", "knee.sealed", "--roster", "R")[0] == 0  # control
    assert not (tmp_path / "x").exists()


class World:
    """A clinic that sends, and a hub with two logs, in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def federate(self) -> None:
        """Keys, roster and a sealed organ."""
        (self.folder / "pw").write_text(PASSPHRASE + "\n")
        (self.folder / "pw").chmod(0o600)
        members = []
        for name, roles in (("clinic", "author,receiver"), ("hub", "receiver,relay")):
            secret = Secret(PASSPHRASE.encode())
            keys.create_keys(self.folder / name, name=name, passphrase=secret, work_factor=2, log=name == "hub",
                             steward=name == "clinic")  # fmt: skip
            members += ["--member", f"{name}:{roles}"]
        (self.folder / "knee.organ").write_bytes(organ_bytes(dp=DP))
        assert run(self.folder, "roster", "create", "R", "--federation", "demo", "--steward", "clinic", *members,
                   *PW)[0] == 0  # fmt: skip
        assert run(self.folder, "seal", "knee.organ", "--to", "hub", "--identity", "clinic", "--roster", "R",
                   "--out", "knee.sealed", *PW)[0] == 0  # fmt: skip

    def log(self, name: str) -> Path:
        """One with the label, and one more entry that is its own."""
        signer = keys.load_log_signer(self.folder / "hub", passphrase=Secret(PASSPHRASE.encode()))
        create_log(self.folder / name, federation="demo", signer=signer, now=datetime.now(UTC))
        label = label_entry((self.folder / "knee.sealed.label").read_bytes())
        other = entry("seal", hashlib.sha256(name.encode()).hexdigest())
        append_many(self.folder / name, [label, other], signer=signer, now=datetime.now(UTC))
        return self.folder / name

    def lay_proof(self, log: Path) -> None:
        """The proof of one of the logs, beside the organ."""
        label = (self.folder / "knee.sealed.label").read_bytes()
        (self.folder / "knee.sealed.tlog-proof").write_bytes(LogFolder(log).proof(label_entry(label)))


def test_no_room_for_temporary_files_is_said(world: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", MAIN, "verify", "knee.sealed", "--roster", "R2", "--json"], cwd=world, text=True,
        capture_output=True, check=False, env=os.environ | {"TMPDIR": "/proc/nowhere"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
    )  # fmt: skip
    assert "Traceback" not in done.stderr
    assert (done.returncode, json.loads(done.stderr)["code"]) == (4, "no-space")


def test_only_a_steward_changes_a_roster(world: Path) -> None:
    got, _, said = run(world, "roster", "renew", "R", "--steward", "hub", *PW)
    assert (got, json.loads(said)["code"]) == (4, "not-a-file")


def test_a_passphrase_comes_from_a_private_file_or_a_descriptor_and_nowhere_else(world: Path, tmp_path: Path) -> None:
    verify = ("verify", "knee.sealed", "--roster", "R2", "--identity", "hub")
    read, write = os.pipe()
    os.write(write, PASSPHRASE.encode() + b"\n")
    os.close(write)
    assert run(world, *verify, "--passphrase-fd", str(read), fds=(read,))[0] == 0
    os.close(read)
    (tmp_path / "pw").write_text(PASSPHRASE)
    (tmp_path / "pw").chmod(0o644)
    code, _, said = run(world, *verify, "--passphrase-file", str(tmp_path / "pw"))
    assert (code, json.loads(said)["code"]) == (6, "passphrase-exposed")
    assert run(world, *verify, stdin=PASSPHRASE + "\n")[0] == 2  # no terminal: not from standard input
    assert run(world, *verify, "--passphrase-fd", "77")[0] == 2
    (tmp_path / "wrong").write_text("something else")
    (tmp_path / "wrong").chmod(0o600)
    code, _, said = run(world, *verify, "--passphrase-file", str(tmp_path / "wrong"))
    assert (code, json.loads(said)["code"]) == (6, "passphrase-refused")


def test_revoking_asks_first_and_no_terminal_means_no(world: Path) -> None:
    words = ("roster", "revoke", "R", "clinic", "--steward", "clinic", *PW)
    assert run(world, *words)[0] != 0
    assert run(world, "roster", "check", "R")[1]["version"] == 1


def test_an_organ_of_another_author_keeps_its_passport(world: Path, tmp_path: Path) -> None:
    """The hub opened the clinic's organ; sealing it again uses the clinic's passport, which does not allow that."""
    out = tmp_path / "got.organ"
    run(
        world,
        "open",
        "knee.sealed",
        "--identity",
        "hub",
        "--roster",
        "R2",
        "--again",
        "--passphrase-file",
        "pw",
        "--out",
        str(out),
    )
    code, _, said = run(world, "seal", str(out), "--to", "clinic", "--identity", "hub", "--roster", "R2", *PW,
                        "--out", str(tmp_path / "x"))  # fmt: skip
    assert (code, json.loads(said)["code"]) == (6, "cannot-dispatch")


def test_showing_keys_checks_them(world: Path, tmp_path: Path) -> None:
    code, shown, _ = run(world, "keys", "show", "hub")
    assert (code, shown["schema"], shown["name"]) == (0, "not-fed/keys/1", "hub")
    identity = (world / "hub" / "identity.json").read_bytes()
    (tmp_path / "identity.json").write_bytes(
        identity.replace(b'"sig":"A', b'"sig":"B').replace(b'"sig":"', b'"sig":"A', 1)
    )
    assert run(world, "keys", "show", str(tmp_path / "identity.json"))[0] == 6


def test_help_loads_nothing_heavy(world: Path) -> None:
    heavy = "pydantic", "cryptography", "tuf", "numpy", "torch"
    code = f"import sys; import not_fed.cli.main; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
