"""The whole thing on the demo's model: SuperLink with TLS and node keys, three sites, two rounds, in each mode.

The coordinator is killed once (in mode bank) and a site once (in mode trusted), with SIGKILL; what comes out is the
aggregate of the undisturbed run, byte for byte. The undisturbed run is the same homes on the same seed, in one process.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from not_fed import files
from not_fed.resources.bases import find_base
from not_fed.simulation import FederationFile, load_federation, prepare, run
from not_fed.simulation.prepare import Prepared
from tests.support.deployed import Deployed, deploy

pytestmark = pytest.mark.deployment
ROOT = Path(__file__).parents[2]
RECORDS = 12
PLAN = {"retry_s": 2.0, "join_timeout_s": 200.0, "round_timeout_s": 400.0}


def hospitals(mode: str) -> FederationFile:
    """The quick demo's federation with a handful of records and two rounds."""
    federation = load_federation(ROOT / "examples" / "hospitals" / "quick.toml")
    return federation.model_copy(
        update={
            "federation": federation.federation.model_copy(update={"mode": mode, "rounds": 2}),
            "data": federation.data.model_copy(update={"records_per_site": RECORDS, "held_out": 2}),
            "training": federation.training.model_copy(update={"epochs": 1}),
        }
    )


def undisturbed(folder: Path, mode: str) -> dict[int, str]:
    """Round -> digest of the aggregate that every site has."""
    result = run(prepare(hospitals(mode), out=folder, plan=PLAN))
    found = {
        number: {files.sha256(rounds[number]) for rounds in result.aggregates.values()} for number in (1, 2)
    }  # fmt: skip
    assert all(len(digests) == 1 for digests in found.values())
    return {number: digests.pop() for number, digests in found.items()}


def kill_the_coordinator(fed: Deployed, *, holding: str) -> None:
    """In round 1, while a site works: everything of it at once. Then it is started again."""
    with fed.held(holding, 1):
        fed.commands["coordinator"].kill()
        fed.until("nothing of it is left", lambda: not fed.processes(of=fed.prepared.coordinator))
        fed.serve()


def kill_a_site(fed: Deployed, site: str) -> None:
    """In round 2, in the midst of its training: everything of it at once. Then it is started again."""
    with fed.held(site, 2):
        fed.power_off(site)
        fed.join(site)


@pytest.mark.parametrize(("mode", "killed"), [("bank", "coordinator"), ("trusted", "site")])
def test_with_the_coordinator_killed_or_a_site_two_rounds_end_with_the_undisturbed_aggregate(
    mode: str, killed: str, tmp_path: Path
) -> None:
    find_base("smollm2-135m")
    prepared: Prepared = prepare(hospitals(mode), out=tmp_path / "deployed", plan=PLAN)
    first, *_, last = prepared.sites
    with deploy(prepared) as fed:
        fed.serve()
        fed.join_all()
        if killed == "coordinator":
            kill_the_coordinator(fed, holding=first)
        fed.until_closed(1, timeout_s=240)
        if killed == "site":
            kill_a_site(fed, last)
        fed.until("the run is complete", fed.is_complete, timeout_s=300)
    expected = undisturbed(tmp_path / "undisturbed", mode)
    for number in (1, 2):
        assert fed.aggregates(number) == dict.fromkeys(prepared.sites, expected[number])
        assert {one.status for one in fed.answers(number).values()} == {"sealed"}
