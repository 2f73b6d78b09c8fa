"""Every way a lying coordinator can run a secure sum, as linear algebra: what it learns of the honest sites' updates.

The masks are symbols. An honest site i sends `y_i = x_i + sum of r_ij over the helpers j`; a helper j answers
`z_j = sum of r_ij over its set U_j`; a revealer l hands out its shares of `r_ij` for i in its U_l and j in its R_l, and
`r_ij` opens when enough honest sites did so. Whatever a colluding site knows is subtracted. What the coordinator
learns is every combination of what it saw that holds no mask any more.

All of it is counted modulo 2. That is enough: a mask that is not open stands in one y and in one z at most, so what
was seen is the incidence matrix of a bipartite graph, which is totally unimodular: its kernel modulo 2 is that over the
rationals, and that modulo 2^32. (`learned_modulo` counts again modulo a large prime.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from itertools import combinations, product

Answer = tuple[int, int]
"""What one honest site lets itself be told: the active set U and the lost helpers R, each as a bit mask of sites."""


@dataclass(frozen=True, kw_only=True)
class Sum:
    """One call of a secure sum among sites 0..n-1, with thresholds that need not be those of the rule.

    Attributes:
        cohort, helpers, colluding: bit masks of sites.
        shares: t.
        vanish: f, the most helpers that a site reveals at once.
        min_sites: m.
    """

    cohort: int
    helpers: int
    colluding: int
    shares: int
    vanish: int
    min_sites: int
    _known: dict[tuple[tuple[int, ...], int], tuple[int, ...]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @cached_property
    def honest(self) -> tuple[int, ...]:
        """The sites that follow the protocol."""
        return bits(self.cohort & ~self.colluding)

    @cached_property
    def honest_helpers(self) -> tuple[int, ...]:
        """The helpers that do."""
        return bits(self.helpers & ~self.colluding)

    @cached_property
    def active_sets(self) -> tuple[int, ...]:
        """Every U that a site would accept."""
        return tuple(subset for subset in subsets(self.cohort) if subset.bit_count() >= self.min_sites)

    @cached_property
    def reveals(self) -> tuple[int, ...]:
        """Every R that a site would accept, and 0 for none."""
        return tuple(subset for subset in subsets(self.helpers) if subset.bit_count() <= self.vanish)

    @cached_property
    def answers(self) -> tuple[Answer, ...]:
        """All that one honest site may be told. Being told nothing shows the coordinator less than any of these."""
        return tuple(product(self.active_sets, self.reveals))

    def learned(self, answers: dict[int, Answer], *, uploads: int | None = None) -> tuple[int, ...]:
        """What the coordinator learns: a basis, modulo 2, each element a bit mask of the honest sites in that sum.

        Args:
            answers: by honest site; a site that is not there answers nothing.
            uploads: the sites that sent anything at all; all of the cohort when not given.
        """
        present = self.cohort if uploads is None else uploads
        told = tuple(answers[site][0] if site in answers else 0 for site in self.honest_helpers)
        opened = self._opened(answers)
        key = (told, opened | present << (len(self.honest) * len(self.honest_helpers)))
        if key not in self._known:
            self._known[key] = self.free_of_masks(self._rows(told, opened, present))
        return self._known[key]

    def free_of_masks(self, rows: list[int]) -> tuple[int, ...]:
        """A basis, modulo 2, of the combinations of these rows in which no mask is left."""
        return below(rows, 1 << (max(self.honest) + 1))

    def learned_modulo(self, answers: dict[int, Answer], *, prime: int) -> int:
        """How many independent combinations without a mask there are when counted modulo a prime."""
        told = tuple(answers[site][0] for site in self.honest_helpers)
        rows, above = self._rows(told, self._opened(answers), self.cohort), max(self.honest) + 1
        width = max(row.bit_length() for row in rows)
        whole = [[row >> at & 1 for at in range(width)] for row in rows]
        return rank(whole, prime) - rank([row[above:] or [0] for row in whole], prime)

    def _opened(self, answers: dict[int, Answer]) -> int:
        """The masks r_ij that enough shares open: shares of i count from everybody whose set has i, whatever else."""
        enough = self.shares - self.colluding.bit_count()
        opened, at = 0, 1
        for i in self.honest:
            for j in self.honest_helpers:
                shares = sum(1 for active, lost in answers.values() if active >> i & 1 and lost >> j & 1)
                opened |= at if shares >= enough else 0
                at <<= 1
        return opened

    def _rows(self, told: tuple[int, ...], opened: int, present: int) -> list[int]:
        """What is seen, a row each: the x_i in the low bits, the masks that are still closed above them."""
        width, above = len(self.honest_helpers), max(self.honest) + 1
        masks = {
            (i, j): 1 << (above + row * width + column)
            for row, i in enumerate(self.honest)
            for column, j in enumerate(self.honest_helpers)
            if not opened >> (row * width + column) & 1
        }
        seen = [
            1 << i | sum(masks.get((i, j), 0) for j in self.honest_helpers) for i in self.honest if present >> i & 1
        ]
        for j, active in zip(self.honest_helpers, told, strict=True):
            seen.append(sum(masks.get((i, j), 0) for i in self.honest if active >> i & 1))
        return seen

    def is_safe(self, learned: tuple[int, ...]) -> bool:
        """Nothing, or the sum over the honest sites of one set of at least m sites."""
        if not learned:
            return True
        return len(learned) == 1 and learned[0].bit_count() + self.colluding.bit_count() >= self.min_sites

    def strategies(self) -> Iterator[dict[int, Answer]]:
        """Every way to answer all honest sites."""
        for answers in product(self.answers, repeat=len(self.honest)):
            yield dict(zip(self.honest, answers, strict=True))

    def breaks(self) -> int:
        """How many strategies of one call show more than one sum of enough sites."""
        return sum(not self.is_safe(self.learned(answers)) for answers in self.strategies())

    def repeated(self, *, same_active: bool, same_lost: bool) -> tuple[dict[int, Answer], dict[int, Answer]] | None:
        """A call and its repetition from the same start that together show too much, or None.

        The worst case: everybody trains to exactly the same update again, under fresh masks, so that the two calls
        have the updates in common and nothing else. A site that answered once keeps to its U where `same_active`, and
        to the one R that it ever opened, in whichever of the calls, where `same_lost`. All are told something in both
        calls: with what is bound, to be told something shows more and costs nothing.
        """
        telling: dict[tuple[int, ...], list[tuple[dict[int, Answer], tuple[int, ...]]]] = {}
        for answers in self.strategies():
            if learned := self.learned(answers):
                kept = tuple(active for active, _ in answers.values()) if same_active else ()
                telling.setdefault(kept, []).append((answers, learned))
        for group in telling.values():
            for (once, shown), (again, more) in combinations(group, 2):
                if shown == more or (same_lost and not _lost_alike(once, again)):
                    continue
                if not self.is_safe(self.free_of_masks([*shown, *more])):
                    return once, again
        return None


def _lost_alike(once: dict[int, Answer], again: dict[int, Answer]) -> bool:
    return all(once[site][1] == again[site][1] or not (once[site][1] and again[site][1]) for site in once)


def in_two_cohorts(whole: Sum, part: Sum, *, bound_by_upload: bool) -> int:
    """In how many ways two calls from one start, the second to fewer sites, show more than each may alone.

    Each honest site answers one of the two calls. Where its upload binds it, it sends nothing for the other; else it
    has sent its masked update for both before it is asked.
    """
    both = [site for site in whole.honest if site in part.honest]
    others = [site for site in whole.honest if site not in part.honest]
    breaks = 0
    either = [(0, told) for told in whole.answers] + [(1, told) for told in part.answers]
    for chosen in product(either, repeat=len(both)):
        for told in product(whole.answers, repeat=len(others)):
            answers: tuple[dict[int, Answer], dict[int, Answer]] = (dict(zip(others, told, strict=True)), {})
            for site, (call, answer) in zip(both, chosen, strict=True):
                answers[call][site] = answer
            shown = [
                call.learned(given, uploads=mask(tuple(given)) if bound_by_upload else None)
                for call, given in zip((whole, part), answers, strict=True)
            ]
            overlap = all(shown) and shown[0] != shown[1] and shown[0][0] & shown[1][0]
            breaks += bool(overlap) or not (whole.is_safe(shown[0]) and part.is_safe(shown[1]))
    return breaks


def patterns(*, sites: int, collude: int, helpers: int, shares: int, vanish: int, min_sites: int) -> Iterator[Sum]:
    """One call for each way in which it matters who colludes.

    Sites differ only in whether they help and whether they collude, so the helpers are the first k, and of the sets of
    colluding sites one stands for all with as many helpers among them. Fewer than c colluding sites learn less.
    """
    for inside in range(max(0, collude - (sites - helpers)), min(collude, helpers) + 1):
        colluding = mask(range(inside)) | mask(range(helpers, helpers + collude - inside))
        yield Sum(
            cohort=mask(range(sites)), helpers=mask(range(helpers)), colluding=colluding, shares=shares,
            vanish=vanish, min_sites=min_sites,
        )  # fmt: skip


def subsets(whole: int) -> Iterator[int]:
    """Every set of sites within that one."""
    sites = bits(whole)
    for size in range(len(sites) + 1):
        for chosen in combinations(sites, size):
            yield mask(chosen)


def mask(sites: range | tuple[int, ...]) -> int:
    """Sites as a bit mask."""
    return sum(1 << site for site in sites)


def bits(whole: int) -> tuple[int, ...]:
    """A bit mask as sites."""
    return tuple(site for site in range(whole.bit_length()) if whole >> site & 1)


def below(rows: list[int], limit: int) -> tuple[int, ...]:
    """A basis of all sums modulo 2 of these rows that stay below a power of two."""
    pivots: dict[int, int] = {}
    for row in rows:
        left = row
        while left and (pivot := left.bit_length()) in pivots:
            left ^= pivots[pivot]
        if left:
            pivots[left.bit_length()] = left
    return tuple(sorted(row for row in pivots.values() if row < limit))


def rank(rows: list[list[int]], prime: int) -> int:
    """The rank of a matrix over a prime field."""
    left, found = [row[:] for row in rows], 0
    for column in range(len(rows[0])):
        pivot = next((at for at in range(found, len(left)) if left[at][column] % prime), None)
        if pivot is None:
            continue
        left[found], left[pivot] = left[pivot], left[found]
        inverse = pow(left[found][column], -1, prime)
        for at in range(found + 1, len(left)):
            if factor := left[at][column] * inverse % prime:
                left[at] = [(a - factor * b) % prime for a, b in zip(left[at], left[found], strict=True)]
        found += 1
    return found
