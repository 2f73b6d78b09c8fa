"""Adversary: another account on the machine, or whoever reads a log, a scrollback or a core file later.

Powers: reads arguments, variables, output and crashes. Lacks: the rights of the account that runs the command.
"""

from __future__ import annotations

import base64
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import click
import pytest
import typer

from not_fed.age.hybrid import identity_text
from not_fed.cli import passphrase as cli_passphrase
from not_fed.cli.main import app
from not_fed.errors import NotFedError, UsageError
from not_fed.files import NotAFile
from not_fed.keys import (
    Secret,
    create_keys,
)
from not_fed.keys import folder as reading
from not_fed.keys.create import BadPassphrase
from tests.support.key_folders import CANARY, LOADS, MAIN, load_all, plain_of


def watch(process: subprocess.Popen[str]) -> bytes:
    """All that other processes may read of this one while it runs: its words, its variables, its limits."""
    seen = b""
    while process.poll() is None:
        for name in ("cmdline", "environ", "limits", "comm"):
            try:
                seen += Path(f"/proc/{process.pid}/{name}").read_bytes()
            except OSError:  # it has just ended
                return seen
        time.sleep(0.02)
    return seen


def marks_of(folder: Path) -> list[bytes]:
    """Pieces by which the folder's private keys would be known wherever they turned up."""
    marks = []
    for name in LOADS:
        for line in plain_of(folder, name).splitlines():
            if not line.startswith((b"#", b"-")) and len(line) > 40:
                marks.append(line[-40:] if b"SECRET" in line else line)
    assert len(marks) >= 7
    return marks


def test_secrets_show_up_nowhere_while_the_real_command_runs(tmp_path: Path) -> None:
    """A74. Output, arguments, variables and core limit of `keys create`, `rotate`, `show` are read while they run.

    Powers: reads /proc of every process and all output. Control: the passphrase did reach the command, by its file.
    """
    (tmp_path / "pw").write_text(CANARY + "\n")
    (tmp_path / "pw").chmod(0o600)
    secret, seen = ("--passphrase-file", "pw"), b""
    for words in (
        ("keys", "create", "clinic", "--out", "keys", "--steward", "--log", *secret),
        ("keys", "rotate", "keys", "--yes", *secret),
        ("keys", "show", "keys"),
        ("keys", "rotate", "keys", "--yes", "--passphrase-file", "keys/identity.json"),  # a wrong one
    ):
        with subprocess.Popen([sys.executable, "-c", MAIN, *words], cwd=tmp_path, text=True, stdout=subprocess.PIPE,
                              stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL) as process:  # fmt: skip
            watched = watch(process)
            assert process.stdout is not None
            seen += watched + process.stdout.read().encode()
        if "create" in words or "--yes" in words[:4]:
            assert b"Max core file size        0 " in watched
    assert b"clinic" in seen
    assert b"--passphrase-file" in seen
    for mark in (
        CANARY.encode(),
        base64.b64encode(CANARY.encode()),
        b"PRIVATE KEY",
        b"AGE-SECRET",
        *marks_of(tmp_path / "keys"),
    ):
        assert mark not in seen
    load_all(tmp_path / "keys")


CRASH = textwrap.dedent("""
    import os, sys
    from not_fed import files
    from not_fed.age import hybrid, scrypt
    from not_fed.keys import create

    def broken(*arguments, **named):
        raise RuntimeError("forced")

    os.urandom = lambda size: (b"canary-seed" * size)[:size]
    setattr(*{"write": (files, "write_atomic"), "stretch": (scrypt, "_stretch"), "encrypt": (scrypt, "write_whole"),
              "publish": (create, "_publish"), "identity": (create, "sign_identity")}[sys.argv.pop(1)], broken)
    from not_fed.cli.main import main
    main()
""")


@pytest.mark.parametrize("where", ["write", "stretch", "encrypt", "publish", "identity"])
def test_a_traceback_tells_no_secret(tmp_path: Path, where: str) -> None:
    """A74. The command breaks, untyped, in the middle of its work with secrets: what Python prints is searched.

    Powers: reads the terminal, or a log of it. Control: the traceback is there, and names where it broke.
    """
    read, write = os.pipe()
    os.write(write, CANARY.encode() + b"\n")
    os.close(write)
    done = subprocess.run(
        [sys.executable, "-X", "faulthandler", "-c", CRASH, where, "keys", "create", "clinic", "--out", "keys",
         "--steward", "--log", "--passphrase-fd", str(read)], cwd=tmp_path, text=True, capture_output=True,
        pass_fds=(read,), check=False,
    )  # fmt: skip
    os.close(read)
    said = done.stdout + done.stderr
    assert done.returncode == 1
    assert "Traceback" in said
    assert "RuntimeError: forced" in said
    seed = (b"canary-seed" * 3)[:32]
    for mark in (CANARY, "PRIVATE KEY", "AGE-SECRET", "canary-seed", identity_text(seed)[20:60], seed.hex()):
        assert mark not in said
    assert list(tmp_path.iterdir()) == []


