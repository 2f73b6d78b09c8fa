"""What a federation is run with: compose files, images, systemd units, settings. No container engine is needed here.

Not run here: building the images, and starting containers or units.
"""

from __future__ import annotations

import http.server
import re
import shutil
import ssl
import subprocess
import sys
import threading
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from not_fed import settings
from not_fed.coordinator.deployment import BankTable, Deployment, GatewayTable, TlsTable
from not_fed.coordinator.plan import FederationPlan, OptimiserTable, RobustTable, SecureSumTable
from not_fed.envelope.task import ProposedPrivacy, Training

ROOT = Path(__file__).parents[2]
COMPOSE = {"server": ROOT / "server" / "compose.yaml", "clients": ROOT / "clients" / "compose.yaml"}
UNITS = (ROOT / "server" / "not-fed-coordinator.service", ROOT / "clients" / "not-fed-site.service")
IMAGES = (ROOT / "server" / "Dockerfile", ROOT / "clients" / "Dockerfile")
MAY_BE_SAID = {
    "image", "build", "command", "user", "init", "read_only", "cap_drop", "security_opt", "tmpfs", "volumes", "ports",
    "restart", "stop_grace_period", "pids_limit", "mem_limit", "healthcheck", "logging",
}  # fmt: skip


def service(part: str) -> dict[str, Any]:
    """The one service of a compose file."""
    (found,) = yaml.safe_load(COMPOSE[part].read_text())["services"].values()
    assert isinstance(found, dict)
    return found


@pytest.mark.parametrize("part", COMPOSE)
def test_a_container_has_no_root_no_capabilities_and_nothing_to_write_but_its_volumes(part: str) -> None:
    one = service(part)
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", one["user"])
    assert one["read_only"] is True
    assert one["cap_drop"] == ["ALL"]
    assert one["security_opt"] == ["no-new-privileges:true"]
    assert set(one) <= MAY_BE_SAID  # no privileged, cap_add, network_mode, pid, devices, env_file
    assert all("noexec" in each for each in one["tmpfs"] if each.startswith("/tmp"))
    assert not any(each.startswith("/") for each in one["volumes"])  # no socket, no folder of the machine's own


def test_only_the_gateways_port_is_published_and_a_site_publishes_none() -> None:
    listen = tomllib.loads((ROOT / "server" / "coordinator.toml").read_text())["listen"]
    assert service("server")["ports"] == [f"{listen.rpartition(':')[2]}:{listen.rpartition(':')[2]}"]
    assert "ports" not in service("clients")


def test_a_site_cannot_change_its_records() -> None:
    (data,) = (each for each in service("clients")["volumes"] if each.split(":")[1] == "/data")
    assert data.endswith(":ro")


@pytest.mark.parametrize("image", IMAGES, ids=lambda path: path.parent.name)
def test_an_image_ends_as_a_user_of_its_own_and_copies_nothing_but_the_wheel(image: Path) -> None:
    build, _, last = image.read_text().rpartition("\nFROM ")
    part = "server" if image in (IMAGES[0],) else "clients"
    assert re.findall(r"^USER (.+)$", last, re.MULTILINE) == [service(part)["user"]]
    assert re.findall(r"^COPY (.+)$", build, re.MULTILINE) == ["dist/*.whl /tmp/"]
    assert re.findall(r"^COPY (.+)$", last, re.MULTILINE) == ["--from=build /opt/not-fed /opt/not-fed"]
    assert "pip install" not in last
    assert "ADD " not in image.read_text()
    command = yaml.safe_load(re.findall(r"^CMD (.+)$", last, re.MULTILINE)[0])
    assert command == service(part)["command"]


def test_what_is_executed_lies_on_no_file_system_that_forbids_it() -> None:
    for part in COMPOSE:  # the shims of HOME/flower/bin are started by their paths
        home = service(part)["command"][-1]
        assert any(each.split(":")[1] == home for each in service(part)["volumes"])


@pytest.mark.parametrize(("status", "healthy"), [(200, True), (503, False)])
def test_the_coordinators_health_check_asks_the_gateway(status: int, healthy: bool, tmp_path: Path) -> None:
    from not_fed.processes import tls

    tls.create_ca(tmp_path)
    certificate = tls.issue_server_certificate(
        tmp_path, ca=tmp_path, hosts=("hub.example.org",), days=1, name="gateway"
    )

    class Health(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path == "/health" else 404)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, certificate.with_suffix(".key"))
    server = http.server.HTTPServer(("127.0.0.1", 0), Health)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        program = service("server")["healthcheck"]["test"][3].replace("8443", str(server.server_port))
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=60, check=False)
    finally:
        server.shutdown()
        server.server_close()
    assert (done.returncode == 0) is healthy, done.stderr


