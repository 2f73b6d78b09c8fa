"""import and undo, as a recipient types them: the installed command, real keys, a real small model."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from not_fed.keys import Secret, create_keys
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import open_base
from not_fed.organ.extract import extract
from not_fed.organ.organ import read_organ
from not_fed.organ.transplant import Delta, apply_transplant, plan_transplant
from tests.support.commands import runner
from tests.support.folders import save_base
from tests.support.learnt import fine_tuned, learnt_organ
from tests.support.tiny import tiny_llama

PASSPHRASE = b"correct horse battery staple"
PW = ("--passphrase-file", "pw")


def run(world: Path, *words: str) -> tuple[int, dict[str, Any], str]:
    """Exit code, JSON result, stderr."""
    command = Path(sys.executable).with_name("not-fed")
    done = subprocess.run(
        [command, *words, "--json"], cwd=world, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False
    )
    return done.returncode, json.loads(done.stdout or "{}"), done.stderr


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, an organ of changed weights cut from it, keys, a roster, and the sealed organ."""
    world = tmp_path_factory.mktemp("world")
    (world / "pw").write_bytes(PASSPHRASE)
    (world / "pw").chmod(0o600)
    for name in ("clinic", "hub"):
        create_keys(world / name, name=name, passphrase=Secret(PASSPHRASE), work_factor=4, steward=name == "clinic")
    base = save_base(tiny_llama(), world / "base")
    organ = extract(base, span=Span(1, 3), out=world / "knee.organ")
    _disturb(organ.path)
    members = ("--member", "clinic/identity.json:author,receiver", "--member", "hub/identity.json:receiver")
    made = run(world, "roster", "create", "R", "--federation", "knees", "--steward", "clinic", *members, *PW, "--yes")
    assert made[0] == 0, made[2]
    sealed = run(world, "seal", "knee.organ", "--to", "hub", "--identity", "clinic", "--roster", "R", *PW,
                 "--out", "knee.sealed")  # fmt: skip
    assert sealed[0] == 0, sealed[2]
    return world


def _disturb(organ: Path) -> None:
    """Other weights in the same places, so that a transplant changes something."""
    place = next(iter(read_organ(organ).places.values()))
    with organ.open("r+b") as file:
        file.seek(place.begin)
        data = bytearray(file.read(place.end - place.begin))
        data[::4] = bytes(byte ^ 1 for byte in data[::4])
        file.seek(place.begin)
        file.write(data)


@pytest.fixture
def world(made: Path, tmp_path: Path) -> Iterator[Path]:
    """The same world with nothing opened yet."""
    before = names(made)
    yield made
    (made / "R" / "trusted" / "waybills.db").unlink(missing_ok=True)
    assert names(made) - before <= {"model", "back", "got.organ", "got.organ.passport"}
    subprocess.run(["rm", "-rf", "model", "back", "got.organ", "got.organ.passport"], cwd=made, check=True)


def names(folder: Path) -> set[str]:
    """What lies in a folder."""
    return {path.name for path in folder.iterdir()}


IMPORT = ("import", "knee.sealed", "--identity", "hub", "--roster", "R", "--into", "base", *PW)


def test_import_verifies_fits_and_transplants(world: Path) -> None:
    code, planned, said = run(world, *IMPORT, "--dry-run")
    assert code == 0, said
    assert (planned["schema"], planned["dry_run"], planned["exact"]) == ("not-fed/imported/1", True, True)
    assert not (world / "model").exists()
    code, done, said = run(world, *IMPORT, "--out", "model", "--yes")
    assert (code, done["out"], done["author"], done["at"]) == (0, "model", "clinic", [1, 3]), said
    base, model, organ = open_base(world / "base"), open_base(world / "model"), read_organ(world / "knee.organ")
    names = base.span_names(Span(1, 3))
    assert sorted(done["replaced"]) == sorted(names.values())
    for name, place in organ.places.items():
        assert model.places[names[name]].read() == place.read()
    papers = {path.name for path in (world / "model" / "not-fed").iterdir()}
    assert papers == {"passport", "label", "verified.json", "transplant.json", "taken-out.organ"}
    assert (world / "model").stat().st_mode & 0o077 == 0


