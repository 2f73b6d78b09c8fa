"""An organ for a model of another width: two linear maps, folded into its weights, so that an ordinary organ comes out.

A layer reads the residual stream through its norms and adds to it through its output projections. Let z be the donor's
stream (width d1) and x the recipient's (width d2). Every input projection W behind a norm of weight g becomes
W diag(g) A, behind a norm of weight one, and every output projection O becomes Q O:

    W (g * n(z))  ~  W diag(g) A n(x)        z += O f(...)   becomes   x += Q O f(...)        n(v) = v / rms(v)

A maps normalised streams, so the constant that corrects for rms(x) against rms(z) is in it and is never estimated
apart, and positions with huge activations weigh no more than others. Q maps what a branch adds. Nothing is left to run
beside the weights: the organ has the recipient's shapes and number format, and names the recipient's own layers as the
ones that it replaces.

Starts:
    identity        the first coordinates of both streams are the same: A = c [I | 0], Q its transpose without c, and
                    c = sqrt(d1 / d2), which is rms(x) / rms(z) where the coordinates beyond carry nothing.
    least-squares   A and Q are fitted on public text (`adapt_fit`), by ridge regression on paired positions: both
                    models must cut the text into the same tokens. In order, branch after branch, each on the stream
                    that the recipient has with everything before already adapted, so that errors do not add up:
                    A takes that stream to the stream of the donor with the organ in place. Q takes what the donor's
                    branch then gives to what is missing from the target: the recipient's own stream behind that
                    branch, moved by `carry` times the organ's change (donor with organ minus donor without),
                    which a third map T, fitted on the two untouched models, translates. Without T's part the fit would
                    rebuild the layers that are there already and throw away what the organ has learnt.

Heads and neurons beyond the donor's keep the recipient's own input weights and get output weights of zero: they change
nothing and can learn. A query head stays with its key/value head; a group too large for the recipient's gets copies of
its key/value head. Whatever cannot be padded (head size, angles, activation, biases, more heads, more neurons) is
refused.

Exact: identity at equal widths (the organ's numbers as they are); identity into a recipient whose further
coordinates are zero, except that its norms' epsilon counts d2 / d1 times as much; least squares between two models
that differ by a rotation and a scale of the stream alone. Everything else is an approximation, whose quality is
reported and which wants `recover`.

Privacy: what is fitted on the text is in the organ without noise, so the text must be public. The organ itself is only
computed on further, so whatever its author claims about it holds for the result; the claim is kept as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from torch import Tensor

from not_fed import files
from not_fed.errors import FitError
from not_fed.organ.anatomy import Span
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.extract import describe
from not_fed.organ.fit import check_fit
from not_fed.organ.organ import OrganInfo, read_organ
from not_fed.organ.train import DTYPES, as_bytes, require_trainable
from not_fed.organ.transplant.copying import check_unchanged, state_of
from not_fed.organ.writing import write_safetensors
from not_fed.progress import Progress, silent

Start = Literal["identity", "least-squares"]
FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
RESIZED = ("hidden_size", "attention_heads", "key_value_heads", "intermediate_size", "norm_eps")


class CannotAdapt(FitError):
    """This organ cannot be made to fit that model."""

    code = "cannot-adapt"


class NotFinite(FitError):
    """The adapted organ has a number that the recipient's number format cannot hold."""

    code = "adapted-not-finite"


@dataclass(frozen=True, slots=True)
class Branch:
    """Half a layer: it reads the stream behind a norm, and adds to it. Names are those inside a layer.

    Attributes:
        reads: input projection -> whose rows it has.
        columns: whose columns `writes`, the output projection, has.
        kept: tensors that have nothing to do with widths.
    """

    name: str
    norm: str
    reads: Mapping[str, Literal["query", "key", "neuron"]]
    columns: Literal["query", "neuron"]
    writes: str
    kept: tuple[str, ...] = ()

    def names(self) -> frozenset[str]:
        """All tensors that it may have."""
        ends = (f"{name}.{end}" for name in (*self.reads, self.writes) for end in ("weight", "bias"))
        return frozenset((f"{self.norm}.weight", *self.kept, *ends))


BRANCHES = (
    Branch(
        name="attention",
        norm="input_layernorm",
        reads={"self_attn.q_proj": "query", "self_attn.k_proj": "key", "self_attn.v_proj": "key"},
        columns="query",
        writes="self_attn.o_proj",
        kept=("self_attn.q_norm.weight", "self_attn.k_norm.weight"),
    ),
    Branch(
        name="mlp",
        norm="post_attention_layernorm",
        reads={"mlp.gate_proj": "neuron", "mlp.up_proj": "neuron"},
        columns="neuron",
        writes="mlp.down_proj",
    ),
)


