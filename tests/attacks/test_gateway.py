"""Whoever can reach a coordinator's one open port: what they find there, and what they do not."""

from __future__ import annotations

import gzip
import hashlib
import json
import socket
import ssl
import time
import tracemalloc
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse

from not_fed.coordinator.bank import Bank
from not_fed.coordinator.deployment import load_deployment
from not_fed.coordinator.gateway import visits
from not_fed.coordinator.gateway.admission import STRANGERS_NAMED, Problems
from not_fed.coordinator.gateway.bank_routes import ORGANS_A_ROUND
from not_fed.coordinator.gateway.forward import CALLS
from not_fed.processes.tls import loopback_tls
from not_fed.site.bank_client import BankClient, BankRefused, BankUnreachable
from not_fed.site.connection import Connection
from not_fed.transfer.chunks import list_chunks
from not_fed.trust.roster import revoke_member
from tests.support.coordinators import Hub
from tests.support.enrolments import Joining
from tests.support.gateways import BEHIND, Behind, Gate, SealedFile, open_gate, seal_bytes, serving
from tests.support.trust import FEDERATION

SITES = ("clinic", "ward", "lab")
MIB = 1 << 20


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Hub:
    return Hub.make(tmp_path_factory.mktemp("gate"), sites=SITES)


@pytest.fixture(scope="module")
def gate(hub: Hub) -> Iterator[Gate]:
    with open_gate(hub) as opened:
        yield opened


@pytest.fixture
def sealed(hub: Hub, tmp_path: Path) -> SealedFile:
    return seal_bytes(hub, tmp_path / "one.sealed", sender="clinic", size_bytes=5 * MIB, to=("ward",))


def announcement(sealed: SealedFile, **changes: object) -> bytes:
    chunks = json.loads(list_chunks(sealed.path, chunk_bytes=4 * MIB).to_bytes()) | changes
    return json.dumps({"label": b64encode(sealed.label).decode(), "chunks": chunks}).encode()


def organ(sealed: SealedFile) -> str:
    return f"/v1/bank/organs/{sealed.sha256}"


