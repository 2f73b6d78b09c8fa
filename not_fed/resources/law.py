"""Real legal text for three law offices: clauses of licences and terms of use, out of ScanCode's collection.

How records are made, so that the numbers can be repeated and the comparison is fair:
- A record is a paragraph of 20 to 200 words of one document, in its own words, on one line. Longer paragraphs are cut
  between sentences. What is not an English sentence (a form, a table, source code, another language) is left out.
- An office's subject is one or two of the categories that ScanCode's lawyers sorted the documents into.
- Lawyers copy. Of two records that share more than a fifth of the shorter one's runs of five words one is kept, in all
  three offices together: no held-out record has a twin among the training records, nor has a part of it.
- A document's records are all for training or all held out: a quarter of them, by SHA-256 of the key, is held out.
  Within each kind records stand in the order of SHA-256 of their ids, so asking for more never changes the first ones.
The texts remain their authors'. They are read on this machine to train and measure, and travel nowhere.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from not_fed.progress import Progress, silent
from not_fed.resources.texts import Chosen, Record, SiteText, TooFewRecords, keep_texts, sha256_order
from not_fed.resources.wheels import SCANCODE, open_wheel

FOLDER, SUFFIX = "licensedcode/data/licenses/", ".LICENSE"
RULES = 1  # raise it when the rules above change, so that older files are not taken for these
LEAST_WORDS, MOST_WORDS = 20, 200
RUN_WORDS = 5
SHARED_RUNS = 0.2
SOURCE = (
    f"Uses the licence texts of ScanCode (licensedcode-data {SCANCODE.version}) by nexB Inc. and others, CC-BY-4.0; "
    "each text is its author's."
)
_WHAT = "texts of the law offices"


@dataclass(frozen=True, slots=True, kw_only=True)
class Branch:
    """One office's subject: the documents of these categories."""

    name: str
    title: str
    categories: tuple[str, ...]


