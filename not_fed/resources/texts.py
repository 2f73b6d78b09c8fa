"""What the corpora share: records of several sites on disk, some of them held out, made once and kept in the cache."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from not_fed import files
from not_fed.errors import InputError
from not_fed.resources.wheels import one_at_a_time


class TooFewRecords(InputError):
    """A site of the corpus does not have that many records."""

    code = "too-few-records"


@dataclass(frozen=True, slots=True)
class Record:
    """One text that a model reads, and the source's own name for it."""

    id: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteText:
    """One site's records on disk.

    Attributes:
        train, held_out: .jsonl files with the fields `id` and `text`; no record of one has a twin in the other.
        records, held_out_records: how many each holds.
        source: acknowledgement and release, to be shown wherever the text or what was learnt from it is shown.
    """

    site: str
    title: str
    train: Path
    held_out: Path
    records: int
    held_out_records: int
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """What a corpus writes: each site's training and held-out records, and whom to acknowledge."""

    sites: Mapping[str, tuple[list[Record], list[Record]]]
    source: str


def keep_texts(
    corpus: str, *, release: str, titles: Mapping[str, str], records_per_site: int, held_out: int,
    choose: Callable[[], Chosen],
) -> dict[str, SiteText]:  # fmt: skip
    """The texts of a corpus out of the cache; `choose` is asked when they are not there yet.

    Args:
        release: names the corpus' release and the rules that its records are made by; another one is made anew.
    """
    if records_per_site < 1 or held_out < 1:
        raise TooFewRecords(where=f"{corpus} texts", expected="at least one record of each kind", hint="ask for more",
                            got=f"{records_per_site} for training, {held_out} held out")  # fmt: skip
    texts = files.cache_folder() / "texts"
    folder = texts / f"{corpus}-{release}-{records_per_site}-{held_out}"
    texts.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(texts / f".{corpus}.lock", leftovers=f".{corpus}-*.part"):
        if not folder.is_dir():
            chosen = choose()
            with files.new_folder(folder) as part:
                _write(part, chosen)
    source = files.read_regular(folder / "SOURCE.txt", max_bytes=4096).decode().strip()
    found = {}
    for site, title in titles.items():
        train, held = _paths(folder, site)
        found[site] = SiteText(site=site, title=title, train=train, held_out=held, records=records_per_site,
                               held_out_records=held_out, source=source)  # fmt: skip
    return found


def sha256_order(name: str) -> bytes:
    """Sorts records in an order that has nothing to do with what they say, and is the same everywhere."""
    return hashlib.sha256(name.encode()).digest()


def _write(folder: Path, chosen: Chosen) -> None:
    for site, parts in chosen.sites.items():
        for path, part in zip(_paths(folder, site), parts, strict=True):
            files.write_atomic(path, _jsonl(part), mode=0o644)
    files.write_atomic(folder / "SOURCE.txt", f"{chosen.source}\n".encode(), mode=0o644)


def _jsonl(records: Iterable[Record]) -> bytes:
    lines = (json.dumps({"id": record.id, "text": record.text}, ensure_ascii=False) for record in records)
    return "".join(f"{line}\n" for line in lines).encode()


def _paths(folder: Path, site: str) -> tuple[Path, Path]:
    return folder / f"{site}.train.jsonl", folder / f"{site}.held-out.jsonl"
