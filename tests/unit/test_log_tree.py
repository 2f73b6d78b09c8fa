"""The tree against RFC 6962: published vectors, a second implementation from the text, and proofs that must fail."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from not_fed.trust.log_tree import (
    EMPTY_ROOT,
    MAX_PATH,
    MAX_SIZE,
    leaf_hash,
    node_hash,
    nodes_of,
    prove_consistency,
    prove_inclusion,
    root_at,
    root_of,
    verify_consistency,
    verify_inclusion,
)

# The inputs and roots of the reference tests of Certificate Transparency (merkle_tree_test).
CT_ENTRIES = ["", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f"]
CT_ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]
CT_INCLUSION = {
    (0, 8): [
        "96a296d224f285c67bee93c30f8a309157f0daa35dc5b87e410b78630a09cfc7",
        "5f083f0a1a33ca076a95279832580db3e0ef4584bdff1f54c8a360f50de3031e",
        "6b47aaf29ee3c2af9af889bc1fb9254dabd31177f16232dd6aab035ca39bf6e4",
    ],
    (5, 8): [
        "bc1a0643b12e4d2d7c77918f44e0f4f79a838b6cf9ec5b5c283e1f4d88599e6b",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
CT_CONSISTENCY = {
    (6, 8): [
        "0ebc5d3437fbe2db158b9f126a1d118e308181031d0a949f8dededebc558ef6a",
        "ca854ea128ed050b41b35ffc1b87b8eb2bde461e9e3b5596ece6b9d5975a0ae0",
        "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    ],
}
SMALL = 70


def entries(count: int) -> list[bytes]:
    return [b"entry %d" % number for number in range(count)]


class Rfc6962:
    """Section 2.1 word for word, recursive, sharing nothing with the library."""

    def __init__(self, data: Sequence[bytes]) -> None:
        self.data = data
        self.mth = cache(self._mth)

    def _mth(self, start: int, end: int) -> bytes:
        if start == end:
            return hashlib.sha256(b"").digest()
        if end - start == 1:
            return hashlib.sha256(bytes([0]) + self.data[start]).digest()
        k = self.k(end - start)
        return hashlib.sha256(bytes([1]) + self.mth(start, start + k) + self.mth(start + k, end)).digest()

    @staticmethod
    def k(n: int) -> int:
        """The largest power of two smaller than n."""
        k = 1
        while k * 2 < n:
            k *= 2
        return k

    def path(self, m: int, start: int, end: int) -> list[bytes]:
        """PATH(m, D[start:end])."""
        n = end - start
        if n == 1:
            return []
        k = self.k(n)
        if m < k:
            return [*self.path(m, start, start + k), self.mth(start + k, end)]
        return [*self.path(m - k, start + k, end), self.mth(start, start + k)]

    def proof(self, m: int, n: int) -> list[bytes]:
        """PROOF(m, D[n])."""
        return self.subproof(m, 0, n, b=True)

    def subproof(self, m: int, start: int, end: int, *, b: bool) -> list[bytes]:
        n = end - start
        if m == n:
            return [] if b else [self.mth(start, end)]
        k = self.k(n)
        if m <= k:
            return [*self.subproof(m, start, start + k, b=b), self.mth(start + k, end)]
        return [*self.subproof(m - k, start + k, end, b=False), self.mth(start, start + k)]


def test_roots_and_proofs_are_those_of_certificate_transparency() -> None:
    leaves = [leaf_hash(bytes.fromhex(text)) for text in CT_ENTRIES]
    nodes = nodes_of(leaves)
    for size, expected in enumerate(CT_ROOTS):
        assert root_of(leaves[:size]).hex() == root_at(size, nodes).hex() == expected
    for (index, size), path in CT_INCLUSION.items():
        assert [value.hex() for value in prove_inclusion(index, size, nodes)] == path
    for (old, new), path in CT_CONSISTENCY.items():
        assert [value.hex() for value in prove_consistency(old, new, nodes)] == path


def test_every_tree_up_to_70_agrees_with_the_text_of_the_rfc() -> None:
    """Every root, every inclusion proof, every consistency proof; each made by one, accepted by the other's root."""
    data = entries(SMALL)
    rfc, leaves = Rfc6962(data), [leaf_hash(entry) for entry in data]
    nodes = nodes_of(leaves)
    roots = [root_of(leaves[:size]) for size in range(SMALL + 1)]
    for size in range(SMALL + 1):
        assert roots[size] == root_at(size, nodes) == rfc.mth(0, size)
        for index in range(size):
            path = prove_inclusion(index, size, nodes)
            assert list(path) == rfc.path(index, 0, size)
            assert verify_inclusion(leaves[index], path, index=index, size=size, root=roots[size])
        for old in range(1, size + 1):
            path = prove_consistency(old, size, nodes)
            assert list(path) == rfc.proof(old, size)
            assert verify_consistency(path, old_size=old, old_root=roots[old], new_size=size, new_root=roots[size])
        assert verify_consistency((), old_size=0, old_root=EMPTY_ROOT, new_size=size, new_root=roots[size])


