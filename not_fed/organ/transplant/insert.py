"""More layers in a model: their tensors' names, what config.json says then, and how the model starts as it was."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from not_fed import files
from not_fed.errors import FitError
from not_fed.organ.anatomy import FULL, LAYER_TYPES, SLIDING, Span, SpanOutside, check_blood_type
from not_fed.organ.checkpoint import Base, Place
from not_fed.organ.fit import LayerTypesDiffer, check_origin, check_shapes
from not_fed.organ.organ import OrganInfo

_COUNTS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")
_BY_NUMBER = ("scale_attn_by_inverse_layer_idx", "first_k_dense_replace", "num_kv_shared_layers", "text_config")


class NoIdentity(FitError):
    """It is not known what has to be zero for these layers to change nothing."""

    code = "no-identity-start"


class LayersByNumber(FitError):
    """This model's config.json says something of layers by their number, so that none can be put between them."""

    code = "layers-by-number"


def check_insert(organ: OrganInfo, *, base: Base, before: int, where: str, accept_different_base: bool) -> bool:
    """Check that a model could have the organ's layers; returns whether they were cut from this very model's layers.

    Args:
        before: the layer that they are put before; the number of layers is the end.
    Raises:
        BloodTypeDiffers, ShapeDiffers: it could not. SpanOutside: there is no such place.
        LayerTypesDiffer: they are of kinds that this model's family has not, or not of one kind each.
        LayersByNumber: settings or tensors set layers apart by their number.
        OtherBase: they were cut from other layers and `accept_different_base` is false. FalseOrigin.
    """
    check_blood_type(organ.manifest.blood_type, base.blood_type, where=where)
    _check_config(base.config, base=base)
    if before > base.layers:
        raise SpanOutside(
            where=where, expected=f"a place from 0 to {base.layers}, the end", got=str(before),
            hint="--at names the layer that the new ones are put before",
        )  # fmt: skip
    check_shapes(organ, _like(organ.span, base), where=where)
    _check_kinds(organ, base=base, where=where)
    if organ.span.stop > base.layers and accept_different_base:
        return False
    return check_origin(organ, base=base, at=organ.span, where=where, accept_different_base=accept_different_base)


def _check_kinds(organ: OrganInfo, *, base: Base, where: str) -> None:
    """What an organ says of its layers will stand in config.json.

    Proved by: tests/unit/test_transplant_insert.py::test_kinds_that_the_family_has_not_never_reach_config_json
    """
    kinds = organ.manifest.blood_type.get(LAYER_TYPES, [FULL] * len(organ.span))
    known = {FULL, SLIDING, *(base.layer_types or ())}
    if not isinstance(kinds, list) or len(kinds) != len(organ.span) or not known.issuperset(map(str, kinds)):
        raise LayerTypesDiffer(
            where=where, expected=f"{len(organ.span)} of {', '.join(sorted(known))}", got=str(kinds)[:100],
            hint="use an organ of this model's own family",
        )  # fmt: skip


def _like(span: Span, base: Base) -> dict[str, Place]:
    """The tensors that layers of this model have, named as an organ's: a model that is too short stands by its last."""
    places = {}
    for offset in range(len(span)):
        at = min(span.start + offset, base.layers - 1)
        layer = base.span_places(Span(at, at + 1))
        places.update({_renumbered(name, offset): place for name, place in layer.items()})
    return places


def _check_config(config: Mapping[str, Any], *, base: Base) -> None:
    lists = (key for key, value in config.items() if "layer" in key and isinstance(value, list))
    numbered = [key for key in _BY_NUMBER if config.get(key)]
    numbered += [key for key in lists if key != LAYER_TYPES]
    numbered += _kept_apart(base)
    named = re.search(rf"\b{re.escape(base.family.list_name)}\.\d+", json.dumps(dict(config)))
    counts = {config[key] for key in _COUNTS if key in config}
    if numbered or named or counts != {base.layers}:
        raise LayersByNumber(
            where=f"{base.folder}/config.json",
            expected="the number of layers, and nothing that is said of single ones but layer_types",
            got=", ".join(numbered) or ("a layer's name" if named else "a number of layers that is stated elsewhere"),
            hint="use --mode replace or delta, which leave the layers where they are",
        )