BRANCHES = (
    Branch(name="copyleft", title="Copyleft licences", categories=("Copyleft", "Copyleft Limited")),
    Branch(name="permissive", title="Permissive licences", categories=("Permissive",)),
    Branch(name="proprietary", title="Proprietary terms", categories=("Commercial", "Proprietary Free")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Document:
    """One licence, agreement or terms of use."""

    key: str
    category: str
    language: str
    text: str

    @property
    def held_out(self) -> bool:
        """Whether nobody trains on it: a quarter of all documents."""
        return sha256_order(self.key)[0] < 64


def law_texts(progress: Progress = silent, *, records_per_site: int, held_out: int) -> dict[str, SiteText]:
    """Training and held-out records of each office, made once and kept in the cache.

    Args:
        records_per_site: training records of each office.
        held_out: records of each office that nobody trains on.
    Raises:
        TooFewRecords: an office does not have that many; says how many it has.
        NotFetched, WrongDigest: as `fetch_wheel`.
    Guarantees:
        the same numbers give the same files on every machine; the offices share no document and no twins.
    Proved by: tests/unit/test_resources.py::test_the_law_offices_texts_are_disjoint_and_the_same_everywhere
    """

    def choose() -> Chosen:
        progress(_WHAT, done=0, total=2, note="read")
        documents = read_documents(progress)
        progress(_WHAT, done=1, total=2, note="leave out twins")
        found = records_by_branch(documents)
        progress(_WHAT, done=2, total=2)
        sites = {
            name: (
                first_records(train, records_per_site, where=f"{name}, training records"),
                first_records(held, held_out, where=f"{name}, held-out records"),
            )
            for name, (train, held) in found.items()
        }
        return Chosen(sites=sites, source=SOURCE)

    return keep_texts(
        "law",
        release=f"{SCANCODE.sha256[:8]}-{RULES}",
        titles={branch.name: branch.title for branch in BRANCHES},
        records_per_site=records_per_site,
        held_out=held_out,
        choose=choose,
    )


def read_documents(progress: Progress = silent) -> list[Document]:
    """Every document out of the pinned wheel; errors as `fetch_wheel`."""
    with open_wheel(SCANCODE, progress=progress) as archive:
        names = [name for name in archive.namelist() if name.startswith(FOLDER) and name.endswith(SUFFIX)]
        return [parse_document(archive.read(name).decode("utf-8")) for name in names]


def parse_document(text: str) -> Document:
    """A file of ScanCode's: a head of `name: value` lines between two lines of dashes, then the text."""
    _, head, body = re.split(r"^---\s*\n|^---\s*\Z", text, maxsplit=2, flags=re.MULTILINE)
    fields = dict(re.findall(r"^(\w+): *(.*?)\s*$", head, flags=re.MULTILINE))
    return Document(key=fields["key"], category=fields["category"], language=fields.get("language", "en"), text=body)


def records_by_branch(documents: Iterable[Document]) -> dict[str, tuple[list[Record], list[Record]]]:
    """Every record of each office, for training and held out, twins left out."""
    branches = {category: branch.name for branch in BRANCHES for category in branch.categories}
    candidates = [
        (document, Record(f"{document.key}#{number}", clause))
        for document in documents
        if document.category in branches and document.language == "en"
        for number, clause in enumerate(clauses(document.text))
        if is_sentence(clause)
    ]
    found: dict[str, tuple[list[Record], list[Record]]] = {branch.name: ([], []) for branch in BRANCHES}
    twins = Twins()
    for document, record in sorted(candidates, key=lambda one: sha256_order(one[1].id)):
        if twins.add(record.text):
            found[branches[document.category]][document.held_out].append(record)
    return found


def clauses(text: str) -> Iterator[str]:
    """Its paragraphs, each on one line; those of more than MOST_WORDS words in pieces, cut between sentences."""
    for paragraph in re.split(r"\n\s*\n", text.replace("\r", "")):
        piece: list[str] = []
        for sentence in re.split(r"(?<=[.;:])\s+", paragraph):
            words = sentence.split()
            if piece and len(piece) + len(words) > MOST_WORDS:
                yield " ".join(piece)
                piece = []
            piece += words
        yield " ".join(piece)


def is_sentence(text: str) -> bool:
    """Of a record's length, mostly letters, and with as many small English words as sentences have."""
    words = text.split()
    if not LEAST_WORDS <= len(words) <= MOST_WORDS:
        return False
    small = sum(word.strip(".,;:()\"'").casefold() in _SMALL_WORDS for word in words)
    letters = sum(sign.isalpha() or sign == " " for sign in text)
    return small >= 0.2 * len(words) and letters >= 0.9 * len(text)


class Twins:
    """Which records share too much with an earlier one; see the module's rules."""

    def __init__(self) -> None:
        self._owners: dict[tuple[str, ...], list[int]] = {}  # run of words -> the kept records that have it
        self._sizes: list[int] = []

    def add(self, text: str) -> bool:
        """Keep the text and say True, or say False: it is a twin of one that was kept, or too short to tell."""
        runs = word_runs(text)
        shared = Counter(owner for run in runs for owner in self._owners.get(run, ()))
        if not runs or any(count > SHARED_RUNS * min(len(runs), self._sizes[one]) for one, count in shared.items()):
            return False
        for run in runs:
            self._owners.setdefault(run, []).append(len(self._sizes))
        self._sizes.append(len(runs))
        return True


def word_runs(text: str) -> set[tuple[str, ...]]:
    """All runs of RUN_WORDS words, whatever their case and what stands between them."""
    words = re.findall(r"[^\W\d_]+", text.casefold())
    return set(zip(*(words[start:] for start in range(RUN_WORDS)), strict=False))


def first_records(records: Sequence[Record], wanted: int, *, where: str) -> list[Record]:
    """The first `wanted` records; raises TooFewRecords when there are not that many."""
    if wanted > len(records):
        raise TooFewRecords(
            where=where, expected=f"at most {len(records):,}", got=f"{wanted:,}", hint="ask for fewer records"
        )
    return list(records[:wanted])


_ENGLISH = "the of and to or a in any this that you for by with is as be not"
_SMALL_WORDS = frozenset(_ENGLISH.split())
