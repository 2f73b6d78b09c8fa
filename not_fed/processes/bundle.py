"""The two files that Flower loads, wherever this not_fed was installed from, and the bundle that it makes of them."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import shutil
import tempfile
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import not_fed
from not_fed import files
from not_fed.errors import InputError
from not_fed.files import FileTooLarge, NotAFile
from not_fed.processes import flower

PARTS = ("clients", "server")
MAX_BUNDLE_BYTES = 10 << 20  # Flower's own limit
_DIGEST_CHARACTERS = 64
_DIGEST = re.compile(r"[0-9a-f]{64}")
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
    """The folder with `clients` and `server`: the copy inside the wheel, or the checkout beside the package.

    In this order: beside an installed package lie other people's, and one of them may be called `clients`.
    """
    package = Path(not_fed.__file__).parent
    for folder in (package / "bundle", package.parent):
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
        shutil.copytree(source / part, folder / part, ignore=_all_but_python)
    (folder / "pyproject.toml").write_text(_PYPROJECT.format(version=not_fed.__version__), encoding="utf-8")


def build_bundle(folder: Path) -> tuple[Path, str]:
    """What a coordinator sends: the app folder that `flwr run` takes, and the digest that sites pin.

    Args:
        folder: gets `not-fed-bundle/`, and `not-fed-bundle.fab` as Flower builds it; what was there goes.
    Returns:
        the app folder, and the hex SHA-256 of the bundle.
    Raises:
        BundleMissing: not-fed is not whole. FlowerFailed: `flwr build` does not build it.
    Guarantees:
        Twice the same version and Flower, twice the same bytes: dates are fixed and nothing is compressed.
    Proved by: tests/unit/test_processes.py::test_two_builds_of_the_bundle_are_the_same_bytes
    """
    app = folder / "not-fed-bundle"
    shutil.rmtree(app, ignore_errors=True)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_bundle(app)
    with tempfile.TemporaryDirectory(prefix="not-fed-build-") as work:
        flower.build(app, work=Path(work))
        built = list(Path(work).glob("*.fab"))
        if len(built) != 1:
            raise BundleMissing(
                where="flwr build", expected="one bundle", got=str(len(built)), hint="install not-fed again"
            )
        data = files.read_regular(built[0], max_bytes=MAX_BUNDLE_BYTES)
    files.write_atomic(folder / "not-fed-bundle.fab", data, overwrite=True)
    return app, hashlib.sha256(data).hexdigest()


def expected_bundle_sha256() -> str:
    """The digest of the bundle that this installed version builds; kept in the cache folder for the next time.

    Raises:
        as `build_bundle`.
    """
    kept = files.cache_folder() / "bundles" / _content_sha256()
    with suppress(NotAFile, FileTooLarge, UnicodeDecodeError):
        digest = files.read_regular(kept, max_bytes=_DIGEST_CHARACTERS).decode("ascii")
        if _DIGEST.fullmatch(digest):
            return digest
    with tempfile.TemporaryDirectory(prefix="not-fed-bundle-") as work:
        _, digest = build_bundle(Path(work))
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    files.write_atomic(kept, digest.encode(), overwrite=True)
    return digest


def _content_sha256() -> str:
    """Over all that the bundle is made of: Flower's version, our version, and each file by name."""
    digest = hashlib.sha256(f"{version('flwr')}\n{_PYPROJECT.format(version=not_fed.__version__)}".encode())
    source = bundle_folder()
    for path in sorted(path for part in PARTS for path in (source / part).rglob("*.py")):
        digest.update(f"\n{path.relative_to(source).as_posix()} {files.sha256(path)}".encode())
    return digest.hexdigest()


def _all_but_python(folder: str, names: list[str]) -> list[str]:
    return [name for name in names if not name.endswith(".py") and not ((Path(folder) / name).is_dir())] + (
        ["__pycache__"] if "__pycache__" in names else []
    )
