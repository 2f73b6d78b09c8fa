"""Types what a page says is typed, at the machines that it names, and compares what comes back.

    hub$ not-fed coordinator status hub      a command at the machine `hub`: a folder of its own beside the others'
    ...                                      any number of lines
    [exit code 6]                            the command ends like this; otherwise with 0

What differs from one day to the next (times, digests, fingerprints, numbers, widths) is left out of the comparison.
`serve` and `join` run on while the rest is typed, until `stop`; their lines are awaited. Questions get the answers that
the page shows.
"""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PROMPT = re.compile(r"^([a-z]+)\$ (.+)$")
ANYTHING = "..."
_VARIES: tuple[tuple[str, str], ...] = (
    (r"\x1b\[[0-9;?]*[A-Za-z]", ""),
    (r"\b[a-z2-7]{4}(?: [a-z2-7]{4}){12}\b", "FINGERPRINT"),
    (r"\b\d{4}-\d\d-\d\d[T ]\d\d:\d\d(?::\d\d)?(?:\.\d+)?(?:Z|\+00:00| UTC)?", "TIME"),
    (r"\b\d{4}-\d\d-\d\d\b", "DAY"),
    (r"\b(?=[a-f]*\d)[0-9a-f]{12,64}\b", "DIGEST"),
    (r"\b\d[\d,]*(?:\.\d+)?\b", "N"),
    (r"\s+", " "),
)
_IS_NO_ANSWER = re.compile(r"passphrase:|[a-z ]+: [\d,]+ of [\d,]+, ")  # a prompt; how far a slow machine is
_DIGEST = re.compile(r"\b[0-9a-f]{64}\b")


@dataclass(frozen=True, slots=True, kw_only=True)
class Typed:
    """One command of a page, and what it is to answer."""

    machine: str
    command: str
    expected: tuple[str, ...]
    exit_code: int


