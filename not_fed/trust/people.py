"""The people behind a roster's keys, and how many of them have signed.

TUF counts keys. Three stewards have six, and four of six signatures look like two people; but whoever can forge one of
the two algorithms makes three signatures alone (one for each steward), and a single insider adds the fourth: his own
key of the other algorithm. 3 forged + 1 honest = 4 of 6, and two of the three people never saw it. So the roster's root
names its people (`x-not-fed-stewards`), and on top of TUF a majority of *people* must have signed with *both* of
their keys: then the forger needs both signatures of two people, hence both algorithms, or two insiders.

The same for every root on the way from the pinned one (by the people before and by the people after), for targets,
snapshot and timestamp. The root's shape is exact: each person two keys, all of them in all four roles, thresholds as
computed here and never as written, so that no root can lower them. It names the roster version that it came with
(`x-not-fed-roster-version`): older ones do not count again because somebody who signed a newer one has left.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.mldsa import MLDSA65PublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from securesystemslib.exceptions import Error as SignatureError
from securesystemslib.signer import Key, SSlibKey
from tuf.api.metadata import Metadata, Root, Snapshot, Targets, Timestamp

from not_fed.errors import TrustError
from not_fed.keys.identity import NAME
from not_fed.keys.signing import SigningKeys
from not_fed.trust.members import RosterMalformed

FIELD: Final = "x-not-fed-stewards"
SINCE: Final = "x-not-fed-roster-version"
ROLES: Final = (Root.type, Targets.type, Snapshot.type, Timestamp.type)
MAX_STEWARDS: Final = 16
People = Mapping[str, SigningKeys]


class TooFewPeople(TrustError):
    """Too few of the stewards have signed this roster with both of their keys."""

    code = "roster-too-few-people"


def majority(people: int) -> int:
    """How many people must sign.

    >>> [majority(n) for n in (1, 2, 3, 5)]
    [1, 2, 2, 3]
    """
    return people // 2 + 1


def threshold(people: int) -> int:
    """How many of the 2 x `people` keys must sign, for TUF: more than all keys of one algorithm.

    >>> [threshold(n) for n in (1, 2, 3, 5)]
    [2, 4, 4, 6]
    """
    return 2 * majority(people)


def tuf_keys(keys: SigningKeys) -> tuple[Key, Key]:
    """The two keys as TUF writes them; their ids follow from the keys."""
    ed25519 = Ed25519PublicKey.from_public_bytes(keys.ed25519)
    ml_dsa_65 = MLDSA65PublicKey.from_public_bytes(keys.ml_dsa_65)
    return SSlibKey.from_crypto(ed25519), SSlibKey.from_crypto(ml_dsa_65)


def build_root(people: People, *, version: int, since: int, expires: Any) -> Root:  # noqa: ANN401  a datetime
    """The one root that these people can have with this version and date, published with roster version `since`."""
    keys = {name: tuf_keys(people[name]) for name in sorted(people)}
    names = {name: [key.keyid for key in pair] for name, pair in keys.items()}
    fields = {FIELD: names, SINCE: since}
    root = Root(version=version, expires=expires, consistent_snapshot=True, unrecognized_fields=fields)
    for role in ROLES:
        for pair in keys.values():
            for key in pair:
                root.add_key(key, role)
        root.roles[role].threshold = threshold(len(people))
    return root


def people_of(root: Root) -> People:
    """Name -> keys of the stewards that a root names.

    Raises:
        RosterMalformed: not exactly the root that `build_root` makes for some people.
    Guarantees: no two names are alike or share a key; no key is of small order; thresholds are those of this module.
    Proved by: tests/attacks/test_draft_contents.py::test_a_root_of_another_shape_is_refused
    """
    try:
        named = root.unrecognized_fields.get(FIELD)
        if not isinstance(named, dict) or not 0 < len(named) <= MAX_STEWARDS:
            raise ValueError("no stewards")
        people = {name: _keys_of(root, ids) for name, ids in named.items() if NAME.fullmatch(name)}
        raw = [key for keys in people.values() for key in (keys.ed25519, keys.ml_dsa_65)]
        if len({name.lower() for name in people}) != len(named) or len(set(raw)) != len(raw):
            raise ValueError("two names alike, or one key for two people")
        if not _alike(root, build_root(people, version=root.version, since=since_of(root), expires=root.expires)):
            raise ValueError("another shape")
    except (ValueError, TypeError, KeyError, AttributeError, UnsupportedAlgorithm):
        raise RosterMalformed(
            where=f"roster, root version {root.version}",
            expected="stewards with a name and two keys each, all in all roles, signing by majority",
            got="a root of another shape", hint="nothing was changed; ask the stewards who made it",
        ) from None  # fmt: skip
    return people


def since_of(root: Root) -> int:
    """The roster version that a root was published with; raises ValueError when it names none."""
    since = root.unrecognized_fields.get(SINCE)
    if type(since) is not int or since < 1:
        raise ValueError("no roster version")
    return since


def check_people(root: Root, metadata: Metadata[Any]) -> None:
    """Raises TooFewPeople unless a majority of the root's people signed with both keys, RosterMalformed as above."""
    people = people_of(root)
    signed = signers(people, metadata)
    if len(signed) < majority(len(people)):
        raise TooFewPeople(
            where=f"roster, {metadata.signed.type} version {metadata.signed.version}",
            expected=f"{majority(len(people))} of {', '.join(sorted(people))}, each with both keys",
            got=", ".join(signed) or "nobody", hint="nothing was changed; show this to the stewards at once",
        )  # fmt: skip


def signers(people: People, metadata: Metadata[Any]) -> tuple[str, ...]:
    """Who signed with both keys, sorted."""
    message = metadata.signed_bytes
    return tuple(
        name for name in sorted(people) if all(_signed(key, metadata, message) for key in tuf_keys(people[name]))
    )


def only_valid(people: Iterable[People], metadata: Metadata[Any]) -> None:
    """Take away every signature that none of these people's keys made."""
    message = metadata.signed_bytes
    keys = {key.keyid: key for group in people for pair in group.values() for key in tuf_keys(pair)}
    for key_id in list(metadata.signatures):
        if key_id not in keys or not _signed(keys[key_id], metadata, message):
            del metadata.signatures[key_id]


def _signed(key: Key, metadata: Metadata[Any], message: bytes) -> bool:
    signature = metadata.signatures.get(key.keyid)
    if signature is None:
        return False
    try:
        key.verify_signature(signature, message)
    except SignatureError:
        return False
    return True


def _keys_of(root: Root, key_ids: Sequence[str]) -> SigningKeys:
    ed25519, ml_dsa_65 = (root.keys[key_id] for key_id in key_ids)
    public = load_pem_public_key(ml_dsa_65.keyval["public"].encode())
    if not isinstance(public, MLDSA65PublicKey):
        raise ValueError("a key of another kind")
    return SigningKeys(bytes.fromhex(ed25519.keyval["public"]), public.public_bytes_raw())


def _alike(first: Root, second: Root) -> bool:
    """Equal as JSON: also in the ids of keys, which TUF itself does not tie to the keys."""
    return bool(_plain(first) == _plain(second))


def _plain(root: Root) -> dict[str, Any]:
    value = root.to_dict()
    for role in value["roles"].values():
        role["keyids"] = sorted(role["keyids"])
    return value
