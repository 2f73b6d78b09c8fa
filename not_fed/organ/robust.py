"""An organ made of several sites' organs by a rule that bears liars: all of them lie on disk until it is written."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

from not_fed.aggregation.robust import Combination, Contribution, Remark, Stored, combine
from not_fed.aggregation.rules import Rule
from not_fed.envelope.claims import DpClaim
from not_fed.envelope.header import ITEM_BYTES
from not_fed.organ.merge import OrgansDiffer, describe_merged, origin_of, weakest
from not_fed.organ.organ import Manifest, OrganInfo, read_organ
from not_fed.organ.writing import write_safetensors


class RobustOrgans:
    """Takes organs one at a time, as `OrganMean` does, and leaves them where they are until `write`.

    The first one sets what the others must agree with: check that each fits the base (`check_fit`) before adding it.

    The result names rule and parameters, the organs that are in it and those that were left out. Its claim is the
    weakest of all that the rule looked at, those that it left out too: their records had a say in who was chosen.
    """

    def __init__(self, rule: Rule, *, start: Mapping[str, Stored] | None = None) -> None:
        """`start`: the tensors that the round began from, by their names in an organ; needed with a norm limit."""
        self._rule, self._start = rule, start
        self._manifest: Manifest | None = None
        self._organs: list[Contribution] = []
        self._claims: list[DpClaim | None] = []

    def add(self, organ: Path, *, name: str, weight: float = 1.0) -> None:
        """Add one organ; raises OrgansDiffer or BadClaim, and then nothing was added. The file has to stay."""
        info = read_organ(organ)
        claim = DpClaim.from_training(info.manifest.training)
        self._manifest = origin_of(info, like=self._manifest)
        self._organs.append(Contribution(name=name, sha256=info.sha256, tensors=info.places, weight=weight))
        self._claims.append(claim)

    def write(self, out: Path, *, tell: Callable[[Remark], None] = lambda remark: None) -> OrganInfo:
        """Write the aggregate.

        Args:
            tell: told of each organ that is not in it as it came, also when nothing can be written for too few organs.
        Raises:
            as `combine` and `Combination.blocks`; then nothing was written.
        Proved by: tests/unit/test_robust.py::test_the_manifest_says_which_rule_was_used_and_who_was_left_out
        """
        if self._manifest is None:
            raise OrgansDiffer(where="aggregate", expected="at least one organ", got="none", hint="wait for an organ")
        combined = combine(self._organs, rule=self._rule, start=self._start, tell=tell)
        _write(combined, out, self._metadata(combined, self._manifest))
        return read_organ(out)

    def _metadata(self, combined: Combination, origin: Manifest) -> dict[str, str]:
        how = self._rule.as_training() | {"dp": weakest(self._claims)}
        left_out = sorted(remark.sha256 for remark in combined.remarks if remark.left_out)
        clipped = {member.sha256: member.factor for member in combined.members if member.factor != 1.0}
        more = {key: value for key, value in (("left_out", left_out), ("clipped", clipped)) if value}
        parents = [(member.sha256, member.weight) for member in combined.members]
        return describe_merged(origin, how=how, parents=parents, more=more)


def _write(combined: Combination, out: Path, metadata: Mapping[str, str]) -> None:
    tensors = {
        name: (dtype, shape, ITEM_BYTES[dtype] * math.prod(shape))
        for name, (dtype, shape) in combined.tensors().items()
    }
    write_safetensors(out, tensors, metadata=metadata, blocks=combined.blocks)
