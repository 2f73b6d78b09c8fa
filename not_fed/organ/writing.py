"""Write safetensors files tensor by tensor: the header first, then the bytes, so that memory stays at one tensor."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from not_fed import files, snapshots
from not_fed.envelope.digest import BackgroundDigest

Tensors = Mapping[str, tuple[str, tuple[int, ...], int]]  # name -> dtype, shape, size in bytes


def write_safetensors(
    path: Path,
    tensors: Tensors,
    *,
    metadata: Mapping[str, str],
    blocks: Callable[[str], Iterable[bytes]],
) -> None:
    """Write one file that appears whole or not at all; a large one's digest is noted, for when it will be sealed.

    Args:
        tensors: what the file will hold; widest numbers first (they stay aligned), then by name.
        metadata: the `__metadata__` entry.
        blocks: gives a tensor's bytes, in any number of blocks; each stays as it is for as long as two more are made.
    Source: the safetensors format, https://github.com/huggingface/safetensors#format.
    """
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    order = sorted(tensors, key=lambda name: (-tensors[name][2] // math.prod(tensors[name][1] or (1,)), name))
    offset = 0
    for name in order:
        dtype, shape, size = tensors[name]
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % 8)
    with BackgroundDigest() as digest:
        worth = offset >= snapshots.WORTH_NOTING_BYTES
        with files.new_file(path, mode=0o644) as file:

            def write(block: bytes) -> None:
                if worth:
                    digest.update(block)
                file.write(block)

            write(len(encoded).to_bytes(8, "little") + encoded)
            for name in order:
                for block in blocks(name):
                    write(block)
        if worth:
            snapshots.note_written(path, digest.hexdigest())
