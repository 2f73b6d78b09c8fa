"""A PKCS#11 token of SoftHSM in a temporary folder: real cryptography behind the real interface."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from not_fed.keys import Secret
from not_fed.keys.hsm import Token
from not_fed.keys.token_uri import TokenUri
from tools.debian import SOFTHSM_MODULES, has_softhsm

PIN = "canary-pin-4711"


@dataclass(frozen=True)
class SoftToken:
    """Where the token is, and how to name it."""

    folder: Path
    module: Path
    label: str = "not-fed tests"

    @property
    def token(self) -> Token:
        """As not-fed knows it."""
        return Token(TokenUri(token=self.label, module_path=self.module), Secret(PIN.encode()))

    @property
    def uri(self) -> str:
        """For `--hsm`."""
        return self.token.uri.text()

    @property
    def environment(self) -> dict[str, str]:
        """What SoftHSM needs to find it, in another process."""
        return {"SOFTHSM2_CONF": str(self.folder / "softhsm2.conf")}

    def add(self, label: str, pin: str = PIN) -> None:
        """One more token in the same folder."""
        words = ("--init-token", "--free", "--label", label, "--so-pin", "12345678", "--pin", pin)
        subprocess.run(["softhsm2-util", *words], check=True, capture_output=True)


@contextmanager
def soft_token(folder: Path) -> Iterator[SoftToken]:
    """A fresh one; this process forgets any other until the block ends. Fails the test where SoftHSM is missing."""
    if not has_softhsm():
        pytest.fail("SoftHSM 2 is missing: make softhsm installs it or says how", pytrace=False)
    import pkcs11

    module = next(Path("/") / path for path in SOFTHSM_MODULES if (Path("/") / path).is_file())
    made = SoftToken(folder, module.resolve())
    (folder / "tokens").mkdir()
    (folder / "softhsm2.conf").write_text(f"directories.tokendir = {folder / 'tokens'}\nlog.level = ERROR\n")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in made.environment.items():
            patch.setenv(name, value)
        made.add(made.label)
        pkcs11.unload(str(made.module))  # SoftHSM reads its settings when it starts
        try:
            yield made
        finally:
            pkcs11.unload(str(made.module))
    shutil.rmtree(folder / "tokens")
