"""A folder for the front of a superexec's PATH: which app types may run here, and that they run our installed code.

A superexec starts whatever app type the SuperLink names, by a command found through PATH: `flwr-clientapp` for a client
app, `flwr-agentapp` for an agent, and so on. In this folder each of these names is ours: the permitted ones start a
module of the installed not_fed, all others say no.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping
from pathlib import Path

from not_fed import files

APPS = ("flwr-agentapp", "flwr-clientapp", "flwr-connector", "flwr-model", "flwr-serverapp", "flwr-simulation")
REFUSED = 77
_PERMITTED = """\
#!/bin/sh
# -P: the folder in which this runs is not searched for modules
exec {python} -P -m {module} "$@"
"""
_REFUSED = """\
#!/bin/sh
echo "{name}: refused, not-fed runs nothing of this kind here" >&2
exit {status}
"""


def write_shims(folder: Path, *, allowed: Mapping[str, str]) -> None:
    """Write one command for each of Flower's app types, and keep nothing else in `folder`.

    Args:
        allowed: command -> module of not_fed, such as {"flwr-clientapp": "not_fed.site.clientapp"}.
    Raises:
        KeyError: a command that is none of Flower's app types.
    Guarantees:
        Every app type has its command here, so that a PATH that begins with this folder finds no other.
    Proved by: tests/unit/test_processes.py::test_every_app_type_that_flower_knows_has_a_command_of_ours
    """
    if strange := sorted(set(allowed) - set(APPS)):
        raise KeyError(strange)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for path in folder.iterdir():
        if path.name not in APPS:
            path.unlink()
    for name in APPS:
        module = allowed.get(name)
        text = (
            _REFUSED.format(name=name, status=REFUSED)
            if module is None
            else _PERMITTED.format(python=shlex.quote(sys.executable), module=module)
        )
        files.write_atomic(folder / name, text.encode(), overwrite=True, mode=0o700)
