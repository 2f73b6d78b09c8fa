"""Text for the privacy benchmark: definitions of the Human Phenotype Ontology, one part private, another part public.

Public is what lies below orthopaedics' root, private a fixed part of all that does not. Twins (hpo.py) are left out of
both together, so no held-out definition has a twin among those that anything was trained or chosen on. The terms'
names are left out: the fact is in the definition, and a record that begins with its own title is easier to read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from not_fed.errors import InputError
from not_fed.progress import Progress, silent
from not_fed.resources.hpo import SPECIALITIES, read_hpo, record_text, source_line, twin_key
from not_fed.resources.obo import Ontology, Term

PUBLIC_ROOT = next(speciality.root for speciality in SPECIALITIES if speciality.name == "orthopaedics")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchTexts:
    """Definitions in a fixed order; `private` stands for what a site holds, `public` for what anybody may read."""

    private: tuple[str, ...]
    public: tuple[str, ...]
    source: str


def bench_texts(*, each: int, progress: Progress = silent) -> BenchTexts:
    """`each` definitions of either kind, the same on every machine.

    Raises:
        InputError: the ontology does not have that many. NotFetched, WrongDigest: as `fetch_wheel`.
    """
    ontology = read_hpo(progress)
    found: dict[bool, list[str]] = {True: [], False: []}
    for term, text in _definitions(ontology):
        part = found[PUBLIC_ROOT in ontology.ancestors(term.id)]
        if len(part) < each:
            part.append(text)
    if min(len(part) for part in found.values()) < each:
        raise InputError(
            where="bench dp",
            expected=f"at most {min(len(part) for part in found.values()):,} definitions of each kind",
            got=f"{each:,}",
            hint="ask for fewer",
        )
    return BenchTexts(private=tuple(found[False]), public=tuple(found[True]), source=source_line(ontology.version))


def _definitions(ontology: Ontology) -> Iterator[tuple[Term, str]]:
    """Terms with their definitions, in the order of their ids' digits turned around, twins left out."""
    seen: set[str] = set()
    for term in sorted(ontology.terms.values(), key=lambda term: term.id[::-1]):
        if term.definition and not term.obsolete:
            text = record_text(replace(term, name=""))
            twins = twin_key(text)
            if twins not in seen:
                seen.add(twins)
                yield term, text
