"""Privacy that cannot fail its tests is not tested: each part is broken in a copy of the code, and must be caught.

Caught by the audit that every training carries, in a real training of a tiny model, or by the named test. The breaks
are the mistakes that DP libraries have shipped with, each as the smallest edit that makes it.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.breaks

ROOT = Path(__file__).parents[2]
AUDITED = "unit/test_audit_training.py::test_a_private_training_carries_its_audit"
STEPS = "unit/test_private_steps.py::"
LEDGER = "unit/test_ledger.py::"
EMPTY = "unit/test_audit_training.py::test_a_training_with_empty_steps_passes_its_audit"
RECORD = "unit/test_audit_neighbours.py::test_taking_a_record_away_moves_the_sum_by_exactly_the_clip[llama]"
PERSON = "unit/test_audit_neighbours.py::test_taking_a_person_away_moves_the_sum_by_exactly_the_clip[llama]"
# Third-party modules are imported once; each break then has a process of its own, forked from here.
DRIVER = """
import json, os, sys
sys.path.insert(0, os.getcwd())
import dp_accounting.pld, pydantic, pytest, safetensors.torch, scipy.stats
import tests.support.tiny  # torch and transformers
assert not any(name.split(".")[0] == "not_fed" for name in sys.modules)
for line in sys.stdin:
    child = os.fork()
    if not child:
        said = os.open("said", os.O_CREAT | os.O_TRUNC | os.O_WRONLY)
        os.dup2(said, 1), os.dup2(said, 2)
        code = pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-p", "pytest_timeout", *json.loads(line)])
        sys.stdout.flush()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Break:
    """One place of the library, what is put there, the test that then goes red, and what it says."""

    file: str
    line: str
    broken: str
    red: str
    says: str = "AuditAlarm"
    more: tuple[str, str] = ("", "")  # a second line of the same file, and what is put there


