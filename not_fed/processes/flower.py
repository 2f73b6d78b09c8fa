"""Flower's programs by their command lines, and `flwr` as a caller's function; written for flwr 1.42.0.

    SuperLink    loopback only, TLS, node keys required, app processes elsewhere, superexec by a shared file
    SuperNode    outbound to the coordinator; its own Runtime API on the loopback, with TLS and the same kind of file
    superexec    starts an app process for each task, found by PATH: ours come first (`shims`)

Each program has a FLWR_HOME of its own, sends no telemetry, asks for no update and installs no packages.
"""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from not_fed import files
from not_fed.errors import InputError, PeerError
from not_fed.processes.tls import ServerTls

CONNECTION = "not-fed"  # the only connection in a FLWR_HOME that we write
TASK_POLL_S = 0.2
CLI_TIMEOUT_S = 60.0
REMEMBERED_CHARACTERS = 300
_OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
}
_LOOPBACK = "127.0.0.1,localhost"


class FlowerMissing(PeerError):
    """One of Flower's programs is not installed beside this Python."""

    code = "flower-missing"


class BadNodeConfig(InputError):
    """This text cannot be told to a SuperNode."""

    code = "bad-node-config"


class FlowerFailed(PeerError):
    """Flower's command did not do what it was asked."""

    code = "flower-failed"


class FlowerSilent(PeerError):
    """The SuperLink does not answer."""

    code = "flower-silent"


class NodeKnown(PeerError):
    """Flower knows this node's key already."""

    code = "flower-node-known"


@dataclass(frozen=True, slots=True, kw_only=True)
class Node:
    """A connection that the SuperLink knows."""

    node_id: int
    status: str  # registered, online, offline, unregistered


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One of Flower's runs."""

    run_id: int
    status: str  # pending, starting, running, finished:completed, finished:failed, finished:stopped, and why
    bundle_sha256: str

    @property
    def is_over(self) -> bool:
        """Whether no server app of it works any more."""
        return self.status.startswith("finished")


