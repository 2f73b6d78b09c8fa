"""`flwr-serverapp` at a coordinator: runs the server app that the coordinator installed, whatever bundle a run has.

Anybody on this machine who can read the loopback's certificate may start a Flower run. With this command first on the
superexec's PATH such a run is at most one more start of the installed app, which the lock on the home then refuses; and
a bundle that this version does not build is refused before that, because every site would refuse it.
"""

from __future__ import annotations

import hashlib
import importlib
import logging
import os
import sys
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from not_fed.errors import PeerError, TrustError
from not_fed.home import COORDINATOR
from not_fed.processes import bundle

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp import Grid

FLOWER_VERSION = "1.42.0"
RUNTIME = "flwr.superlink.runtime.run_serverapp"
REPLACED = (
    "install_from_fab", "get_fab_metadata", "get_project_dir", "get_project_config", "get_fused_config_from_dir",
    "install_app_dependencies", "run_",
)  # fmt: skip
LOG_FILE = "flower/serverapp.log"
MAX_LOG_BYTES = 8 << 20


class ServerFlowerChanged(PeerError):
    """This Flower is another version than the one whose server app processes not-fed knows."""

    code = "server-flower-changed"


class ForeignBundle(TrustError):
    """This run's bundle is not the one that the installed not-fed builds."""

    code = "foreign-bundle"


def refuse_foreign(content: bytes, *_: object, **__: object) -> Path:
    """Look at a run's bundle instead of installing it; raises ForeignBundle."""
    digest, expected = hashlib.sha256(content).hexdigest(), bundle.expected_bundle_sha256()
    if digest != expected:
        raise ForeignBundle(
            where="bundle of the run", expected=expected, got=digest,
            hint="start runs with `not-fed coordinator serve` of the installed version",
        )  # fmt: skip
    return Path()


def run_installed(grid: Grid, context: Context, **_: object) -> Context:
    """Run the installed server app, in the place of Flower's own loading of it."""
    bundle.load_app("server")(grid=grid, context=context)
    return context


def guard_flower() -> None:
    """Put the above in the place of Flower's loading, in this process; raises ServerFlowerChanged."""
    import flwr

    runtime = importlib.import_module(RUNTIME)
    missing = [name for name in REPLACED if not hasattr(runtime, name)]
    if flwr.__version__ != FLOWER_VERSION or missing:
        raise ServerFlowerChanged(
            where="flwr", expected=f"version {FLOWER_VERSION}",
            got=f"{flwr.__version__}, without {', '.join(missing) or 'nothing'}",
            hint="install not-fed again: it brings its Flower",
        )  # fmt: skip
    stand_ins: dict[str, Any] = {
        "install_from_fab": refuse_foreign, "run_": run_installed, "install_app_dependencies": _no_installs,
        "get_fab_metadata": lambda *_: ("notfed/installed", "0"), "get_project_dir": lambda *_: Path(),
        "get_project_config": lambda *_: {"tool": {"flwr": {"app": {"components": {"serverapp": "installed"}}}}},
        "get_fused_config_from_dir": lambda *_: {},
    }  # fmt: skip
    for name, stand_in in stand_ins.items():
        setattr(runtime, name, stand_in)


def main() -> int:
    """The command; $NOT_FED_COORDINATOR is the coordinator's home, all arguments are Flower's."""
    home = Path(os.environ.get(COORDINATOR, ""))
    if not home.is_absolute() or not home.is_dir():
        sys.stderr.write(f"flwr-serverapp: {COORDINATOR} is not a coordinator's home\n")
        return 1
    os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    _log_to(home / LOG_FILE)
    try:
        guard_flower()
        from flwr.superlink.cli import flwr_serverapp
    except Exception:
        logging.getLogger("not_fed.coordinator").exception("no server app")
        return 1
    flwr_serverapp()
    return 0


def _log_to(path: Path) -> None:
    """Superexec throws a server app's output away: keep what not-fed and Flower say, in a file of mode 0600."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    handler = RotatingFileHandler(path, maxBytes=MAX_LOG_BYTES, backupCount=1, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("not_fed", "flwr"):
        logging.getLogger(name).addHandler(handler)
    logging.getLogger("not_fed").setLevel(logging.INFO)


def _no_installs(*_: object, **__: object) -> NoReturn:
    raise PermissionError("no packages are installed at run time")


if __name__ == "__main__":
    sys.exit(main())
