"""The two files that Flower loads, wherever this not_fed was installed from."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import not_fed
from not_fed.errors import InputError

PARTS = ("clients", "server")
_PYPROJECT = """\
[project]
name = "not-fed-bundle"
version = "{version}"
description = "The bundle of not-fed"
license = "Apache-2.0"
requires-python = ">=3.11"
dependencies = []

[tool.flwr.app]
publisher = "notfed"
fab-include = ["clients/**/*.py", "server/**/*.py"]

[tool.flwr.app.components]
serverapp = "server.app:app"
clientapp = "clients.app:app"

[tool.flwr.app.config]
"""


class BundleMissing(InputError):
    """The bundle that Flower would load is not there."""

    code = "bundle-missing"


def bundle_folder() -> Path:
    """The folder with `clients` and `server`: the checkout beside the package, or the copy inside the wheel."""
    package = Path(not_fed.__file__).parent
    for folder in (package.parent, package / "bundle"):
        if all((folder / part / "app.py").is_file() for part in PARTS):
            return folder
    raise BundleMissing(
        where=str(package), expected="clients/app.py and server/app.py", got="neither", hint="install not-fed again"
    )


def hospitals_folder() -> Path:
    """The demo's federation files: the checkout's examples, or the copy inside the wheel."""
    package = Path(not_fed.__file__).parent
    for folder in (package.parent / "examples" / "hospitals", package / "bundle" / "hospitals"):
        if (folder / "federation.toml").is_file():
            return folder
    raise BundleMissing(
        where=str(package), expected="the files of the demo", got="none of them", hint="install not-fed again"
    )


def load_app(part: str) -> Any:  # noqa: ANN401  Flower's ClientApp or ServerApp
    """The `app` of `clients` or `server`, from its file."""
    path = bundle_folder() / part / "app.py"
    spec = importlib.util.spec_from_file_location(f"not_fed_bundle_{part}", path)
    if spec is None or spec.loader is None:
        raise BundleMissing(
            where=str(path), expected="a Python module", got="something else", hint="install not-fed again"
        )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.app


def write_bundle(folder: Path) -> None:
    """A Flower app folder of its own: the two files, and a pyproject.toml that asks for no packages."""
    source = bundle_folder()
    for part in PARTS:
        shutil.copytree(source / part, folder / part, ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "pyproject.toml").write_text(_PYPROJECT.format(version=not_fed.__version__), encoding="utf-8")
