"""Programs are kept running, end with whoever keeps them, and are told what Flower's own parsers understand."""

from __future__ import annotations

import hashlib
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from base64 import b64encode
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from flwr.common.config import parse_config_args
from flwr.supercore.constant import TASK_TYPE_TO_COMMAND
from flwr.supercore.primitives.asymmetric import public_key_to_bytes

from not_fed import files
from not_fed.keys.node_key import BadNodeKey, create_node_key, node_key_id, node_key_id_of_header, node_public_key
from not_fed.processes import bundle, flower, tls
from not_fed.processes.ports import free_port, listens
from not_fed.processes.shims import APPS, write_shims
from not_fed.processes.supervisor import MAX_LOG_BYTES, BackOff, ChildNotReady, Supervisor
from tests.support.children import ORDERLY, STUBBORN, child, is_running, wait_for

QUICK = BackOff(first_s=0.05, longest_s=0.2, healthy_after_s=60)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# -- supervisor ----------------------------------------------------------------------------------------------


def test_children_are_stopped_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    ends = tmp_path / "ends"
    names = ["first", "second", "third"]
    supervisor = Supervisor(
        [
            child(tmp_path, name, ORDERLY, str(ends), name, ready=(tmp_path / f"ends.{name}").exists)
            for name in names
        ],
        say=[].append,
    )  # fmt: skip
    for name in names:
        supervisor.start(name)
    assert list(supervisor.pids()) == names
    supervisor.stop_all()
    assert ends.read_text().split() == ["third", "second", "first"]
    assert supervisor.pids() == {}


def test_a_dead_child_is_started_again_and_told(tmp_path: Path) -> None:
    told: list[tuple[str, int]] = []
    lines: list[str] = []
    supervisor = Supervisor(
        [child(tmp_path, "one", ORDERLY, str(tmp_path / "ends"), "one", ready=(tmp_path / "ends.one").exists)],
        say=lines.append, on_exit=lambda name, code: told.append((name, code)), back_off=QUICK,
    )  # fmt: skip
    supervisor.start("one")
    before = supervisor.pids()["one"]
    os.kill(before, signal.SIGKILL)
    wait_for(lambda: supervisor.poll() or supervisor.pids().get("one", before) != before)
    assert told == [("one", -signal.SIGKILL)]
    assert supervisor.restarts("one") == 1
    assert "one has ended by SIGKILL" in lines[0]
    supervisor.stop_all()
    supervisor.poll()
    assert supervisor.pids() == {}, "what was stopped stays so"


def test_pauses_grow_up_to_the_longest_and_begin_anew_after_a_healthy_life() -> None:
    back_off, pause_s, pauses = BackOff(first_s=1, longest_s=30, healthy_after_s=60), 0.0, []
    for lived_s in [0, 0, 0, 0, 0, 0, 0, 61, 0]:
        pause_s = back_off.after(pause_s, lived_s=lived_s)
        pauses.append(pause_s)
    assert pauses == [1, 2, 4, 8, 16, 30, 30, 1, 2]


def test_a_child_that_does_not_end_is_killed_with_its_own_children(tmp_path: Path) -> None:
    said = tmp_path / "pids"
    supervisor = Supervisor(
        [child(tmp_path, "deaf", STUBBORN, str(said), ready=said.exists, stop_s=0.2)], say=[].append
    )
    supervisor.start("deaf")
    pids = [int(word) for word in said.read_text().split()]
    assert all(map(is_running, pids))
    assert supervisor.stop("deaf") == -signal.SIGKILL
    supervisor.stop_all()
    assert not any(map(is_running, pids))


def test_what_a_dead_child_left_is_ended_before_the_next_one_starts(tmp_path: Path) -> None:
    said = tmp_path / "pids"
    supervisor = Supervisor(
        [child(tmp_path, "deaf", STUBBORN, str(said), ready=said.exists, stop_s=0.2)], say=[].append, back_off=QUICK
    )
    supervisor.start("deaf")
    leader, orphan = (int(word) for word in said.read_text().split())
    os.kill(leader, signal.SIGKILL)
    wait_for(lambda: supervisor.poll() or supervisor.restarts("deaf"))
    assert not is_running(orphan)
    supervisor.stop_all()


