"""Texts for the comparisons of organs: records of three sites, with validation and test records apart from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from not_fed.organ.data import read_records
from not_fed.progress import Progress, silent
from not_fed.resources.hpo import hospital_texts
from not_fed.resources.law import law_texts

RECORDS, HELD_OUT = 800, 75  # of each site
MOST_RECORDS = {"medicine": 1180, "law": 1021}  # that every site of a corpus has beside the held-out ones
VALIDATION_SHARE = 3  # every third held-out record chooses learning rates, the others measure


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What methods learn from and are measured on.

    Attributes:
        validation: chooses learning rates; nothing else.
        source: acknowledgement of the texts.
    """

    name: str
    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    source: str


def split_texts(name: str, *, train: Sequence[str], held_out: Sequence[str], source: str) -> Texts:
    """Held-out records in two parts that share none."""
    validation = tuple(held_out[::VALIDATION_SHARE])
    test = tuple(text for number, text in enumerate(held_out) if number % VALIDATION_SHARE)
    return Texts(name=name, train=tuple(train), validation=validation, test=test, source=source)


def pooled(name: str, sites: Mapping[str, Texts]) -> Texts:
    """All sites' records in one, taken in turns."""

    def together(parts: Sequence[Sequence[str]]) -> tuple[str, ...]:
        return tuple(text for row in zip(*parts, strict=True) for text in row)

    ordered = [sites[site] for site in sorted(sites)]
    return Texts(
        name=name,
        train=together([site.train for site in ordered]),
        validation=together([site.validation for site in ordered]),
        test=together([site.test for site in ordered]),
        source=ordered[0].source,
    )


def of_corpus(
    name: str, *, records: int = RECORDS, held_out: int = HELD_OUT, progress: Progress = silent
) -> dict[str, Texts]:
    """The three sites of a corpus that comes with not-fed, with so many records each."""
    makers = {"medicine": hospital_texts, "law": law_texts}
    found = makers[name](progress, records_per_site=records, held_out=held_out)
    return {
        site: split_texts(site, train=read_records(one.train), held_out=read_records(one.held_out), source=one.source)
        for site, one in found.items()
    }
