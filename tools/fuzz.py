"""Coverage-guided fuzzing (atheris, libFuzzer) of the parsers in tests/fuzz/targets.py, for as long as you like.

    make fuzz MINUTES=10                                  all targets, one after the other; stops by itself
    python -m tools.fuzz --minutes 60 --target passport   one target
    python -m tools.fuzz --reproduce passport FILE        what a crasher does

Crashers go to fuzz/crashers/TARGET/, the corpus that coverage has grown to fuzz/corpus/TARGET/. A crasher is all but a
typed refusal, a broken round trip, two readers that disagree, or more than ten seconds. Whoever mends one copies the
file to tests/fuzz/found/TARGET/, where a test runs it from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "fuzz"
SLOWEST_S = 10
MEMORY_MB = 2048


def main() -> None:
    """Run all targets, each in a process of its own; exit 1 when there is a crasher."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--minutes", type=float, default=10, help="for all targets together")
    options.add_argument("--target", action="append", help="only this one; may be given several times")
    options.add_argument("--reproduce", nargs=2, metavar=("TARGET", "FILE"))
    options.add_argument("--only", help=argparse.SUPPRESS)  # the child: fuzz this one in this process
    options.add_argument("--seconds", type=int, default=10, help=argparse.SUPPRESS)
    chosen = options.parse_args()
    if chosen.reproduce:
        reproduce(*chosen.reproduce)
    elif chosen.only:
        fuzz(chosen.only, seconds=chosen.seconds)
    else:
        sys.exit(run_all(chosen.target, minutes=chosen.minutes))


def run_all(names: Sequence[str] | None, *, minutes: float) -> int:
    """The targets in turn, the time shared out; what each found."""
    from tests.fuzz.targets import TARGETS

    wanted = list(names or TARGETS)
    seconds = max(5, round(minutes * 60 / len(wanted)))
    found: list[Path] = []
    for place, name in enumerate(wanted, start=1):
        say(f"{name} ({place} of {len(wanted)}), {seconds} s; {(len(wanted) - place + 1) * seconds // 60} min to go")
        crashers = FOLDER / "crashers" / name
        before = set(crashers.glob("*"))
        log = FOLDER / f"{name}.log"
        log.parent.mkdir(exist_ok=True)
        with log.open("w") as words:
            command = [sys.executable, "-m", "tools.fuzz", "--only", name, "--seconds", str(seconds)]
            done = subprocess.run(command, cwd=ROOT, stdout=words, stderr=subprocess.STDOUT, check=False)
        fresh = sorted(set(crashers.glob("*")) - before)
        found += fresh
        if fresh or done.returncode:
            say(f"{name}: {len(fresh)} crashers, exit {done.returncode}; words in {log.relative_to(ROOT)}")
        for path in fresh:
            say(f"  python -m tools.fuzz --reproduce {name} {path.relative_to(ROOT)}")
    say(f"{len(found)} crashers")
    return 1 if found else 0


def fuzz(name: str, *, seconds: int) -> None:
    """One target, until the time is over or it crashes; libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["not_fed", "tests.support"]):
        from tests.fuzz.target import MAX_INPUT
        from tests.fuzz.targets import TARGETS

    target = TARGETS[name]
    corpus, crashers = FOLDER / "corpus" / name, FOLDER / "crashers" / name
    for folder in (corpus, crashers):
        folder.mkdir(parents=True, exist_ok=True)
    seeds = list(target.seeds())
    for seed in seeds:
        (corpus / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        """Half the time libFuzzer's own way, half the time one that knows what it is."""
        random = Random(seed)  # noqa: S311  repeatable is what is wanted
        if random.random() < 0.5:
            return bytes(atheris.Mutate(data, max_size))
        return target.mutate(data, seeds, random)[:max_size]

    arguments = [
        "fuzz", str(corpus), f"-max_total_time={seconds}", f"-artifact_prefix={crashers}/", f"-max_len={MAX_INPUT}",
        f"-timeout={SLOWEST_S}", f"-rss_limit_mb={MEMORY_MB}", "-print_final_stats=1",
    ]  # fmt: skip
    atheris.Setup(arguments, lambda data: one(target, data), custom_mutator=mutate)
    atheris.Fuzz()


def one(target: Any, data: bytes) -> None:  # noqa: ANN401
    """libFuzzer wants nothing back."""
    target(data)


def reproduce(name: str, file: str) -> None:
    """Run one input and let its traceback be seen."""
    from tests.fuzz.targets import TARGETS

    accepted = TARGETS[name](Path(file).read_bytes())
    say(f"{name}: {'accepted' if accepted else 'refused'}, as it should be")


def say(message: str) -> None:
    """Progress for the person who waits."""
    sys.stderr.write(f"fuzz: {message}\n")


if __name__ == "__main__":
    main()