@dataclass(frozen=True, slots=True)
class Slots:
    """Which of the donor's rows go to which of the recipient's: `to[i]` gets `source[i]`."""

    to: Tensor
    source: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptPlan:
    """What would be made, decided from headers alone.

    Attributes:
        at: the recipient's layers that the adapted organ replaces.
        resized: fact of the blood type -> the donor's value and the recipient's, where they differ.
        slots: where rows go, by whose they are.
        states: size and modification time of every file the plan looked at.
    """

    organ: OrganInfo
    donor: Base
    recipient: Base
    at: Span
    start: Start
    resized: Mapping[str, tuple[Any, Any]]
    slots: Mapping[str, Slots]
    states: Mapping[Path, tuple[int, int]]

    @property
    def widths(self) -> tuple[int, int]:
        """Of the donor's stream, and of the recipient's."""
        return self.donor.blood_type["hidden_size"], self.recipient.blood_type["hidden_size"]

    @property
    def exact(self) -> bool:
        """Whether nothing has to be approximated: the streams are of one width and are taken to be one."""
        return self.start == "identity" and "hidden_size" not in self.resized and "norm_eps" not in self.resized


Layer = Mapping[str, Tensor]  # by the names inside a layer


def plan_adaptation(
    organ: OrganInfo, *, donor: Base, recipient: Base, start: Start = "least-squares", at: int | None = None
) -> AdaptPlan:
    """Check that an organ can be made to fit; raise FitError here or never.

    Args:
        donor: the base that the organ was cut from.
        at: first layer of its place in the recipient; None is where it was cut.
    Raises:
        CannotAdapt: the models differ in what no map makes up for; `expected` and `got` say in what.
        FitError: the organ is not the donor's, as `check_fit`; or SpanOutside.
        CannotTrain: weights of another number format.
    """
    check_fit(organ, base=donor)
    first = organ.span.start if at is None else at
    place = Span(first, first + len(organ.span))
    place.check_inside(recipient.layers, where=str(recipient.folder))
    where = f"{organ.path.name} into {recipient.folder}, layers {place}"
    given, there = organ.manifest.blood_type, recipient.blood_type_at(place)
    _require_agreement(given, there, where=where)
    own = recipient.span_places(place)
    _require_known(organ, own, where=where)
    _require_sizes(organ.places, given, where=f"{where}, the organ's blood type")
    _require_sizes(own, there, where=f"{where}, the recipient's config.json")
    require_trainable([*organ.places.values(), *own.values()], where=where)
    looked_at = {organ.path, *(file.file for base in (donor, recipient) for file in base.places.values())}
    return AdaptPlan(
        organ=organ,
        donor=donor,
        recipient=recipient,
        at=place,
        start=start,
        resized={name: (given[name], there[name]) for name in RESIZED if given[name] != there[name]},
        slots=_slots(given, there, where=where),
        states={path: state_of(path) for path in looked_at},
    )


def adapt_identity(plan: AdaptPlan, *, out: Path, progress: Progress = silent) -> OrganInfo:
    """Write the organ under the assumption that the first coordinates of both streams are the same.

    Guarantees:
        at equal shapes every number is the organ's own.
    Proved by: tests/unit/test_adapt.py::test_at_equal_widths_the_identity_start_changes_no_number,
        tests/unit/test_adapt.py::test_a_donor_inside_a_wider_recipient_is_exact_but_for_the_norms_epsilon
    """
    files.require_free(out)
    donor_width, width = plan.widths
    ratio = math.sqrt(donor_width / width)
    shift, common = torch.eye(donor_width, width), min(donor_width, width)
    layers = []
    for index in range(len(plan.at)):
        given, own = organ_layer(plan.organ, index), base_layer(plan.recipient, plan.at.start + index)
        made: dict[str, Tensor] = {}
        for branch in BRANCHES:
            weight = torch.ones(width)
            weight[:common] = given[f"{branch.norm}.weight"][:common]
            made |= adapted_reads(branch, given, own, norm=weight * ratio, read=shift, slots=plan.slots)
            made |= adapted_writes(branch, given, own, write=shift.T, slots=plan.slots)
        layers.append(made)
        progress("adapted layers", done=index + 1, total=len(plan.at))
    return write_adapted(plan, layers, out=out, how={"start": "identity"})


