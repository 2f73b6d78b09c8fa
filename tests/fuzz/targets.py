"""Every parser that reads what others wrote, with honest seeds and what must hold for whatever comes.

For each input: only a NotFedError escapes; what is accepted comes out the same when it is written and read again; and
where the second reader has the same parser, both accept or both refuse. Signed things are broken inside and then signed
again by the party whose keys it is, so that a change gets past the signature.
"""

from __future__ import annotations

from functools import partial

from not_fed import canonical
from not_fed.age import (
    encrypt_with_passphrase,
)
from not_fed.envelope.task import GREETING_TYPE, TASK_TYPE, Greeting, Task
from not_fed.keys.identity import PAYLOAD_TYPE as IDENTITY
from not_fed.keys.steward import read_steward_identity, sign_steward_identity
from not_fed.keys.succession import PAYLOAD_TYPE as SUCCESSION
from not_fed.keys.succession import read_succession
from not_fed.trust.recall import PAYLOAD_TYPE as RECALL
from tests.fuzz.folders import (
    NO_RECALLS,
    as_named_bytes,
    as_named_json,
    consistency_seeds,
    draft_seeds,
    log_seeds,
    note_seeds,
    plans_seeds,
    proof_seeds,
    repository_seeds,
    roster_seed,
    run_consistency,
    run_draft,
    run_log_folder,
    run_note,
    run_plans,
    run_proof,
    run_recalls,
    run_repository,
    run_roster,
    run_signed_draft,
    signed_draft_seeds,
)
from tests.fuzz.mutations import as_json
from tests.fuzz.sealed import (
    age_header_seeds,
    frame_seeds,
    greeting_seeds,
    honest_organ,
    identity_seeds,
    line_seeds,
    manifest_seed,
    organ_header,
    organ_seeds,
    payload_in,
    recall_seeds,
    run_age_header,
    run_bech32,
    run_identity,
    run_json,
    run_key_file,
    run_line,
    run_model,
    run_organ,
    run_recall,
    run_sealed,
    run_statement,
    sealed_seeds,
    signed,
    statement_seeds,
    steward,
    succession_seeds,
    task_seeds,
    wrap_bech32,
    wrap_frame,
    wrap_manifest,
    wrap_steward,
)
from tests.fuzz.target import KINDS, NOW, Target, signer
from tests.support.second_writer import tensor_file
from tests.support.vectors import members

# fmt: off
TARGETS: dict[str, Target] = {target.name: target for target in [
    Target(name="bech32", run=run_bech32, seeds=lambda: [members()["hub"]["seal"].encode(), b"age1pq1qqqqqq"]),
    Target(name="bech32-inside", run=run_bech32, wrap=wrap_bech32, seeds=lambda: [bytes(range(32)) * 3, b"", b"q" * 7]),
    Target(name="age-header", run=run_age_header, seeds=age_header_seeds),
    Target(name="key-file", run=run_key_file, seeds=lambda: [
        encrypt_with_passphrase(bytes(size), passphrase=b"secret", work_factor=1) for size in (0, 5, 70_000)]),
    Target(name="sealed-file", run=run_sealed, seeds=sealed_seeds, cost=2),
    Target(name="frame", run=run_sealed, wrap=wrap_frame, seeds=frame_seeds, cost=2),
    Target(name="signed-line", run=run_line, seeds=line_seeds),
    Target(name="signed-line-json", run=run_line, seeds=line_seeds, mutate=as_json),
    Target(name="json", run=run_json, seeds=lambda: [*statement_seeds("waybill"), roster_seed()[:3000]]),
    Target(name="json-tree", run=run_json, seeds=lambda: statement_seeds("passport"), mutate=as_json),
    *(Target(name=kind, run=partial(run_statement, kind), wrap=partial(signed, KINDS[kind][0]), mutate=as_json,
             seeds=partial(statement_seeds, kind)) for kind in KINDS),
    Target(name="task", run=partial(run_model, Task, TASK_TYPE), wrap=partial(signed, TASK_TYPE), seeds=task_seeds,
           mutate=as_json),
    Target(name="greeting", run=partial(run_model, Greeting, GREETING_TYPE), wrap=partial(signed, GREETING_TYPE),
           seeds=greeting_seeds, mutate=as_json),
    Target(name="identity", run=run_identity, wrap=partial(signed, IDENTITY), seeds=identity_seeds, mutate=as_json),
    Target(name="steward", run=lambda line: void(read_steward_identity(line, where="steward")), wrap=wrap_steward,
           seeds=lambda: [payload_in(sign_steward_identity(steward(), now=NOW))], mutate=as_json),
    Target(name="succession", run=lambda line: void(read_succession(line, old=signer().public)),
           wrap=partial(signed, SUCCESSION), seeds=succession_seeds, mutate=as_json),
    Target(name="recall", run=run_recall, wrap=partial(signed, RECALL), seeds=recall_seeds, mutate=as_json),
    Target(name="organ", run=run_organ, seeds=organ_seeds),
    Target(name="organ-header", run=run_organ, wrap=lambda head: tensor_file(head, honest_organ()[-32:]),
           seeds=lambda: [organ_header(organ) for organ in organ_seeds()], mutate=as_json),
    Target(name="manifest", run=run_organ, wrap=wrap_manifest, seeds=lambda: [manifest_seed()], mutate=as_json),
    Target(name="roster", run=run_roster, seeds=lambda: [roster_seed()], mutate=as_json, cost=3),
    Target(name="recalls", run=run_recalls, mutate=as_json, cost=3, seeds=lambda: [NO_RECALLS, canonical.dumps(
        {"format": "not-fed.recalls/1",
         "recalls": [{"organ_sha256": "ab" * 32, "reason": "x", "time": "2026-11-25T07:00:00Z"}]})]),
    Target(name="plans", run=run_plans, seeds=plans_seeds, mutate=as_json, cost=3),
    Target(name="repository", run=run_repository, seeds=repository_seeds, mutate=as_named_json, cost=10),
    Target(name="draft", run=run_draft, seeds=draft_seeds, mutate=as_named_json, cost=10),
    Target(name="draft-signed", run=run_signed_draft, seeds=signed_draft_seeds, mutate=as_json, cost=10),
    Target(name="checkpoint", run=run_note, seeds=note_seeds),
    Target(name="log-proof", run=run_proof, seeds=proof_seeds),
    Target(name="log-consistency", run=run_consistency, seeds=consistency_seeds),
    Target(name="log-folder", run=run_log_folder, seeds=log_seeds, mutate=as_named_bytes, cost=4),
]}
# fmt: on


def void(_: object) -> None:
    """Parsed, and that is all."""
