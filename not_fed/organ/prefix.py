"""Tokens of a data set, and the frozen prefix's activations of each record, computed once for all of them.

The activations are a public function of a record and can be turned back into its text: they are **as sensitive as the
text**. They live in memory; a site may keep them between rounds in a `PrefixStore` of its own, encrypted to itself.
They are computed for every record before training starts, never on demand for the sampled ones: the time it takes
must not tell which records were drawn.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from not_fed import canonical
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base
from not_fed.organ.layout import Layout, packable
from not_fed.organ.organ import OrganInfo
from not_fed.organ.split import SplitModel
from not_fed.progress import Progress, silent


class PrefixStore(Protocol):
    """Keeps activations between rounds; whoever implements it answers for their secrecy.

    A key is `PLACE-DIGEST`. What is saved for a place takes the place of what was there: where a layer below has
    changed since, that is of no use to anybody.
    """

    def load(self, key: str) -> Mapping[str, Tensor] | None:
        """What was saved under `key`, or None."""

    def save(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Keep tensors under `key`."""


@dataclass(frozen=True, slots=True)
class TokenisedRecords:
    """Records as tokens. Position t predicts token t+1, so a record of n tokens has n-1 predictions.

    Attributes:
        rows: one int64 tensor per record, cut at the longest allowed length.
    """

    rows: tuple[Tensor, ...]

    @property
    def predictions(self) -> list[int]:
        """Predicted tokens per record; zero for records of fewer than two tokens."""
        return [max(len(row) - 1, 0) for row in self.rows]

    def inputs(self, index: int) -> Tensor:
        """Tokens that are fed: all but the last."""
        return self.rows[index][:-1]

    def targets(self, index: int) -> Tensor:
        """Tokens that are predicted: all but the first."""
        return self.rows[index][1:]

    def digest(self) -> str:
        """Names this data set inside one machine; never leaves it."""
        hasher = hashlib.sha256()
        for row in self.rows:
            hasher.update(len(row).to_bytes(8, "little") + row.numpy().tobytes())
        return hasher.hexdigest()


def tokenise(tokenizer: Any, records: Sequence[str], *, max_tokens: int) -> TokenisedRecords:  # noqa: ANN401
    """Tokens as the base's tokenizer makes them; a record longer than `max_tokens` is cut, never split in two."""
    encoded = tokenizer(list(records), truncation=True, max_length=max_tokens, padding=False)["input_ids"]
    return TokenisedRecords(tuple(torch.tensor(row, dtype=torch.int64) for row in encoded))


def prefix_key(
    base: Base, *, span: Span, data: TokenisedRecords, body: Sequence[OrganInfo] = (), alone: bool = False
) -> str:
    """The key of a prefix: all that its activations depend on, which of a body is what lies below the span.

    Where the span is alone no layer lies below it, wherever it was cut: its prefix is that of layer 0.

    Proved by: tests/unit/test_body.py::test_a_kept_prefix_serves_until_a_layer_below_changes,
        tests/unit/test_stand_alone.py::test_the_two_modes_do_not_share_a_prefix
    """
    start = 0 if alone else span.start
    below = [organ.sha256 for organ in body if organ.span.stop <= start]
    facts = [base.sha256, start, below, data.digest()]
    return f"{start}-{hashlib.sha256(canonical.dumps(facts)).hexdigest()}"


class PrefixCache:
    """Span inputs of every record, ragged, on the model's own device or in main memory."""

    def __init__(self, hidden: Tensor, lengths: Sequence[int]) -> None:
        """`hidden` has shape (sum of lengths, hidden size): the records one after the other."""
        self._rows = torch.split(hidden, list(lengths))

    def rows(self, indices: Sequence[int]) -> Tensor:
        """Span inputs of some records, record after record: (sum of their lengths, hidden)."""
        return torch.cat([self._rows[i] for i in indices])


def compute_prefix(
    model: SplitModel,
    data: TokenisedRecords,
    *,
    key: str,
    micro_tokens: int,
    store: PrefixStore | None,
    progress: Progress = silent,
) -> PrefixCache:
    """Run the frozen prefix over all records, or take its result from the store.

    Args:
        key: names all that the result depends on (`prefix_key`); what is stored under it is exactly reusable.
        micro_tokens: tokens in one forward.
    """
    lengths = data.predictions
    stored = store.load(key) if store is not None else None
    if stored is not None and len(stored["hidden"]) == sum(lengths):
        return PrefixCache(stored["hidden"], lengths)
    whole = _each(
        data, lambda layout, _: model.prefix(layout), model=model, micro_tokens=micro_tokens, progress=progress
    )
    if store is not None:
        store.save(key, {"hidden": whole})
    return PrefixCache(whole, lengths)


def advance_prefix(
    cut: SplitModel,
    data: TokenisedRecords,
    cache: PrefixCache,
    *,
    to: int,
    micro_tokens: int,
    progress: Progress = silent,
) -> PrefixCache:
    """What enters layer `to` of every record, from what enters `cut`'s span: so a pass serves many spans in turn.

    Args:
        cache: of `cut`'s own span; it stays as it is, so that memory holds both until the caller lets go of it.
    Proved by: tests/unit/test_sweep.py::test_a_prefix_moved_on_is_the_prefix_computed_from_the_tokens
    """

    def forward(layout: Layout, batch: Sequence[int]) -> Tensor:
        return cut.advance(layout.scatter(cache.rows(batch)), layout, to=to)

    whole = _each(data, forward, model=cut, micro_tokens=micro_tokens, progress=progress)
    return PrefixCache(whole, data.predictions)


def _each(
    data: TokenisedRecords,
    forward: Callable[[Layout, Sequence[int]], Tensor],
    *,
    model: SplitModel,
    micro_tokens: int,
    progress: Progress,
) -> Tensor:
    """What `forward` gives for every record, record after record: (sum of lengths, hidden)."""
    lengths = data.predictions
    rows: list[Tensor | None] = [None] * len(lengths)
    done, total = 0, sum(lengths)
    progress("frozen prefix", done=0, total=total)
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    for batch in packable(order, lengths, max_tokens=micro_tokens):
        layout = model.pack([data.inputs(i) for i in batch])
        found = layout.gather(forward(layout, batch))
        for row, index in zip(torch.split(found, [lengths[i] for i in batch]), batch, strict=True):
            rows[index] = row
            done += lengths[index]
        progress("frozen prefix", done=done, total=total)
    return torch.cat([row for row in rows if row is not None]) if total else torch.empty(0, 0)
