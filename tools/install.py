"""Make a virtual environment with everything the project needs; on a machine without an NVIDIA card, without CUDA.

Where pip's index offers only a torch that brings CUDA along, and there is no card to use it, torch comes through
`uv pip install --torch-backend=cpu`, which knows where PyTorch keeps its CPU builds. Runs on the standard library.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import venv
from pathlib import Path


def main() -> None:
    """Create or complete the environment."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--venv", type=Path, required=True)
    options.add_argument("--torch", required=True, help="the torch requirement, such as torch==2.13.0")
    chosen = options.parse_args()
    if not (3, 11) <= sys.version_info[:2] <= (3, 13):
        sys.exit(
            f"not-fed needs Python 3.11 to 3.13; this is {sys.version.split()[0]}. Try: make install PYTHON=python3.12"
        )
    python = chosen.venv / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    if not python.exists():
        say("making the virtual environment")
        venv.create(chosen.venv, with_pip=True)
    if not has_torch(python):
        install_torch(python, chosen.torch)
    say("installing not-fed and what it needs")
    pip(python, "install", "--quiet", "--editable", ".[dev]")
    say("done")


def has_torch(python: Path) -> bool:
    """Whether torch is there already, whatever its build."""
    return subprocess.run([python, "-c", "import torch"], capture_output=True, check=False).returncode == 0


def install_torch(python: Path, requirement: str) -> None:
    """Take pip's own build, unless it would fetch CUDA for a machine that cannot use it."""
    if has_card() or not brings_cuda(python, requirement):
        say(f"installing {requirement}")
        pip(python, "install", "--quiet", requirement)
        return
    say(f"installing {requirement} without CUDA: this machine has no NVIDIA card")
    pip(python, "install", "--quiet", "uv>=0.9")
    subprocess.run(
        [python, "-m", "uv", "pip", "install", "--python", python, "--torch-backend=cpu", requirement], check=True
    )


def has_card() -> bool:
    """Whether an NVIDIA driver answers."""
    return (
        shutil.which("nvidia-smi") is not None
        and subprocess.run(["nvidia-smi"], capture_output=True, check=False).returncode == 0
    )


def brings_cuda(python: Path, requirement: str) -> bool:
    """Ask pip what it would install, without installing it."""
    told = subprocess.run(
        [python, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed", "--report", "-", requirement],
        stdout=subprocess.PIPE,
        check=True,
        text=True,
    ).stdout
    names = [item["metadata"]["name"].lower() for item in json.loads(told)["install"]]
    return any(name.startswith(("nvidia-", "cuda-")) for name in names)


def pip(python: Path, *arguments: str) -> None:
    """Run the environment's own pip; its words go to the terminal."""
    subprocess.run([python, "-m", "pip", "--disable-pip-version-check", *arguments], check=True)


def say(message: str) -> None:
    """Progress for the person who waits."""
    sys.stderr.write(f"install: {message}\n")


if __name__ == "__main__":
    main()
