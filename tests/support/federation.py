"""Tiny federations: real homes, keys, roster and policies; a tiny Llama; records with something to learn."""

from __future__ import annotations

import atexit
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from safetensors import safe_open
from safetensors.torch import save_file

from not_fed import settings
from not_fed.envelope.label import label_path
from not_fed.envelope.passport import issue_passport, new_passport
from not_fed.envelope.seal import seal_organ
from not_fed.envelope.task import PROTOCOL, Mode, ParcelRef, ProposedPrivacy, Task, Training, new_id, sign_task
from not_fed.home import Home
from not_fed.organ.anatomy import Span
from not_fed.organ.extract import extract
from not_fed.processes.bundle import load_app
from not_fed.simulation import FederationFile, Prepared, prepare
from not_fed.simulation.grid import LocalGrid
from tests.support.folders import records, save_base
from tests.support.tiny import tiny_llama

_TEMPLATES = Path(tempfile.mkdtemp(prefix="not-fed-tests-"))
atexit.register(shutil.rmtree, _TEMPLATES, ignore_errors=True)
SITES = ("clinic", "hospice", "ward")
SPAN = (1, 3)


@dataclass(frozen=True, kw_only=True)
class Parcel:
    """A sealed organ as a test holds it: in memory."""

    label: bytes
    sealed: bytes

    @property
    def sha256(self) -> str:
        """Digest of the sealed bytes."""
        return hashlib.sha256(self.sealed).hexdigest()


def tiny_federation(
    folder: Path,
    *,
    mode: Mode = "bank",
    rounds: int = 2,
    sites: Sequence[str] = SITES,
    epsilon: float | None = None,
    weights: Mapping[str, float] | None = None,
    secure_sum: Mapping[str, Any] | None = None,
    training: Mapping[str, Any] | None = None,
) -> FederationFile:
    """A federation file over a tiny base and records that are written into `folder`."""
    save_base(tiny_llama(), folder / "base")
    for number, site in enumerate(sites):
        for kind, seed in (("records", number), ("held_out", number + 10)):
            lines = [json.dumps({"text": text}) for text in records(16, seed=seed, shortest=6)]
            (folder / f"{site}-{kind}.jsonl").write_text("\n".join(lines) + "\n")
    return settings.check(
        FederationFile,
        {
            "federation": {
                "name": "tiny",
                "base": str(folder / "base"),
                "span": list(SPAN),
                "mode": mode,
                "rounds": rounds,
            },
            "training": {"batch_tokens": 64, "max_tokens": 32, "lr": 1e-2, **(training or {})},
            "privacy": {"divisor": 4.0, "sample_rate": 0.25},
            "secure_sum": dict(secure_sum or {}),
            "runs": [{"name": "first", **({} if epsilon is None else {"epsilon": epsilon})}],
            "sites": [
                {
                    "name": site,
                    "data": str(folder / f"{site}-records.jsonl"),
                    "held_out": str(folder / f"{site}-held_out.jsonl"),
                    "weight": (weights or {}).get(site, 1.0),
                }
                for site in sites
            ],
        },
        where="test",
    )


def tiny_prepared(folder: Path, **options: object) -> Prepared:
    """`tiny_federation`, prepared in `folder`/run. `policy`, `plan` and `log` go to `prepare`.

    Homes with the same options are made once for all tests of a process and copied.
    """
    template = _template(json.dumps(options, sort_keys=True))
    shutil.copytree(template.folder, folder / "run")
    held_out = {site: folder / "run" / path.relative_to(template.folder) for site, path in template.held_out.items()}
    return replace(template, folder=folder / "run", held_out=held_out)


@cache
def _template(options: str) -> Prepared:
    chosen = json.loads(options)
    changes = {name: chosen.pop(name) for name in ("policy", "plan") if name in chosen}
    folder = _TEMPLATES / hashlib.sha256(options.encode()).hexdigest()[:16]
    folder.mkdir()
    log = chosen.pop("log", False)
    return prepare(tiny_federation(folder, **chosen), out=folder / "run", log=log, **changes)


def a_task(prepared: Prepared, **changes: object) -> Task:
    """The first round's task as the coordinator would make it, with changes."""
    now = datetime.now(UTC)
    fields: dict[str, Any] = {
        "v": 1,
        "id": new_id(),
        "federation": "tiny",
        "run": prepared.run,
        "round": 1,
        "rounds": prepared.rounds,
        "mode": prepared.mode,
        "kind": "train",
        "base_sha256": prepared.base.sha256,
        "span": SPAN,
        "spans": (SPAN,),
        "training": Training(lr=1e-2, epochs=1, batch_tokens=64, max_tokens=32),
        "privacy": None,
        "sites": tuple(prepared.sites),
        "recipients": tuple(prepared.sites) if prepared.mode == "bank" else ("coordinator",),
        "parcels": (),
        "coordinator": "coordinator",
        "issued": now,
        "expires": now + timedelta(days=1),
        "roster_version": 1,
    }
    if "span" in changes:
        fields["spans"] = (changes["span"],)
    return Task(**{**fields, **changes})


