"""What a site allows, and how it says no."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from not_fed import settings
from not_fed.envelope.task import ProposedPrivacy, Task, Training
from not_fed.privacy.release import RELEASES
from not_fed.settings import BadSettings
from not_fed.site.policy import NotAllowed, PrivacyPolicy, SitePolicy, load_policy, permit

POLICY: dict[str, Any] = {
    "name": "clinic",
    "federation": "lowlands",
    "coordinator": "hub",
    "data": "records.jsonl",
    "base": "base",
    "base_sha256": "ab" * 32,
    "spans": [[1, 3]],
    "modes": ["bank"],
    "partners": ["ward"],
    "max_rounds": 3,
    "max_epochs": 2.0,
    "privacy": {
        "required": True,
        "max_epsilon": 4.0,
        "delta": 1e-5,
        "budget": 8.0,
        "sample_rate": 0.1,
        "max_grad_norm": 1.0,
        "divisor": 10.0,
    },
}
TRAINING = Training(lr=1e-3, epochs=2, batch_tokens=64, max_tokens=32)
TASK: dict[str, Any] = {
    "v": 1,
    "id": "0" * 32,
    "federation": "lowlands",
    "run": "first",
    "round": 1,
    "rounds": 3,
    "mode": "bank",
    "kind": "train",
    "base_sha256": "ab" * 32,
    "span": (1, 3),
    "spans": ((1, 3),),
    "training": TRAINING,
    "privacy": ProposedPrivacy(epsilon=4.0, delta=1e-5),
    "sites": ("clinic", "ward"),
    "recipients": ("clinic", "ward"),
    "parcels": (),
    "coordinator": "hub",
    "issued": "2026-11-24T12:00:00Z",
    "expires": "2026-11-25T12:00:00Z",
    "roster_version": 1,
}


def policy(**changes: object) -> SitePolicy:
    return settings.check(SitePolicy, {**POLICY, **changes}, where="test")


def task(**changes: object) -> Task:
    return Task(**{**TASK, **changes})


def test_a_task_that_keeps_to_the_policy_is_permitted() -> None:
    permit(task(), policy=policy())


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({"coordinator": "stranger"}, "policy-coordinator"),
        ({"federation": "highlands"}, "policy-federation"),
        ({"sites": ("lab", "ward"), "recipients": ("lab", "ward")}, "policy-not-invited"),
        ({"sites": ("clinic", "lab"), "recipients": ("clinic", "lab")}, "policy-partner"),
        ({"base_sha256": "cd" * 32}, "policy-base"),
        ({"span": (0, 3), "spans": ((0, 3),)}, "policy-span"),
        ({"spans": ((1, 3), (0, 1))}, "policy-span"),
        ({"mode": "trusted", "recipients": ("hub",)}, "policy-mode"),
        ({"rounds": 4}, "policy-rounds"),
        ({"training": TRAINING.model_copy(update={"epochs": 3})}, "policy-epochs"),
        ({"privacy": None}, "policy-privacy-required"),
        ({"privacy": ProposedPrivacy(epsilon=4.5, delta=1e-5)}, "policy-epsilon"),
    ],
)
def test_each_refusal_has_its_own_code(changes: dict[str, Any], code: str) -> None:
    with pytest.raises(NotAllowed) as refused:
        permit(task(**changes), policy=policy())
    assert refused.value.code == code
    assert refused.value.exit_code == 7


def test_privacy_without_declared_constants_is_refused() -> None:
    with pytest.raises(NotAllowed) as refused:
        permit(task(), policy=policy(privacy=None))
    assert refused.value.code == "policy-privacy-unknown"


def test_a_site_that_requires_no_privacy_trains_without() -> None:
    permit(task(privacy=None), policy=policy(privacy={**POLICY["privacy"], "required": False}))
    permit(task(privacy=None), policy=policy(privacy=None))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"max_rounds": "three"}, "max_rounds"),
        ({"privacy": {**POLICY["privacy"], "delta": 2.0}}, "privacy.delta"),
        ({"surprise": 1}, "surprise"),
        ({"spans": [[3, 1]]}, "the file"),
        ({"metrics_that_may_leave": ["loss_last"]}, "the file"),
        ({"metrics_that_may_leave": ["steps", "records"]}, "the file"),
        ({"privacy": {**POLICY["privacy"], "max_runs": 1}}, "privacy.max_runs"),
        ({"privacy": {**POLICY["privacy"], "budget": 11.0}}, "privacy.budget"),
        ({"privacy": {**POLICY["privacy"], "releases": {"mean_loss": 10.0}}}, "privacy"),
        ({"privacy": {**POLICY["privacy"], "releases": {"loss_last": 10.0}}}, "privacy.releases.loss_last.[key]"),
        ({"privacy": {**POLICY["privacy"], "releases": {"units": 0.1}}}, "privacy.releases.units"),
        ({"privacy": {**POLICY["privacy"], "public_by_decision": ["loss_last"]}}, "privacy.public_by_decision.0"),
        ({"metrics_that_may_leave": ["records of patients"]}, "metrics_that_may_leave.0"),
    ],
)
def test_a_wrong_setting_is_named_with_its_file(changes: dict[str, Any], field: str) -> None:
    with pytest.raises(BadSettings) as error:
        policy(**changes)
    assert error.value.where == f"test, field {field}"


def test_a_policy_names_every_number_that_may_leave() -> None:
    """Noised ones with their noise, exact ones under a name that says so, and the plan's own number of steps."""
    privacy = {
        **POLICY["privacy"], "releases": {"mean_loss": 10.0, "units": 5}, "declared_units": 100,
        "public_by_decision": ["records"], "unit": "patient_id", "records_per_person": 2,
    }  # fmt: skip
    own = policy(privacy=privacy, metrics_that_may_leave=["steps"]).privacy
    assert own is not None
    assert own.releases == {"mean_loss": 10.0, "units": 5.0}
    assert (own.declared_units, own.public_by_decision, own.unit) == (100.0, ["records"], "patient_id")
    assert policy(privacy={**POLICY["privacy"], "required": False}, metrics_that_may_leave=["loss_last"]).privacy


def test_what_may_leave_with_noise_is_what_can() -> None:
    assert set(get_args(get_args(PrivacyPolicy.model_fields["releases"].annotation)[0])) == set(RELEASES)


def test_a_missing_field_is_named(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text('name = "clinic"\n')
    with pytest.raises(BadSettings) as error:
        load_policy(tmp_path)
    assert error.value.where == f"{tmp_path / 'site.toml'}, field federation"
    assert error.value.got.startswith("no such field")


def test_a_file_that_is_not_toml_is_refused(tmp_path: Path) -> None:
    (tmp_path / "site.toml").write_text("name = [\n")
    with pytest.raises(BadSettings):
        load_policy(tmp_path)
