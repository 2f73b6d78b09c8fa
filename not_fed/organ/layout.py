"""How records lie in a batch. Packed rows waste no arithmetic on padding; stacked rows keep one record a row for DP."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

PACKED_WIDTH = (
    64  # positions in a packed row, unless a record is longer: attention stays small beside the linear layers
)
STACK_SLACK = 0.75  # a stacked batch ends where a record is shorter than this share of the longest


@dataclass(frozen=True, slots=True)
class Layout:
    """Records laid out in rows.

    Attributes:
        tokens: shape (rows, width), int64; filler where no record is.
        positions: shape (rows, width): each record counts from 0, which is how the model's own mask keeps packed
            records apart. None when every row is one record that starts at 0.
        flat: index into the flattened (rows * width) positions of every real token, record after record.
        lengths: tokens per record.
    """

    tokens: Tensor
    positions: Tensor | None
    flat: Tensor
    lengths: Tensor

    def gather(self, hidden: Tensor) -> Tensor:
        """Real positions of (rows, width, size), record after record: (sum of lengths, size)."""
        return hidden.flatten(0, 1).index_select(0, self.flat)

    def scatter(self, rows: Tensor) -> Tensor:
        """The inverse of `gather`, zeros where no record is."""
        flat = rows.new_zeros(self.tokens.numel(), rows.shape[1]).index_copy(0, self.flat, rows)
        return flat.view(*self.tokens.shape, rows.shape[1])

    def owners(self) -> Tensor:
        """Which record owns each real token: (sum of lengths,)."""
        return torch.repeat_interleave(torch.arange(len(self.lengths), device=self.flat.device), self.lengths)


def stack(records: Sequence[Tensor], *, filler: int, device: torch.device) -> Layout:
    """One record a row, padded on the right; attention is causal, so no real position ever sees padding."""
    lengths = torch.tensor([len(record) for record in records])
    tokens = torch.nn.utils.rnn.pad_sequence(list(records), batch_first=True, padding_value=filler)
    flat = (torch.arange(tokens.shape[1]) < lengths.unsqueeze(1)).flatten().nonzero().squeeze(1)
    return Layout(tokens.to(device), None, flat.to(device), lengths.to(device))


def pack(records: Sequence[Tensor], *, filler: int, device: torch.device) -> Layout:
    """Several records a row, first fit by falling length; attention never crosses from one record to another."""
    width = max(PACKED_WIDTH, *(len(record) for record in records))
    rows: list[int] = []  # positions used
    places = [(0, 0)] * len(records)
    for index in sorted(range(len(records)), key=lambda i: (-len(records[i]), i)):
        row = next((i for i, used in enumerate(rows) if used + len(records[index]) <= width), len(rows))
        if row == len(rows):
            rows.append(0)
        places[index] = (row, rows[row])
        rows[row] += len(records[index])
    tokens = torch.full((len(rows), width), filler, dtype=torch.int64)
    positions = torch.zeros_like(tokens)
    for record, (row, start) in zip(records, places, strict=True):
        tokens[row, start : start + len(record)] = record
        positions[row, start : start + len(record)] = torch.arange(len(record))
    for row, used in enumerate(rows):
        positions[row, used:] = torch.arange(width - used)  # filler is a record of its own
    flat = torch.cat(
        [torch.arange(len(r)) + row * width + start for r, (row, start) in zip(records, places, strict=True)]
    )
    return Layout(
        tokens.to(device), positions.to(device), flat.to(device), torch.tensor([len(r) for r in records], device=device)
    )


def packable(indices: Sequence[int], lengths: Sequence[int], *, max_tokens: int) -> Iterator[list[int]]:
    """Batches for `pack`, in the order given, of at most `max_tokens` tokens; empty records are left out."""
    batch: list[int] = []
    held = 0
    for index in indices:
        if lengths[index] and batch and held + lengths[index] > max_tokens:
            yield batch
            batch, held = [], 0
        if lengths[index]:
            batch.append(index)
            held += lengths[index]
    if batch:
        yield batch