def test_nothing_but_the_listed_paths_leads_anywhere(gate: Gate, hub: Hub) -> None:
    """Own. Other paths, other methods and other spellings lead to Flower's Control or Runtime API, or to files.

    Powers: every path and method, with an enrolled site's headers; Flower's Control API would start a run, that is
    code, on every site. Control: the twelve calls get through.
    """
    node = gate.as_node(hub.sites["clinic"])
    with gate.client(headers=node) as client:
        for name in CALLS:
            assert client.post(f"/v1/fleet/{name}", content=b"x").content == BEHIND
        reached = len(gate.behind.requests)
        assert reached == len(CALLS)
        paths = [
            "/", "/docs", "/openapi.json", "/redoc", "/v1", "/v1/fleet", "/v1/fleet/", "/v1/control/start-run",
            "/v1/control/register-node", "/v1/runtime/acquire-task", "/v1/runtime/pull-messages",
            "/v1/fleet/start-run", "/v1/fleet/pull-messages/", "//v1/fleet/pull-messages", "/v1//fleet/pull-messages",
            "/v1/Fleet/pull-messages", "/V1/fleet/pull-messages", "/v1/fleet/pull-messages/../../control/start-run",
            "/v1/fleet/../control/start-run", "/v1/fleet/%2e%2e/control/start-run",
            "/v1/fleet/..%2fcontrol/start-run", "/v1%2fcontrol/start-run", "/v1/control%2fstart-run",
            "/v1/fleet/pull%2dmessages", "/v1/fleet/pull-messages%00", "/v1/fleet/pull-messages;x",
            "/v1/fleet/pull-messages?x=1", "/v1/fleet/pull-messages%3fx", "/v1/fleet/./pull-messages",
            "/v1/fleet/pull-messages%20", "/health/", "/health/../v1/control/start-run",
            "/v1/roster/metadata/..%2f..%2fkeys", "/v1/roster/trusted/state", "/v1/roster/metadata/../../state.db",
            "/v1/bank", "/v1/bank/organs", "/v1/bank/organs/../../state.db",
        ]  # fmt: skip
        for path in paths:
            for method in ("GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "CONNECT"):
                answer = raw(gate, method, path, node)
                assert answer in (404, 405, 400), (method, path, answer)
        for method in ("GET", "PUT", "DELETE", "OPTIONS", "HEAD"):
            assert client.request(method, "/v1/fleet/pull-messages").status_code in (404, 405)
    assert len(gate.behind.requests) == reached  # nothing of all that was passed on


def raw(gate: Gate, method: str, path: str, headers: dict[str, str]) -> int:
    """The status of a request whose bytes no client library has tidied."""
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", "Content-Length: 1", "Connection: close"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    with connected(gate) as line:
        line.sendall("\r\n".join([*lines, "", "x"]).encode("latin-1"))
        return int(line.recv(65536).split(b" ", 2)[1])


def connected(gate: Gate) -> ssl.SSLSocket:
    """A line to the gateway, for whoever writes HTTP by hand."""
    plain = socket.create_connection(("127.0.0.1", gate.port), timeout=20)
    return gate.tls.wrap_socket(plain, server_hostname="localhost")


@pytest.mark.parametrize(
    "head",
    [
        "Content-Length: 4\r\nContent-Length: 40",
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: +4",
        "Content-Length: 4, 4",
        "Content-Length: 99999999999999999999",
        "Content-Length: 999999999999",
        "X-Nothing: 1",
    ],
)
def test_a_body_of_unclear_length_is_not_passed_on(gate: Gate, hub: Hub, head: str) -> None:
    """Own. A second request hides in the body of the first, whose length is told twice, wrongly or not at all.

    Powers: an enrolled site hides a second request in the body of the first. Control: a plain one passes."""
    node = "".join(f"{name}: {value}\r\n" for name, value in gate.as_node(hub.sites["clinic"]).items())
    hidden = "0\r\n\r\nPOST /v1/control/start-run HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"
    before = len(gate.behind.requests)
    with connected(gate) as line:
        start = f"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: localhost\r\n{node}{head}\r\n\r\n"
        line.sendall((start + hidden).encode())
        answer = line.recv(65536)
    assert answer.split(b" ", 2)[1][:1] in (b"4", b"5")
    assert len(gate.behind.requests) == before
    with gate.client(headers=gate.as_node(hub.sites["clinic"])) as client:
        assert client.post("/v1/fleet/pull-messages", content=b"0123").content == BEHIND
    assert gate.behind.requests[-1][3] == b"0123"


def test_what_opens_flowers_other_apis_is_not_passed_on(gate: Gate, hub: Hub) -> None:
    """Own. Headers that mean something to the SuperLink's other APIs come through the gateway.

    Powers: headers of its choice. Control: the headers by which Flower knows a node are passed on."""
    with gate.client(headers=gate.as_node(hub.sites["clinic"])) as client:
        client.post(
            "/v1/fleet/pull-messages",
            headers={
                "flwr-task-token": "t", "flwr-superexec-signature": "s", "authorization": "Bearer x", "cookie": "a=b",
                "x-forwarded-for": "10.0.0.1", "flwr-timestamp": "now",
            },
        )  # fmt: skip
    passed = gate.behind.requests[-1][2]
    assert not {"flwr-task-token", "flwr-superexec-signature", "authorization", "cookie", "x-forwarded-for"} & set(
        passed
    )
    assert passed["flwr-timestamp"] == "now"
    assert passed["flwr-public-key"] == gate.as_node(hub.sites["clinic"])["flwr-public-key"]


def test_an_unknown_and_a_revoked_site_get_nowhere_and_are_named(tmp_path: Path) -> None:
    """Own. A stranger, and a site after its revocation, use the Fleet API and the bank.

    Powers: a connection key of its own; then a key that was admitted until its site was revoked.

    Control: before it is revoked the site gets through.
    """
    hub = Hub.make(tmp_path, sites=SITES)
    stranger = Joining.make("clinic", folder=tmp_path / "stranger")  # the name can be taken, the key not
    with open_gate(hub) as gate, gate.client() as client:
        ward = gate.as_node(hub.sites["ward"])
        assert client.post("/v1/fleet/pull-messages", content=b"", headers=ward).status_code == 200
        assert gate.seen == ["ward"]
        assert client.post("/v1/fleet/pull-messages", content=b"").status_code == 403
        assert client.post("/v1/fleet/register-node", content=b"", headers=gate.as_node(stranger)).status_code == 403
        assert gate.token("ward").status_code == 200
        revoke_member(hub.stewards_roster, name="ward", steward=hub.steward, now=datetime.now(UTC))
        hub.take_over_roster()
        answers = [client.post("/v1/fleet/pull-messages", content=b"", headers=ward).status_code]
        for _ in range(60):
            if answers[-1] == 403:
                break
            time.sleep(0.1)
            answers.append(client.post("/v1/fleet/pull-messages", content=b"", headers=ward).status_code)
        assert answers[-1] == 403
        assert gate.token("ward").status_code == 403
        told = gate.problems()
    assert any(
        code == "site-unknown" and stranger.key_id[:16] in text and "127.0.0.1" in text for code, _, text in told
    )
    assert any(code == "site-not-admitted" and site == "ward" and "revoked" in text for code, site, text in told)
    assert len(gate.behind.requests) == len([status for status in answers if status == 200]) + 1


def test_a_visit_opens_a_session_for_its_signer_and_once(gate: Gate, hub: Hub) -> None:
    """Own. A visit to the bank is replayed, made in another's name, or left out for a guessed token.

    Powers: sends a visit again, signs for another, guesses tokens. Control: an honest visit opens."""
    with gate.client() as client:
        nonce = str(client.post("/v1/bank/visits").json()["nonce"])
        assert gate.token("clinic", nonce=nonce).status_code == 200
        assert gate.token("clinic", nonce=nonce).status_code == 403  # once
        assert gate.token("clinic", nonce="0" * 32).status_code == 403  # not ours
        assert gate.token("clinic", signer=hub.sites["ward"]).status_code == 403
        for token in ("x", "Bearer", "0" * 43):
            answer = client.get(f"/v1/bank/organs/{'0' * 64}", headers={"Authorization": f"Bearer {token}"})
            assert answer.status_code == 401
        greeting = b"{}"
        nonce = str(client.post("/v1/bank/visits").json()["nonce"])
        assert client.post(f"/v1/bank/visits/{nonce}", content=greeting).status_code == 403


def test_only_its_sender_leaves_an_organ_and_only_what_its_label_says(
    gate: Gate, hub: Hub, sealed: SealedFile, tmp_path: Path
) -> None:
    """Own. Another's label is used, chunks, lists and sizes are not what was signed.

    Powers: an active site with a session that saw another's label; chunks, lists and sizes of its choice.

    Control: the honest upload ends in the bank, and its recipient gets the same bytes.
    """
    ward, clinic = gate.bearer("ward"), gate.bearer("clinic")
    body, chunk = sealed.path.read_bytes(), 4 * MIB
    with gate.client() as client:

        def put(path: str, data: bytes, headers: dict[str, str] = clinic) -> int:
            return client.put(organ(sealed) + path, content=data, headers=headers).status_code

        assert put("/chunks/0", body[:chunk]) == 409  # not announced
        assert put("", announcement(sealed), ward) == 403  # another's label
        assert put("", announcement(sealed, size_bytes=sealed.size_bytes - 1)) == 403  # a size that was not signed
        assert put("", announcement(sealed, sha256="0" * 64)) == 400
        assert put("", announcement(sealed, chunks=["0" * 64] * 100_000)) == 400
        assert put("", announcement(sealed, chunk_bytes=1 << 40)) == 400
        assert put("", b"[" * 100_000) == 400
        assert put("", announcement(sealed)) == 200
        assert put("/chunks/0", body[:chunk], ward) == 403
        assert put("/chunks/0", body[1 : chunk + 1]) == 422
        assert put("/chunks/0", body[: chunk - 1]) == 422
        assert put("/chunks/0", body[: chunk + 1]) == 413
        assert put("/chunks/2", body[:1]) == 404
        assert client.post(organ(sealed) + "/finish", headers=clinic).status_code == 409  # nothing has arrived
        assert not Bank.at(gate.home).holds(sealed.sha256)
        assert put("/chunks/0", body[:chunk]) == 204
        assert put("/chunks/1", body[chunk:]) == 204
        assert client.get(organ(sealed), headers=ward).status_code == 404  # not there before it was checked
        assert client.post(organ(sealed) + "/finish", headers=clinic).status_code == 200
    with gate.bank("ward") as bank:
        bank.download(sealed.sha256, size_bytes=sealed.size_bytes, out=tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == body
    assert ("label-of-another", "ward") in [(code, site) for code, site, _ in gate.problems()]


def test_a_list_of_other_chunks_than_the_label_means_ends_with_nothing(gate: Gate, hub: Hub, tmp_path: Path) -> None:
    """Own. A signed label is announced with the chunks of another file.

    Powers: a site announces its signed label with another file's chunks. Control: the true ones pass."""
    true = seal_bytes(hub, tmp_path / "true", sender="clinic", size_bytes=MIB)
    false = seal_bytes(hub, tmp_path / "false", sender="clinic", size_bytes=MIB)
    assert true.size_bytes == false.size_bytes
    clinic, other = gate.bearer("clinic"), false.path.read_bytes()
    with gate.client(headers=clinic) as client:
        lie = announcement(true, chunks=[hashlib.sha256(other).hexdigest()])
        assert client.put(organ(true), content=lie).status_code == 200
        assert client.put(organ(true) + "/chunks/0", content=other).status_code == 204
        assert client.post(organ(true) + "/finish").status_code == 403
        assert not Bank.at(gate.home).holds(true.sha256)
        assert Bank.at(gate.home).announced(true.sha256) is None  # deleted
    with gate.bank("clinic") as bank:
        bank.upload(true.path, label=true.label)
    assert Bank.at(gate.home).holds(true.sha256)


def test_only_recipients_fetch_an_organ(gate: Gate, sealed: SealedFile, tmp_path: Path) -> None:
    """Own. A sealed organ is fetched by a member to whom it was not sealed, or under a path for a digest.

    Powers: an active site with a session that knows the digest. Control: the recipient gets it."""
    with gate.bank("clinic") as bank:
        bank.upload(sealed.path, label=sealed.label)
    with gate.client() as client:
        for path in ("", "/chunks/0", "/chunks/1"):
            assert client.get(organ(sealed) + path).status_code == 401
            assert client.get(organ(sealed) + path, headers=gate.bearer("lab")).status_code == 404
            assert client.get(organ(sealed) + path, headers=gate.bearer("ward")).status_code == 200
        for digest in ("0" * 64, "..", sealed.sha256.upper(), sealed.sha256[:-1]):
            assert client.get(f"/v1/bank/organs/{digest}", headers=gate.bearer("ward")).status_code == 404
    assert ("not-a-recipient", "lab") in [(code, site) for code, site, _ in gate.problems()]


def test_the_bank_takes_only_what_the_open_round_awaits(gate: Gate, hub: Hub, tmp_path: Path) -> None:
    """Own. The coordinator's disk is filled with organs that nobody awaits.

    Powers: an active site that wants to fill the coordinator's disk. Control: the awaited organ is taken."""
    for name, more in (("later", {"round_number": 2}), ("never", {"round_number": 99})):
        sealed = seal_bytes(hub, tmp_path / name, sender="lab", size_bytes=MIB, **more)  # type: ignore[arg-type]
        with gate.client(headers=gate.bearer("lab")) as client:
            assert client.put(organ(sealed), content=announcement(sealed)).json()["code"] == "not-awaited"
    plain = tmp_path / "plain"
    plain.write_bytes(b"a plain text " * 10_000)
    awaited = seal_bytes(hub, tmp_path / "awaited", sender="lab", size_bytes=MIB)
    with gate.bank("lab") as bank:
        bank.upload(awaited.path, label=awaited.label)
    assert Bank.at(gate.home).holds(awaited.sha256)


def test_whoever_is_silent_in_mid_body_is_cut_off_and_takes_no_place(tmp_path: Path) -> None:
    """Own. Every place for a chunk is taken by an upload that stalls.

    Powers: a site that takes every place for a chunk and sends nothing. Control: then others work."""
    hub = Hub.make(tmp_path, sites=SITES)
    toml = hub.home / "coordinator.toml"
    own = "[gateway]\nconcurrent_chunks = 2\nslow_client_s = 1.0\n"
    toml.write_text(toml.read_text().replace("[gateway]\n", own, 1))
    assert load_deployment(hub.home).gateway.concurrent_chunks == 2  # type: ignore[union-attr]
    sealed = seal_bytes(hub, tmp_path / "one", sender="clinic", size_bytes=9 * MIB)
    with open_gate(hub) as gate:
        clinic = gate.bearer("clinic")
        with gate.client(headers=clinic) as client:
            client.put(organ(sealed), content=announcement(sealed))
        lines = []
        for _ in range(2):
            line = connected(gate)
            head = f"PUT {organ(sealed)}/chunks/0 HTTP/1.1\r\nHost: x\r\nAuthorization: {clinic['Authorization']}\r\n"
            line.sendall(f"{head}Content-Length: {4 * MIB}\r\n\r\nonly this".encode())
            lines.append(line)
        answers = [int(line.recv(65536).split(b" ", 2)[1]) for line in lines]  # waits until it is cut off
        for line in lines:
            line.close()
        assert answers == [408, 408]
        with gate.bank("clinic") as bank:
            bank.upload(sealed.path, label=sealed.label)
        assert Bank.at(hub.home).holds(sealed.sha256)


def test_a_certificate_of_another_authority_ends_the_connection(gate: Gate, tmp_path: Path) -> None:
    """Own. A machine in the middle answers for the coordinator.

    Powers: a machine in the middle, a certificate for the same name. Control: the coordinator's own opens."""
    between, witness = loopback_tls(tmp_path / "between"), Behind()
    with gate.bank("clinic") as bank:
        bank.fetch_roster(tmp_path)
    with serving(witness, between.certificate, between.key) as port, gate.client() as client:
        deceived = gate.bank("clinic", port=port, patience_s=0.0)
        with deceived, pytest.raises(BankUnreachable, match="certificate"):
            deceived.fetch_roster(tmp_path)
        with pytest.raises(httpx.ConnectError):
            client.get(f"https://localhost:{port}/health")
    assert witness.requests == []


def test_a_revoked_site_cannot_hide_behind_the_key_of_another(tmp_path: Path) -> None:
    """Own. A request bears two keys, of which one is admitted and the other passed on.

    Powers: a revoked site sends an active site's public key in front of its own. Flower keeps
    a revoked site's registration: the gateway is what stands between. Control: alone it passes.
    """
    hub = Hub.make(tmp_path, sites=SITES)
    revoke_member(hub.stewards_roster, name="ward", steward=hub.steward, now=datetime.now(UTC))
    hub.take_over_roster()
    with open_gate(hub) as gate, gate.client() as client:
        clinic, ward = (gate.as_node(hub.sites[name])["flwr-public-key"] for name in ("clinic", "ward"))
        for first, second in ((clinic, ward), (ward, clinic)):
            both = [("flwr-public-key", first), ("flwr-public-key", second)]
            assert client.post("/v1/fleet/pull-messages", content=b"", headers=both).status_code == 400
        assert gate.behind.requests == []
        alone = {"flwr-public-key": clinic}
        assert client.post("/v1/fleet/pull-messages", content=b"", headers=alone).status_code == 200


def test_made_up_keys_do_not_hide_who_else_was_refused(gate: Gate) -> None:
    """Own. The list of who was refused is filled with strangers until nobody else is named.

    Powers: anybody, a new key with each request. Control: the first of them are named."""
    problems = Problems(gate.home)
    for number in range(3 * STRANGERS_NAMED):
        problems.note("site-unknown", f"made up {number}")
    problems.note("site-not-admitted", "this one matters", site="ward")
    told = [text for _, _, text in gate.problems()]
    assert "this one matters" in told and "made up 0" in told
    assert len([text for text in told if text.startswith("made up")]) == STRANGERS_NAMED


def test_whoever_asks_for_nonces_shuts_nobody_out(gate: Gate, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. The bank's memory of nonces is filled.

    Powers: anybody, more requests than are remembered. Control: a member's visit still opens."""
    monkeypatch.setattr(visits, "MAX_NONCES", 20)
    with gate.client() as client:
        first = str(client.post("/v1/bank/visits").json()["nonce"])
        assert {client.post("/v1/bank/visits").status_code for _ in range(30)} == {200}
    assert gate.token("clinic", nonce=first).status_code == 403  # the oldest was forgotten
    assert gate.token("clinic").status_code == 200


def test_whoever_does_not_read_is_cut_off_and_takes_few_places(tmp_path: Path) -> None:
    """Own. Chunks are asked for and not read.

    Powers: a member that asks for more chunks than there are places, and reads none. Control: others work."""
    hub = Hub.make(tmp_path, sites=SITES)
    toml = hub.home / "coordinator.toml"
    own = toml.read_text().replace("[gateway]\n", "[gateway]\nslow_client_s = 2.0\n", 1)
    toml.write_text(own.replace("[bank]\n", f"[bank]\nchunk_bytes = {32 * MIB}\n", 1))  # more than kernels buffer
    sealed = seal_bytes(hub, tmp_path / "one", sender="clinic", size_bytes=32 * MIB - 100_000)
    with open_gate(hub) as gate:
        whole = json.loads(list_chunks(sealed.path, chunk_bytes=32 * MIB).to_bytes())
        with gate.client(headers=gate.bearer("clinic")) as client:
            announced = json.dumps({"label": b64encode(sealed.label).decode(), "chunks": whole})
            assert client.put(organ(sealed), content=announced.encode()).status_code == 200
            assert client.put(f"{organ(sealed)}/chunks/0", content=sealed.path.read_bytes()).status_code == 204
            assert client.post(f"{organ(sealed)}/finish").status_code == 200
        ask = f"GET {organ(sealed)}/chunks/0 HTTP/1.1\r\nHost: x\r\n"
        ask += f"Authorization: {gate.bearer('ward')['Authorization']}\r\n\r\n"
        lines = []
        for _ in range(20):
            line = connected(gate)
            line.sendall(ask.encode())
            lines.append(line)
        for number in range(2):
            with gate.bank("lab") as bank:
                bank.download(sealed.sha256, size_bytes=sealed.size_bytes, out=tmp_path / f"got {number}")
        with gate.bank("ward") as bank:  # once the silent ones are cut off, its places are free again
            bank.download(sealed.sha256, size_bytes=sealed.size_bytes, out=tmp_path / "got")
        answers = [_everything(line) for line in lines]
    assert {answer.split(b" ", 2)[1] for answer in answers} == {b"200", b"503"}
    assert all(len(answer) < 31 * MIB for answer in answers)  # none was sent whole to somebody who did not read


def _everything(line: ssl.SSLSocket) -> bytes:
    got = bytearray()
    try:
        while piece := line.recv(1 << 16):
            got += piece
    except OSError:
        pass
    line.close()
    return bytes(got)


def test_a_trickle_keeps_no_place(tmp_path: Path) -> None:
    """Own. An upload trickles so that it is never silent for long.

    Powers: a site that sends a byte now and then, for ever. Control: others get a place meanwhile."""
    hub = Hub.make(tmp_path, sites=SITES)
    toml = hub.home / "coordinator.toml"
    toml.write_text(toml.read_text().replace("[gateway]\n", "[gateway]\nslow_client_s = 1.0\n", 1))
    sealed = seal_bytes(hub, tmp_path / "one", sender="clinic", size_bytes=9 * MIB)
    with open_gate(hub) as gate:
        clinic = gate.bearer("clinic")
        with gate.client(headers=clinic) as client:
            client.put(organ(sealed), content=announcement(sealed))
        with connected(gate) as line:
            head = f"PUT {organ(sealed)}/chunks/0 HTTP/1.1\r\nHost: x\r\nAuthorization: {clinic['Authorization']}\r\n"
            line.sendall(f"{head}Content-Length: {4 * MIB}\r\n\r\n".encode())
            line.settimeout(0.2)
            for _ in range(200):
                line.sendall(b"x")
                try:
                    answer = line.recv(65536)
                    break
                except TimeoutError:
                    continue
        assert answer.split(b" ", 2)[1] == b"408"
        with gate.bank("clinic") as bank:
            bank.upload(sealed.path, label=sealed.label)


def test_announcements_keep_room_and_a_site_has_few_in_a_round(tmp_path: Path) -> None:
    """Own. Room is announced that is not there.

    Powers: active sites that announce more than there is room for, and organ after organ. Control: one fits."""
    hub = Hub.make(tmp_path, sites=SITES)
    toml = hub.home / "coordinator.toml"
    toml.write_text(toml.read_text().replace("[bank]\n", "[bank]\nmax_bytes = 12000000\n", 1))
    with open_gate(hub) as gate:
        bearer = {site: gate.bearer(site) for site in SITES}

        def announce(site: str, name: str, size: int) -> str:
            one = seal_bytes(hub, tmp_path / name, sender=site, size_bytes=size)
            with gate.client(headers=bearer[site]) as client:
                answer = client.put(organ(one), content=announcement(one))
            return str(answer.json().get("code", answer.status_code))

        assert announce("clinic", "first", 7 * MIB) == "200"
        assert announce("ward", "second", 7 * MIB) == "bank-full"  # the first has not come, and its room is kept
        small = [announce("lab", f"lab {number}", 70_000) for number in range(ORGANS_A_ROUND + 2)]
        assert small == ["200"] * ORGANS_A_ROUND + ["too-many-organs"] * 2


def test_chunks_larger_than_the_coordinators_are_refused(gate: Gate, hub: Hub, tmp_path: Path) -> None:
    """Own. Chunks of another size than the coordinator's are announced.

    Powers: a site that cuts its organ into chunks of 64 MiB, which fill memory. Control: the usual size."""
    sealed = seal_bytes(hub, tmp_path / "large", sender="clinic", size_bytes=9 * MIB)
    large = json.loads(list_chunks(sealed.path, chunk_bytes=64 * MIB).to_bytes())
    body = json.dumps({"label": b64encode(sealed.label).decode(), "chunks": large}).encode()
    with gate.client(headers=gate.bearer("clinic")) as client:
        assert client.put(organ(sealed), content=body).json()["code"] == "chunks-too-large"
        assert client.put(organ(sealed), content=announcement(sealed)).status_code == 200


@pytest.fixture
def liar(hub: Hub, tmp_path: Path) -> Iterator[Callable[[dict[str, Response]], BankClient]]:
    """A coordinator that answers as it likes, and a site's way to it."""
    tls = loopback_tls(tmp_path / "liar")
    with ExitStack() as stack:

        def start(answers: dict[str, Response]) -> BankClient:
            async def app(scope: Any, receive: Any, send: Any) -> None:  # noqa: ANN401
                if scope["type"] != "http":
                    return
                await Request(scope, receive).body()
                known = SESSION | answers
                key = next(key for key in reversed(known) if scope["path"].startswith(key))
                await known[key](scope, receive, send)

            port = stack.enter_context(serving(app, tls.certificate, tls.key))
            connection = Connection(
                address=f"localhost:{port}", ca=tls.ca, coordinator="hub", federation=FEDERATION, gateway=True
            )
            return stack.enter_context(
                BankClient(
                    connection, name="clinic", coordinator="hub", federation=FEDERATION,
                    signer=hub.sites["clinic"].site.signer, patience_s=5.0,
                )
            )  # fmt: skip

        yield start


SESSION = {
    "/v1/bank/visits": JSONResponse({"nonce": "0" * 32}),
    "/v1/bank/visits/": JSONResponse({"token": "t"}),
}


def test_a_coordinator_cannot_fill_a_sites_memory(
    liar: Callable[[dict[str, Response]], BankClient], tmp_path: Path
) -> None:
    """Own. A bank answers more than was asked for.

    Powers: the coordinator answers a kilobyte that unpacks to hundreds of megabytes; then without end.

    Control: the site's memory, measured, and in the other tests an honest answer.
    """
    packed = gzip.compress(bytes(300 * MIB), 1)
    endless = StreamingResponse(bytes(MIB) for _ in range(400))
    for answer in (Response(packed, headers={"content-encoding": "gzip"}), endless):
        client = liar({"/v1/roster": answer})
        tracemalloc.start()
        try:
            with pytest.raises(BankRefused):
                client.fetch_roster(tmp_path)
            assert tracemalloc.get_traced_memory()[1] < 200 * MIB
        finally:
            tracemalloc.stop()


@pytest.mark.parametrize("body", [b"<html>sign in</html>", b"[]", b"{}", b'{"nonce": "../organs"}', b"[" * 100_000])
def test_what_is_no_answer_of_a_bank_is_refused_by_name(
    liar: Callable[[dict[str, Response]], BankClient], sealed: SealedFile, body: bytes
) -> None:
    """Own. Something else answers where the bank should.

    Powers: a portal, or a coordinator, that answers anything. Control: a bank's own answers, elsewhere."""
    with pytest.raises(BankRefused):
        liar({"/v1/bank/visits": Response(body)}).upload(sealed.path, label=sealed.label)
    with pytest.raises(BankRefused):
        liar({"/v1/bank/organs": Response(body)}).upload(sealed.path, label=sealed.label)


def test_a_bank_that_wants_it_again_for_ever_is_given_up(
    liar: Callable[[dict[str, Response]], BankClient], sealed: SealedFile
) -> None:
    """Own. A bank wants the same chunk again without end.

    Powers: the coordinator says of each chunk that it differs. Control: an upload that was cut goes on."""
    organ_path = organ(sealed)
    client = liar(
        {
            organ_path: JSONResponse({"done": False, "have": []}),
            f"{organ_path}/chunks": JSONResponse({"code": "chunk-differs"}, 422),
        }
    )
    with pytest.raises(BankRefused, match="again and again"):
        client.upload(sealed.path, label=sealed.label)
