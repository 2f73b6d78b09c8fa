"""`flwr-clientapp` at a site: runs the client app that the site installed, never the one that a coordinator sent.

Flower's own command unpacks the bundle that comes with a message into a folder, puts that folder first on `sys.path`,
and imports the app from it: whoever runs the SuperLink would run code beside the records. This one looks at the
bundle's digest and throws the bundle away. A digest that the site's policy does not name is answered by a refusal; one
that it names, by the same app as always, which is part of the installed not_fed.

It replaces three names in one module of Flower, of one version, and starts nothing when they are not as expected.
"""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from not_fed.errors import NotFedError, PeerError, TrustError
from not_fed.home import Home
from not_fed.processes import bundle
from not_fed.site.log_file import note

if TYPE_CHECKING:
    from flwr.app import Context, Message

SITE = "NOT_FED_SITE"  # a site's home
FLOWER_VERSION = "1.42.0"
RUNTIME = "flwr.supernode.runtime.run_clientapp"
REPLACED = ("install_from_fab", "get_load_client_app_fn", "get_project_dir", "install_app_dependencies")


class FlowerChanged(PeerError):
    """This Flower is another version than the one whose app processes not-fed knows."""

    code = "flower-changed"


class BundleChanged(TrustError):
    """The coordinator sent another bundle than those that this site has approved."""

    code = "bundle-changed"


class BundleUnpinned(TrustError):
    """This site's policy approves no bundle."""

    code = "bundle-unpinned"


def approve(content: bytes, *, pins: list[str] | None) -> str:
    """The digest of a bundle that the site has approved.

    Args:
        content: the bundle as it came; it is hashed, and nothing else.
        pins: the policy's `bundle_sha256`.
    Raises:
        BundleUnpinned: there are none. BundleChanged: it is none of them.
    Proved by: tests/attacks/test_bundle.py::test_a_changed_bundle_is_refused_and_none_of_it_is_run
    """
    digest = hashlib.sha256(content).hexdigest()
    if not pins:
        raise BundleUnpinned(
            where="site.toml, field bundle_sha256", expected="the digests that you approve", got="none",
            hint=f"when you trust it, write bundle_sha256 = [{digest!r}]; nothing of it was run",
        )  # fmt: skip
    if digest not in pins:
        raise BundleChanged(
            where="bundle of the coordinator", expected=" or ".join(pins), got=digest,
            hint="ask the coordinator what changed before you approve it in site.toml; nothing of it was run",
        )  # fmt: skip
    return digest


class Guard:
    """What stands in for Flower's loading of apps, for the one message of this process."""

    def __init__(self, home: Path) -> None:
        self._home = home
        self._refused: str | None = "bundle-unseen"  # until the bundle has been looked at

    def install_from_fab(self, content: bytes, *_: object, **__: object) -> Path:
        """Look at a bundle instead of installing it; never raises, since Flower would send the reason."""
        try:
            from not_fed.site.policy import load_policy

            approve(content, pins=getattr(load_policy(self._home), "bundle_sha256", None))
            self._refused = None
        except Exception as error:  # noqa: BLE001  whatever it is, only a code may leave
            self._refused = self._told(error)
        return Path()

    def get_load_client_app_fn(self, *_: object, **__: object) -> Callable[..., Callable[..., Message]]:
        """A loader that always loads the same app: `answer`."""
        return lambda *_: self.answer

    def answer(self, message: Message, context: Context) -> Message:
        """The installed app's reply, or a refusal.

        Proved by: tests/unit/test_site_roster_watch.py::test_an_order_under_a_newer_roster_is_answered_when_it_came
        """
        if self._refused is not None:
            return _refusal(message, self._refused)
        try:
            app = bundle.load_app("clients")
            reply: Message = app(message, context)
            if _refused(reply) == "other-roster" and self._took_over_newer_roster():
                reply = app(message, context)
        except Exception as error:  # noqa: BLE001  Flower would send its text
            return _refusal(message, self._told(error))
        return reply

    def _took_over_newer_roster(self) -> bool:
        """Fetch what the stewards have signed since: a revocation holds with the first order that knows of it."""
        from not_fed.site.connection import load_connection
        from not_fed.site.roster_watch import update_from

        connection, now = load_connection(self._home), datetime.now(UTC)
        if connection is None or not connection.gateway:
            return False
        before = Home(self._home).roster(now).version
        return update_from(connection, self._home, now=now).version > before

    def _told(self, error: Exception) -> str:
        """Tell the site's own log; the code is what the coordinator may know."""
        if isinstance(error, NotFedError):
            note(self._home, f"refused: {error.code}: {error}; {error.hint}")
            return error.code
        note(self._home, "".join(traceback.format_exception(error)))
        return "internal-error"


def require_flower() -> Any:  # noqa: ANN401  a module of Flower
    """Flower's module that runs client apps, when it is the one that not-fed knows; raises FlowerChanged."""
    import flwr

    runtime = importlib.import_module(RUNTIME)
    missing = [name for name in REPLACED if not hasattr(runtime, name)]
    if flwr.__version__ != FLOWER_VERSION or missing:
        raise FlowerChanged(
            where="flwr", expected=f"version {FLOWER_VERSION}",
            got=f"{flwr.__version__}, without {', '.join(missing) or 'nothing'}",
            hint="install not-fed again: it brings its Flower",
        )  # fmt: skip
    return runtime


def guard_flower(home: Path) -> Guard:
    """Put a guard in the place of Flower's loading, in this process. Raises FlowerChanged."""
    runtime, guard = require_flower(), Guard(home)
    runtime.install_from_fab = guard.install_from_fab
    runtime.get_load_client_app_fn = guard.get_load_client_app_fn
    runtime.get_project_dir = lambda *_: Path()
    runtime.install_app_dependencies = _no_installs
    return guard


def main() -> int:
    """The command; $NOT_FED_SITE is the site's home, all arguments are Flower's."""
    home = Path(os.environ.get(SITE, ""))
    if not home.is_absolute() or not home.is_dir():
        sys.stderr.write(f"flwr-clientapp: {SITE} is not a site's home\n")
        return 1
    os.environ.update(FLWR_TELEMETRY_ENABLED="0", FLWR_DISABLE_UPDATE_CHECK="1")
    try:
        guard_flower(home)
        from flwr.supernode.cli import flwr_clientapp
    except Exception as error:  # noqa: BLE001  no message has been taken: nothing leaves
        note(home, f"no client app: {error}")
        return 1
    flwr_clientapp()
    return 0


def _refused(reply: Message) -> object:
    from flwr.app import ConfigRecord

    record = reply.content.get("answer") if reply.has_content() else None
    return record.get("refused") if isinstance(record, ConfigRecord) else None


def _refusal(message: Message, code: str) -> Message:
    from flwr.app import ConfigRecord, Message, RecordDict

    return Message(RecordDict({"answer": ConfigRecord({"refused": code})}), reply_to=message)


def _no_installs(*_: object, **__: object) -> NoReturn:
    raise PermissionError("no packages are installed at run time")


if __name__ == "__main__":
    sys.exit(main())
