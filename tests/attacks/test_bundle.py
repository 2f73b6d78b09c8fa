"""Adversary: a coordinator, or whoever runs its SuperLink, that sends sites a bundle of its own.

Powers: chooses the bundle, its name, version and digest as Flower announces them, the app type, and every message; can
have put folders where Flower installs bundles. Lacks: the site's disk beyond that, and its policy.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND, TaskType
from flwr.supercore.superexec.executor import ExecutionSpec
from flwr.supercore.superexec.executor.subprocess_executor import SubprocessExecutor
from flwr.supercore.task_identity import TaskIdentity

from not_fed.keys.node_key import create_node_key, node_public_key
from not_fed.processes import bundle, flower, tls
from not_fed.processes.ports import free_port, listens
from not_fed.processes.shims import write_shims
from not_fed.processes.supervisor import Child, Supervisor
from not_fed.site.clientapp import BundleChanged, BundleUnpinned, FlowerChanged, Guard, approve, require_flower
from not_fed.site.connection import Connection
from not_fed.site.creating import NODE_KEY
from not_fed.site.join import children
from tests.support.children import wait_for
from tests.support.federation import tiny_prepared

MARK = "import os, pathlib; pathlib.Path(os.environ.get('MARK', os.devnull)).open('a').write({name!r} + '\\n')\n"
EVIL_CLIENT = (
    MARK
    + """
from flwr.clientapp import ClientApp
from flwr.app import Message
app = ClientApp()
@app.query("greet")
def greet(message, context):
    return Message(message.content, reply_to=message)
@app.train()
def train(message, context):
    return Message(message.content, reply_to=message)
"""
)
# sends each site what a coordinator may send, and things that it may not, and keeps what comes back
EVIL_SERVER = """
import json, os, pathlib, time
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import ServerApp
app = ServerApp()
@app.main()
def main(grid, context):
    while not (nodes := list(grid.get_node_ids())):
        time.sleep(0.1)
    kinds = ["query.greet", "train", "query.unheard"]
    messages = [
        Message(RecordDict({"greeting": ConfigRecord({"nonce": "ab" * 16, "protocol": 1})}), nodes[0], kind)
        for kind in kinds
    ]
    said = {}
    for kind, message in zip(kinds, messages):
        for reply in grid.send_and_receive([message], timeout=60):
            said[kind] = (
                {"error": [reply.error.code, reply.error.reason]} if reply.has_error()
                else {name: {k: str(v) for k, v in dict(record).items()} for name, record in reply.content.items()}
            )
    out = pathlib.Path(os.environ["SAID"])
    out.with_suffix(".part").write_text(json.dumps(said))
    out.with_suffix(".part").rename(out)
"""


def evil_app(folder: Path) -> Path:
    """An app folder whose every module leaves a mark when it is imported, not_fed and a library among them."""
    texts = {name: MARK.format(name=name) for name in ("clients/__init__.py", "not_fed/__init__.py", "safetensors.py")}
    texts |= {"clients/app.py": EVIL_CLIENT.format(name="clients/app.py")}
    texts |= {"server/__init__.py": "", "server/app.py": EVIL_SERVER}
    for name, text in texts.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    everything = bundle._PYPROJECT.replace('"clients/**/*.py", "server/**/*.py"', '"**/*.py"')
    (folder / "pyproject.toml").write_text(everything.format(version="9.9.9"))
    return folder


# -- the decision -------------------------------------------------------------------------------------------------


def test_a_bundle_is_accepted_by_its_digest_alone(tmp_path: Path) -> None:
    """Own. One byte of the bundle is another, or the site's policy names none.

    Powers: sends any bytes. Control: the very bytes whose digest the policy names are accepted.
    """
    app, digest = bundle.build_bundle(tmp_path)
    content = (tmp_path / f"{app.name}.fab").read_bytes()
    assert approve(content, pins=["ab" * 32, digest]) == digest
    for changed in (content + b"\0", b"\0" + content, content[:-1], b""):
        with pytest.raises(BundleChanged):
            approve(changed, pins=[digest])
    for none in ([], None):
        with pytest.raises(BundleUnpinned):
            approve(content, pins=none)


def order() -> Message:
    TaskIdentity.run_id = TaskIdentity.node_id = TaskIdentity.task_id = 1
    message = Message(RecordDict({"greeting": ConfigRecord({"nonce": "ab" * 16})}), 1, "query.greet")
    message.metadata.__dict__["_message_id"] = "1"
    return message


def context_of(home: Path) -> Context:
    return Context(1, 1, {"home": str(home)}, RecordDict(), {}, 1)


def refused(reply: Message) -> object:
    assert reply.has_content()
    assert set(reply.content) == {"answer"}
    return dict(reply.content["answer"])


def test_a_guard_that_has_seen_no_bundle_answers_nothing(tmp_path: Path) -> None:
    """Own. Flower's own order of steps is changed so that the app is called before the bundle came.

    Powers: runs another Flower. Control: after the approved bundle was seen, the installed app answers.
    """
    prepared = tiny_prepared(tmp_path)
    home = prepared.sites["clinic"]
    guard = Guard(home)
    load = guard.get_load_client_app_fn(default_app_ref="", app_path=None, multi_app=True)
    app = load("a/b", "1", "ab" * 32)
    assert refused(app(message=order(), context=context_of(home))) == {"refused": "bundle-unseen"}
    _, digest = bundle.build_bundle(tmp_path / "bundle")
    pin(home, digest)
    guard.install_from_fab((tmp_path / "bundle" / "not-fed-bundle.fab").read_bytes(), skip_prompt=True)
    assert "greeting" in dict(app(message=order(), context=context_of(home)).content["answer"])


def test_nothing_but_a_code_says_why_an_installed_app_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. The app raises with a record in its message, as a library might; Flower would send the text.

    Powers: reads every reply. Control: the site's own log has the whole story.
    """
    prepared = tiny_prepared(tmp_path)
    home = prepared.sites["clinic"]
    _, digest = bundle.build_bundle(tmp_path / "bundle")
    pin(home, digest)
    guard = Guard(home)
    guard.install_from_fab((tmp_path / "bundle" / "not-fed-bundle.fab").read_bytes())

    def broken(*_: object) -> Message:
        raise RuntimeError("patient 42 has a rash")

    monkeypatch.setattr(bundle, "load_app", lambda _: broken)
    reply = guard.answer(order(), context_of(home))
    assert refused(reply) == {"refused": "internal-error"}
    assert "patient 42 has a rash" in (home / "log").read_text()


