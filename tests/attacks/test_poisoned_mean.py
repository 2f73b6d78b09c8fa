"""Adversary: a site that signs and seals properly, and whose organ is made to spoil the mean of all.

Powers: a full member with its signing keys; any manifest. Comes first in every list. Lacks: the other sites' keys.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ConfigRecord, RecordDict
from safetensors.torch import load_file, save_file

from not_fed import files
from not_fed.coordinator.bank import Bank
from not_fed.coordinator.plan import RobustTable, load_plan
from not_fed.coordinator.state import Answered
from not_fed.coordinator.trusted import OtherStart, TooFewUsable, aggregate
from not_fed.envelope.label import label_path
from not_fed.envelope.open import open_organ
from not_fed.envelope.passport import BadClaim, issue_passport, new_passport
from not_fed.envelope.seal import seal_organ
from not_fed.home import Home
from not_fed.organ.anatomy import BloodTypeDiffers
from not_fed.organ.fit import FalseOrigin, check_fit
from not_fed.organ.merge import OrganMean, digest_parents
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.simulation import Prepared
from not_fed.site import arrivals
from tests.support.federation import SITES, Parcel, a_task, an_organ, ask, ref, refusal, signed, tiny_prepared
from tests.support.trust import DP, organ_bytes

FALSE_CLAIMS: tuple[Any, ...] = (
    "x", 0, [], {"epsilon": 1}, {"delta": [1], "unit": "record"}, DP | {"epsilon": "abc"},
    DP | {"accountant": "y" * 2600},
)  # fmt: skip


def changed(organ: Path, **changes: Any) -> Path:  # noqa: ANN401
    """The organ with another manifest, in its place."""
    manifest = replace(read_organ(organ).manifest, **changes)
    save_file(load_file(organ), organ, metadata=manifest.as_metadata())
    return organ


def sealed(prepared: Prepared, site: str, organ: Path) -> Parcel:
    """Sealed by the site's real keys, under the passport of an honest organ whatever the manifest says."""
    home, now = Home(prepared.sites[site]), datetime.now(UTC)
    clean = an_organ(prepared, organ.with_suffix(".clean"))
    passport = new_passport(clean, author=site, federation="tiny", round_number=1, now=now).model_copy(
        update={"organ_sha256": files.sha256(organ), "organ_size_bytes": organ.stat().st_size}
    )
    to = [name for name in prepared.sites if name != site] if prepared.mode == "bank" else ["coordinator"]
    out = seal_organ(
        organ, passport=issue_passport(passport, signer=home.signer()), sender=home.signer(), recipients=to,
        roster=home.roster(now), federation="tiny", round_number=1, out=organ.with_suffix(".sealed"), now=now,
    )  # fmt: skip
    parcel = Parcel(label=out.label, sealed=out.path.read_bytes())
    for path in (out.path, label_path(out.path), clean):
        path.unlink()
    return parcel


def aggregated(
    prepared: Prepared,
    folder: Path,
    bad: Mapping[str, Any],
    *,
    start: Path | None = None,
    told: list[tuple[str | None, str]] | None = None,
    **plan: Any,  # noqa: ANN401
) -> OrganInfo:
    """What the ward opens when the clinic's manifest has `bad` in it; its numbers are moved by 9, others by 1 and 3.

    Args:
        start: a folder whose sealed aggregate, or else its first organ, the round is said to have begun from.
        told: filled with site and code of each organ that was not taken as it came.
    """
    home, now = Home(prepared.coordinator), datetime.now(UTC)
    folder.mkdir()
    bank, answers, began = Bank(folder / "bank"), [], None

    def tell(code: str, text: str, /, *, site: str | None = None) -> None:
        assert text.startswith("round 1: its organ was")
        if told is not None:
            told.append((site, code))

    if start is not None:
        began = bank.put(start / "start.sealed", label=(start / "start.label").read_bytes(), roster=home.roster(now),
                         now=now).sealed.sha256  # fmt: skip
    for site, add in zip(SITES, (9.0, 1.0, 3.0), strict=True):
        organ = an_organ(prepared, folder / f"{site}.organ", add=add)
        parcel = sealed(prepared, site, changed(organ, **bad) if site == "clinic" else organ)
        bank.put(parcel.sealed, label=parcel.label, roster=home.roster(now), now=now)
        answers.append(Answered(
            run=prepared.run, round=1, kind="train", site=site, status="sealed", code=None,
            sealed_sha256=parcel.sha256, size_bytes=len(parcel.sealed), seconds=0.0,
        ))  # fmt: skip
    ward = Home(prepared.sites["ward"])
    with aggregate(
        answers, plan=load_plan(prepared.coordinator).model_copy(update=plan), round_number=1, bank=bank, home=home,
        roster=home.roster(now), signer=home.signer(), now=now, start=began, tell=tell,
    ) as made:  # fmt: skip
        (folder / "start.sealed").write_bytes(made.sealed.read_bytes())
        (folder / "start.label").write_bytes(made.label)
        open_organ(made.sealed, opener=ward.opener(), roster=ward.roster(now), out=folder / "mean.organ", now=now)
    return read_organ(folder / "mean.organ")


