"""The server optimiser's step in a round, and its moments from one round of a span to the next.

Moments tell about as much as an aggregate does, so they are kept as one is: encrypted, to the coordinator's own key.
They belong to the round whose aggregate they were made with. The next step goes on from those of the round whose
aggregate was kept: a round that was rolled back leaves none behind.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from not_fed import files
from not_fed.age import BadContainer, NotForThisKey, StreamReader, StreamWriter, read_header, write_header
from not_fed.age.header import FILE_KEY_BYTES
from not_fed.age.hybrid import wrap
from not_fed.age.stream import NONCE_BYTES
from not_fed.aggregation.optimisers import ServerOptimiser
from not_fed.coordinator.plan import FederationPlan
from not_fed.home import Home
from not_fed.keys import Opener
from not_fed.organ.checkpoint import Place
from not_fed.organ.optimise import optimise

FOLDER = "optimiser"

log = logging.getLogger("not_fed.coordinator")


@dataclass(frozen=True, slots=True, kw_only=True)
class Began:
    """The aggregate that a round began from, where it was not the base's own layers: its round and its digest."""

    round: int
    organ_sha256: str


def take_step(
    mean: Path,
    *,
    start: Mapping[str, Place],
    began: Began | None,
    plan: FederationPlan,
    round_number: int,
    home: Home,
    opener: Opener,
    work: Path,
) -> Path:
    """The organ that the plan's optimiser makes of a round's mean: a file in `work`; the mean itself without one.

    Args:
        mean: what the round's organs came to, by whatever rule; it is used up.
        start: the tensors that the round began from.
        began: whose they are; None for the base's own layers.
        work: a private folder, emptied afterwards by the caller.
    Raises:
        StartDiffers, NotAState, Overshot: there is no aggregate.
    Guarantees: a round that is aggregated again, after a crash or under a newer roster, comes to the same bytes. What a
        round leaves here is of use only to a round that begins from its aggregate.
    Proved by: tests/unit/test_optimising.py::test_a_round_that_was_rolled_back_leaves_no_moments_behind,
        tests/unit/test_optimising.py::test_a_step_taken_again_after_a_crash_gives_the_same_bytes
    """
    table = plan.optimiser
    if table is None or table.is_plain:
        return mean
    optimiser = ServerOptimiser(**table.model_dump(exclude_none=True))
    kept = _Kept(home, run=plan.run, span=plan.span_of(round_number), opener=opener)
    before = None if began is None or not optimiser.moments else kept.restore(began.round, out=work / "moments-before")
    after, out = work / "moments", work / "stepped.organ"
    parents = () if began is None else (began.organ_sha256,)
    optimise(mean, start=start, parents=parents, optimiser=optimiser, state=before, new_state=after, out=out)
    if optimiser.moments:
        kept.keep(round_number, after)
        kept.forget(before=0 if began is None else began.round)
    log.info("round %d: a step of %s, rate %g", round_number, optimiser.name, optimiser.step_size)
    return out


class _Kept:
    """The moments of one span in one run, by round, as ciphertext."""

    def __init__(self, home: Home, *, run: str, span: tuple[int, int], opener: Opener) -> None:
        self._folder, self._opener = home.private_folder(f"{FOLDER}/{run}/{span[0]}-{span[1]}"), opener

    def _path(self, round_number: int) -> Path:
        return self._folder / f"{round_number}.age"

    def keep(self, round_number: int, moments: Path) -> None:
        """Encrypt a round's moments, in the place of what an earlier attempt at this round left; durable."""
        file_key, nonce = os.urandom(FILE_KEY_BYTES), os.urandom(NONCE_BYTES)
        with files.open_regular(moments) as plain, files.new_file(self._path(round_number), overwrite=True) as file:
            file.write(write_header([wrap(file_key, recipient=self._opener.recipient)], file_key=file_key) + nonce)
            writer = StreamWriter(file.write, file_key=file_key, nonce=nonce)
            while block := plain.read(files.BLOCK_BYTES):
                writer.write(block)
            writer.finish()

    def restore(self, round_number: int, *, out: Path) -> Path | None:
        """Decrypt a round's moments to `out`; None, with a line in the log, where there are none: they begin anew."""
        path = self._path(round_number)
        try:
            with files.open_regular(path) as file, files.new_file(out, overwrite=True) as plain:
                header = read_header(file)
                payload_bytes = os.fstat(file.fileno()).st_size - header.size_bytes - NONCE_BYTES
                reader = StreamReader(file, file_key=self._opener.unwrap(header), payload_bytes=payload_bytes)
                for block in reader.blocks(reader.size_bytes):
                    plain.write(block)
                reader.finish()
        except (files.NotAFile, BadContainer, NotForThisKey) as error:
            log.warning("the optimiser's moments of round %d cannot be read and begin anew: %s", round_number, error)
            return None
        return out

    def forget(self, *, before: int) -> None:
        """Delete the moments of rounds that no later round can begin from."""
        for path in self._folder.glob("*.age"):
            if path.stem.isdecimal() and int(path.stem) < before:
                path.unlink(missing_ok=True)