def adapted_reads(
    branch: Branch, given: Layer, own: Layer, *, norm: Tensor, read: Tensor, slots: Mapping[str, Slots]
) -> dict[str, Tensor]:
    """The norm and the input projections of a branch for the recipient; its own rows stay where none are given.

    Args:
        norm: the new norm weight, shape (d2,).
        read: shape (d1, d2); read @ diag(norm) is diag(g) A.
    """
    made = {f"{branch.norm}.weight": norm, **{name: given[name] for name in branch.kept if name in given}}
    for name, whose in branch.reads.items():
        rows = slots[whose]
        weight = own[f"{name}.weight"].clone()
        weight[rows.to] = (given[f"{name}.weight"] @ read)[rows.source]
        made[f"{name}.weight"] = weight
        if f"{name}.bias" in given:
            bias = own[f"{name}.bias"].clone()
            bias[rows.to] = given[f"{name}.bias"][rows.source]
            made[f"{name}.bias"] = bias
    return made


def adapted_writes(
    branch: Branch, given: Layer, own: Layer, *, write: Tensor, slots: Mapping[str, Slots]
) -> dict[str, Tensor]:
    """The output projection of a branch for the recipient: nothing comes out of heads and neurons it was not given.

    Args:
        write: Q, shape (d2, d1).
    """
    columns, name = slots[branch.columns], f"{branch.writes}.weight"
    weight = torch.zeros_like(own[name])
    weight[:, columns.to] = (write @ given[name])[:, columns.source]
    bias = f"{branch.writes}.bias"
    return {name: weight} | ({bias: write @ given[bias]} if bias in given else {})


def organ_layer(organ: OrganInfo, index: int) -> dict[str, Tensor]:
    """One layer of an organ, by the names inside a layer, float32."""
    names = {name.split(".", 2)[2]: name for name in organ.places if int(name.split(".")[1]) == index}
    with safe_open(organ.path, framework="pt") as tensors:
        return {inside: tensors.get_tensor(name).float() for inside, name in names.items()}


def base_layer(base: Base, index: int) -> dict[str, Tensor]:
    """One layer of a base, by the names inside a layer, float32."""
    found = {}
    for organ_name, name in base.span_names(Span(index, index + 1)).items():
        with safe_open(base.places[name].file, framework="pt") as tensors:
            found[organ_name.split(".", 2)[2]] = tensors.get_tensor(name).float()
    return found


def write_adapted(plan: AdaptPlan, layers: Sequence[Layer], *, out: Path, how: Mapping[str, Any]) -> OrganInfo:
    """Write the organ: the recipient's blood type, place and number format; all that its parent says of its training.

    Args:
        layers: the adapted tensors, a layer after the other.
        how: the start, and all that the maps depend on.
    Raises:
        ChangedSincePlan: a file is not what the plan saw. NotFinite.
    Proved by: tests/unit/test_adapt.py::test_an_adapted_organ_keeps_its_parents_claims
    """
    name = plan.recipient.family.list_name
    tensors = {
        f"{name}.{index}.{inside}": tensor for index, layer in enumerate(layers) for inside, tensor in layer.items()
    }
    places = plan.recipient.span_places(plan.at)
    shapes = {name: (place.dtype, place.shape, place.end - place.begin) for name, place in places.items()}
    for name, place in places.items():
        if not bool(tensors[name].to(DTYPES[place.dtype]).isfinite().all()):
            raise NotFinite(
                where=f"{plan.organ.path.name}, tensor {name} after adaptation", expected="finite numbers",
                got=f"some that {place.dtype} cannot hold", hint="save the recipient in bfloat16 first",
            )  # fmt: skip
    parent = plan.organ.manifest.training or {}
    training = {
        **parent,
        "mode": "adapted",
        "trained": parent.get("trained", parent.get("mode")),
        "adapted": {
            **how,
            "base_sha256": plan.donor.sha256,
            "span": [plan.organ.span.start, plan.organ.span.stop],
            "blood_type": dict(plan.organ.manifest.blood_type),
        },
    }
    manifest = replace(describe(plan.recipient, plan.at), training=training, parents=(plan.organ.sha256,))

    def blocks(name: str) -> Iterator[bytes]:
        yield as_bytes(tensors[name], places[name])

    check_unchanged(plan.states)
    write_safetensors(out, shapes, metadata=manifest.as_metadata(), blocks=blocks)
    return read_organ(out)