def test_a_crash_after_the_passphrase_writes_no_core_file(tmp_path: Path) -> None:
    """A74. The process dies of SIGSEGV once it has read the passphrase.

    Powers: makes the process crash, reads what the system dumps. Control: the signal did end it; without the passphrase
    having been read, the limit is what it was.
    """
    (tmp_path / "pw").write_text(CANARY)
    (tmp_path / "pw").chmod(0o600)
    code = textwrap.dedent("""
        import os, resource, signal
        from pathlib import Path
        from not_fed.cli.passphrase import read_passphrase
        resource.setrlimit(resource.RLIMIT_CORE, (resource.getrlimit(resource.RLIMIT_CORE)[1],) * 2)
        before = resource.getrlimit(resource.RLIMIT_CORE)[0]
        secret = read_passphrase(Path("pw"), None)
        print(before, *resource.getrlimit(resource.RLIMIT_CORE), flush=True)
        os.kill(os.getpid(), signal.SIGSEGV)
    """)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, text=True, capture_output=True, check=False)
    assert done.returncode == -signal.SIGSEGV
    before, soft, hard = done.stdout.split()
    assert (soft, hard) == ("0", before)
    assert [path.name for path in tmp_path.iterdir()] == ["pw"]


def test_no_option_and_no_variable_takes_a_passphrase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A74. All commands are searched for a way to give a passphrase or PIN as an argument or a variable.

    Powers: reads the arguments and variables of a process. Control: the options that name a file or a descriptor exist.
    """
    found: dict[str, type] = {}

    def walk(command: click.Command) -> None:
        for option in command.params:
            assert not option.envvar, option.name
            if any(word in str(option.name) for word in ("passphrase", "password", "pin_", "secret")):
                found[str(option.name)] = type(option.type)
        for inner in getattr(command, "commands", {}).values():
            walk(inner)

    command = typer.main.get_command(app)
    walk(command)
    assert not command.context_settings.get("auto_envvar_prefix")
    names = {"passphrase_file", "passphrase_fd", "pin_file", "pin_fd"}
    assert set(found) == names
    assert all(found[name] is click.types.IntRange for name in names if name.endswith("_fd"))
    source = "".join(
        path.read_text() for path in (*Path(reading.__file__).parent.glob("*.py"), Path(cli_passphrase.__file__))
    )
    assert not any(word in source for word in ("os.environ", "getenv", "environb"))
    for name in ("PASSPHRASE", "NOT_FED_PASSPHRASE", "AGE_PASSPHRASE", "NOT_FED_PIN"):
        monkeypatch.setenv(name, CANARY)
    with pytest.raises(UsageError):
        cli_passphrase.read_passphrase(None, None)


def test_a_terminal_that_cannot_hide_what_is_typed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A74. Python's getpass would go on in the open where it cannot turn the echo off.

    Powers: reads over the shoulder, or the scrollback. Control: a terminal that hides it is asked.
    """
    real = cli_passphrase.getpass.getpass

    def echoing(prompt: str) -> str:
        cli_passphrase.getpass.warnings.warn(
            "Can not control echo", cli_passphrase.getpass.GetPassWarning, stacklevel=2
        )
        return CANARY

    monkeypatch.setattr(sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(cli_passphrase.getpass, "getpass", echoing)
    with pytest.raises(UsageError):
        cli_passphrase.read_passphrase(None, None, confirm=True)
    answers = iter([CANARY, CANARY, CANARY, CANARY + "x"])
    monkeypatch.setattr(cli_passphrase.getpass, "getpass", lambda _: next(answers))
    assert cli_passphrase.read_passphrase(None, None, confirm=True).reveal() == CANARY.encode()
    with pytest.raises(UsageError):
        cli_passphrase.read_passphrase(None, None, confirm=True)
    assert real is not None


def test_a_passphrase_file_that_others_see_or_that_is_cut_is_refused(tmp_path: Path) -> None:
    """Own. The passphrase's file is readable by others, a link, a FIFO, or longer than what would be read of it.

    Powers: another account on the machine; an editor's backup. Control: a private file of any length up to 4,096 bytes.
    """
    place = tmp_path / "pw"
    for mode in (0o640, 0o604, 0o620, 0o602):
        place.write_text(CANARY)
        place.chmod(mode)
        with pytest.raises(cli_passphrase.PassphraseExposed):
            cli_passphrase.read_passphrase(place, None)
    place.chmod(0o600)
    (tmp_path / "link").symlink_to(place)
    os.mkfifo(tmp_path / "pipe", 0o600)
    for other in (tmp_path / "link", tmp_path / "pipe", tmp_path, tmp_path / "none"):
        with pytest.raises(NotAFile):
            cli_passphrase.read_passphrase(other, None)
    place.write_bytes(b"x" * 4097)
    with pytest.raises(NotFedError):
        cli_passphrase.read_passphrase(place, None)
    descriptor = os.open(place, os.O_RDONLY)
    with pytest.raises(UsageError):  # never the first 4,096 bytes of it
        cli_passphrase.read_passphrase(None, descriptor)
    os.close(descriptor)
    place.write_bytes(b"x" * 4095 + b"\n")
    assert len(cli_passphrase.read_passphrase(place, None).reveal()) == 4095


def test_keys_without_a_passphrase_are_not_made(tmp_path: Path) -> None:
    """Own. An empty passphrase, or a file with nothing but line ends, would leave keys in the clear.

    Powers: an administrator in a hurry. Control: one character is a passphrase.
    """
    place = tmp_path / "pw"
    for text in ("", "\n", "\r\n\r\n"):
        place.write_text(text)
        place.chmod(0o600)
        with pytest.raises(BadPassphrase):
            create_keys(tmp_path / "keys", name="clinic", passphrase=cli_passphrase.read_passphrase(place, None),
                        work_factor=2)  # fmt: skip
    assert not (tmp_path / "keys").exists()
    create_keys(tmp_path / "keys", name="clinic", passphrase=Secret(b"x"), work_factor=2)
