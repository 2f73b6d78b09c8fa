"""What keeps a site from connecting is named before Flower is started: on which side, what was expected, what found."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from not_fed.envelope.task import PROTOCOL, ClockApart, OtherProtocol
from not_fed.errors import NotFedError
from not_fed.processes import tls
from not_fed.processes.ports import free_port
from not_fed.processes.tls import CertificateExpired
from not_fed.site.connection import (
    Connection,
    NoConnection,
    load_connection,
    require_connection,
    write_connection,
)
from not_fed.site.preflight import (
    GATEWAY,
    CertificateForeign,
    CertificateOtherHost,
    CoordinatorUnreachable,
    ForeignCoordinator,
    ask_health,
    check_health,
)
from tests.support.gateways import serving

FACTS = {"schema": GATEWAY, "not_fed": "0.1.0", "protocol": PROTOCOL, "federation": "hospitals"}


@contextmanager
def coordinator(
    folder: Path, *, facts: Any = FACTS, status: int = 200, days: int = 30, apart: timedelta = timedelta(0),  # noqa: ANN401
    host: str = "localhost", authority: Path | None = None,
) -> Iterator[Connection]:  # fmt: skip
    """Somebody at the coordinator's address; with the connection of a site that was invited by `folder`'s authority."""
    folder.mkdir(exist_ok=True)
    ca = tls.create_ca(folder)
    signer = folder
    if authority is not None:
        authority.mkdir()
        tls.create_ca(authority)
        signer = authority
    path = tls.issue_server_certificate(folder, ca=signer, hosts=[host], days=days)

    async def health(_: object) -> Response:
        return Response(facts, status) if isinstance(facts, bytes) else JSONResponse(facts, status)

    class Clock(datetime):
        """This machine's, as the site sees it."""

        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) - apart

    with (
        serving(Starlette(routes=[Route("/health", health)]), path, folder / "server.key") as port,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr("not_fed.site.preflight.datetime", Clock)
        yield Connection(
            address=f"localhost:{port}", ca=ca, coordinator="hub", federation="hospitals", gateway=True
        )  # fmt: skip


def look(connection: Connection) -> None:
    check_health(ask_health(connection), connection)


def test_a_coordinator_that_is_as_it_should_be_is_not_in_the_way(tmp_path: Path) -> None:
    with coordinator(tmp_path / "hub") as connection:
        look(connection)
    with coordinator(tmp_path / "starting", status=503) as connection:
        look(connection)  # its SuperLink is not up yet: a SuperNode waits for that by itself


@pytest.mark.parametrize(
    ("error", "served"),
    [
        (CertificateExpired, {"days": -1}),
        (CertificateOtherHost, {"host": "hub.example.org"}),
        (CertificateForeign, {"authority": True}),
        (ClockApart, {"apart": timedelta(days=1)}),
        (ClockApart, {"apart": timedelta(minutes=-6)}),
        (OtherProtocol, {"facts": {**FACTS, "protocol": PROTOCOL + 1}}),
        (OtherProtocol, {"facts": {"schema": GATEWAY}}),
        (ForeignCoordinator, {"facts": {**FACTS, "federation": "banks"}}),
        (CoordinatorUnreachable, {"status": 502, "facts": b"<html>a proxy</html>"}),
    ],
)
def test_each_thing_that_keeps_a_site_from_connecting_has_its_own_code(
    error: type[NotFedError], served: dict[str, Any], tmp_path: Path
) -> None:
    if served.pop("authority", False):
        served["authority"] = tmp_path / "another"
    if served.get("days") == -1:
        with pytest.MonkeyPatch.context() as patch:  # a certificate cannot be made that is over: make an old one
            patch.setattr(tls, "BEFORE", timedelta(days=3))
            with coordinator(tmp_path / "hub", **served) as connection, pytest.raises(error) as caught:
                look(connection)
    else:
        with coordinator(tmp_path / "hub", **served) as connection, pytest.raises(error) as caught:
            look(connection)
    assert type(caught.value) is error
    assert "localhost" in caught.value.where or "clock" in caught.value.where or "hub" in caught.value.where


def test_what_is_shown_instead_of_the_certificate_is_described(tmp_path: Path) -> None:
    with coordinator(tmp_path / "hub", authority=tmp_path / "another") as connection:
        with pytest.raises(CertificateForeign) as caught:
            look(connection)
        shown = tls.read_certificate(tmp_path / "hub" / "server.crt")
        assert shown.fingerprint[:12] in caught.value.got
        assert "not-fed" in caught.value.got


def test_nobody_there_and_no_such_host_are_unreachable(tmp_path: Path) -> None:
    with ExitStack() as stack:
        connection = stack.enter_context(coordinator(tmp_path / "hub"))
        for address in (f"localhost:{free_port()}", "no-such-host.invalid:8443"):
            with pytest.raises(CoordinatorUnreachable) as caught:
                ask_health(replace(connection, address=address))
            assert address in caught.value.where


def test_a_superlink_of_somebody_else_needs_to_say_nothing_about_itself(tmp_path: Path) -> None:
    with coordinator(tmp_path / "hub", facts={"status": "ok"}) as connection:
        look(replace(connection, gateway=False))
        with pytest.raises(OtherProtocol):
            look(connection)
    with (
        coordinator(tmp_path / "late", facts={"status": "ok"}, apart=timedelta(hours=1)) as connection,
        pytest.raises(ClockApart),
    ):
        look(replace(connection, gateway=False))


def test_a_connection_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert load_connection(tmp_path) is None
    with pytest.raises(NoConnection):
        require_connection(tmp_path)
    write_connection(tmp_path, address="[::1]:8443", ca="coordinator.crt", coordinator="hub", federation="hospitals")
    found = require_connection(tmp_path)
    assert (found.host, found.url, found.gateway) == ("::1", "https://[::1]:8443", True)
    assert found.ca == (tmp_path / "coordinator.crt").resolve()


def test_without_an_authority_of_its_own_the_machine_s_are_believed(tmp_path: Path) -> None:
    write_connection(tmp_path, address="hub.example.org:8443", ca=None, coordinator="hub", federation="hospitals")
    assert require_connection(tmp_path).ca is None
    assert require_connection(tmp_path).tls().verify_mode.name == "CERT_REQUIRED"
