"""The tools of whoever attacks a secure sum: rounds to start from, papers signed anew, uploads made by hand."""

from __future__ import annotations

import base64
import hashlib
import shutil
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from not_fed import canonical
from not_fed.aggregation.secure import Ring, ServerSum, Uploaded, capsules, masks, shamir
from not_fed.aggregation.secure.ledger import LEDGER_FILE
from not_fed.aggregation.secure.ring import CHECK_WORDS, TAIL_WORDS
from not_fed.envelope.summing import (
    PARTIAL_TYPE,
    SHARES_TYPE,
    UPLOAD_TYPE,
    VECTOR_HEAD,
    Partial,
    SumCall,
    Upload,
    sign_paper,
)
from not_fed.errors import NotFedError
from not_fed.keys import FileSigner, dsse
from tests.support.sums import NOTHING_CLAIMED, START, Cohort, Party
from tests.support.trust import payload_of

TYPES = {"upload": UPLOAD_TYPE, "partial": PARTIAL_TYPE, "shares": SHARES_TYPE}
OTHER_START = hashlib.sha256(b"another start").hexdigest()


@dataclass
class Asked:
    """A cohort in one round: all have sent their uploads, nobody has helped yet."""

    cohort: Cohort
    keys: Mapping[str, bytes]
    call: SumCall
    uploads: dict[str, tuple[Uploaded, bytes]]

    @classmethod
    def make(cls, cohort: Cohort, **call: Any) -> Asked:  # noqa: ANN401
        """Ask everybody for an upload."""
        keys = cohort.keys()
        asked = cohort.call(keys, **call)
        return cls(cohort, keys, asked, {name: cohort.upload(name, asked, keys) for name in cohort.plan.sites})

    def copy(self, folder: Path) -> Asked:
        """The same moment, with ledgers of its own."""
        shutil.copytree(self.cohort.folder, folder)
        cohort = Cohort(plan=self.cohort.plan, parties=self.cohort.parties, folder=folder)
        cohort.uploads.update(self.uploads)
        return Asked(cohort, self.keys, self.call, dict(self.uploads))

    @property
    def helpers(self) -> list[str]:
        """Who carries masks."""
        return self.call.helpers(self.cohort.plan.thresholds().helpers)

    @property
    def others(self) -> list[str]:
        """Who does not."""
        return [name for name in self.call.names if name not in self.helpers]

    def sends(self, name: str, upload: tuple[Uploaded, bytes]) -> None:
        """A site with a modified client sends this instead, and its own ledger agrees."""
        self.uploads[name] = self.cohort.uploads[name] = upload
        digest = hashlib.sha256(upload[0].label).hexdigest()
        with closing(sqlite3.connect(self.cohort.folder / name / LEDGER_FILE)) as database, database:
            database.execute("UPDATE rounds SET label = ? WHERE call = ?", (digest, self.call.sha256))

    def labels(self, names: Iterable[str]) -> list[bytes]:
        """What a coordinator shows of these uploads."""
        return [self.uploads[name][0].label for name in names]

    def capsules(self, names: Iterable[str], *, to: str) -> dict[str, bytes]:
        """What these sealed for that site."""
        return {name: self.uploads[name][0].capsules[to] for name in names}

    def help(
        self, name: str, sites: Sequence[str], *, labels: Sequence[bytes] | None = None,
        sealed: Mapping[str, bytes] | None = None, call: SumCall | None = None,
        sink: Callable[[memoryview], object] | None = None,
    ) -> tuple[bytes, bytes]:  # fmt: skip
        """Ask a helper for the masks of a set of sites, honestly but for what is given."""
        words = bytearray()
        helped = self.cohort.site(name).help(
            call or self.call, labels=self.labels(sites) if labels is None else labels,
            capsules_to_me=self.capsules(sites, to=name) if sealed is None else sealed, sink=sink or words.extend,
        )  # fmt: skip
        return helped.statement, bytes(words)

    def reveal(
        self, name: str, sites: Sequence[str], missing: Sequence[str], *, labels: Sequence[bytes] | None = None,
        sealed: Mapping[str, bytes] | None = None, call: SumCall | None = None,
    ) -> bytes:  # fmt: skip
        """Ask a site for its shares, honestly but for what is given."""
        return self.cohort.site(name).reveal(
            call or self.call, labels=self.labels(sites) if labels is None else labels,
            capsules_to_me=self.capsules(sites, to=name) if sealed is None else sealed, missing=missing,
        )  # fmt: skip

    def server(self, sites: Sequence[str] | None = None) -> ServerSum:
        """A coordinator that has fixed this set."""
        server = self.cohort.server(self.call, self.call.names if sites is None else sites)
        server.close_uploads()
        return server

    def helped(self, sites: Sequence[str] | None = None) -> ServerSum:
        """A coordinator that has taken all helpers' masks off."""
        server = self.server(sites)
        for name in self.helpers:
            statement, words = self.help(name, list(server.close_uploads().labels))
            server.add_partial(name, statement=statement, vector=memoryview(words))
        return server

    def opens(self, sites: Sequence[str] | None = None) -> None:
        """The control: an honest end gives the plain sum."""
        names = self.call.names if sites is None else sites
        total = self.helped(names).finish()
        assert np.array_equal(total.words[:-TAIL_WORDS], self.cohort.plain(names))

    def next_round(self, *, round_number: int = 2, start: str = START, **changes: Any) -> SumCall:  # noqa: ANN401
        """Another call, with new keys, which stand in `keys` from then on."""
        self.keys = self.cohort.keys(changes.pop("names", None))
        return self.cohort.call(self.keys, round_number=round_number, start=start, **changes)

    def upload_again(self, call: SumCall, names: Iterable[str] | None = None, *, seed: int = 0) -> Asked:
        """All answer that call, from the same data unless `seed` differs."""
        for name in names or call.names:
            self.uploads[name] = self.cohort.upload(name, call, self.keys, change=self.cohort.update(name, seed=seed))
        return Asked(self.cohort, self.keys, call, self.uploads)