def test_undo_gives_the_base_back_bit_for_bit(world: Path) -> None:
    assert run(world, *IMPORT, "--out", "model", "--yes")[0] == 0
    base = open_base(world / "base")
    assert open_base(world / "model").sha256 != base.sha256  # control: something was transplanted
    code, undone, said = run(world, "undo", "model", "--out", "back")
    assert (code, undone["schema"], undone["base_sha256"]) == (0, "not-fed/undone/1", base.sha256), said
    for name, place in open_base(world / "back").places.items():
        assert place.read() == base.places[name].read()
    assert not (world / "back" / "not-fed").exists()


def test_undo_of_a_model_that_was_changed_since_is_refused(world: Path) -> None:
    assert run(world, *IMPORT, "--out", "model", "--yes")[0] == 0
    model = open_base(world / "model")
    place = model.places["model.embed_tokens.weight"]
    data = bytearray(place.file.read_bytes())
    data[place.begin] ^= 1
    place.file.unlink()  # it may be a hard link to the base
    place.file.write_bytes(data)
    code, _, said = run(world, "undo", "model", "--out", "back")
    assert (code, json.loads(said)["code"]) == (5, "undo-differs")
    assert not (world / "back").exists()
    code, _, said = run(world, "undo", "base", "--out", "back")
    assert (code, json.loads(said)["code"]) == (4, "nothing-to-undo")


def test_saying_no_leaves_nothing_behind(world: Path) -> None:
    """No terminal and no --yes means no; the organ can still be taken in afterwards."""
    before = names(world)
    assert run(world, *IMPORT, "--out", "model")[0] not in (0, 6)
    assert names(world) == before
    assert run(world, *IMPORT, "--out", "model", "--yes")[0] == 0  # control


def test_an_organ_is_taken_in_once_even_after_a_restart(world: Path) -> None:
    """Each command is a process of its own, so the memory is on the disk; --again is the knowing exception."""
    assert run(world, *IMPORT, "--out", "model", "--yes")[0] == 0
    for words in (
        (*IMPORT, "--out", "back", "--yes"),
        ("open", "knee.sealed", "--identity", "hub", "--roster", "R", *PW, "--out", "got.organ"),
    ):
        code, _, said = run(world, *words)
        assert (code, json.loads(said)["code"]) == (6, "waybill-replayed")
    assert not (world / "back").exists()
    assert run(world, *IMPORT, "--out", "back", "--yes", "--again")[0] == 0


def test_no_base_is_looked_for_before_the_organ_is_trusted(world: Path, tmp_path: Path) -> None:
    sealed = bytearray((world / "knee.sealed").read_bytes())
    sealed[-1] ^= 1
    (tmp_path / "bad.sealed").write_bytes(sealed)
    words = ["nowhere" if word == "base" else word for word in IMPORT]
    for path, expected in ((str(tmp_path / "bad.sealed"), "container-damaged"), ("knee.sealed", "not-a-base")):
        named = [path if word == "knee.sealed" else word for word in words]
        assert json.loads(run(world, *named, "--out", "model", "--yes")[2])["code"] == expected


def test_what_does_not_fit_is_refused_before_the_question(world: Path) -> None:
    code, _, said = run(world, *IMPORT, "--out", "model", "--yes", "--at", "0")
    assert (code, json.loads(said)["code"]) == (5, "other-base")
    code, _, said = run(world, *IMPORT, "--out", "model", "--yes", "--at", "0", "--accept-different-base")
    assert code == 0, said
    assert run(world, "undo", "model", "--out", "back")[0] == 0


POLICIES = {
    'authors = ["clinic"]\nmax_age_days = 30': (0, ""),
    'authors = ["hub"]': (6, "demand-author"),
    "max_epsilon = 8": (7, "demand-epsilon"),
    'units = ["person"]': (7, "demand-unit"),
    'audit = "required"': (7, "demand-audit"),
    'log_proof = "required"': (6, "demand-log-proof"),
    f'bases = ["{"00" * 32}"]': (7, "demand-base"),
    'famlies = ["llama"]': (4, "bad-settings"),
    "": (4, "bad-settings"),
}


