"""An organ's privacy claim, computed again from its own signed fields. Loads without torch.

Nobody can see from outside whether a training kept to the mechanism that its author signed; whether the mechanism gives
the epsilon beside it, anybody can.
"""

from __future__ import annotations

from not_fed.envelope.claims import DpClaim
from not_fed.errors import TrustError
from not_fed.privacy.accounting import BadPlan, DpPlan, Epsilon, NoisedRelease

TOLERANCE = 0.005  # accountants of another version may stand this far below ours, as a share


class ClaimTooSmall(TrustError):
    """A passport claims a smaller epsilon than the mechanism that it names can give."""

    code = "claim-too-small"


def plan_of(claim: DpClaim) -> DpPlan:
    """The plan that a claim says was followed; raises BadPlan where nothing of ours trains by such a plan."""
    mechanism = claim.mechanism
    return DpPlan(
        sample_rate=mechanism.sample_rate,
        steps=mechanism.steps,
        noise_multiplier=mechanism.noise_multiplier,
        max_grad_norm=mechanism.max_grad_norm,
        divisor=mechanism.divisor,
        delta=claim.delta,
        runs=mechanism.runs,
        unit=claim.unit,
        records_per_person=mechanism.records_per_person,
        releases=tuple(
            NoisedRelease(name=one.name, noise_multiplier=one.noise_multiplier) for one in mechanism.releases
        ),
    )


def recompute(claim: DpClaim) -> Epsilon:
    """What the mechanism in a claim costs, by our own accountant: all runs, releases and repeated steps.

    Raises:
        BadPlan: the mechanism is outside of what is accounted here, such as almost no noise.
    Proved by: tests/unit/test_claims.py::test_epsilon_is_recomputed_from_the_signed_fields
    """
    mechanism = claim.mechanism
    again = plan_of(claim).as_claim(
        repeated_steps=mechanism.repeated_steps, repeated_releases=dict(mechanism.repeated_releases)
    )
    return Epsilon(value=again["epsilon"], delta=claim.delta, unit=claim.unit, noise_added_at=mechanism.noise_added_at)


def check_claim(claim: DpClaim | None, *, where: str = "passport") -> Epsilon | None:
    """Compute a claim again, and refuse one that is smaller than its own mechanism gives.

    Raises:
        ClaimTooSmall: by more than accountants differ, or the mechanism cannot be accounted at all.
    Proved by: tests/unit/test_claims.py::test_a_claim_below_its_own_mechanism_is_refused
    """
    if claim is None:
        return None
    try:
        found = recompute(claim)
    except BadPlan as error:
        raise _too_small(claim, where, got=f"a mechanism beyond accounting ({error.where})") from None
    if not claim.epsilon >= found.value * (1 - TOLERANCE):
        raise _too_small(claim, where, got=f"a mechanism that costs {found}")
    return found


def _too_small(claim: DpClaim, where: str, *, got: str) -> ClaimTooSmall:
    return ClaimTooSmall(
        where=f"{where}, field dp", expected=f"a mechanism that gives {claim}", got=got,
        hint="rely on nothing that this passport says; ask its author",
    )  # fmt: skip