SUPERVISED = """
import os, sys, time
from pathlib import Path
from not_fed.processes.supervisor import Supervisor
from tests.support.children import ORDERLY, STUBBORN, child
folder = Path(sys.argv[1])
supervisor = Supervisor([
    child(folder, "orderly", ORDERLY, str(folder / "ends"), "orderly", ready=(folder / "ends.orderly").exists),
    child(folder, "deaf", STUBBORN, str(folder / "pids"), ready=(folder / "pids").exists),
], say=print, orphan_grace_s=1.0)
supervisor.start("orderly")
supervisor.start("deaf")
(folder / "all").write_text(f"{supervisor.pids()['orderly']} {(folder / 'pids').read_text()}")
while True:
    supervisor.poll()
    time.sleep(0.05)
"""


def test_no_process_outlives_a_supervisor_that_is_killed(tmp_path: Path) -> None:
    """An orderly child, one that is deaf to SIGTERM, and its own child; SIGKILL leaves the supervisor no last word."""
    script = tmp_path / "supervised.py"
    script.write_text(SUPERVISED)
    supervisor = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=os.environ | {"PYTHONPATH": "."})
    try:
        wait_for((tmp_path / "all").exists)
        wait_for(lambda: len((tmp_path / "all").read_text().split()) == 3)
        pids = [int(word) for word in (tmp_path / "all").read_text().split()]
        assert all(map(is_running, pids))
    finally:
        supervisor.kill()
        supervisor.wait()
    wait_for(lambda: not any(map(is_running, pids)))
    assert (tmp_path / "ends").read_text() == "orderly\n", "SIGTERM came first: it could end in order"


def test_a_child_that_ends_before_it_is_ready_is_told_with_its_last_words(tmp_path: Path) -> None:
    code = "print('\\x1b[92mINFO\\x1b[0m: no such port'); raise SystemExit(3)"
    supervisor = Supervisor([child(tmp_path, "one", code, ready=lambda: False)], say=[].append)
    with pytest.raises(ChildNotReady) as caught:
        supervisor.start("one")
    assert "its end; its last words: INFO: no such port" in caught.value.got
    assert supervisor.pids() == {}
    supervisor.stop_all()


def test_a_child_that_does_not_become_ready_is_ended(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [child(tmp_path, "one", "import time; time.sleep(60)", ready=lambda: False, ready_timeout_s=0.3)], say=[].append
    )
    with pytest.raises(ChildNotReady):
        supervisor.start("one")
    assert supervisor.pids() == {}
    supervisor.stop_all()


def test_what_a_child_writes_is_private_and_capped(tmp_path: Path) -> None:
    code = f"""
import sys, time
open("own", "w").close()
sys.stdout.write("x" * {MAX_LOG_BYTES + 1}); sys.stdout.flush()
open("written", "w").close()
while not __import__("os").path.exists("go on"): time.sleep(0.02)
print("after", flush=True)
open("said", "w").close()
time.sleep(60)
"""
    supervisor = Supervisor([child(tmp_path, "one", code, ready=(tmp_path / "written").exists)], say=[].append)
    supervisor.start("one")
    supervisor.poll()
    (tmp_path / "go on").touch()
    wait_for((tmp_path / "said").exists)
    supervisor.stop_all()
    assert (tmp_path / "one.log").read_text() == "after\n"
    assert (tmp_path / "one.log.1").stat().st_size == MAX_LOG_BYTES + 1
    assert {mode_of(tmp_path / name) for name in ("own", "one.log", "one.log.1")} == {0o600}


def test_a_log_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_text("mine")
    (tmp_path / "one.log").symlink_to(tmp_path / "elsewhere")
    supervisor = Supervisor([child(tmp_path, "one", "print('over it')")], say=[].append)
    with pytest.raises(OSError, match="symbolic"):
        supervisor.start("one")
    assert (tmp_path / "elsewhere").read_text() == "mine"


def test_the_terminal_s_interrupt_reaches_the_supervisor_alone(tmp_path: Path) -> None:
    """A ^C goes to the foreground process group: children are in groups of their own."""
    supervisor = Supervisor([child(tmp_path, "one", "import time; time.sleep(60)")], say=[].append)
    supervisor.start("one")
    assert os.getpgid(supervisor.pids()["one"]) == supervisor.pids()["one"] != os.getpgid(0)
    supervisor.stop_all()


