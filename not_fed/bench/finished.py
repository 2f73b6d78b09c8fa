"""The JSON file of a benchmark: saved after every finished job, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from not_fed import files
from not_fed.bench.harness import LIBRARIES, machine
from not_fed.errors import InputError


class Finished:
    """What is done of a run, by a key that names all that a job depends on.

    Attributes:
        content: the file's object; `facts`, `machine`, and one object for each kind of job.
    """

    def __init__(
        self,
        path: Path,
        *,
        facts: Mapping[str, Any],
        kinds: Sequence[str] = ("jobs",),
        libraries: Sequence[str] = LIBRARIES,
    ) -> None:
        """Open the file, or begin it with the first finished job.

        Args:
            facts: what names the run: a file with other facts is of another one.
        Raises:
            InputError: the file is of a run of another size.
        """
        self.path = path
        self.content: dict[str, Any] = {**facts, "machine": machine(libraries), **{kind: {} for kind in kinds}}
        if path.exists():
            found = _read(path)
            if any(found.get(name) != fact for name, fact in facts.items()):
                raise InputError(
                    where=str(path),
                    expected="the result of a run of the same size, to go on with",
                    got="one of another",
                    hint="choose another --out, or delete the file",
                )
            self.content = found

    def once(self, kind: str, key: str, work: Callable[[], Any]) -> Any:  # noqa: ANN401  whatever JSON holds
        """What `work` gave when it was first done; saved at once."""
        if key not in self.content[kind]:
            self.content[kind][key] = work()
            self.add({})
        return self.content[kind][key]

    def add(self, more: Mapping[str, Any]) -> dict[str, Any]:
        """Save, with these fields too."""
        self.content |= more
        text = json.dumps(self.content, indent=1).encode() + b"\n"
        files.write_atomic(self.path, text, overwrite=True, mode=0o644)
        return self.content


def read_finished(path: Path, *, schema: str) -> dict[str, Any]:
    """The object of a finished file; raises InputError when it is not one of that schema."""
    found = _read(path)
    if found.get("schema") != schema:
        raise InputError(
            where=str(path), expected=f"a result of schema {schema}", got=str(found.get("schema"))[:60],
            hint="name the --out file of a finished run",
        )  # fmt: skip
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(files.read_regular(path, max_bytes=1 << 24))
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise InputError(
            where=str(path), expected="the JSON object of a benchmark's run", got="something else",
            hint="choose another --out, or delete the file",
        )  # fmt: skip
    return found