def test_another_flower_runs_no_app_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. A newer Flower loads apps by other names, so that the guard would guard nothing.

    Powers: none; an administrator upgrades. Control: the pinned version is taken.
    """
    runtime = require_flower()
    monkeypatch.delattr(runtime, "install_from_fab")
    with pytest.raises(FlowerChanged):
        require_flower()
    monkeypatch.undo()
    monkeypatch.setattr("flwr.__version__", "1.43.0")
    with pytest.raises(FlowerChanged):
        require_flower()


# -- other app types ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(set(TaskType) - {TaskType.CLIENT_APP}))
def test_a_coordinator_cannot_choose_another_app_type(
    kind: TaskType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own. The SuperLink names an agent, a model, a connector, a simulation or a server app instead of a client app.

    Powers: chooses the type; Flower's superexec starts whatever it names. Control: without our folder first, it runs.
    """
    mark, theirs = tmp_path / "ran", tmp_path / "theirs"
    theirs.mkdir()
    (theirs / TASK_TYPE_TO_COMMAND[kind]).write_text(f"#!/bin/sh\ntouch {mark}\n")
    (theirs / TASK_TYPE_TO_COMMAND[kind]).chmod(0o700)
    write_shims(tmp_path / "ours", allowed={"flwr-clientapp": "not_fed.site.clientapp"})
    launched: list[subprocess.Popen[bytes]] = []
    popen = subprocess.Popen

    def remember(*args: object, **more: object) -> subprocess.Popen[bytes]:
        launched.append(popen(*args, **more))  # type: ignore[call-overload]
        return launched[-1]

    monkeypatch.setattr("flwr.supercore.superexec.executor.subprocess_executor.subprocess.Popen", remember)
    spec = ExecutionSpec(
        task_type=kind, runtime_api_address="127.0.0.1:1", token="t", insecure=False, root_certificates_path=None,
        runtime_dependency_install=False, parent_pid=None, suppress_output=True, task_id=1,
    )  # fmt: skip
    monkeypatch.setenv("PATH", f"{tmp_path / 'ours'}:{theirs}:{os.environ['PATH']}")
    SubprocessExecutor().launch(spec)
    assert launched[-1].wait(20) == 77
    assert not mark.exists()
    monkeypatch.setenv("PATH", f"{theirs}:{os.environ['PATH']}")
    SubprocessExecutor().launch(spec)
    assert launched[-1].wait(20) == 0
    assert mark.exists()


# -- a whole SuperLink in the wrong hands -------------------------------------------------------------------------