NOISE = "noise = gaussian(total.shape, std=deviation, source=source).to(total.device)"
BREAKS = {
    "no noise": Break("privacy/dp_sgd.py", NOISE, "noise = torch.zeros_like(total)", AUDITED),
    "a quarter of the noise": Break(
        "privacy/dp_sgd.py", "std=deviation, source", "std=deviation / 4, source", AUDITED),
    "the noise of one step for all": Break(
        "privacy/dp_sgd.py", NOISE,
        "noise = vars(noisy_gradient).setdefault(name, gaussian(total.shape, std=deviation, source=source)).clone()",
        AUDITED),
    "noise added to two copies, and their mean let out": Break(
        "privacy/dp_sgd.py", NOISE,
        "noise = sum(gaussian(total.shape, std=deviation, source=source) for _ in '12') / 2", AUDITED),
    "noise of another clip": Break(
        "privacy/dp_sgd.py", "deviation = plan.noise_multiplier * plan.max_grad_norm", "deviation = 0.3", AUDITED),
    "a cheaper generator's noise": Break(
        "privacy/noise.py", "return values.mul_(std / math.sqrt(SUMMANDS))", "return values.mul_(std / SUMMANDS)",
        AUDITED),
    "no clip": Break(
        "privacy/dp_sgd.py", "return factors.where(exact.isfinite(), 0.0)", "return torch.ones_like(exact)", AUDITED,
        "ClipExceeded"),
    "no clip, and nobody checks the sum": Break(
        "privacy/dp_sgd.py", "    return factors.where(exact.isfinite(), 0.0)\n",
        "    globals().update(SUM_MARGIN=1e9)\n    return torch.ones_like(exact)\n", AUDITED),
    "clip per batch": Break(
        "privacy/engine/book_keeping.py", "factors = clip_factor(_norms(traces), max_grad_norm=max_grad_norm)",
        "factors = clip_factor(_norms(traces).norm().expand(units), max_grad_norm=max_grad_norm)", AUDITED,
        "SentinelDisagrees"),
    "a record counted twice": Break(
        "organ/private_steps.py", "units = self._units.bring(self._probe.draw(len(self._units.members)), "
        "source=self._source)",
        "units = 2 * self._units.bring(self._probe.draw(len(self._units.members)), source=self._source)", RECORD,
        "assert"),
    "a micro-batch counted twice": Break(
        "organ/private_steps.py", "            self._clip_into(sums, micro)\n",
        "            self._clip_into(sums, micro)\n" * 2, RECORD, "assert"),
    "twice the sample rate": Break(
        "privacy/sampling.py", "int(sample_rate * 2.0**64)", "int(min(1.0, 2 * sample_rate) * 2.0**64)", AUDITED),
    "everybody in every step": Break(
        "privacy/sampling.py", "if word < joins_below]", "if word >= 0]", AUDITED),
    "batches of fixed size": Break(
        "privacy/sampling.py",
        "return [index for index, word in enumerate(stream.words(count).tolist()) if word < joins_below]",
        "return sorted(stream.words(count).argsort()[: round(0.5 * count)].tolist())", AUDITED),
    "a divisor that follows the batch": Break(
        "organ/private_steps.py", "noisy_gradient(sums, plan=self._plan, source=self._source)",
        "noisy_gradient(sums, plan=replace(self._plan, divisor=max(1.0, float(len(units)))), source=self._source)",
        AUDITED),
    "an empty step is skipped": Break(
        "organ/private_steps.py", "        sums = self._engine.zero_sums()\n",
        "        sums = self._engine.zero_sums()\n        if not units:\n            for name, total in sums.items():\n"
        "                self._engine.parameters[name].grad = total.float()\n            return ''\n", EMPTY),
    "an empty step has no noise": Break(
        "organ/private_steps.py", "released = noisy_gradient(sums, plan=self._plan, source=self._source)",
        "released = noisy_gradient(sums, plan=self._plan, source=self._source) if units else sums", EMPTY),
    "a person's records are clipped one by one": Break(
        "organ/private_steps.py", "for micro in micro_batches(units,",
        "for micro in micro_batches([(index,) for unit in units for index in unit],", PERSON, "assert"),
    "more of a person's records than planned": Break(
        "organ/units.py", "[: self.most]", "[:]",
        "unit/test_units.py::test_a_person_brings_at_most_their_share_and_every_record_gets_its_turn", "assert"),
    "an epsilon per record where people have several": Break(
        "organ/units.py", 'if plan.unit == "record" and records.most_of_a_person > 1:', "if False:",
        "unit/test_units.py::test_a_record_level_plan_is_refused_where_a_person_has_several_records", "DID NOT RAISE"),
    "a run that nobody reserves": Break(
        "organ/private_steps.py", "held=reserve(),",
        "held=__import__('not_fed.organ.charging').organ.charging._Nothing(),",
        STEPS + "test_no_gradient_is_computed_before_the_plan_is_reserved", "assert"),
    "steps are not counted": Break(
        "organ/private_steps.py", "        self._held.start_step(remaining=self.total - number - 1)\n", "",
        STEPS + "test_an_empty_sample_is_a_step_of_noise_that_is_taken_and_charged", "assert"),
    "a step is counted after its gradient": Break(
        "organ/private_steps.py", "        self._held.start_step(remaining=self.total - number - 1)\n", "",
        STEPS + "test_no_gradient_is_computed_before_the_plan_is_reserved", "assert", more=(
            "        released = noisy_gradient(",
            "        self._held.start_step(remaining=self.total - number - 1)\n        released = noisy_gradient(")),
    "repeated steps are not in the claim": Break(
        "organ/private_steps.py", "repeated_steps=self._held.repeated_steps", "repeated_steps=0",
        STEPS + "test_a_run_that_dies_goes_on_under_its_reservation_and_pays_for_what_it_repeats[step 3-1]", "assert"),
    "an alarm is only written down": Break(
        "organ/private_steps.py", '"audit": self._probe.result()', '"audit": {"verdict": "contradicts"}',
        AUDITED, "assert"),
    "a release without noise": Break(
        "privacy/release.py", "return round((total + noise) / grid) * grid", "return round(total / grid) * grid",
        "unit/test_release.py::test_the_noise_has_the_deviation_that_is_charged", "assert"),
    "a release with a unit that counts without bounds": Break(
        "privacy/release.py", "min(max(float(loss), 0.0), WORST_LOSS)", "float(loss)",
        "unit/test_release.py::test_one_unit_moves_the_sum_by_no_more_than_the_sensitivity", "Error"),
    "a charged vote without noise": Break(
        "privacy/release.py", "return total + (noise or 0.0) <= 0.0", "return total <= 0.0",
        "unit/test_release.py::test_a_comparison_says_yes_up_to_the_tolerance_and_a_loss_that_is_no_number_is_a_rise",
        "assert"),
    "a vote that nobody pays for": Break(
        "site/voting.py", "        _pay(job, records, plan, is_new=begun.is_new)\n", "        pass\n",
        "unit/test_vote.py::test_a_charged_vote_is_paid_for_before_a_loss_is_computed", "assert"),
    "a release made again after a crash": Break(
        "organ/private_steps.py", 'self._released = list(kept.facts.get("released", []))', "self._released = []",
        STEPS + "test_a_number_once_released_is_not_drawn_a_second_time", "assert"),
    "a run forgets its name before the first step": Break(
        "organ/resume.py", '        self._write({}, {"attempt": name,', '        dict({}, **{"attempt": name,',
        STEPS + "test_a_run_that_dies_goes_on_under_its_reservation_and_pays_for_what_it_repeats[reserved-0]",
        "assert"),
    "a budget that stops nobody": Break(
        "privacy/ledger/cap.py",
        "return renyi_divergence(merged(others, planned, repeats), order=self.order) <= self.bound", "return True",
        LEDGER + "test_what_does_not_fit_is_refused_with_what_would", "DID NOT RAISE"),
    "runs that came before are not counted": Break(
        "privacy/ledger/cap.py", "renyi_divergence(merged(others, planned, repeats), order=self.order)",
        "renyi_divergence(merged(planned, repeats), order=self.order)",
        LEDGER + "test_what_does_not_fit_is_refused_with_what_would", "assert"),
    "a reservation is not written down": Break(
        "privacy/ledger/ledger.py", "        row = append(\n            database, \"reserve\",",
        "        row = (lambda _, kind, **fields: Row(99, '', {**fields, 'kind': kind, 'time': ''}))(\n"
        "            database, \"reserve\",",
        LEDGER + "test_a_run_is_reserved_counted_and_committed", "FOREIGN KEY",
        more=("import SCHEMA, append,", "import SCHEMA, Row, append,")),
    "repeated steps are not charged": Break(
        "privacy/ledger/reservation.py", "if missing > 0:", "if False:",
        LEDGER + "test_repeated_steps_are_charged_before_they_start", "assert"),
    "another file of the same records is another account": Break(
        "privacy/ledger/scope.py", "sharing += [account] if counts and account.unit == unit else []",
        "sharing += [account] if own is account else []",
        LEDGER + "test_shared_records_are_charged_and_disjoint_data_is_not", "assert"),
    "half the steps are accounted for": Break(
        "privacy/mechanisms.py", "dp_event.SelfComposedDpEvent(event, steps)",
        "dp_event.SelfComposedDpEvent(event, max(1, steps // 2))",
        "unit/test_accounting.py::test_epsilon_is_the_golden_value[A]", "assert"),
    "releases are not accounted for": Break(
        "privacy/accounting.py", "steps[1.0, float(release.noise_multiplier)] += plan.runs", "pass",
        "unit/test_claims.py::test_repeated_steps_and_releases_are_recomputed_too", "assert"),
}  # fmt: skip