def commands_of(page: str) -> Iterator[Typed]:
    """Every command in the page's console blocks, in order."""
    for block in re.findall(r"^```console\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        current: tuple[str, str] | None = None
        lines: list[str] = []
        for line in [*block.splitlines(), None]:
            match = PROMPT.match(line) if line is not None else None
            if line is None or match:
                if current is not None:
                    yield _typed(current, lines)
                current, lines = (match.groups() if match else None), []  # type: ignore[assignment]
            elif line.strip():
                lines.append(line)


def _typed(current: tuple[str, str], lines: Sequence[str]) -> Typed:
    codes = [int(found[1]) for line in lines if (found := re.fullmatch(r"\[exit code (\d+)\]", line))]
    expected = tuple(line for line in lines if not line.startswith("[exit code "))
    return Typed(machine=current[0], command=current[1], expected=expected, exit_code=codes[0] if codes else 0)


def plain(line: str) -> str:
    """A line without what differs each time."""
    for pattern, word in _VARIES:
        line = re.sub(pattern, word, line)
    return line.strip()


def agree(expected: Sequence[str], got: Sequence[str]) -> bool:
    """Whether what came is what the page shows, where `...` stands for any number of lines."""
    pattern = "".join(r"(?:.*\n)*?" if line.strip() == ANYTHING else _line_pattern(line) for line in expected)
    return re.fullmatch(pattern, "".join(f"{plain(line)}\n" for line in got)) is not None


def _line_pattern(line: str) -> str:
    text = re.escape(plain(line))
    return text.replace(re.escape(ANYTHING), ".*") + r"\n"


@dataclass
class Desk:
    """All machines of a page, as folders of `folder`."""

    folder: Path
    said: dict[str, str] = field(default_factory=dict)  # what the page says -> what is typed here
    answers: Mapping[str, str] = field(default_factory=dict)  # what a question ends with -> what is typed
    running: dict[str, tuple[subprocess.Popen[bytes], Path]] = field(default_factory=dict)
    transcript: list[str] = field(default_factory=list)

    def machine(self, name: str) -> Path:
        """The folder in which a machine's commands are typed."""
        path = self.folder / name
        path.mkdir(exist_ok=True)
        return path

    def type_page(self, page: str) -> None:
        """Type every command, one after the other; AssertionError with what came where the page says otherwise."""
        for typed in commands_of(page):
            self.type(typed)

    def type(self, typed: Typed) -> None:
        """Type one command."""
        if re.search(r"not-fed (coordinator serve|site join)\b", typed.command):
            self._start(typed)
            return
        code, lines = self._run(typed)
        self.transcript += [f"{typed.machine}$ {typed.command}", *lines]
        shown = "\n".join(lines)
        assert code == typed.exit_code, f"{typed.machine}$ {typed.command}\nexit code {code}\n{shown}"
        assert agree(typed.expected, lines), f"{typed.machine}$ {typed.command}\n{shown}\n\nthe page has\n" + "\n".join(
            typed.expected
        )
        self._learn(typed.expected, lines)

    def _learn(self, expected: Sequence[str], lines: Sequence[str]) -> None:
        """A digest on the page stands for the one that came in its place, also in later commands."""
        for line in expected:
            shown = _DIGEST.findall(line)
            for came in lines if shown else ():
                if plain(came) == plain(line):
                    self.said |= dict(zip(shown, _DIGEST.findall(came), strict=True))

    def stop(self) -> None:
        """Stop what runs on, sites first."""
        for name in reversed(list(self.running)):
            process, _ = self.running.pop(name)
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def heard(self, machine: str) -> list[str]:
        """What a running command has said so far."""
        return self._back(self.running[machine][1].read_text(errors="replace"))

    def _start(self, typed: Typed) -> None:
        log = self.folder / f"{typed.machine}.heard"
        with log.open("wb") as file:
            process = subprocess.Popen(
                ["bash", "-c", f"exec {self._here(typed.command)}"], cwd=self.machine(typed.machine), stdout=file,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=self._environment(),
            )  # fmt: skip
        self.running[typed.machine] = (process, log)
        until = time.monotonic() + 180
        while not agree((*typed.expected, ANYTHING), self.heard(typed.machine)):
            said = "\n".join(self.heard(typed.machine))
            assert process.poll() is None, f"{typed.machine}$ {typed.command}\nended with {process.returncode}\n{said}"
            assert time.monotonic() < until, f"{typed.machine}$ {typed.command}\nsaid only\n{said}"
            time.sleep(0.2)
        self.transcript += [f"{typed.machine}$ {typed.command}", *self.heard(typed.machine)]

    def _run(self, typed: Typed) -> tuple[int, list[str]]:
        words = ["bash", "-c", self._here(typed.command)]
        if re.match(r"not-fed (roster|keys) ", typed.command) or any("[y/N]" in line for line in typed.expected):
            code, text = _at_terminal(words, self.machine(typed.machine), self._environment(), self.answers)
        else:
            done = subprocess.run(
                words, cwd=self.machine(typed.machine), env=self._environment(), stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=300, check=False,
            )  # fmt: skip
            code, text = done.returncode, done.stdout.decode(errors="replace")
        return code, self._back(text)

    def _here(self, command: str) -> str:
        for page, here in self.said.items():
            command = command.replace(page, here)
        return command

    def _back(self, text: str) -> list[str]:
        for page, here in self.said.items():
            text = text.replace(here, page)
        lines = [re.sub(r"^.*\r(?=.)", "", line.rstrip("\r")) for line in text.split("\n")]
        return [line.rstrip() for line in lines if line.strip() and not _IS_NO_ANSWER.match(line)]

    def _environment(self) -> dict[str, str]:
        kept = {
            name: value for name, value in os.environ.items() if name in ("NOT_FED_CACHE", "XDG_CACHE_HOME", "HOME")
        }
        path = f"{Path(sys.executable).parent}:/usr/bin:/bin"
        root = str(Path(__file__).parents[2])
        return {
            **kept,
            "PATH": path,
            "PYTHONPATH": root,
            "PYTHONUNBUFFERED": "1",
            "LANG": "C.UTF-8",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "200",
            "TERM": "dumb",
        }


def _at_terminal(
    words: Sequence[str], folder: Path, environment: Mapping[str, str], answers: Mapping[str, str]
) -> tuple[int, str]:
    """Run a command at a terminal of its own, and answer what it asks there."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", "--wait", *words],
        cwd=folder,
        env=dict(environment),
        stdin=slave,
        stdout=slave,
        stderr=slave,
    )
    os.close(slave)
    text, asked, until = b"", 0, time.monotonic() + 300
    while time.monotonic() < until:
        if not select.select([master], [], [], 1.0)[0]:
            continue
        try:
            data = os.read(master, 65536)
        except OSError:  # the other end is closed
            break
        if not data:
            break
        text += data
        for question, answer in answers.items():
            if text[asked:].decode(errors="replace").endswith(question):
                asked = len(text)
                os.write(master, answer.encode() + b"\n")
    os.close(master)
    return process.wait(60), text.decode(errors="replace").replace("\r\n", "\n")