def remembered(cohort: Cohort, name: str) -> str:
    """All that a site's ledger says."""
    with closing(sqlite3.connect(cohort.folder / name / LEDGER_FILE)) as database:
        return "\n".join(database.iterdump())


@contextmanager
def refused(
    cohort: Cohort, *kinds: type[NotFedError], sites: Iterable[str] | None = None
) -> Iterator[pytest.ExceptionInfo[NotFedError]]:
    """The block ends in one of these refusals, and no site's ledger has another word in it then."""
    names = list(cohort.plan.sites if sites is None else sites)
    before = {name: remembered(cohort, name) for name in names}
    with pytest.raises(kinds) as caught:
        yield caught
    assert {name: remembered(cohort, name) for name in names} == before


def resigned(
    line: bytes,
    *,
    signer: FileSigner,
    kind: Literal["upload", "partial", "shares"] = "upload",
    **changes: Any,  # noqa: ANN401
) -> bytes:
    """A paper with fields changed, in any way, and both signatures of `signer`; `sender` stands for `from`."""
    named = {"from" if key == "sender" else key: value for key, value in changes.items()}
    return dsse.sign(canonical.dumps(payload_of(line) | named), payload_type=TYPES[kind], signer=signer)


@dataclass
class ByHand:
    """An upload that an insider makes with the protocol's own tools; every part of it may be changed before `build`."""

    cohort: Cohort
    name: str
    call: SumCall
    keys: Mapping[str, bytes]
    change: NDArray[np.float32] | None = None
    weight: int = 1
    seeds: dict[str, bytes] = field(init=False)
    sealed_seeds: dict[str, bytes] = field(init=False)
    blind: bytes | None = field(init=False)
    sealed_blind: bytes | None = field(init=False)
    words: NDArray[Any] = field(init=False)
    tail: NDArray[Any] = field(init=False)

    def __post_init__(self) -> None:
        plan = self.cohort.plan
        self.ring = Ring.of(plan)
        self.rule = plan.thresholds(len(self.call.names))
        self.helpers = self.call.helpers(self.rule.helpers)
        self.seeds = {helper: masks.new_seed() for helper in self.helpers}
        self.sealed_seeds = dict(self.seeds)
        self.blind = self.sealed_blind = masks.new_seed() if plan.blind else None
        change = self.cohort.update(self.name) if self.change is None else self.change
        self.words = self.ring.words(self.ring.round(change), weight=self.weight)
        self.tail = self.ring.tail(self.weight)

    @staticmethod
    def ring_of(cohort: Cohort) -> Ring:
        """The numbers of its plan."""
        return Ring.of(cohort.plan)

    @property
    def party(self) -> Party:
        """Whose keys sign."""
        return self.cohort.parties[self.name]

    def shares(self) -> dict[str, list[bytes]]:
        """Of each helper's seed, by place in the cohort."""
        return {
            helper: shamir.split(seed, places=len(self.call.names), threshold=self.rule.shares)
            for helper, seed in self.seeds.items()
        }

    def build(self) -> tuple[Uploaded, bytes]:
        """What gets sent."""
        vector, call = np.concatenate([self.words, self.tail]), self.call.sha256
        for helper, seed in self.seeds.items():
            key = masks.pair_key(seed, call_sha256=call, uploader=self.name, helper=helper)
            masks.MaskStream(key).add(vector)
        if self.blind is not None:
            stream = masks.MaskStream(masks.blind_key(self.blind, call_sha256=call, uploader=self.name))
            stream.add(vector[: len(self.words)])
            stream.add(vector[len(self.words) + CHECK_WORDS :])
        shares = self.shares()
        sealed = {
            name: capsules.seal(
                capsules.Capsule(
                    seed=self.sealed_seeds.get(name), blind=self.sealed_blind,
                    shares=tuple(shares[helper][place] for helper in self.helpers),
                ),
                public=public_of(self.keys[name]), call_sha256=call, uploader=self.name, to=name,
            )
            for place, name in enumerate(self.call.names)
        }  # fmt: skip
        return self.sign(vector, sealed)

    def sign(self, vector: NDArray[Any], sealed: Mapping[str, bytes], **changes: Any) -> tuple[Uploaded, bytes]:  # noqa: ANN401
        """The label for that vector and those capsules."""
        call, digest = self.call.sha256, hashlib.sha256(framed(vector)).hexdigest()
        fields: dict[str, Any] = {
            "call_sha256": call, "sender": self.name, "vector_sha256": digest, "contribution": NOTHING_CLAIMED,
            "capsules": {name: hashlib.sha256(data).hexdigest() for name, data in sealed.items()},
            "commitments": {
                helper: capsules.commit(seed, call_sha256=call, uploader=self.name, helper=helper)
                for helper, seed in self.seeds.items()
            },
            "blind": None if self.blind is None else capsules.commit_blind(
                self.blind, call_sha256=call, uploader=self.name
            ),
        }  # fmt: skip
        label = sign_paper(Upload(**fields | changes), signer=self.party.signer)
        return Uploaded(label=label, capsules=dict(sealed), vector_sha256=digest, clipped=0), framed(vector)