def _require_agreement(given: Mapping[str, Any], there: Mapping[str, Any], *, where: str) -> None:
    for facts, whose in ((given, "the organ's"), (there, "the recipient's")):
        if facts["family"] not in FAMILIES:
            raise CannotAdapt(
                where=f"{where}, {whose} family", expected=f"one of {', '.join(FAMILIES)}", got=str(facts["family"]),
                hint="adapters need norms without a mean, biases or a second factor; train one in that model",
            )  # fmt: skip
    absent = object()
    odd = sorted(
        name for name in {*given, *there}.difference(RESIZED) if given.get(name, absent) != there.get(name, absent)
    )
    if odd:
        raise CannotAdapt(
            where=where,
            expected=", ".join(f"{name} {there.get(name)}" for name in odd),
            got=", ".join(f"{name} {given.get(name)}" for name in odd),
            hint=f"adapters make up for {', '.join(RESIZED)} and nothing else; choose another recipient or --at",
        )


def _require_known(organ: OrganInfo, own: Mapping[str, Any], *, where: str) -> None:
    known = frozenset().union(*(branch.names() for branch in BRANCHES))
    odd = sorted(name for name in {*organ.places, *own} if name.split(".", 2)[2] not in known)
    if odd := odd or sorted(set(organ.places) ^ set(own)):
        has = "the recipient has it" if odd[0] in own else "the recipient has it not"
        raise CannotAdapt(
            where=f"{where}, tensor {odd[0][:100]}", expected="the same, known tensors in organ and recipient",
            got=has, hint="choose a recipient whose layers hold the same tensors, biases and norms",
        )  # fmt: skip


def _require_sizes(places: Mapping[str, Place], facts: Mapping[str, Any], *, where: str) -> None:
    """Raise CannotAdapt unless the tensors have the sizes that the facts say, and queries come in whole groups."""
    heads, keys, size, width = (
        facts[name] for name in ("attention_heads", "key_value_heads", "head_dim", "hidden_size")
    )
    neurons = facts["intermediate_size"]
    if all(type(number) is int and number > 0 for number in (heads, keys, size, width, neurons)) and heads % keys == 0:
        rows = {"query": heads * size, "key": keys * size, "neuron": neurons}
        expected: dict[str, tuple[int, ...]] = {f"{branch.norm}.weight": (width,) for branch in BRANCHES}
        expected |= {f"{branch.writes}.weight": (width, rows[branch.columns]) for branch in BRANCHES}
        expected |= {f"{name}.weight": (rows[of], width) for branch in BRANCHES for name, of in branch.reads.items()}
        if all(expected.get(name.split(".", 2)[2], place.shape) == place.shape for name, place in places.items()):
            return
    raise CannotAdapt(
        where=where, expected="heads, groups and widths that its tensors have", got="others",
        hint="download the model again; its settings and its weights contradict each other",
    )  # fmt: skip


def _slots(given: Mapping[str, Any], there: Mapping[str, Any], *, where: str) -> dict[str, Slots]:
    """Where the donor's rows go; raises CannotAdapt where the recipient has no room.

    Proved by: tests/unit/test_adapt.py::test_a_query_head_stays_with_its_key_value_head
    """
    size = given["head_dim"]
    group, room = (facts["attention_heads"] // facts["key_value_heads"] for facts in (given, there))
    copies = -(-group // room)
    for name, needs, has in (
        ("key_value_heads", given["key_value_heads"] * copies, there["key_value_heads"]),
        ("intermediate_size", given["intermediate_size"], there["intermediate_size"]),
    ):
        if needs > has:
            raise CannotAdapt(
                where=where, expected=f"a recipient with {name} of {needs} or more, for groups of {group} query heads",
                got=f"{has}, in groups of {room}",
                hint="nothing is cut off to make it fit; choose a recipient with as many heads and neurons",
            )  # fmt: skip
    heads = range(given["attention_heads"])
    query = [(head // group * copies + head % group // room) * room + head % group % room for head in heads]
    keys = range(given["key_value_heads"] * copies)
    neurons = torch.arange(given["intermediate_size"])
    return {
        "query": Slots(_rows(query, size), _rows(heads, size)),
        "key": Slots(_rows(keys, size), _rows([key // copies for key in keys], size)),
        "neuron": Slots(neurons, neurons),
    }


def _rows(heads: Sequence[int], size: int) -> Tensor:
    return (torch.tensor(list(heads))[:, None] * size + torch.arange(size)).flatten()
