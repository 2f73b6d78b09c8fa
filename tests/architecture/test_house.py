"""The house: what imports what, what the wheel holds, how light the command is."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "flwr", "opacus", "numpy", "pydantic", "cryptography", "tuf")


HELP = """
import io, sys
from not_fed.cli.main import main
sys.argv, terminal, sys.stdout = ["not-fed", "--help"], sys.stdout, io.StringIO()
try:
    main()
except SystemExit:
    pass
sys.stdout = terminal
"""


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that are loaded after a statement ran in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import not_fed",
        "import not_fed.cli.main",
        HELP,
    ],
)
def test_the_command_starts_without_anything_heavy(statement: str) -> None:
    assert not loaded_by(statement) & set(HEAVY)


EVERYTHING_IN = """
import importlib, pkgutil
import not_fed.{0} as package
for module in pkgutil.walk_packages(package.__path__, "not_fed.{0}."):
    importlib.import_module(module.name)
"""


@pytest.mark.parametrize("package", ["envelope", "trust", "keys", "age"])
def test_trust_loads_without_torch_or_numpy(package: str) -> None:
    """Every module: what decides trust runs on a plain laptop, and starts at once."""
    heavy = {"torch", "transformers", "flwr", "opacus", "safetensors", "numpy"}
    assert not loaded_by(EVERYTHING_IN.format(package)) & heavy


def test_epsilon_is_computed_without_torch() -> None:
    assert not loaded_by("import not_fed.privacy.accounting") & {"torch", "transformers", "flwr", "opacus"}


def test_the_wheel_holds_the_library_the_bundle_and_nothing_else(tmp_path: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", tmp_path, ROOT],
        check=True,
        capture_output=True,
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"not_fed"}
    assert {"not_fed/bundle/clients/app.py", "not_fed/bundle/server/app.py", "not_fed/report/page.html.j2"} <= set(
        names
    )
    assert "not_fed/py.typed" in names


def test_the_bundle_that_flower_ships_leaves_the_library_out() -> None:
    flower = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["flwr"]["app"]
    assert flower["fab-include"] == ["clients/**/*.py", "server/**/*.py"]
    for app in ("clients/app.py", "server/app.py"):
        assert len((ROOT / app).read_text().splitlines()) < 60, f"{app} is meant to be read at a glance"