def flower_environment(
    home_folder: Path, *, path_first: Path | None = None, extra: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The environment of one of Flower's programs.

    Args:
        home_folder: its FLWR_HOME, made when it is missing.
        path_first: the folder in which app processes are looked for first.
        extra: what is set besides; it wins.
    """
    home_folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = [*([str(path_first)] if path_first else []), str(_programs()), os.environ.get("PATH", os.defpath)]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FLWR_")}
    kept.update(_OFF)
    kept.update(
        FLWR_HOME=str(home_folder), FLWR_SUPEREXEC_TASK_POLL_INTERVAL=str(TASK_POLL_S), PATH=os.pathsep.join(path),
        PYTHONUNBUFFERED="1", NO_PROXY=_no_proxy(), no_proxy=_no_proxy(),
    )  # fmt: skip
    return kept | dict(extra or {})


def program(name: str) -> str:
    """The path of one of Flower's programs, beside this Python; raises FlowerMissing."""
    path = _programs() / name
    if not path.is_file():
        raise FlowerMissing(
            where=str(path), expected="Flower's program", got="nothing", hint="install not-fed again, in a venv"
        )
    return str(path)


def superlink_command(*, port: int, tls: ServerTls, database: Path, secret: Path) -> list[str]:
    """A SuperLink that only this machine reaches, that only registered keys and only our superexec may use."""
    return [
        program("flower-superlink"), "--host", "127.0.0.1", "--port", str(port), *_serving(tls),
        "--enable-supernode-auth", "--database", str(database), "--isolation", "process",
        "--superexec-auth-secret-file", str(secret), "--disable-runtime-dependency-installation",
    ]  # fmt: skip


def superexec_command(*, port: int, ca: Path, secret: Path) -> list[str]:
    """A superexec for the SuperLink or SuperNode whose Runtime API is on this port of the loopback."""
    return [
        program("flower-superexec"), "--runtime-api-address", f"127.0.0.1:{port}", "--root-certificates", str(ca),
        "--superexec-auth-secret-file", str(secret),
    ]  # fmt: skip


def supernode_command(
    *, address: str, ca: Path | None, key: Path, node_config: Mapping[str, str | int | bool], port: int,
    tls: ServerTls, secret: Path,
) -> list[str]:  # fmt: skip
    """A SuperNode: outbound to `address`, and a Runtime API on `port` of the loopback for its superexec.

    Args:
        address: host:port of the gateway, or of a SuperLink that somebody else runs.
        ca: whom to believe about `address`; None for the authorities that this machine trusts anyway.
        key: the private node key.
        node_config: what the client app reads; never sent anywhere by Flower.
    """
    return [
        program("flower-supernode"), "--superlink", address, *(["--root-certificates", str(ca)] if ca else []),
        "--auth-supernode-private-key", str(key), "--node-config", _toml_pairs(node_config),
        "--host", "127.0.0.1", "--port", str(port), *_serving(tls), "--isolation", "process",
        "--superexec-auth-secret-file", str(secret),
    ]  # fmt: skip


def write_superexec_secret(path: Path) -> None:
    """A new secret between a SuperLink or SuperNode and its superexec, mode 0600; the old one is replaced."""
    files.write_atomic(path, secrets.token_hex(32).encode(), overwrite=True)


def flwr_config(folder: Path, *, port: int, ca: Path) -> None:
    """Write `config.toml` for the `flwr` command with FLWR_HOME=`folder`: one connection, to this SuperLink."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    text = (
        f'[superlink]\ndefault = "{CONNECTION}"\n\n[superlink.{CONNECTION}]\n'
        f'address = "127.0.0.1:{port}"\nroot-certificates = {json.dumps(str(ca))}\n'
    )
    files.write_atomic(folder / "config.toml", text.encode(), overwrite=True)


def run_app(app: Path, *, home_folder: Path) -> int:
    """Start a Flower run of an app folder; returns Flower's number of it. Errors: see `register_node`."""
    return int(_flwr(home_folder, "run", str(app), CONNECTION)["run-id"])


def register_node(public_key: Path, *, site: str, home_folder: Path) -> int:
    """Let a node with this public key (a file with OpenSSH's line) connect.

    Returns:
        Flower's number of the node.
    Raises:
        NodeKnown: it was registered before. FlowerSilent: no SuperLink answers.
        FlowerFailed: another refusal, in Flower's words.
    """
    return int(_flwr(home_folder, "supernode", "register", str(public_key), CONNECTION, "--name", site)["node-id"])


def unregister_node(node_id: int, *, home_folder: Path) -> None:
    """Let a node connect no more. Errors: see `register_node`."""
    _flwr(home_folder, "supernode", "unregister", str(node_id), CONNECTION)


def list_nodes(*, home_folder: Path) -> list[Node]:
    """All nodes that the SuperLink knows. Errors: see `register_node`."""
    nodes = _flwr(home_folder, "supernode", "list", CONNECTION)["nodes"]
    return [Node(node_id=int(node["node-id"]), status=str(node["status"])) for node in nodes]


def list_runs(*, home_folder: Path) -> list[Run]:
    """All runs that the SuperLink knows. Errors: see `register_node`."""
    return [
        Run(run_id=int(run["run-id"]), status=str(run["status"]), bundle_sha256=str(run["fab-hash"]))
        for run in _flwr(home_folder, "list", CONNECTION)["runs"]
    ]


def stop_run(run_id: int, *, home_folder: Path) -> None:
    """End a run. Errors: see `register_node`."""
    _flwr(home_folder, "stop", str(run_id), CONNECTION)


def build(app: Path, *, work: Path) -> None:
    """`flwr build` of an app folder; the bundle appears in `work`. Raises FlowerFailed, FlowerMissing."""
    done = _run([program("flwr"), "build", "--app", str(app)], home_folder=work / "home", cwd=work)
    if done.returncode != 0:
        raise _failed("build", _last_words(done.stderr or done.stdout))


def _flwr(home_folder: Path, *words: str) -> Any:  # noqa: ANN401  JSON
    """Run `flwr WORDS --format json`, and read what it printed."""
    done = _run([program("flwr"), *words, "--format", "json"], home_folder=home_folder)
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        raise _failed(words[0], _last_words(done.stderr or done.stdout)) from None
    if isinstance(answer, dict) and answer.get("success") is True:
        return answer
    told = str(answer.get("error-message", "")) if isinstance(answer, dict) else ""
    raise _refused(words, told or _last_words(done.stderr))


def _run(argv: Sequence[str], *, home_folder: Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(  # noqa: S603  our own program, no shell
            argv, env=flower_environment(home_folder), cwd=cwd or home_folder, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, errors="replace", timeout=CLI_TIMEOUT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise FlowerSilent(
            where=f"flwr {argv[1]}", expected=f"an answer within {CLI_TIMEOUT_S:.0f} s", got="none",
            hint="see flower/superlink.log in the home",
        ) from None  # fmt: skip


def _refused(words: Sequence[str], told: str) -> PeerError:
    command = " ".join(words[:2]) if words[0] == "supernode" else words[0]
    if "already in use" in told:
        return NodeKnown(where=f"flwr {command}", expected="a new key", got="one that is registered", hint="go on")
    if "unavailable" in told.lower():
        return FlowerSilent(
            where=f"flwr {command}", expected="an answer of the SuperLink", got="none",
            hint="see flower/superlink.log in the home",
        )  # fmt: skip
    return _failed(command, told)


def _failed(command: str, told: str) -> FlowerFailed:
    return FlowerFailed(
        where=f"flwr {command}", expected="success", got=told or "no word", hint="see flower/superlink.log in the home"
    )


def _last_words(text: str) -> str:
    return " ".join(text.split())[-REMEMBERED_CHARACTERS:]


def _serving(tls: ServerTls) -> list[str]:
    return [
        "--ssl-ca-certfile", str(tls.ca), "--ssl-certfile", str(tls.certificate), "--ssl-keyfile", str(tls.key)
    ]  # fmt: skip


def _toml_pairs(values: Mapping[str, str | int | bool]) -> str:
    """Flower's `key="value" ...`, each value as TOML writes it."""
    return " ".join(f"{name}={_toml(name, value)}" for name, value in values.items())


def _toml(name: str, value: object) -> str:
    written = json.dumps(value, ensure_ascii=False)
    if isinstance(value, str) and '"' in value:  # Flower's own reader ends a value there, escaped or not
        written = f"'{value}'"
        if "'" in value or not value.isprintable():
            raise BadNodeConfig(
                where=f"node configuration, {name}", expected="a text without both kinds of quotes", got="both",
                hint="rename the folder",
            )  # fmt: skip
    return written


def _programs() -> Path:
    return Path(sys.executable).parent


def _no_proxy() -> str:
    """A hospital's proxy stays in use for the way out, never for this machine's own programs."""
    before = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
    return f"{before},{_LOOPBACK}" if before else _LOOPBACK
