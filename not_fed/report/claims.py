"""Every sentence of the report that draws a conclusion, computed from the numbers that it is about.

`better` and `worse` are said only when the two 95 % intervals do not touch; otherwise it is `about the same`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from not_fed.report import words
from not_fed.report.shape import AGGREGATE, BASE, MEAN, Federated, Run, Score, Search, aggregate_of

Verdict = Literal["better", "about the same", "worse"]
SMOOTH = 10  # the first and last tenth of a curve stand for its start and end


def verdict(score: Score, other: Score) -> Verdict:
    """Whether `score` is clearly below `other`; a model that diverged is worse than one that did not."""
    if not math.isfinite(score.value) or not math.isfinite(other.value):
        finite = math.isfinite(score.value), math.isfinite(other.value)
        return {(True, False): "better", (False, True): "worse"}.get(finite, "about the same")  # type: ignore[return-value]
    low, high = _interval(score)
    other_low, other_high = _interval(other)
    return "better" if high < other_low else "worse" if low > other_high else "about the same"


def headline(result: Federated) -> str:
    """What the whole page shows, in one sentence."""
    return f"{_what_was_learnt(result)}{_what_leaked(result.plaintext_check)}"


def _what_was_learnt(result: Federated) -> str:
    run = result.leading_run
    if run is None or BASE not in result.perplexity:
        who = words.counted(len(result.sites), "hospital") if result.sites else "The sites"
        rounds = f" in {words.counted(result.rounds, 'round')}" if result.rounds else ""
        return words.sentence(f"{who} trained {words.layers(result.span) or 'a model'} together{rounds}")
    aggregate = aggregate_of(run)
    return (
        f"The aggregated organ {compared(result, aggregate, BASE, 'the base model')}{_instead(result, aggregate, BASE)}"
    )


def compared(result: Federated, model: str, other: str, name: str) -> str:
    """`reads all three specialities better than …`, or what is true instead."""
    verdicts = {
        domain: verdict(score, against)
        for domain in result.specialities
        if (score := result.score(model, domain)) and (against := result.score(other, domain))
    }
    groups = {kind: [d for d, v in verdicts.items() if v == kind] for kind in ("better", "about the same", "worse")}
    if not verdicts:
        return f"was not compared with {name}"
    if len(groups["better"]) == len(verdicts):
        whole = (
            "its speciality"
            if len(verdicts) == 1
            else f"all {words.counted(len(verdicts), 'speciality', 'specialities')}"
        )
        return f"reads {whole} better than {name}"
    rest = [f"{words.listed(groups[kind])} {kind}" for kind in ("about the same", "worse") if groups[kind]]
    if groups["better"]:
        return f"reads {words.listed(groups['better'])} better than {name}, {words.listed(rest)}"
    return f"reads no speciality better than {name} ({words.listed(rest)})"


def _instead(result: Federated, model: str, other: str) -> str:
    score, against = result.score(model, MEAN), result.score(other, MEAN)
    if score is None or against is None:
        return ""
    return f": mean perplexity {words.perplexity(score.value)} instead of {words.perplexity(against.value)}"


def _what_leaked(search: Search | None) -> str:
    if search is None:
        return ""
    if search.found:
        return f"; {words.counted(len(search.found), 'piece')} of plaintext found on the server"
    if not search.planted_found:
        return "; whether the server saw plaintext is not known"
    return "; no piece of a record was found on the server"


def perplexity_heading(result: Federated) -> str:
    """Which model reads best on average."""
    domain = MEAN if MEAN in result.domains else next(iter(result.domains), "")
    scores = {
        model: s.value for model in result.perplexity if (s := result.score(model, domain)) and math.isfinite(s.value)
    }
    if not scores:
        return "No model could be measured"
    best = min(scores, key=scores.__getitem__)
    where = "on average" if domain == MEAN else f"on {domain}"
    said = f"{words.sentence(model_name(best))} has the lowest perplexity {where}, {words.perplexity(scores[best])}"
    run = result.leading_run
    if run is None or best == aggregate_of(run) or aggregate_of(run) not in scores:
        return said
    return f"{said}; {model_name(aggregate_of(run))} stands at {words.perplexity(scores[aggregate_of(run)])}"


def perplexity_notes(result: Federated) -> list[str]:
    """One sentence per aggregate against the base, and one against the hospitals' own organs."""
    notes = []
    for run in result.runs:
        aggregate = aggregate_of(run)
        if aggregate not in result.perplexity:
            continue
        if BASE in result.perplexity:
            compare = compared(result, aggregate, BASE, "the base model")
            notes.append(f"{words.sentence(model_name(aggregate))} {compare}{_instead(result, aggregate, BASE)}.")
        notes.extend(_against_own(result, run))
    return notes