def signed(prepared: Prepared, task: Task, *, by: Path | None = None) -> bytes:
    """The task's line, signed by the coordinator or by another home."""
    return sign_task(task, signer=Home(by or prepared.coordinator).signer())


def ref(site: str, parcel: Parcel, *, round_number: int = 1, weight: float = 1.0) -> ParcelRef:
    """How a task names a parcel."""
    return ParcelRef(
        sender=site, round=round_number, sealed_sha256=parcel.sha256, size_bytes=len(parcel.sealed), weight=weight
    )


PRIVACY = ProposedPrivacy(epsilon=8.0, delta=1e-5)


def ask(
    prepared: Prepared, site: str, line: bytes, parcels: Sequence[Parcel] = (), **papers: bytes | list[bytes]
) -> RecordDict:
    """Send an order to one site through the bundle's ClientApp and Flower's serialisation; its answer's content."""
    grid = LocalGrid(load_app("clients"), [{"home": str(prepared.sites[site])}])
    arrays = {parcel.sha256: Array(np.frombuffer(parcel.sealed, np.uint8)) for parcel in parcels}
    order = ConfigRecord({"protocol": PROTOCOL, "task": line, "labels": [parcel.label for parcel in parcels], **papers})
    content = RecordDict({"order": order, "parcels": ArrayRecord(arrays)})
    (reply,) = grid.send_and_receive([Message(content, grid.get_node_ids()[0], "train")])
    return reply.content


def refusal(content: RecordDict) -> str | None:
    """The code in an answer, or None."""
    record = content["answer"]
    assert isinstance(record, ConfigRecord)
    return str(record["refused"]) if "refused" in record else None


def parcel_in(content: RecordDict) -> Parcel:
    """The sealed organ in an answer."""
    record, arrays = content["answer"], content["parcels"]
    assert isinstance(record, ConfigRecord)
    assert isinstance(arrays, ArrayRecord)
    label = record["label"]
    assert isinstance(label, bytes)
    return Parcel(label=label, sealed=next(iter(arrays.values())).numpy().tobytes())


def state_of(folder: Path, *, but: Sequence[str] = ("log",)) -> dict[str, str]:
    """Every file below a folder with its digest and time of change."""
    return {
        str(path.relative_to(folder)): f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in but
    }


@dataclass
class Messages:
    """A tap that keeps every message's bytes."""

    sent: list[bytes] = field(default_factory=list)
    received: list[bytes] = field(default_factory=list)

    def __call__(self, direction: Literal["sent", "received"], data: bytes) -> None:
        getattr(self, direction).append(data)


def lose(sites: Mapping[str, Any], *, site: str, group: str) -> Callable[[Message], bool]:
    """A `drop` that loses one site's message of one step, such as `train-1`."""
    node = 10 + list(sites).index(site)
    return lambda message: (message.metadata.dst_node_id, message.metadata.group_id) == (node, group)


def an_organ(prepared: Prepared, out: Path, *, add: float = 0.0) -> Path:
    """The base's own span as an organ, every number moved by `add` (which may be NaN)."""
    info = extract(prepared.base, span=Span(*prepared.span), out=out.with_suffix(".plain"))
    with safe_open(info.path, framework="pt") as tensors:
        moved = {name: tensors.get_tensor(name) + add for name in info.places}
    save_file(moved, out, metadata=info.manifest.as_metadata())
    info.path.unlink()
    return out


def seal_as(
    prepared: Prepared, site: str, organ: Path, *, round_number: int = 1, to: Sequence[str] | None = None
) -> Parcel:
    """An organ sealed by a site's real keys, as that site would answer."""
    home = Home(prepared.sites.get(site, prepared.coordinator))
    signer, now = home.signer(), datetime.now(UTC)
    passport = new_passport(organ, author=site, federation="tiny", round_number=round_number, now=now)
    recipients = [name for name in (to or prepared.sites) if name != site]
    sealed = seal_organ(
        organ,
        passport=issue_passport(passport, signer=signer),
        sender=signer,
        recipients=recipients,
        roster=home.roster(now),
        federation="tiny",
        round_number=round_number,
        out=organ.with_suffix(".sealed"),
        now=now,
    )
    data = sealed.path.read_bytes()
    for path in (sealed.path, label_path(sealed.path)):
        path.unlink()
    return Parcel(label=sealed.label, sealed=data)