def _kept_apart(base: Base) -> list[str]:
    """What else tells layers apart by their number: tensors beyond the last, and in what is not listed, kinds."""
    prefix = _prefix(base)
    numbers = (name.removeprefix(prefix).partition(".")[0] for name in base.places if name.startswith(prefix))
    found = [
        f"tensors of layer {n}, which it does not count" for n in {*numbers} if n.isdecimal() and int(n) >= base.layers
    ]
    if not base.family.proved:
        found += [kind for kind in base.layer_types or () if ", " in kind]
        shapes = [
            sorted((name, place.shape) for name, place in base.span_places(Span(at, at + 1)).items())
            for at in range(base.layers)
        ]
        found += [f"layer {at}, which holds other tensors" for at, own in enumerate(shapes) if own != shapes[0]]
    return found[:1]


def tensors_to_zero(organ: OrganInfo, *, base: Base, where: str) -> frozenset[str]:
    """Names in the organ of what its layers write to the residual stream: zero, and they change nothing.

    Raises:
        NoIdentity: the family does not say which those are, or a layer has none of that name.
    """
    outputs, found = base.family.outputs, set()
    for layer in range(len(organ.span)):
        start = f"{base.family.list_name}.{layer}."
        for output in outputs:
            these = {name for name in organ.places if name.startswith(start + output)}
            if not these:
                raise _no_identity(where, f"no tensor {start}{output[:60]}")
            found |= these
    if not found:
        raise _no_identity(where, "none known for this family")
    return frozenset(found)


def _no_identity(where: str, got: str) -> NoIdentity:
    return NoIdentity(
        where=where, expected="the tensors that write to the residual stream", got=got,
        hint="put the layers in as they are with --start organ, and train the model after that",
    )  # fmt: skip


def names_of(organ: OrganInfo, *, base: Base, at: Span) -> dict[str, str]:
    """Name in the new model -> name in the organ, whose first layer is number `at.start` there."""
    prefix, found = _prefix(base), {}
    for name in organ.places:
        _, offset, rest = name.split(".", 2)
        found[f"{prefix}{at.start + int(offset)}.{rest}"] = name
    return found


def kept_layers(layers: int, inserted: Iterable[Span]) -> list[int]:
    """In a model of that many layers, the numbers of those that are in no inserted span, in order."""
    new = {number for span in inserted for number in range(span.start, span.stop)}
    return [number for number in range(layers) if number not in new]


def renumbered_tensors(base: Base, numbers: Mapping[int, int]) -> dict[str, str]:
    """New name -> name in the checkpoint; `numbers` maps a layer to its new number, and one without it is left out."""
    prefix, found = _prefix(base), {}
    for name in base.places:
        number, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix) or not number.isdecimal():
            found[name] = name
        elif int(number) in numbers:
            found[f"{prefix}{numbers[int(number)]}.{rest}"] = name
    return found


def lengthened_config(base: Base, grafts: Sequence[tuple[OrganInfo, Span]]) -> dict[str, Any]:
    """config.json of the model with the organs' layers at those places in it, each of its own kind.

    The kinds are written out where the model's class would otherwise count them off from the first layer again.
    """
    config, layers = dict(base.config), base.layers + sum(len(at) for _, at in grafts)
    config.update({key: layers for key in _COUNTS if key in config})
    if base.layer_types is not None:
        types = dict(zip(kept_layers(layers, [at for _, at in grafts]), base.layer_types, strict=True))
        for organ, at in grafts:
            own = organ.manifest.blood_type.get(LAYER_TYPES, [FULL] * len(at))
            types.update(zip(range(at.start, at.stop), own, strict=True))
        if LAYER_TYPES in config or config.get("sliding_window") or {*types.values()} != {FULL}:
            config[LAYER_TYPES] = [types[number] for number in range(layers)]
    return config


def zeros(size_bytes: int) -> Iterator[bytes]:
    """That many zero bytes, in blocks: zero in every number format."""
    for begin in range(0, size_bytes, files.BLOCK_BYTES):
        yield bytes(min(files.BLOCK_BYTES, size_bytes - begin))


def _prefix(base: Base) -> str:
    """How the names of the layers begin in this checkpoint, up to the number."""
    organ_name, name = next(iter(base.span_names(Span(0, 1)).items()))
    return name.removesuffix(organ_name.partition(".")[2])


def _renumbered(name: str, layer: int) -> str:
    list_name, _, rest = name.split(".", 2)
    return f"{list_name}.{layer}.{rest}"
