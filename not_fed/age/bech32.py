"""Bech32 (BIP 173) as age uses it: no length limit, one case per string.

Source: https://github.com/bitcoin/bips/blob/master/bip-0173.mediawiki; c2sp.org/age, "recipient and identity encoding".
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import xor

from not_fed.errors import InputError

_ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
_GENERATOR = (0x3B6A57B2, 0x26508E6D, 0x1EA119FA, 0x3D4233DD, 0x2A1462B3)
_TERMS = tuple(  # what the generator adds for each value of the five bits that leave at the top
    reduce(xor, (term for place, term in enumerate(_GENERATOR) if top >> place & 1), 0) for top in range(32)
)
_CHECKSUM_CHARACTERS = 6


class BadKeyText(InputError):
    """This is not the text form of a key."""

    code = "bad-key-text"


def encode(prefix: str, data: bytes) -> str:
    """The lower-case text form of `data` under `prefix`."""
    values = _regroup(data, source_bits=8, target_bits=5, pad=True)
    values += _checksum(prefix, values)
    return prefix + "1" + "".join(_ALPHABET[value] for value in values)


def decode(text: str, *, prefix: str) -> bytes:
    """The bytes behind `text`; both it and `prefix` may be all lower or all upper case, but the same.

    Raises:
        BadKeyText: wrong prefix, mixed case, a foreign character, a wrong checksum or leftover bits. The text is never
            quoted: it may be a secret.
    """
    head, separator, tail = text.rpartition("1")
    if not separator or head != prefix:
        raise _bad(prefix, "another prefix")
    lowered = tail.lower() if prefix.isupper() else tail
    if prefix.isupper() and tail != tail.upper():
        raise _bad(prefix, "mixed case")
    if len(lowered) < _CHECKSUM_CHARACTERS or any(character not in _ALPHABET for character in lowered):
        raise _bad(prefix, "characters that bech32 does not have")
    values = [_ALPHABET.index(character) for character in lowered]
    if _polymod([*_expand(prefix.lower()), *values]) != 1:
        raise _bad(prefix, "a wrong checksum")
    try:
        return bytes(_regroup(values[:-_CHECKSUM_CHARACTERS], source_bits=5, target_bits=8, pad=False))
    except ValueError:
        raise _bad(prefix, "leftover bits") from None


def _bad(prefix: str, got: str) -> BadKeyText:
    return BadKeyText(where="key text", expected=f"{prefix}1...", got=got, hint="copy the whole line again")


def _expand(prefix: str) -> list[int]:
    return [ord(character) >> 5 for character in prefix] + [0] + [ord(character) & 31 for character in prefix]


def _checksum(prefix: str, values: list[int]) -> list[int]:
    residue = _polymod([*_expand(prefix), *values, 0, 0, 0, 0, 0, 0]) ^ 1
    return [(residue >> 5 * (5 - place)) & 31 for place in range(_CHECKSUM_CHARACTERS)]


def _polymod(values: Iterable[int]) -> int:
    residue = 1
    for value in values:
        residue = (residue & 0x1FFFFFF) << 5 ^ value ^ _TERMS[residue >> 25]
    return residue


def _regroup(data: Iterable[int], *, source_bits: int, target_bits: int, pad: bool) -> list[int]:
    held, bits, out = 0, 0, []
    for value in data:
        held, bits = (held << source_bits | value) & 0xFFF, bits + source_bits
        while bits >= target_bits:
            bits -= target_bits
            out.append(held >> bits & (1 << target_bits) - 1)
    rest = held & (1 << bits) - 1
    if pad and bits:
        out.append(rest << target_bits - bits)
    elif not pad and (bits >= source_bits or rest):
        raise ValueError("leftover bits")
    return out
