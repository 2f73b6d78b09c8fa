"""See to it that what the tests need from the system is here. Installs it where that asks nobody.

SoftHSM: the tests sign with its PKCS#11 token. libfaketime: a site whose clock is off by a day.

Root on Debian or Ubuntu (a container, CI) gets the packages; everybody else is told which command installs them,
because `make test` must not ask for a password. Runs on the standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

SOFTHSM_MODULES = (
    "usr/lib/softhsm/libsofthsm2.so", "usr/lib64/pkcs11/libsofthsm2.so", "usr/local/lib/softhsm/libsofthsm2.so",
    "opt/homebrew/lib/softhsm/libsofthsm2.so",
)  # fmt: skip
FAKETIME_FOLDERS = ("usr/lib/*/faketime", "usr/lib/faketime", "usr/lib64/faketime", "opt/homebrew/lib/faketime")


def main() -> None:
    """Install what is missing, or say how to."""
    missing = {package for package, here in (("softhsm2", has_softhsm), ("faketime", has_faketime)) if not here()}
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        sys.stderr.write(f"debian: installing {', '.join(sorted(missing))} for the tests\n")
        subprocess.run(["apt-get", "update", "-qq"], check=False)  # an old list may still do
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        command = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *sorted(missing)]
        subprocess.run(command, env=quiet, check=False)
    if not (has_softhsm() and has_faketime()):
        sys.exit(
            "debian: SoftHSM 2 or libfaketime is missing, and tests need both. Install them and run make test again:\n"
            "  sudo apt-get install softhsm2 faketime    (Debian, Ubuntu)\n"
            "  sudo dnf install softhsm libfaketime      (Fedora)\n"
            "  brew install softhsm libfaketime          (macOS)"
        )


def has_softhsm() -> bool:
    """Whether both its tool and its module can be found."""
    root = Path("/")
    return shutil.which("softhsm2-util") is not None and any((root / module).is_file() for module in SOFTHSM_MODULES)


def has_faketime() -> bool:
    """Whether its library can be found, as tests/support/deployed.py looks for it."""
    return any(True for folder in FAKETIME_FOLDERS for _ in Path("/").glob(f"{folder}/libfaketime*.1*"))


if __name__ == "__main__":
    main()
