"""See to it that SoftHSM is here: the tests sign with its PKCS#11 token. Installs it where that asks nobody.

Root on Debian or Ubuntu (a container, CI) gets the package; everybody else is told which command installs it, because
`make test` must not ask for a password. Runs on the standard library.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

MODULES = (
    "/usr/lib/softhsm/libsofthsm2.so", "/usr/lib64/pkcs11/libsofthsm2.so", "/usr/local/lib/softhsm/libsofthsm2.so",
    "/opt/homebrew/lib/softhsm/libsofthsm2.so",
)  # fmt: skip


def main() -> None:
    """Install it, or say how to."""
    if is_here():
        return
    if os.geteuid() == 0 and shutil.which("apt-get"):
        sys.stderr.write("softhsm: installing softhsm2, the token that tests sign with\n")
        subprocess.run(["apt-get", "update", "-qq"], check=False)  # an old list may still do
        quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", "softhsm2"], env=quiet, check=False
        )
    if not is_here():
        sys.exit(
            "softhsm: SoftHSM 2 is missing, and tests sign with its token. Install it and run make test again:\n"
            "  sudo apt-get install softhsm2    (Debian, Ubuntu)\n"
            "  sudo dnf install softhsm         (Fedora)\n"
            "  brew install softhsm             (macOS)"
        )


def is_here() -> bool:
    """Whether both its tool and its module can be found."""
    return shutil.which("softhsm2-util") is not None and any(Path(module).is_file() for module in MODULES)


if __name__ == "__main__":
    main()