def changed(path: Sequence[bytes]) -> list[list[bytes]]:
    """A proof with one thing wrong: a node too few, too many, repeated, altered, or two in the other order."""
    whole, stranger = list(path), hashlib.sha256(b"stranger").digest()
    bad = [[*whole, stranger], [stranger, *whole], [*whole, *whole[-1:]] if whole else [EMPTY_ROOT]]
    for at, value in enumerate(whole):
        bad.append(whole[:at] + whole[at + 1 :])
        bad.append([*whole[:at], bytes([value[0] ^ 1]) + value[1:], *whole[at + 1 :]])
        bad.append([*whole[:at], value[:-1] + bytes([value[-1] ^ 128]), *whole[at + 1 :]])
        if at and whole[at - 1] != value:
            bad.append([*whole[: at - 1], value, whole[at - 1], *whole[at + 1 :]])
    return bad


def test_no_changed_inclusion_proof_is_accepted() -> None:
    """Every tree up to 70: a changed path, another index, another leaf or another root is refused."""
    leaves = [leaf_hash(entry) for entry in entries(SMALL)]
    nodes = nodes_of(leaves)
    for size in range(1, SMALL + 1):
        root = root_of(leaves[:size])
        for index in {0, 1, size // 3, size // 2, size - 2, size - 1} & set(range(size)):
            path = prove_inclusion(index, size, nodes)
            for bad in changed(path):
                assert not verify_inclusion(leaves[index], bad, index=index, size=size, root=root)
            for other in range(-1, size + 2):
                assert verify_inclusion(leaves[index], path, index=other, size=size, root=root) == (other == index)
            assert not verify_inclusion(leaves[index - 1], path, index=index, size=size, root=root) or size == 1
            assert not verify_inclusion(leaves[index], path, index=index, size=size, root=leaf_hash(root))


def test_no_changed_consistency_proof_is_accepted() -> None:
    """Every pair of sizes up to 70: a changed path, and each root replaced, is refused."""
    leaves = [leaf_hash(entry) for entry in entries(SMALL)]
    nodes, other = nodes_of(leaves), leaf_hash(b"other")
    roots = [root_of(leaves[:size]) for size in range(SMALL + 1)]
    for new in range(SMALL + 1):
        for old in range(new + 1):
            sizes = {"old_size": old, "new_size": new}
            path = prove_consistency(old, new, nodes)
            assert verify_consistency(path, old_root=roots[old], new_root=roots[new], **sizes)
            assert not verify_consistency(path, old_root=other, new_root=roots[new], **sizes)
            if old:
                assert not verify_consistency(path, old_root=roots[old], new_root=other, **sizes)
            for bad in changed(path):
                assert not verify_consistency(bad, old_root=roots[old], new_root=roots[new], **sizes)
            if old < new:
                backwards = {"old_size": new, "new_size": old}
                assert not verify_consistency(path, old_root=roots[new], new_root=roots[old], **backwards)


@settings(deadline=None, max_examples=150)
@given(size=st.integers(1, 2000), data=st.data())
def test_proofs_of_larger_trees_hold_and_no_bit_of_them_is_idle(size: int, data: st.DataObject) -> None:
    leaves = [leaf_hash(entry) for entry in entries(size)]
    nodes, root = nodes_of(leaves), root_of(leaves)
    index = data.draw(st.integers(0, size - 1))
    path = prove_inclusion(index, size, nodes)
    assert verify_inclusion(leaves[index], path, index=index, size=size, root=root)
    old = data.draw(st.integers(1, size))
    grown = prove_consistency(old, size, nodes)
    roots = {"old_root": root_of(leaves[:old]), "new_root": root}
    assert verify_consistency(grown, old_size=old, new_size=size, **roots)
    bit = data.draw(st.integers(0, 255))
    for whole, kind in ((path, "inclusion"), (grown, "consistency")):
        if not whole:
            continue
        at = data.draw(st.integers(0, len(whole) - 1))
        flipped = (int.from_bytes(whole[at], "big") ^ (1 << bit)).to_bytes(32, "big")
        bad = (*whole[:at], flipped, *whole[at + 1 :])
        if kind == "inclusion":
            assert not verify_inclusion(leaves[index], bad, index=index, size=size, root=root)
        else:
            assert not verify_consistency(bad, old_size=old, new_size=size, **roots)


@settings(deadline=None)
@given(
    numbers=st.tuples(st.integers(-3, 1 << 70), st.integers(-3, 1 << 70)),
    hashes=st.lists(st.binary(min_size=0, max_size=40), max_size=80),
)
def test_anything_at_all_is_refused_without_an_exception(numbers: tuple[int, int], hashes: list[bytes]) -> None:
    first, second = numbers
    root, leaf = b"\x01" * 32, b"\x02" * 32
    assert not verify_inclusion(leaf, hashes, index=first, size=second, root=root)
    assert not verify_consistency(hashes, old_size=first, old_root=leaf, new_size=second, new_root=root)


class Endless(Sequence[bytes]):
    """A proof that says how long it is, and must not be looked into."""

    def __len__(self) -> int:
        return MAX_PATH + 1

    def __getitem__(self, at: object) -> bytes:  # type: ignore[override]
        raise AssertionError("a proof that is too long was read")


def test_hashes_have_32_bytes_and_proofs_are_measured_before_they_are_read() -> None:
    for text in (b"", b"x", b"\x01" * 31, b"\x01" * 33):
        assert not verify_inclusion(text, (), index=0, size=1, root=text)
        assert not verify_consistency((), old_size=1, old_root=text, new_size=1, new_root=text)
    value = b"\x01" * 32
    assert verify_inclusion(value, (), index=0, size=1, root=value)  # control
    assert not verify_inclusion(value, Endless(), index=0, size=MAX_SIZE, root=value)
    assert not verify_consistency(Endless(), old_size=1, old_root=value, new_size=MAX_SIZE, new_root=value)


def test_sizes_beyond_the_specification_and_endless_proofs_are_refused_before_any_work() -> None:
    value = b"\x01" * 32
    assert not verify_inclusion(value, [value] * (MAX_PATH + 1), index=0, size=MAX_SIZE, root=value)
    assert not verify_inclusion(value, [], index=0, size=MAX_SIZE + 1, root=value)
    assert not verify_consistency(
        [value] * (MAX_PATH + 1), old_size=1, old_root=value, new_size=MAX_SIZE, new_root=value
    )
    path = [value] * MAX_PATH
    root = value
    for sibling in path:
        root = node_hash(root, sibling)
    assert verify_inclusion(value, path, index=0, size=MAX_SIZE, root=root)  # control: the largest tree there can be
    assert not verify_inclusion(value, path[:-1], index=0, size=MAX_SIZE, root=root)


def test_the_empty_tree_is_the_beginning_of_every_tree_and_contains_nothing() -> None:
    root, leaf = root_of([leaf_hash(b"a")]), leaf_hash(b"a")
    assert verify_consistency((), old_size=0, old_root=EMPTY_ROOT, new_size=1, new_root=root)
    assert verify_consistency((), old_size=0, old_root=EMPTY_ROOT, new_size=0, new_root=EMPTY_ROOT)
    assert not verify_consistency((), old_size=0, old_root=root, new_size=1, new_root=root)
    assert not verify_consistency((), old_size=0, old_root=root, new_size=0, new_root=root)
    assert not verify_consistency((leaf,), old_size=0, old_root=EMPTY_ROOT, new_size=1, new_root=root)
    assert not verify_inclusion(leaf, (), index=0, size=0, root=EMPTY_ROOT)


@pytest.mark.parametrize(("index", "size"), [(0, 0), (1, 1), (-1, 4), (5, 4), (0, MAX_SIZE + 1)])
def test_there_is_no_proof_of_what_is_not_there(index: int, size: int) -> None:
    nodes = nodes_of([leaf_hash(entry) for entry in entries(4)])
    with pytest.raises(ValueError, match="no leaf"):
        prove_inclusion(index, size, nodes)
    with pytest.raises(ValueError, match="sizes"):
        prove_consistency(5, 4, nodes)
