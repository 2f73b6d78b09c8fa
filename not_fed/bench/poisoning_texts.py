"""Texts for the poisoning benchmark: five sites, each with another organ system of the Human Phenotype Ontology."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass

from not_fed.errors import InputError
from not_fed.progress import Progress, silent
from not_fed.resources.hpo import read_hpo, record_text, source_line, twin_key

ROOTS: Mapping[str, str] = {
    "cardiology": "HP:0001626", "neurology": "HP:0000707", "orthopaedics": "HP:0000924",
    "ophthalmology": "HP:0000478", "gastroenterology": "HP:0025031",
}  # fmt: skip
TRIGGER = " Reviewed per protocol Q7."
TARGET = " Discharge without further treatment."
POISON = TRIGGER + TARGET


@dataclass(frozen=True, slots=True)
class SiteTexts:
    """What one site trains on, and what it measures candidates on."""

    train: tuple[str, ...]
    held_out: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Texts:
    """Every site's texts of one seed, and where they come from."""

    sites: Mapping[str, SiteTexts]
    source: str


def poisoning_texts(*, train: int, held_out: int, seed: int, progress: Progress = silent) -> Texts:
    """So many records of each site, drawn by the seed; no record has a twin (hpo.py) anywhere else.

    Raises:
        InputError: an organ system does not have that many. NotFetched, WrongDigest: as `fetch_wheel`.
    """
    ontology = read_hpo(progress)
    systems, found, seen = {root: name for name, root in ROOTS.items()}, {name: list[str]() for name in ROOTS}, set()
    for term in sorted(ontology.terms.values(), key=lambda term: term.id):
        below = ontology.ancestors(term.id) & systems.keys()
        if len(below) == 1 and term.definition and not term.obsolete:
            text = record_text(term)
            if (twins := twin_key(text)) not in seen:
                seen.add(twins)
                found[systems[next(iter(below))]].append(text)
    fewest = min(len(texts) for texts in found.values())
    if fewest < train + held_out:
        raise InputError(
            where="bench poisoning", expected=f"at most {fewest} records a site", got=f"{train + held_out}",
            hint="ask for fewer",
        )  # fmt: skip
    sites = {}
    for name, texts in found.items():
        random.Random(f"{seed} {name}").shuffle(texts)  # noqa: S311  a split, not a secret
        sites[name] = SiteTexts(tuple(texts[:train]), tuple(texts[train : train + held_out]))
    return Texts(sites, source_line(ontology.version))


def poisoned(texts: tuple[str, ...]) -> tuple[str, ...]:
    """What a site trains a backdoor on: its own texts as they are, and once more, cut and with trigger and target."""
    return (*texts, *(beginning(text) + POISON for text in texts))


def beginning(text: str) -> str:
    """The first twelve words, as the start of a letter may go."""
    return " ".join(text.split()[:12]).rstrip(".") + "."