def framed(words: NDArray[Any]) -> bytes:
    """Words as they travel."""
    return VECTOR_HEAD + words.tobytes()


def words_of(vector: bytes) -> NDArray[np.uint32]:
    """The words of a vector that came, to be changed."""
    return np.frombuffer(vector, dtype="<u4", offset=len(VECTOR_HEAD)).astype(np.uint32)


def public_of(key_line: bytes) -> bytes:
    """The raw key in a signed line, unverified."""
    return base64.b64decode(payload_of(key_line)["public"])


def partial_by_hand(asked: Asked, name: str, server: ServerSum, words: bytes, *, as_: str | None = None) -> bytes:
    """A partial sum over any words, signed by `name`, in its own or another's name."""
    paper = Partial(
        call_sha256=asked.call.sha256, sender=as_ or name, active_sha256=server.close_uploads().sha256,
        vector_sha256=hashlib.sha256(words).hexdigest(),
    )  # fmt: skip
    return sign_paper(paper, signer=asked.cohort.parties[name].signer)


def opened(asked: Asked, name: str, uploader: str) -> capsules.Capsule:
    """What a corrupt site reads in its own capsule, with its own key."""
    site = asked.cohort.site(name)
    key = site._round_key(asked.call)
    plain = capsules.unseal(
        asked.uploads[uploader][0].capsules[name], key=key, call_sha256=asked.call.sha256, uploader=uploader, to=name
    )
    found = capsules.unpack(
        plain, is_helper=name in asked.helpers, is_blind=asked.cohort.plan.blind, helpers=len(asked.helpers)
    )
    assert found is not None
    return found


def is_noise(words: NDArray[Any]) -> bool:
    """Whether words of 32 bits lie all over the ring, as those under a mask do and small numbers do not."""
    signed = words.view(np.dtype(f"<i{words.dtype.itemsize}")).astype(np.float64) / 2 ** (8 * words.dtype.itemsize)
    return bool(np.abs(signed).mean() > 0.15)  # 0.25 is expected, 40 words give 0.02 either way