@dataclass
class Hostile:
    """A SuperLink whose owner runs server apps of its own, and one site that is joined to it."""

    folder: Path
    home: Path
    cli: Path
    supervisor: Supervisor

    @property
    def marks(self) -> list[str]:
        path = self.folder / "marks"
        return path.read_text().split() if path.exists() else []

    def send(self, app: Path) -> dict[str, dict[str, Any]]:
        """Run an app, and what the site said to it."""
        said = self.folder / "said"
        said.unlink(missing_ok=True)
        flower.run_app(app, home_folder=self.cli)

        def came() -> bool:
            self.supervisor.poll()
            return said.exists()

        wait_for(came, timeout_s=120)
        result: dict[str, dict[str, Any]] = json.loads(said.read_text())
        return result


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hostile]:
    folder = tmp_path_factory.mktemp("hostile")
    home = tiny_prepared(folder / "prepared").sites["clinic"]
    create_node_key(home / NODE_KEY)
    link, port, cli = folder / "superlink", free_port(), folder / "cli"
    link.mkdir()
    served, secret = tls.loopback_tls(link / "tls"), link / "secret"
    flower.write_superexec_secret(secret)
    environment = flower.flower_environment(link / "home", extra={"SAID": str(folder / "said")})
    connection = Connection(
        address=f"127.0.0.1:{port}", ca=served.ca, coordinator="coordinator", federation="hospitals", gateway=False
    )
    site = [with_mark(one, folder / "marks") for one in children(home, connection, port=free_port())]
    supervisor = Supervisor(
        [
            Child(
                name="superlink", env=environment, log=link / "superlink.log", cwd=link, ready=lambda: listens(port),
                argv=flower.superlink_command(port=port, tls=served, database=link / "state.db", secret=secret),
            ),
            Child(
                name="their-superexec", env=environment, log=link / "superexec.log", cwd=link,
                argv=flower.superexec_command(port=port, ca=served.ca, secret=secret),
            ),
            *site,
        ],
        say=[].append,
    )  # fmt: skip
    try:
        supervisor.start("superlink")
        supervisor.start("their-superexec")
        flower.flwr_config(cli, port=port, ca=served.ca)
        (folder / "node.pub").write_text(node_public_key(home / NODE_KEY))
        flower.register_node(folder / "node.pub", site="clinic", home_folder=cli)
        for one in site:
            supervisor.start(one.name)
        yield Hostile(folder, home, cli, supervisor)
    finally:
        supervisor.stop_all()


def with_mark(one: Child, mark: Path) -> Child:
    return replace(one, env={**one.env, "MARK": str(mark)})


def pin(home: Path, *digests: str) -> None:
    """Write the digests that the site approves into its policy."""
    path = home / "site.toml"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("bundle_sha256")]
    path.write_text("\n".join([f"bundle_sha256 = {json.dumps(digests)}", *lines]) + "\n")


def digest_of(app: Path, work: Path) -> str:
    """The digest that Flower will give to an app folder."""
    work.mkdir()
    flower.build(app, work=work)
    (built,) = work.glob("*.fab")
    return hashlib.sha256(built.read_bytes()).hexdigest()


@pytest.mark.faults
def test_a_changed_bundle_is_refused_and_none_of_it_is_run(hostile: Hostile, tmp_path: Path) -> None:
    """Own. A bundle that shadows not_fed and a library comes through a real SuperLink; one like it lies installed.

    Powers: runs the SuperLink and its server app, reads every reply. Control: the same bundle leaves its marks where it
    is imported, and the next test has it approved.
    """
    app = evil_app(tmp_path / "evil")
    digest = digest_of(app, tmp_path / "built")
    evil_app(hostile.home / "flower" / "home" / "apps" / f"notfed.not-fed-bundle.9.9.9.{digest[:8]}")  # a stale one
    pin(hostile.home, bundle.expected_bundle_sha256())
    said = hostile.send(app)
    expected = {"answer": {"refused": "bundle-changed"}}
    assert said == dict.fromkeys(["query.greet", "train", "query.unheard"], expected)
    assert hostile.marks == []
    log = (hostile.home / "log").read_text()
    assert digest in log
    assert bundle.expected_bundle_sha256() in log
    run = "import sys; sys.path.insert(0, '.'); import clients.app, not_fed"
    subprocess.run([sys.executable, "-c", run], cwd=app, env=os.environ | {"MARK": str(tmp_path / "marks")}, check=True)
    marks = (tmp_path / "marks").read_text().split()
    assert marks == ["clients/__init__.py", "clients/app.py", "not_fed/__init__.py"]


@pytest.mark.faults
def test_even_an_approved_bundle_is_never_run(hostile: Hostile, tmp_path: Path) -> None:
    """Own. The site's administrator was talked into approving the attacker's bundle.

    Powers: as before, and a digest in the site's policy. Control: it is the installed app that answers, with a greeting
    in the site's name.
    """
    app = evil_app(tmp_path / "evil")
    pin(hostile.home, digest_of(app, tmp_path / "built"))
    said = hostile.send(app)
    assert set(said["query.greet"]["answer"]) == {"greeting"}
    assert said["train"]["answer"].keys() == {"refused"}
    assert said["query.unheard"] == {"answer": {"refused": "internal-error"}}
    assert hostile.marks == []