@pytest.mark.parametrize(
    ("command", "policy"),
    [("verify", policy) for policy in POLICIES]
    + [(command, policy) for command in ("open", "import") for policy in list(POLICIES)[:3]],
)
def test_a_policy_decides_for_every_way_in(world: Path, tmp_path: Path, policy: str, command: str) -> None:
    (tmp_path / "policy.toml").write_text(policy)
    words = {
        "verify": ("verify", "knee.sealed", "--identity", "hub", "--roster", "R", *PW),
        "open": ("open", "knee.sealed", "--identity", "hub", "--roster", "R", *PW, "--out", "got.organ"),
        "import": (*IMPORT, "--out", "model", "--yes"),
    }[command]
    code, done, said = run(world, *words, "--policy", str(tmp_path / "policy.toml"))
    expected, refusal = POLICIES[policy]
    assert code == expected, said
    if expected:
        assert json.loads(said)["code"] == refusal
        assert not (world / "model").exists()
        assert not (world / "got.organ").exists()
    elif command == "verify":
        assert done["policy"] == ["authors", "max_age_days"]


def test_a_strangers_organ_is_added_or_inserted_after_the_same_questions(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    typed = runner(monkeypatch, capsys)
    monkeypatch.chdir(made)
    base = open_base(made / "base")
    ours, sealed = fine_tuned(base, tmp_path / "ours"), tmp_path / "learnt.sealed"
    learnt_organ(base, Span(1, 3), tmp_path / "learnt.organ")
    assert typed("seal", tmp_path / "learnt.organ", "--to", "hub", "--identity", "clinic", "--roster", "R", *PW,
                 "--out", sealed).code == 0  # fmt: skip
    into = ("--identity", "hub", "--roster", "R", "--into", ours.folder, *PW, "--json")
    inserted = typed("import", sealed, *into, "--mode", "insert", "--accept-different-base", "--dry-run").result
    assert (inserted["mode"], inserted["start"], inserted["at"], inserted["replaced"]) == ("insert", "zero", [1, 3], [])
    assert len(inserted["inserted"]) == len(base.span_names(Span(1, 3)))
    delta = ("--mode", "delta", "--base", "base", "--scale", "0.5")
    assert typed("import", "knee.sealed", *into, *delta, "--dry-run").error == "nothing-learned"  # by its manifest
    assert typed("import", sealed, *into, "--scale", "0.5", "--dry-run").error == "usage"
    done = typed("import", sealed, *into, *delta, "--out", tmp_path / "model", "--yes").result
    assert (done["mode"], done["scale"], done["exact"]) == ("delta", 0.5, False)
    way = Delta(origin=base, scale=0.5)
    plan = plan_transplant(organ=read_organ(tmp_path / "learnt.organ"), base=ours, way=way)
    expected = apply_transplant(plan, out=tmp_path / "expected")
    assert open_base(tmp_path / "model").sha256 == open_base(expected).sha256
    undone = typed("undo", tmp_path / "model", "--out", tmp_path / "back", "--json").result
    assert undone["base_sha256"] == ours.sha256


def test_a_base_that_changes_while_a_person_thinks_gets_nothing(
    made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The organ would be written at the places that the old file had its tensors at."""
    typed = runner(monkeypatch, capsys)
    monkeypatch.chdir(made)
    weights = Path(shutil.copytree(made / "base", tmp_path / "base")) / "model.safetensors"

    def thinks(*_: object, **__: object) -> None:
        save_file(load_file(weights), weights, {"format": "pt", "note": "saved again"})

    monkeypatch.setattr("not_fed.cli.intake.typer.confirm", thinks)
    call = ("--identity", "hub", "--roster", "R", "--into", weights.parent, *PW, "--json", "--out", tmp_path / "model")
    assert typed("import", "knee.sealed", *call).error == "changed-since-plan"
    assert not (tmp_path / "model").exists()