class Copy:
    """The library and its tests, to be broken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        unneeded = shutil.ignore_patterns("__pycache__", "node_modules")
        for name in ("not_fed", "tests/unit", "tests/attacks", "tests/support"):
            shutil.copytree(ROOT / name, folder / name, ignore=unneeded)
        for name in ("pyproject.toml", "tests/__init__.py", "tests/conftest.py"):
            shutil.copy(ROOT / name, folder / name)
        self._driver = subprocess.Popen(
            [sys.executable, "-B", "-c", DRIVER], cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        )  # fmt: skip

    def run(self, *tests: str) -> tuple[int, str]:
        """The exit code of these tests, and what pytest said."""
        assert self._driver.stdin is not None
        assert self._driver.stdout is not None
        self._driver.stdin.write(json.dumps([f"tests/{test}" for test in tests]) + "\n")
        self._driver.stdin.flush()
        return int(self._driver.stdout.readline()), (self.folder / "said").read_text(encoding="utf-8")

    def close(self) -> None:
        """No more tests."""
        self._driver.communicate()


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Copy]:
    made = Copy(tmp_path_factory.mktemp("copy"))
    yield made
    made.close()


def test_the_code_as_it_is_passes(copy: Copy) -> None:
    code, said = copy.run(*sorted({one.red for one in BREAKS.values()}))
    assert code == 0, said[-2000:]


@pytest.mark.parametrize("what", BREAKS)
def test_broken_privacy_is_caught(copy: Copy, what: str) -> None:
    broken = BREAKS[what]
    file = copy.folder / "not_fed" / broken.file
    whole = file.read_text(encoding="utf-8")
    edited = whole
    for line, instead in [(broken.line, broken.broken), broken.more]:
        assert not line or whole.count(line) == 1, f"{broken.file} has no such line any more: {line}"
        edited = edited.replace(line, instead) if line else edited
    file.write_text(edited, encoding="utf-8")
    try:
        code, said = copy.run(broken.red)
    finally:
        file.write_text(whole, encoding="utf-8")
    assert code == 1, f"{what}, and {broken.red} still passes or does not run:\n{said[-2000:]}"
    assert "1 failed" in said
    assert broken.says in said, f"red for another reason:\n{said[-3000:]}"
    assert "SyntaxError" not in said
    assert "NameError" not in said