def work(prepared: Prepared) -> list[Path]:
    """What lies where the coordinator opens organs."""
    return sorted((prepared.coordinator / "work").glob("*"))


def moved(prepared: Prepared, organ: Path, folder: Path) -> float:
    """How far an organ's numbers are from the base's, on average."""
    base, other = load_file(an_organ(prepared, folder / "base.organ")), load_file(organ)
    return sum(float((other[name] - base[name]).mean()) for name in base) / len(base)


def blood_with_null(prepared: Prepared) -> dict[str, Any]:
    """The base's blood type and a fact more, which is null."""
    return dict(prepared.base.blood_type) | {"zz": None}


def test_an_organ_that_contradicts_its_origin_does_not_decide_who_is_in_the_mean(tmp_path: Path) -> None:
    """Own. The first organ of a round names another original digest, a null fact more, or claims its passport lacks.

    Powers: a member whose name sorts first, in mode trusted; the others' organs would all differ from its own. Control:
    with an honest manifest it is one of three, and with a false one the aggregate is the mean of the other two.
    """
    prepared = tiny_prepared(tmp_path, mode="trusted")
    honest = aggregated(prepared, tmp_path / "honest", {})
    assert len(honest.manifest.parents) == 3
    assert moved(prepared, honest.path, tmp_path) == pytest.approx(13 / 3, abs=1e-3)
    claim = {"training": {"mode": "in-place", "dp": DP}}
    for number, bad in enumerate(({"span_sha256": "cd" * 32}, {"blood_type": blood_with_null(prepared)}, claim)):
        mean = aggregated(prepared, tmp_path / str(number), bad)
        assert len(mean.manifest.parents) == 2, bad
        assert moved(prepared, mean.path, tmp_path) == pytest.approx(2.0, abs=1e-3)


def test_an_aggregate_of_fewer_than_the_plan_asks_for_is_not_made(tmp_path: Path) -> None:
    """Own. A site spoils its own organ after all have answered, so that the aggregate is made of too few.

    Powers: a member in mode trusted; the others have answered honestly. Control: a plan that asks for two is content.
    """
    prepared = tiny_prepared(tmp_path, mode="trusted")
    with pytest.raises(TooFewUsable):
        aggregated(prepared, tmp_path / "three", {"span_sha256": "cd" * 32}, min_answers=3)
    mean = aggregated(prepared, tmp_path / "two", {"span_sha256": "cd" * 32}, min_answers=2)
    assert len(mean.manifest.parents) == 2


def test_an_organ_that_cannot_be_added_stops_no_site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. The first organ of a task has no mean with the others, so that every site of mode bank would stop.

    Powers: a member whose name sorts first; once more with the check of fit missing, so that it does get into the mean
    first. Control: the site answers, says what it left out, and goes on from the organ that it could use.
    """
    prepared = tiny_prepared(tmp_path)
    bad = sealed(prepared, "clinic", changed(an_organ(prepared, tmp_path / "c.organ", add=9.0), span_sha256="cd" * 32))
    good = sealed(prepared, "ward", an_organ(prepared, tmp_path / "w.organ", add=1.0))
    order = signed(prepared, a_task(prepared, round=2, parcels=(ref("clinic", bad), ref("ward", good))))
    answer = ask(prepared, "hospice", order, [bad, good])
    assert refusal(answer) is None
    assert left_out(answer) == [f"{bad.sha256} false-origin"]
    (mean,) = (prepared.sites["hospice"] / "organs").rglob("aggregate-1.organ")
    assert moved(prepared, mean, tmp_path) == pytest.approx(1.0, abs=1e-3)
    other = tiny_prepared(tmp_path / "other")
    monkeypatch.setattr(arrivals, "check_fit", lambda organ, **options: None)
    bad = sealed(other, "clinic", changed(an_organ(other, tmp_path / "d.organ", add=0.1), span_sha256="cd" * 32))
    good = sealed(other, "ward", an_organ(other, tmp_path / "v.organ", add=0.1))
    order = signed(other, a_task(other, round=2, parcels=(ref("ward", good), ref("clinic", bad))))
    answer = arrivals_of(other, order, [good, bad])
    assert left_out(answer) == [f"{bad.sha256} organs-differ"]


def arrivals_of(prepared: Prepared, order: bytes, parcels: list[Parcel]) -> RecordDict:
    """The hospice's answer, which is none of a refusal."""
    answer = ask(prepared, "hospice", order, parcels)
    assert refusal(answer) is None
    return answer


