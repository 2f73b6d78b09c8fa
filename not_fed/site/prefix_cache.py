"""The frozen prefix's activations, kept between the rounds of one run, encrypted to the site's own sealing key.

Activations can be turned back into the text that made them, so they are kept as the text should be: only as ciphertext,
in a private folder, and only while the run lasts. A thief of the disk needs the site's pass phrase.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from not_fed import files
from not_fed.age import BadContainer, NotForThisKey, StreamReader, StreamWriter, read_header, write_header
from not_fed.age.header import FILE_KEY_BYTES
from not_fed.age.hybrid import wrap
from not_fed.age.stream import NONCE_BYTES
from not_fed.keys import Opener

PREFIX_FOLDER = "prefix"


class PrefixCache:
    """Implements the `PrefixStore` of training. A file that cannot be read counts as absent: it is computed again."""

    def __init__(self, folder: Path, *, opener: Opener) -> None:
        """`folder` is this run's own; it is made when something is saved."""
        self._folder, self._opener = folder, opener

    def load(self, key: str) -> Mapping[str, Tensor] | None:
        """What was saved under `key`, or None.

        Proved by: tests/unit/test_site_state.py::test_the_prefix_cache_is_ciphertext_and_private
        """
        path = self._folder / f"{key}.age"
        if not path.is_file():
            return None
        try:
            with files.open_regular(path) as file:
                header = read_header(file)
                payload_bytes = os.fstat(file.fileno()).st_size - header.size_bytes - NONCE_BYTES
                reader = StreamReader(file, file_key=self._opener.unwrap(header), payload_bytes=payload_bytes)
                plain = reader.read(reader.size_bytes)
                reader.finish()
            tensors: Mapping[str, Tensor] = load(plain)
            return tensors
        except (BadContainer, NotForThisKey, SafetensorError):
            return None

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under `key`, replacing what was there for its place.

        Proved by: tests/unit/test_site_state.py::test_the_prefix_cache_keeps_one_prefix_a_place
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        place = key.partition("-")[0]
        for old in self._folder.glob("*.age"):
            if old.stem != key and old.stem.partition("-")[0] == place:
                old.unlink()
        file_key, nonce = os.urandom(FILE_KEY_BYTES), os.urandom(NONCE_BYTES)
        with files.new_file(self._folder / f"{key}.age", overwrite=True) as file:
            file.write(write_header([wrap(file_key, recipient=self._opener.recipient)], file_key=file_key) + nonce)
            writer = StreamWriter(file.write, file_key=file_key, nonce=nonce)
            writer.write(save(dict(tensors)))
            writer.finish()


def forget_prefixes(cache: Path, *, keep_run: str | None = None) -> None:
    """Delete the cached prefixes of every run but one (or of all)."""
    for folder in sorted((cache / PREFIX_FOLDER).glob("*")):
        if folder.name != keep_run:
            shutil.rmtree(folder)