def test_a_sites_health_check_finds_the_supernode_and_not_itself(tmp_path: Path) -> None:
    program = service("clients")["healthcheck"]["test"][3].replace("/proc", str(tmp_path))
    own = f"python\0-c\0{service('clients')['healthcheck']['test'][3]}\0".encode()

    def healthy() -> bool:
        return subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0

    for number, words in ((1, b"python\0/opt/not-fed/bin/not-fed\0site\0join\0"), (7, own)):
        (tmp_path / str(number)).mkdir()
        (tmp_path / str(number) / "cmdline").write_bytes(words)
    assert not healthy()
    (tmp_path / "8").mkdir()
    (tmp_path / "8" / "cmdline").write_bytes(
        b"/opt/not-fed/bin/python\0/opt/not-fed/bin/flower-supernode\0--superlink\0"
    )
    assert healthy()


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_is_one_that_systemd_takes_and_shuts_in(unit: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd on this machine")
    here = Path(sys.executable).parent / "not-fed"
    copy = tmp_path / unit.name
    copy.write_text(unit.read_text().replace("/opt/not-fed/bin/not-fed", str(here)))
    for words in (["verify", "--man=no"], ["security", "--offline=true", "--threshold=20"]):
        done = subprocess.run(["systemd-analyze", *words, str(copy)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.stem)
def test_a_unit_stops_the_supervisor_first_and_starts_it_again(unit: Path) -> None:
    told = dict(re.findall(r"^(\w+)=(.*)$", unit.read_text(), re.MULTILINE))
    assert told["KillMode"] == "mixed"
    assert told["Restart"] == "on-failure"
    assert told["User"] not in ("", "root")
    assert float(told["TimeoutStopSec"]) >= 60


def test_the_plans_template_is_one_and_shows_every_setting() -> None:
    text = (ROOT / "server" / "federation.toml").read_text()
    value = tomllib.loads(text)
    plan = settings.check(FederationPlan, value, where="federation.toml")
    tables = {"secure_sum": SecureSumTable, "robust": RobustTable, "optimiser": OptimiserTable}  # of other modes
    for name, table in tables.items():
        shown_table = re.search(rf"^# \[{name}\].*\n((?:# .*\n)*)", text, re.MULTILINE)
        assert shown_table is not None
        assert re.findall(r"^# (\w+) =", shown_table[1], re.MULTILINE) == list(table.model_fields)
        tomllib.loads(shown_table[0].replace("# ", "", 1).replace("\n# ", "\n"))
    assert set(value) | {"spans", *tables} == set(FederationPlan.model_fields)
    assert set(value["training"]) == set(Training.model_fields)
    assert set(value["privacy"]) == set(ProposedPrivacy.model_fields)
    defaults = {name: field.default for name, field in FederationPlan.model_fields.items() if not field.is_required()}
    shown = {name for name, default in defaults.items() if getattr(plan, name) == default}
    examples = {"base", "weights", "privacy", "span"}  # the others show what holds without them
    assert set(defaults) - shown == examples


def test_the_deployments_template_is_one_and_shows_every_setting_with_its_default() -> None:
    value = tomllib.loads((ROOT / "server" / "coordinator.toml").read_text())
    told = settings.check(Deployment, value, where="coordinator.toml")
    assert set(value) == set(Deployment.model_fields)
    assert set(value["tls"]) == set(TlsTable.model_fields)
    assert (set(value["bank"]), told.bank) == (set(BankTable.model_fields), BankTable())
    assert (set(value["gateway"]), told.gateway) == (set(GatewayTable.model_fields), GatewayTable())


def test_a_coordinator_in_mode_bank_needs_nothing_that_its_image_leaves_out() -> None:
    (left_out,) = re.findall(r'^ARG WITHOUT="(.+)"$', IMAGES[0].read_text(), re.MULTILINE)
    names = [name.replace("-", "_") for name in left_out.split()]
    program = f"""
import sys
for name in {names!r}:
    sys.modules[name] = None
import not_fed.cli.main, not_fed.cli.coordinator, not_fed.cli.roster, not_fed.cli.drop
import not_fed.coordinator.serve, not_fed.coordinator.status, not_fed.coordinator.drop
import not_fed.coordinator.serverapp, not_fed.coordinator.flower, not_fed.coordinator.creating
import not_fed.coordinator.bank, not_fed.coordinator.gateway
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
