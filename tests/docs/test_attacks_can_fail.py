"""A test that cannot fail is a defect: guarantees are broken in a copy of the code, and their tests must go red.

Every break is the smallest edit that a hurried person or an attacker with commit rights would make. When the code was
rewritten and the line is gone, write the break anew: a guarantee without one is a guarantee that nobody watches.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

pytestmark = pytest.mark.breaks

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Break:
    """One line of the library, what is put in its place, and the attack that then goes through."""

    file: str
    line: str
    broken: str
    red: str


MLDSA = "MLDSA65PublicKey.from_public_bytes(self.ml_dsa_65).verify(signatures[1], message)"
ED25519 = "Ed25519PublicKey.from_public_bytes(self.ed25519).verify(signatures[0], message)"
BREAKS = {
    "ML-DSA-65 is not checked": Break("keys/signing.py", MLDSA, "pass", "signatures.py::test_ed25519_alone_is_no"),
    "Ed25519 is not checked": Break("keys/signing.py", ED25519, "pass", "signatures.py::test_ml_dsa_alone_is_no"),
    "any spelling of an envelope": Break(
        "keys/dsse.py", "if _line(payload, got_type, key_ids, signatures) != line:", "if False:",
        "signed_json.py::test_a_signed_line_has_one_spelling"),
    "the payload type is not compared": Break(
        "keys/dsse.py", "if got_type != payload_type:", "if False:", "label.py::test_a_label_of_a_later_version"),
    "a header's MAC is not checked": Break(
        "age/header.py", "if not hmac.compare_digest(_mac(file_key, self.signed), self.mac):", "if False:",
        "recipients.py::test_recipients_cannot_be_dropped"),
    "stanzas of any kind": Break(
        "age/hybrid.py", "if stanza.kind != KIND or len(stanza.arguments) != 1:", "if stanza.kind == 'X':",
        "recipients.py::test_a_recipient_of_a_weaker_kind"),
    "base64 in any spelling": Break(
        "age/header.py", "if encode64(data) != text:", "if False:",
        "recipients.py::test_a_header_has_one_spelling"),
    "stanzas are not counted": Break(
        "envelope/checks.py", "if len(header.stanzas) != len(waybill.to):", "if False:",
        "waybill.py::test_there_are_as_many_recipients"),
    "the addressee is not looked for": Break(
        "envelope/checks.py", "if waybill.to.get(opener.name) not in opener.fingerprints:", "if False:",
        "waybill.py::test_a_recipient_cannot_pass_an_organ_on"),
    "a passport of any digest": Break(
        "envelope/checks.py", "if hashlib.sha256(frame.passport).hexdigest() != waybill.passport_sha256:", "if False:",
        "passport.py::test_an_organ_has_the_passport"),
    "anybody passes organs on": Break(
        "envelope/checks.py", 'if passport.author != waybill.sender and passport.sharing != "federation":', "if False:",
        "waybill.py::test_redistribution_needs_the_authors_leave"),
    "label and waybill are not compared": Break(
        "envelope/checks.py", "if outside != (waybill.federation, waybill.round, waybill.sender,",
        "if False and outside != (waybill.federation, waybill.round, waybill.sender,",
        "label.py::test_an_insider_cannot_claim"),
    "dates are not checked": Break(
        "envelope/dsse.py", "if short and issued - now", "if True or short and issued - now",
        "waybill.py::test_old_and_future_waybills"),
    "roles are not asked for": Break(
        "trust/members.py", "if wanted and not wanted & member.roles:", "if False:",
        "signatures.py::test_only_authors_and_aggregators_may_author"),
    "an organ of any digest": Break(
        "envelope/open.py", "if inside.hexdigest() != checked.passport.organ_sha256:", "if False:",
        "frame.py::test_an_organ_other_than_the_signed_one"),
    "an organ of any digest is sealed": Break(
        "envelope/seal.py", "if known is None and organ.hexdigest() != passport.organ_sha256:", "if False:",
        "inputs.py::test_an_organ_cannot_change_while_it_is_sealed"),
    "weights are not looked at": Break(
        "envelope/open.py", "check_weights(header, read_at=read_at, peaks=peaks)", "pass",
        "organ_payload.py::test_weights_that_are_not_numbers"),
    "tensors overlap": Break(
        "envelope/header.py", "if entry.begin != at:", "if False:", "tensor_header.py::test_tensors_tile_the_file"),
    "keys stand twice": Break(
        "canonical.py", "if len(value) != len(pairs):", "if False:", "tensor_header.py::test_no_key_stands_twice"),
    "links are followed": Break(
        "files.py", "os.open(name, os.O_RDONLY | os.O_NOFOLLOW |", "os.open(name, os.O_RDONLY |",
        "inputs.py::test_a_sealed_file_is_a_plain_file"),
    "outputs are overwritten": Break(
        "files.py", "    with suppress(FileNotFoundError):\n        os.stat(path.name, dir_fd=folder,",
        "    with suppress(OSError, OutputExists):\n        os.stat(path.name, dir_fd=folder,",
        "disk.py::test_without_hard_links_nothing_is_overwritten"),
    "a loser keeps its organ": Break(
        "envelope/open.py", "        undo.callback(out.unlink)\n", "", "waybill.py::test_two_opens_at_once_write_one"),
    "parts of the dead stay": Break(
        "files.py", "            _sweep(path)\n            nameless, part =", "            nameless, part =",
        "disk.py::test_a_kill_leaves_no_output_and_the_next_writer_sweeps"),
    "control characters are shown": Break(
        "cli/output.py", "return \"\".join(char if char.isprintable()", "return \"\".join(char if True",
        "terminal.py::test_hostile_text_in_claims"),
    "forged keys and one insider are enough": Break(
        "trust/people.py", "if len(signed) < majority(len(people)):", "if False:",
        "roster.py::test_one_broken_algorithm_and_one_insider"),
    "a root of any shape": Break(
        "trust/people.py", "if not _alike(root, build_root(people, version=root.version, since=since_of(root), "
        "expires=root.expires)):",
        "if False:", "draft_contents.py::test_a_root_of_another_shape"),
    "a draft with more than is shown": Break(
        "trust/draft.py", "if rebuilt.contents != draft.contents or mine != theirs:", "if False:",
        "draft_contents.py::test_a_draft_holds_nothing"),
    "two drafts of one version are signed": Break(
        "trust/ceremony.py", "known.version == self.draft.version and not instead:", "False:",
        "ceremony.py::test_a_steward_signs_one_draft"),
    "keys serve for ever": Break(
        "trust/members.py", "if not within(at, not_before, not_after):", "if False:",
        "members.py::test_former_keys_serve_their_own_time"),
    "a recall may disappear": Break(
        "trust/recall.py", "    if missing:", "    if False:", "roster.py::test_recalls_that_a_newer_roster_lacks"),
    "a run's plan may change": Break(
        "trust/takeover.py", "            check_plans_kept(earlier, roster)\n", "",
        "roster_plans.py::test_a_plan_is_not_swapped_under_the_same_run"),
    "a plan need not keep the rule": Break(
        "trust/members.py", "    plan.thresholds()\n", "",
        "roster_plans.py::test_a_plan_that_breaks_the_rule_is_not_trusted"),
    "a helper answers for another set from the same start": Break(
        "aggregation/secure/ledger.py", 'if start["sites"] not in (None, names):', "if False:",
        "secure_sum_server.py::test_a_round_said_to_have_failed_gets_no_second_set"),
    "a helper answers for other uploads of the same sites": Break(
        "aggregation/secure/ledger.py", 'if row["active"] not in (None, active_sha256):', "if False:",
        "secure_sum_server.py::test_the_same_sites_with_other_uploads"),
    "another helper is lost at the next try": Break(
        "aggregation/secure/ledger.py", 'if missing and start["missing"] not in (None, lost):', "if False:",
        "secure_sum_server.py::test_a_round_said_to_have_failed_loses_no_other_helper"),
    "a start has several cohorts": Break(
        "aggregation/secure/ledger.py", 'elif known["cohort"] != names:', "elif False:",
        "secure_sum_server.py::test_one_start_has_one_cohort"),
    "an update enters several sums": Break(
        "aggregation/secure/ledger.py",
        'if row is not None and (row["plan"], row["start"]) != (call.plan_sha256, call.start_sha256):', "if False:",
        "secure_sum_server.py::test_the_same_update_enters_no_other_sum"),
    "two processes both upload": Break(
        "aggregation/secure/ledger.py", "if done.rowcount != 1:", "if False:",
        "secure_sum_host.py::test_two_processes_of_one_site"),
    "an older ledger is taken": Break(
        "aggregation/secure/ledger.py", "if self.writes < least_writes:", "if False:",
        "secure_sum_host.py::test_an_older_ledger"),
    "keys of former rounds stay": Break(
        "aggregation/secure/ledger.py", "SET sealed = NULL WHERE call IN (", "SET sealed = sealed WHERE call IN (",
        "secure_sum_host.py::test_after_a_round_its_key_is_gone"),
    "a sum of few sites": Break(
        "aggregation/secure/site.py", "if len(papers) < rule.min_sites:", "if False:",
        "secure_sum_server.py::test_no_sum_of_fewer_sites"),
    "another label in one's own name": Break(
        "aggregation/secure/site.py", "if paper.sender == self._me and digest", "if False and digest",
        "secure_sum_server.py::test_a_label_in_my_name"),
    "a seed that nobody committed to": Break(
        "aggregation/secure/site.py", "if capsule.seed is not None and not capsules.same(",
        "if False and not capsules.same(",
        "secure_sum_site.py::test_a_capsule_that_is_not_what_was_signed"),
    "all helpers may be called lost": Break(
        "aggregation/secure/site.py", "if not 1 <= len(lost) <= self._plan.vanish:", "if False:",
        "secure_sum_server.py::test_no_more_helpers_are_lost"),
    "whoever is asked helps": Break(
        "aggregation/secure/site.py", "if self._me not in call.helpers(rule.helpers):", "if False:",
        "secure_sum_server.py::test_who_carries_no_masks"),
    "masks that remain are not noticed": Break(
        "aggregation/secure/server.py", "if any(int(word) != sites for word in words[", "if False and any(words[",
        "secure_sum_server.py::test_unlike_sets_at_two_helpers"),
    "a wrong share is believed": Break(
        "aggregation/secure/server.py",
        "return capsules.same(capsules.commit(seed, call_sha256=call, uploader=uploader, helper=helper), expected)",
        "return True", "secure_sum_helper.py::test_a_wrong_share_is_skipped"),
    "one blinding mask for all": Break(
        "aggregation/secure/site.py", "blind = masks.new_seed() if self._plan.blind else None",
        "blind = bytes(32) if self._plan.blind else None", "secure_sum_blind.py::test_each_site_blinds"),
}  # fmt: skip


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library and its attacks, to be broken."""
    folder = tmp_path_factory.mktemp("copy")
    unneeded = shutil.ignore_patterns("__pycache__", "node_modules")
    for name in ("not_fed", "clients", "server", "tests/attacks", "tests/support"):
        shutil.copytree(ROOT / name, folder / name, ignore=unneeded)
    for name in ("pyproject.toml", "tests/__init__.py"):
        shutil.copy(ROOT / name, folder / name)
    return folder


@pytest.mark.parametrize("what", BREAKS)
def test_an_attack_test_goes_red_when_its_guarantee_is_broken(copy: Path, what: str) -> None:
    broken = BREAKS[what]
    file = copy / "not_fed" / broken.file
    whole = file.read_text(encoding="utf-8")
    assert whole.count(broken.line) == 1, f"{broken.file} has no such line any more: {broken.line}"
    file.write_text(whole.replace(broken.line, broken.broken), encoding="utf-8")
    module, name = broken.red.split("::")
    try:
        done = subprocess.run(
            [sys.executable, "-B", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider",
             f"tests/attacks/test_{module}", "-k", name],
            cwd=copy, capture_output=True, text=True, check=False,
        )  # fmt: skip
    finally:
        file.write_text(whole, encoding="utf-8")
    assert done.returncode == 1, f"{what}, and {name} still passes or does not run:\n{done.stdout[-2000:]}"
    assert "1 failed" in done.stdout
    assert "SyntaxError" not in done.stdout
    assert "NameError" not in done.stdout