def left_out(answer: RecordDict) -> list[str]:
    """What the site could not use."""
    record = answer["answer"]
    assert isinstance(record, ConfigRecord)
    found = record["left-out"]
    assert isinstance(found, list)
    return [str(one) for one in found]


def test_a_false_origin_fits_nowhere_whatever_is_accepted(tmp_path: Path) -> None:
    """Own. An organ names the base and the layers truly, and a false digest of them, or a null fact that no base has.

    Powers: any manifest, and a recipient who accepts organs of other bases. Control: the true manifest fits exactly.
    """
    prepared = tiny_prepared(tmp_path)
    organ = an_organ(prepared, tmp_path / "a.organ")
    assert check_fit(read_organ(organ), base=prepared.base).exact
    true = read_organ(organ).manifest
    for accepted in (False, True):
        changed(organ, span_sha256="cd" * 32)
        with pytest.raises(FalseOrigin):
            check_fit(read_organ(organ), base=prepared.base, accept_different_base=accepted)
        changed(organ, span_sha256=true.span_sha256, blood_type=blood_with_null(prepared))
        with pytest.raises(BloodTypeDiffers):
            check_fit(read_organ(organ), base=prepared.base, accept_different_base=accepted)
        changed(organ, blood_type=true.blood_type)


def test_a_claim_that_is_none_leaves_the_mean_as_it_was(tmp_path: Path) -> None:
    """Own. A manifest's privacy claim is a text, a number, has no delta, or fills all the room that the metadata has.

    Powers: any manifest that fits an organ file. Control: refused before it is added, and the others have their mean,
    with the weakest of their claims.
    """
    mean = OrganMean()
    for number, epsilon in enumerate((3.0, 5.0)):
        organ = tmp_path / f"{number}.organ"
        organ.write_bytes(organ_bytes(value=number, dp=DP | {"epsilon": epsilon}))
        mean.add(organ)
    for claim in FALSE_CLAIMS:
        bad = tmp_path / "bad.organ"
        bad.write_bytes(organ_bytes(value=9.0, manifest={"training": {"mode": "in-place", "dp": claim}}))
        with pytest.raises(BadClaim):
            mean.add(bad)
    training = mean.write(tmp_path / "mean.organ").manifest.training
    assert training is not None
    assert training["dp"] == DP | {"epsilon": 5.0}
    assert len(training["weights"]) == 2


@pytest.mark.parametrize("sites", [24, 26, 250])
def test_a_mean_of_many_sites_is_an_organ(tmp_path: Path, sites: int) -> None:
    """Own. So many sites take part that their digests and weights overflow what an organ's metadata holds.

    Powers: as many honest members as a plan allows. Control: with few, all parents and weights are listed; with many,
    one digest over the same list stands for them, and a changed weight changes it.
    """
    mean, parents = OrganMean(), []
    for number in range(sites):
        organ = tmp_path / f"{number}.organ"
        organ.write_bytes(organ_bytes(value=number, dp=DP))
        mean.add(organ, weight=1.0 + number)
        parents.append((files.sha256(organ), 1.0 + number))
    manifest = mean.write(tmp_path / "mean.organ").manifest
    assert manifest.training is not None
    assert manifest.training["dp"] == DP
    listed = sites < 26
    assert manifest.training.get("weights") == (dict(sorted(parents)) if listed else None)
    assert manifest.training.get("organs") == (None if listed else sites)
    one = (digest_parents(reversed(parents)),)
    assert manifest.parents == (tuple(sorted(sha for sha, _ in parents)) if listed else one)
    assert digest_parents([*parents[1:], (parents[0][0], 7.5)]) != one[0]