def _against_own(result: Federated, run: Run) -> list[str]:
    """The aggregate beside each organ on the speciality that this organ was trained on."""
    groups: dict[Verdict, list[str]] = {"better": [], "about the same": [], "worse": []}
    for domain in result.specialities:
        own, shared = result.score(f"{run.name}: {domain}", domain), result.score(aggregate_of(run), domain)
        if own and shared:
            values = f"{words.perplexity(shared.value)} against {words.perplexity(own.value)}"
            groups[verdict(shared, own)].append(f"{domain} ({values})")
    parts = [f"{kind} on {words.listed(domains)}" for kind, domains in groups.items() if domains]
    if not parts:
        return []
    return [f"Beside each hospital's own organ, on that hospital's own speciality, it reads {'; '.join(parts)}."]


def model_name(model: str) -> str:
    """`non-private: aggregate` as words."""
    if model == BASE:
        return "the base model"
    run, _, organ = model.partition(": ")
    if not organ:
        return model
    return f"the aggregate ({run})" if organ == AGGREGATE else f"{organ}'s organ ({run})"


def loss_ends(curve: Sequence[tuple[int, int, float]]) -> tuple[float, float] | None:
    """Mean loss of the first and of the last tenth of a curve, finite values only."""
    losses = [loss for _, _, loss in sorted(curve) if math.isfinite(loss)]
    if not losses:
        return None
    width = max(1, len(losses) // SMOOTH)
    return sum(losses[:width]) / width, sum(losses[-width:]) / width


def loss_heading(result: Federated) -> str:
    """Whether training lowered the loss everywhere."""
    ends = [pair for run in result.runs for curve in run.loss_curves.values() if (pair := loss_ends(curve))]
    lower = sum(last < first for first, last in ends)
    first, last = (sum(pair[i] for pair in ends) / max(1, len(ends)) for i in (0, 1))
    kept = [run for run in result.runs if any(map(loss_ends, run.loss_curves.values()))]
    runs = "every run" if len(kept) == len(result.runs) else "every run that keeps its losses"
    where = f"at every hospital in {runs}" if lower == len(ends) else f"in {lower} of {len(ends)} trainings"
    return f"Training lowered the loss {where}: {first:.2f} to {last:.2f} nats a token on average"


def traffic_heading(result: Federated) -> str:
    """How much travelled, and what most of it was."""
    kinds: dict[str, int] = {}
    for delivery in (delivery for run in result.runs for delivery in run.deliveries):
        kinds[delivery.kind or "other"] = kinds.get(delivery.kind or "other", 0) + delivery.bytes
    total = result.bytes_sent if result.bytes_sent is not None else sum(kinds.values())
    number = sum(len(run.deliveries) for run in result.runs)
    said = f"{words.size(total)} travelled in {words.counted(number, 'delivery', 'deliveries')}"
    if sum(kinds.values()):
        most = max(kinds, key=kinds.__getitem__)
        share = kinds[most] / sum(kinds.values())
        part = "almost all" if 0.995 < share < 1 else "all" if share == 1 else f"{share:.0%}"
        said += f", {part} of it of the kind “{most}”"
    return said


def held_heading(result: Federated) -> str:
    """What the server held at most of what a single site sent."""
    summed = [run for run in result.runs if run.mode == "secure-sum" and run.held]
    if not summed:
        return "What the server held, step by step"
    search = result.plaintext_check
    if search is None or search.found or not search.planted_found:
        return "What the server held, step by step"
    return "The server held masked changes and what they add up to, and no single site's change"


def server_heading(result: Federated) -> str:
    """What the server kept, and what a search of it found."""
    kept = sum(stored.bytes for stored in result.server_saw)
    number = words.counted(sum(stored.count for stored in result.server_saw), "thing")
    search = result.plaintext_check
    if search is None:
        return f"The server kept {number}, {words.size(kept)}; it was not searched for plaintext"
    if search.found:
        return f"The server kept plaintext: {words.counted(len(search.found), 'piece')} found"
    if not search.planted_found:
        return "The search of the server proves nothing: it missed what was planted for it"
    return f"The server kept {number}, {words.size(kept)}; no text, organ or key was found in it"


def search_notes(search: Search) -> list[str]:
    """What was searched for, and whether the search works."""
    kinds = (("text", search.texts), ("tensors", search.tensors), ("secret keys", search.keys))
    of = words.listed([f"{number:,} of {kind}" for kind, number in kinds if number])
    what = f"{words.counted(search.patterns_searched, 'short piece')}{f' ({of})' if of else ''}"
    notes = [f"{words.size(search.bytes_searched)} were searched for {what}."]
    notes.append(f"Found: {words.listed(search.found)}." if search.found else "None of them was found.")
    if search.planted_found:
        notes.append("The same search found a copy of each kind that was planted to test it.")
    else:
        notes.append("It also missed copies that were planted to test it, so finding nothing means nothing here.")
    return notes


def privacy_heading(result: Federated) -> str:
    """Which runs make a promise about single records."""
    bounded = [run for run in result.runs if run.epsilon is not None]
    open_ended = len(result.runs) - len(bounded)
    if not bounded:
        return "No run makes a promise about single records"
    said = listed_promises(bounded)
    if not open_ended:
        return said
    return f"{said}; {words.counted(open_ended, 'run makes', 'runs make')} no such promise"


def listed_promises(runs: Sequence[Run]) -> str:
    """The bounds of several runs, each with its run's name; the name of a single one would say nothing new."""
    promises = [words.promise(run.epsilon, run.delta, run.unit) for run in runs]
    if len(runs) > 1:
        promises = [f"{promise} (“{run.name}”)" for run, promise in zip(runs, promises, strict=True)]
    return words.sentence(words.listed(promises))


def passports_heading(result: Federated) -> str:
    """How many organs came with a passport, and who checked them."""
    passports = [passport for run in result.runs for passport in run.passports]
    checked = sum(bool(set(passport.verified_by) - {passport.author}) for passport in passports)
    what = words.counted(len(passports), "aggregate" if any(one.contributors for one in passports) else "organ")
    said = words.sentence(f"{what} travelled with a signed passport")
    if checked == len(passports):
        return f"{said}, and every one was verified by a recipient"
    return f"{said}; {words.counted(checked, 'was', 'were')} verified by a recipient"


def refused_heading(result: Federated) -> str:
    """How many of the attacks that were tried in this run were stopped."""
    through = sum(not attempt.stopped for attempt in result.refused)
    said = words.sentence(words.counted(len(result.refused), "attempt"))
    if not through:
        return f"{said} at cheating, and {'it' if len(result.refused) == 1 else 'each'} was refused"
    return f"{said} at cheating; {words.number(through)} got through"


def time_heading(result: Federated) -> str:
    """How long it took, and what took longest."""
    longest = max(result.timeline, key=lambda lap: lap.seconds)
    total = result.seconds if result.seconds is not None else sum(lap.seconds for lap in result.timeline)
    return f"It took {words.duration(total)}, of which {longest.label} {words.duration(longest.seconds)}"


def _interval(score: Score) -> tuple[float, float]:
    low = score.ci_low if math.isfinite(score.ci_low) else score.value
    high = score.ci_high if math.isfinite(score.ci_high) else score.value
    return low, high
