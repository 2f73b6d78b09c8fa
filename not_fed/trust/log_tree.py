"""The Merkle tree of RFC 6962, section 2.1: roots, and proofs made and checked. Pure: no files, no signatures.

A leaf is hashed after the byte 00 and an inner node after 01, so that neither can stand in for the other. Whoever makes
a proof hands in `Nodes`, which knows the hash of each complete subtree; whoever checks one needs two hashes and the
proof. Checking follows RFC 9162, sections 2.1.3.2 and 2.1.4.2.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import Final

HASH_BYTES: Final = 32
MAX_SIZE: Final = (1 << 63) - 1
MAX_PATH: Final = 63  # as C2SP allows; a tree of MAX_SIZE leaves is 63 levels high
EMPTY_ROOT: Final = hashlib.sha256().digest()

Nodes = Callable[[int, int], bytes]  # (level, index) to the hash of leaves [index * 2**level, (index + 1) * 2**level)


def leaf_hash(entry: bytes) -> bytes:
    """The hash of an entry as a leaf."""
    return hashlib.sha256(b"\x00" + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """The hash over two subtrees."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root_of(leaves: Sequence[bytes]) -> bytes:
    """The root over leaf hashes.

    Each round joins neighbours and lifts the odd one out, which is where RFC 6962 splits too: at the largest power
    of two below the count.

    >>> root_of([]) == EMPTY_ROOT, root_of([leaf_hash(b"")]).hex()[:12]
    (True, '6e340b9cffb3')
    """
    row = list(leaves)
    if not row:
        return EMPTY_ROOT
    while len(row) > 1:
        odd = row[len(row) & ~1 :]
        row = [node_hash(row[at], row[at + 1]) for at in range(0, len(row) - 1, 2)] + odd
    return row[0]


def nodes_of(leaves: Sequence[bytes]) -> Nodes:
    """The subtrees over leaf hashes that fit in memory."""
    return lambda level, index: root_of(leaves[index << level : (index + 1) << level])


def root_at(size: int, nodes: Nodes) -> bytes:
    """The root of the tree over the first `size` leaves."""
    return _range_hash(0, size, nodes) if size else EMPTY_ROOT


def prove_inclusion(index: int, size: int, nodes: Nodes) -> tuple[bytes, ...]:
    """PATH(index, D[size]) of RFC 6962, section 2.1.1: siblings from the leaf up.

    Raises:
        ValueError: no such leaf in a tree of that size.
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise ValueError("no leaf of that index")
    path, low, high = [], 0, size
    while high - low > 1:
        split = low + _split(high - low)
        if index < split:
            path.append(_range_hash(split, high, nodes))
            high = split
        else:
            path.append(_range_hash(low, split, nodes))
            low = split
    return tuple(reversed(path))


def verify_inclusion(leaf: bytes, path: Sequence[bytes], *, index: int, size: int, root: bytes) -> bool:
    """Whether `path` leads from the leaf hash at `index` to the root of a tree of `size` leaves.

    Guarantees: false, and never an exception, for any numbers and any hashes; a path that is too long or too short is
    refused before anything is hashed.
    Proved by: tests/unit/test_log_tree.py::test_no_changed_inclusion_proof_is_accepted
    """
    if not _sound(path, leaf, root) or not 0 <= index < size <= MAX_SIZE:
        return False
    place, last, value = index, size - 1, leaf
    for sibling in path:
        if last == 0:
            return False
        if place & 1 or place == last:
            value = node_hash(sibling, value)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            value = node_hash(value, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and value == root


def prove_consistency(old_size: int, new_size: int, nodes: Nodes) -> tuple[bytes, ...]:
    """PROOF(old_size, D[new_size]) of RFC 6962, section 2.1.2; empty from an empty tree and between equal sizes.

    Raises:
        ValueError: the older tree is larger.
    """
    if not 0 <= old_size <= new_size <= MAX_SIZE:
        raise ValueError("sizes that no tree grows between")
    if old_size in (0, new_size):
        return ()
    path, low, high, old_is_whole = [], 0, new_size, True
    while old_size != high:
        split = low + _split(high - low)
        if old_size <= split:
            path.append(_range_hash(split, high, nodes))
            high = split
        else:
            path.append(_range_hash(low, split, nodes))
            low, old_is_whole = split, False
    if not old_is_whole:
        path.append(_range_hash(low, high, nodes))
    return tuple(reversed(path))


def verify_consistency(
    path: Sequence[bytes], *, old_size: int, old_root: bytes, new_size: int, new_root: bytes
) -> bool:
    """Whether the tree of `new_size` is the tree of `old_size` with leaves added.

    Guarantees: false, and never an exception, for any numbers and any hashes. Equal sizes need equal roots and an empty
    path; an empty tree is the beginning of every tree, with an empty path and the root of the empty tree.
    Proved by: tests/unit/test_log_tree.py::test_no_changed_consistency_proof_is_accepted
    """
    if not _sound(path, old_root, new_root) or not 0 <= old_size <= new_size <= MAX_SIZE:
        return False
    if new_size == 0 and new_root != EMPTY_ROOT:
        return False
    if old_size == new_size:
        return not path and old_root == new_root
    if old_size == 0:
        return not path and old_root == EMPTY_ROOT
    return _grows(path, old_size, old_root, new_size, new_root)


def _grows(path: Sequence[bytes], old_size: int, old_root: bytes, new_size: int, new_root: bytes) -> bool:
    """RFC 9162, section 2.1.4.2, for 0 < old_size < new_size."""
    whole = old_size & (old_size - 1) == 0  # then the old root is itself a node of the new tree
    rest = [old_root, *path] if whole else list(path)
    if not path or not rest:
        return False
    place, last = old_size - 1, new_size - 1
    while place & 1:
        place, last = place >> 1, last >> 1
    old = new = rest[0]
    for sibling in rest[1:]:
        if last == 0:
            return False
        if place & 1 or place == last:
            old, new = node_hash(sibling, old), node_hash(sibling, new)
            while not place & 1 and place:
                place, last = place >> 1, last >> 1
        else:
            new = node_hash(new, sibling)
        place, last = place >> 1, last >> 1
    return last == 0 and old == old_root and new == new_root


def _sound(path: Sequence[bytes], *ends: bytes) -> bool:
    return len(path) <= MAX_PATH and all(len(value) == HASH_BYTES for value in (*ends, *path))


def _split(count: int) -> int:
    """The largest power of two below `count`."""
    return 1 << (count - 1).bit_length() - 1


def _range_hash(low: int, high: int, nodes: Nodes) -> bytes:
    """The hash of leaves [low, high), a range that a proof's recursion can meet: complete subtrees, ever smaller."""
    parts = []
    while low < high:
        level = (high - low).bit_length() - 1
        parts.append(nodes(level, low >> level))
        low += 1 << level
    value = parts.pop()
    while parts:
        value = node_hash(parts.pop(), value)
    return value
