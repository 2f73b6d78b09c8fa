"""Adversary: whoever writes texts that a person reads in a terminal: names of files, claims, refusals.

Powers: any text in any claim or name; the way that an answer takes. Always: what is read is what was checked, nothing
moves the cursor, no secret is quoted, and silence is never yes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from not_fed.cli.output import printable
from not_fed.envelope import label_path
from tests.support.commands import LATER, Desk, Outcome, run_together
from tests.support.trust import DP, Forger

HOSTILE = "\x1b[2J\x1b]0;owned\x07\u202e\u200b\x9b31m\x08\x7f"


def assert_harmless(text: str) -> None:
    """Nothing in it moves a cursor, hides, or reverses what a person reads."""
    assert all(char.isprintable() for line in text.split("\n") for char in line), repr(text)


def test_hostile_text_in_claims_is_escaped_on_the_terminal(desk: Desk) -> None:
    """A38. Escape sequences, bells, right-to-left marks and backspaces stand in the accountant's and the audit's name.

    Powers: an author with both keys, whose texts a person reads in a terminal. Control: the rest of the claim is shown.
    """
    forger = Forger(desk.parcel)
    dp = {name: DP[name] for name in ("epsilon", "delta", "unit")} | {"accountant": f"PLD {HOSTILE}"}
    mechanism = {name: DP[name] for name in ("sample_rate", "steps", "noise_multiplier", "max_grad_norm", "divisor")}
    audit = {"method": f"one run {HOSTILE}", "epsilon_lower_bound": 0.4, "confidence": 0.95, "canaries": 1000}
    forger.rewrite(passport=forger.passport_with(dp=dp | {"mechanism": mechanism}, audit=audit))
    label_path(desk.parcel.path).unlink()
    for words in (desk.words("verify"), desk.words("open", "--out", "got.organ")):
        outcome = desk.run(*words)
        assert outcome.code == 0, outcome.err
        assert_harmless(outcome.out + outcome.err)
        assert "epsilon 3.10" in outcome.out
    shown = desk.run(*desk.words("verify", "--json"))
    assert shown.out.isascii()
    assert shown.result["audit"]["method"] == audit["method"]


@pytest.mark.parametrize("name", [f"knee{HOSTILE}.sealed", "two\nlines", "\udcff\udcfe", "a" * 250, "ümläut 心"])
def test_hostile_file_names_are_escaped_on_the_terminal(desk: Desk, name: str) -> None:
    """A38. The sealed file's own name draws on the terminal, fakes a second line, or is no text at all.

    Powers: names the files that a person is told about. Control: the file opens under that very name.
    """
    missing = desk.run(*desk.words("verify", sealed=f"{name}x"))
    assert missing.code == 4
    assert_harmless(missing.err)
    desk.parcel.path.rename(desk.folder / name)
    outcome = desk.run(*desk.words("open", "--out", f"{name}.got"[:200], sealed=name))
    assert outcome.code == 0, outcome.err
    assert_harmless(outcome.out + outcome.err)
    assert (desk.folder / f"{name}.got"[:200]).read_bytes() == desk.parcel.organ
    damaged = desk.folder / name
    damaged.write_bytes(damaged.read_bytes()[:-1])
    refused = desk.run(*desk.words("open", "--again", "--out", "x", sealed=name))
    assert refused.code == 6
    assert_harmless(refused.err)


def test_whatever_is_printed_is_printable() -> None:
    """Own. Every character that Unicode has is put where a person reads it.

    Powers: any text in any claim or name. Control: letters of all scripts, digits and spaces stay as they are.
    """
    for start in range(0, 0x110000, 0x1000):
        assert_harmless(printable("".join(map(chr, range(start, start + 0x1000)))))
    assert printable("Größe 心 12.5 %") == "Größe 心 12.5 %"


def test_an_answer_that_cannot_be_given_is_not_yes(desk: Desk) -> None:
    """Own. The answer's way is blocked: a full disk behind stdout, a closed pipe, a terminal without Unicode.

    Powers: fills the disk, closes the pipe. Control: with a way for the answer, it is yes and 0.
    """
    root = Path(__file__).parents[2]
    words = [sys.executable, "-c", LATER, *desk.words("verify", "--json")]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"}
    with Path("/dev/full").open("w") as full:
        blocked = subprocess.run(words, cwd=desk.folder, env=environment, stdout=full, stderr=subprocess.PIPE,
                                 check=False)  # fmt: skip
    assert blocked.returncode != 0
    assert run_together(desk.folder, [desk.words("verify", "--json")])[0].code == 0


def test_a_terminal_without_unicode_still_hears_the_answer(desk: Desk) -> None:
    """Own. The output's name has letters that the terminal's encoding lacks: the answer must come all the same.

    Powers: names the files that a person is told about. Control, which is the point: the command is done, and says so.
    """
    root = Path(__file__).parents[2]
    environment = {"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "ascii", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([sys.executable, "-c", LATER, *desk.words("open", "--out", "ümläut 心")], cwd=desk.folder,
                          env=environment, capture_output=True, text=True, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "organ" in done.stdout
    assert (desk.folder / "ümläut 心").read_bytes() == desk.parcel.organ


def test_a_refusal_quotes_no_secret(desk: Desk) -> None:
    """Own. The command fails at every step with a private file at hand, hoping that the message quotes what it read.

    Powers: makes the command fail; reads the screen, the log of a script or a bug report. Control: in the end it opens.
    """
    secrets = [b"AGE-SECRET-KEY", b"PRIVATE KEY", b"correct horse"]
    said: list[Outcome] = []
    seal_key = desk.world.keys / "hub" / "seal.key"
    for sealed in (seal_key, desk.world.keys / "pw", desk.parcel.organ_path, "/etc/passwd"):
        said.append(desk.run(*desk.words("open", "--out", "got", sealed=sealed)))
        said.append(desk.run("verify", "knee.sealed", "--roster", "R", "--identity", sealed))
        said.append(desk.run(*desk.words("open", "--out", "got", "--policy", sealed)))
    assert all(outcome.code for outcome in said)
    everything = "".join(outcome.out + outcome.err for outcome in said).encode()
    assert not [secret for secret in secrets if secret in everything]
    assert b"root:" not in everything
    assert "Traceback" not in everything.decode()
    assert desk.run(*desk.words("open", "--out", "got")).code == 0


def test_an_organ_is_not_shown_as_trusted_before_it_is_verified(desk: Desk) -> None:
    """Own. `show` is run on a sealed file, a forged one and one of random bytes, to be told something reassuring.

    Powers: hands any file to a person who only looks at it. Control: `verify` says trusted, and only `verify`.
    """
    (desk.folder / "random.sealed").write_bytes(os.urandom(5000))
    for name in ("knee.sealed", "random.sealed", "knee.organ"):
        shown = desk.run("show", name, "--json")
        assert "trusted" not in shown.out
    assert desk.run(*desk.words("verify", "--json")).result["trusted"] is True
    assert desk.run(*desk.words("verify", "--json", sealed="random.sealed")).code == 6