def test_the_guard_of_orphans_is_replaced_when_somebody_kills_it(tmp_path: Path) -> None:
    supervisor = Supervisor(
        [child(tmp_path, name, "import time; time.sleep(60)") for name in ("one", "two")], say=[].append
    )
    supervisor.start("one")
    guards = watchers(tmp_path)
    os.kill(guards[0], signal.SIGKILL)
    wait_for(lambda: not is_running(guards[0]))
    supervisor.start("two")
    assert len(watchers(tmp_path)) == 1
    supervisor.stop_all()
    assert watchers(tmp_path) == []


def watchers(_: Path) -> list[int]:
    """Children of this test process that are guards."""
    found = []
    for entry in Path(f"/proc/{os.getpid()}/task").glob("*/children"):
        for pid in map(int, entry.read_text().split()):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") if is_running(pid) else []
            if b"watch" in words:
                found.append(pid)
    return found


# -- what may run --------------------------------------------------------------------------------------------


def test_every_app_type_that_flower_knows_has_a_command_of_ours(tmp_path: Path) -> None:
    assert set(APPS) == set(TASK_TYPE_TO_COMMAND.values())
    write_shims(tmp_path / "bin", allowed={"flwr-clientapp": "platform"})
    assert {path.name for path in (tmp_path / "bin").iterdir()} == set(APPS)
    for name in set(APPS) - {"flwr-clientapp"}:
        done = subprocess.run([tmp_path / "bin" / name, "--token", "x"], capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (77, "")
        assert done.stderr == f"{name}: refused, not-fed runs nothing of this kind here\n"
    done = subprocess.run([tmp_path / "bin" / "flwr-clientapp"], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("Linux" if sys.platform == "linux" else "")


def test_what_else_lies_in_the_folder_of_commands_goes(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text("#!/bin/sh\n")
    write_shims(tmp_path / "bin", allowed={})
    assert {path.name for path in (tmp_path / "bin").iterdir()} == set(APPS)
    with pytest.raises(KeyError):
        write_shims(tmp_path / "bin", allowed={"flwr-anything": "platform"})


# -- Flower's command lines ----------------------------------------------------------------------------------


def test_the_environment_of_flower_is_quiet_and_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_INTERNAL_GRPC_FLEET", "1")
    monkeypatch.setenv("NO_PROXY", "intranet")
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy.example.org:3128")
    found = flower.flower_environment(tmp_path / "home", path_first=tmp_path / "bin", extra={"NOT_FED_SITE": "x"})
    assert {name: value for name, value in found.items() if name.startswith("FLWR_")} == {
        "FLWR_HOME": str(tmp_path / "home"),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.2",
    }
    assert found["PATH"].split(os.pathsep)[:2] == [str(tmp_path / "bin"), str(Path(sys.executable).parent)]
    assert found["NO_PROXY"] == found["no_proxy"] == "intranet,127.0.0.1,localhost"
    assert (found["HTTPS_PROXY"], found["NOT_FED_SITE"]) == ("http://proxy.example.org:3128", "x")
    assert mode_of(tmp_path / "home") == 0o700


def test_flower_s_own_parsers_understand_our_command_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flwr.superlink.cli import flower_superlink
    from flwr.supernode.cli.flower_supernode import _parse_args_run_supernode

    assert callable(flower_superlink)
    served, secret = tls.loopback_tls(tmp_path / "tls"), tmp_path / "secret"
    flower.write_superexec_secret(secret)
    private = tmp_path / "node.key"
    create_node_key(private)
    command = flower.supernode_command(
        address="hub.example.org:8443", ca=served.ca, key=private, node_config={"home": "/srv/site"}, port=9100,
        tls=served, secret=secret,
    )  # fmt: skip
    args = _parse_args_run_supernode().parse_args(command[1:])
    assert (args.superlink, args.host, args.port, args.isolation) == (
        "hub.example.org:8443",
        "127.0.0.1",
        9100,
        "process",
    )
    assert not args.insecure
    assert not args.runtime_dependency_install
    superlink = flower.superlink_command(port=8000, tls=served, database=tmp_path / "state.db", secret=secret)
    known = subprocess.run([superlink[0], "--help"], capture_output=True, text=True, check=True).stdout
    assert {word for word in superlink if word.startswith("--")} <= set(re.findall(r"--[a-z-]+", known))
    assert superlink[superlink.index("--host") + 1] == "127.0.0.1"
    assert "--enable-supernode-auth" in superlink


@pytest.mark.parametrize("home", ["/srv/site", "/srv/my site/ä", '/srv/"quoted"', "/srv/it's", "/srv/a=b.toml"])
def test_a_home_s_name_reaches_the_client_app_as_it_is(home: str) -> None:
    command = flower.supernode_command(
        address="a:1", ca=None, key=Path("k"), node_config={"home": home, "number": 3}, port=1,
        tls=tls.ServerTls(ca=Path("a"), certificate=Path("b"), key=Path("c")), secret=Path("s"),
    )  # fmt: skip
    assert parse_config_args([command[command.index("--node-config") + 1]]) == {"home": home, "number": 3}


def test_a_home_that_flower_cannot_be_told_is_refused() -> None:
    with pytest.raises(flower.BadNodeConfig):
        flower._toml_pairs({"home": "/srv/both\"and'"})


def test_the_secret_between_flower_s_programs_is_private_and_new_each_time(tmp_path: Path) -> None:
    flower.write_superexec_secret(tmp_path / "secret")
    first = (tmp_path / "secret").read_bytes()
    flower.write_superexec_secret(tmp_path / "secret")
    assert (mode_of(tmp_path / "secret"), len(first)) == (0o600, 64)
    assert (tmp_path / "secret").read_bytes() != first


def test_a_superlink_that_does_not_answer_is_named_so(tmp_path: Path) -> None:
    served = tls.loopback_tls(tmp_path / "tls")
    flower.flwr_config(tmp_path / "cli", port=free_port(), ca=served.ca)
    with pytest.raises(flower.FlowerSilent):
        flower.list_nodes(home_folder=tmp_path / "cli")


# -- the bundle ----------------------------------------------------------------------------------------------


def test_two_builds_of_the_bundle_are_the_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NOT_FED_CACHE", str(tmp_path / "cache"))
    (app, first), (_, second) = (bundle.build_bundle(tmp_path / name) for name in ("one", "two"))
    assert first == second == hashlib.sha256((tmp_path / "one" / "not-fed-bundle.fab").read_bytes()).hexdigest()
    assert bundle.expected_bundle_sha256() == first
    assert sorted(path.name for path in app.iterdir()) == ["clients", "pyproject.toml", "server"]
    assert {path.suffix for path in app.rglob("*") if path.is_file()} == {".py", ".toml"}


def test_the_kept_digest_of_the_bundle_counts_only_while_it_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOT_FED_CACHE", str(tmp_path))
    digest = bundle.expected_bundle_sha256()
    (kept,) = (tmp_path / "bundles").iterdir()
    kept.write_text("not a digest")
    assert bundle.expected_bundle_sha256() == digest
    kept.write_text("ab" * 32)
    assert bundle.expected_bundle_sha256() == "ab" * 32, "control: it is read from there"


# -- TLS and keys --------------------------------------------------------------------------------------------


def speak(served: tls.ServerTls, *, host: str = "127.0.0.1", ca: Path | None = None) -> str:
    """One real handshake over the loopback."""
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(served.certificate, served.key)
    client = ssl.create_default_context(cafile=str(ca or served.ca))
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            connection, _ = listener.accept()
            try:
                with server.wrap_socket(connection, server_side=True) as secured:
                    secured.sendall(b"hello")
            except OSError:
                connection.close()

        thread = threading.Thread(target=answer)
        thread.start()
        try:
            with (
                socket.create_connection(listener.getsockname()) as raw,
                client.wrap_socket(raw, server_hostname=host) as secured,
            ):
                return secured.recv(5).decode()
        finally:
            thread.join()


def test_loopback_certificates_hold_for_this_machine_and_nobody_can_issue_another(tmp_path: Path) -> None:
    served = tls.loopback_tls(tmp_path / "one")
    assert speak(served) == speak(served, host="localhost") == "hello"
    with pytest.raises(ssl.SSLCertVerificationError):
        speak(served, host="hub.example.org")
    with pytest.raises(ssl.SSLCertVerificationError):
        speak(served, ca=tls.loopback_tls(tmp_path / "two").ca)
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["ca.crt", "loopback.crt", "loopback.key"]
    assert mode_of(served.key) == 0o600


def test_loopback_certificates_stay_while_they_serve_and_are_made_anew_when_they_do_not_fit(tmp_path: Path) -> None:
    served = tls.loopback_tls(tmp_path)
    before = served.certificate.read_bytes()
    assert tls.loopback_tls(tmp_path).certificate.read_bytes() == before
    files.write_atomic(served.key, tls.loopback_tls(tmp_path / "other").key.read_bytes(), overwrite=True)
    assert speak(tls.loopback_tls(tmp_path)) == "hello"
    assert served.certificate.read_bytes() != before


def test_a_certificate_of_one_s_own_authority_is_renewed_with_the_same_key(tmp_path: Path) -> None:
    ca = tls.create_ca(tmp_path)
    path = tls.issue_server_certificate(tmp_path, ca=tmp_path, hosts=["hub.example.org", "127.0.0.1"], days=30)
    key, first = (tmp_path / "server.key").read_bytes(), tls.read_certificate(path)
    assert speak(tls.ServerTls(ca=ca, certificate=path, key=tmp_path / "server.key")) == "hello"
    tls.issue_server_certificate(tmp_path, ca=tmp_path, hosts=["hub.example.org"], days=60)
    second = tls.read_certificate(path)
    assert (tmp_path / "server.key").read_bytes() == key
    assert second.not_after - first.not_after > timedelta(days=29)
    assert (first.hosts, second.hosts) == (("hub.example.org", "127.0.0.1"), ("hub.example.org",))
    assert {mode_of(tmp_path / name) for name in ("ca.key", "server.key")} == {0o600}
    tls.require_pair(path, tmp_path / "server.key")
    with pytest.raises(tls.CertificateKeyMismatch):
        tls.require_pair(path, tmp_path / "ca.key")
    with pytest.raises(files.OutputExists):
        tls.create_ca(tmp_path)


@pytest.mark.parametrize("shift", [timedelta(days=31), timedelta(hours=-2)], ids=["over", "not begun"])
def test_a_certificate_that_does_not_hold_now_is_refused_with_its_dates(tmp_path: Path, shift: timedelta) -> None:
    tls.create_ca(tmp_path)
    path = tls.issue_server_certificate(tmp_path, ca=tmp_path, hosts=["localhost"], days=30)
    now = datetime.now(UTC)
    assert tls.require_current(path, now).hosts == ("localhost",)
    with pytest.raises(tls.CertificateExpired) as caught:
        tls.require_current(path, now + shift)
    assert str(tls.read_certificate(path).not_after.year) in caught.value.expected
    assert "server.crt" in caught.value.where


def test_what_is_no_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.crt").write_text("hello")
    with pytest.raises(tls.BadCertificate):
        tls.read_certificate(tmp_path / "x.crt")


def test_a_node_key_has_the_name_of_what_flower_sends(tmp_path: Path) -> None:
    text = create_node_key(tmp_path / "node.key")
    key = serialization.load_ssh_public_key(text.encode())
    assert isinstance(key, ec.EllipticCurvePublicKey)
    header = b64encode(public_key_to_bytes(key)).decode()  # as NodeAuthHttpInterceptor writes it
    assert node_key_id(text) == node_key_id(f"{text} a comment\n") == node_key_id_of_header(header)
    assert (node_public_key(tmp_path / "node.key"), mode_of(tmp_path / "node.key")) == (text, 0o600)
    assert node_key_id_of_header(None) is node_key_id_of_header("é") is node_key_id_of_header("not base64!") is None


def test_a_key_of_another_kind_is_no_node_key() -> None:
    encoding, form = serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    signing = ed25519.Ed25519PrivateKey.generate().public_key().public_bytes(encoding, form).decode()
    small = ec.generate_private_key(ec.SECP256K1()).public_key()
    pem = small.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    for text in (signing, pem, "", "hello", "ecdsa-sha2-nistp384 AAAA"):
        with pytest.raises(BadNodeKey):
            node_key_id(text)


def test_a_free_port_is_one_that_nobody_listens_on() -> None:
    port = free_port()
    assert not listens(port)
    with socket.create_server(("127.0.0.1", port)):
        assert listens(port)
    assert time.monotonic() > 0