def test_an_organ_that_is_honest_by_its_papers_and_far_off_by_its_numbers_does_not_decide(tmp_path: Path) -> None:
    """Own. Everything about the clinic's organ is true but its weights, which are moved nine times as far.

    Powers: one of three members in mode trusted, whose name sorts first. Control: the plain mean goes where it pulls
    (13/3); the median stays between the honest two, and names the rule.
    """
    prepared = tiny_prepared(tmp_path, mode="trusted")
    assert moved(prepared, aggregated(prepared, tmp_path / "mean", {}).path, tmp_path) == pytest.approx(
        13 / 3, abs=1e-3
    )
    told: list[tuple[str | None, str]] = []
    found = aggregated(prepared, tmp_path / "median", {}, robust=RobustTable(rule="median"), told=told)
    assert moved(prepared, found.path, tmp_path) == pytest.approx(3.0, abs=1e-3)
    assert found.manifest.training is not None
    assert (found.manifest.training["mode"], found.manifest.training["byzantine"]) == ("median", 1)
    assert told == []
    assert work(prepared) == []


def test_an_organ_beyond_the_plans_norm_is_pulled_back_or_left_out_and_its_site_named(tmp_path: Path) -> None:
    """Own. The same organ against a limit of 1.5 times the median norm, in two rounds that follow each other.

    Powers: as above; in the second round it knows what the first began from. The norm is measured from where the round
    began: the base first, then the coordinator's own aggregate. Control: the others are within the limit, and count.
    """
    prepared = tiny_prepared(tmp_path, mode="trusted")
    told: list[tuple[str | None, str]] = []
    clip = RobustTable(max_ratio=1.5)
    first = aggregated(prepared, tmp_path / "clip", {}, robust=clip, told=told)
    assert moved(prepared, first.path, tmp_path) == pytest.approx((4.5 + 1 + 3) / 3, abs=1e-3)
    out = RobustTable(max_ratio=1.5, beyond="leave-out")
    second = aggregated(prepared, tmp_path / "out", {}, robust=out, told=told)
    assert moved(prepared, second.path, tmp_path) == pytest.approx(2.0, abs=1e-3)
    assert told == [("clinic", "norm-clipped"), ("clinic", "norm-exceeded")]
    assert second.manifest.training is not None
    assert len(second.manifest.training["left_out"]) == 1
    third = aggregated(prepared, tmp_path / "next", {}, robust=clip, start=tmp_path / "out")  # 7, -1 and 1 from there
    assert moved(prepared, third.path, tmp_path) == pytest.approx((3.5 + 1 + 3) / 3, abs=1e-3)


def test_what_a_round_began_from_is_the_coordinators_own_aggregate_and_nothing_else(tmp_path: Path) -> None:
    """Own. A member's organ, sealed to the coordinator, stands where the aggregate of the round before should.

    Powers: its digest gets into the coordinator's memory of rounds. It would make that member's organ the centre from
    which all others are too far. Control: as in the test before, an aggregate in its place is accepted.
    """
    prepared = tiny_prepared(tmp_path, mode="trusted")
    parcel = sealed(prepared, "clinic", an_organ(prepared, tmp_path / "c.organ", add=9.0))
    (tmp_path / "start.sealed").write_bytes(parcel.sealed)
    (tmp_path / "start.label").write_bytes(parcel.label)
    with pytest.raises(OtherStart):
        aggregated(prepared, tmp_path / "a", {}, robust=RobustTable(max_ratio=1.5), start=tmp_path)
    assert work(prepared) == []


def test_an_aggregate_that_fails_leaves_no_opened_organ(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Own. A round is made to fail after its organs were opened side by side, or has no room for them.

    Powers: a member that makes its organ unusable, so that the rule has too few. Control: with one more organ the same
    rule makes an aggregate; afterwards the folder is as empty.
    """
    prepared = tiny_prepared(tmp_path, mode="trusted")
    median = RobustTable(rule="median")
    with pytest.raises(TooFewUsable):
        aggregated(prepared, tmp_path / "two", {"span_sha256": "cd" * 32}, robust=median)
    assert work(prepared) == []
    strict = RobustTable(max_norm=1e-6, beyond="leave-out")
    told: list[tuple[str | None, str]] = []
    with pytest.raises(TooFewUsable):
        aggregated(prepared, tmp_path / "none", {}, robust=strict, told=told)
    assert sorted(told) == [(site, "norm-exceeded") for site in sorted(SITES)]
    assert work(prepared) == []
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
        with pytest.raises(files.NoSpace, match="median needs all organs at once"):
            aggregated(prepared, tmp_path / "full", {}, robust=median)
    assert aggregated(prepared, tmp_path / "three", {}, robust=median).manifest.parents
    assert work(prepared) == []
