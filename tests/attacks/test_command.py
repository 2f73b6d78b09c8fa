"""Adversary: whoever sends a file to a person or script that runs `not-fed`, or prepares the folder where it runs.

Powers: file names, texts inside signed claims, what lies beside a sealed file and where commands run, many processes.
Always: an exit code of its own for each outcome, nothing that draws on the terminal, no switch that skips a signature.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import click
import pytest
import typer

from not_fed.cli import main as command
from not_fed.envelope import DiskSeen, label_path, passport_path
from not_fed.envelope.waybill import WaybillReplayed
from tests.support.commands import Desk, run_together
from tests.support.folders import save_base
from tests.support.tiny import tiny_llama
from tests.support.trust import NOW, Forger, assert_refused, listing


def _commands(group: click.Command, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    if isinstance(group, click.Group):
        for name, inner in group.commands.items():
            yield from _commands(inner, (*words, name))
    else:
        yield words, group


ALL_COMMANDS = dict(_commands(typer.main.get_command(command.app)))
FORBIDDEN = {"verify", "check", "insecure", "trust", "unsafe", "skip", "force", "ignore", "unsigned", "no", "allow"}


def test_no_command_has_a_switch_that_skips_a_signature() -> None:
    """A83. The command is searched for switches and variables that would turn a check off.

    Powers: writes the command line or the environment of a script. Control: the switches that there are, are found.
    """
    assert len(ALL_COMMANDS) > 20
    for words, found in ALL_COMMANDS.items():
        for option in found.params:
            assert not option.envvar, f"{words}: {option.name} is read from the environment"
            for name in (*option.opts, *option.secondary_opts):
                assert not set(name.strip("-").split("-")) & FORBIDDEN or name in {"--help"}, f"{words}: {name}"
    assert "--accept-stale" in {name for option in ALL_COMMANDS["verify",].params for name in option.opts}


@pytest.mark.parametrize("verb", ["verify", "open", "import"])
def test_every_switch_together_skips_no_signature(desk: Desk, verb: str) -> None:
    """A83. Forged, damaged and misaddressed files are opened with every switch that a command has.

    Powers: writes the command line of a script, and a member's keys. Control: the honest file passes under all of them.
    """
    switches = [
        option.opts[0]
        for option in ALL_COMMANDS[verb,].params
        if isinstance(option, click.Option) and option.is_flag and option.name not in {"as_json"}
    ]
    assert "--accept-stale" in switches
    more = {"verify": [], "open": ["--out", "got"], "import": ["--into", "base", "--out", "model"]}[verb]
    if verb == "import":
        save_base(tiny_llama(), desk.folder / "base")
    forger, whole, label = Forger(desk.parcel), desk.parcel.path.read_bytes(), label_path(desk.parcel.path)
    words = desk.words(verb, "--json", *switches, *more)
    lab = desk.world.federation.lab.signer
    papers = label.read_bytes()
    label.unlink()
    for forge in (
        lambda: desk.parcel.path.write_bytes(whole[:-1] + b"\0"),
        lambda: forger.write(waybill=forger.waybill_with(signer=lab)),
        lambda: forger.rewrite(passport=forger.passport_with(signer=lab)),
        lambda: forger.write(waybill=forger.waybill_with(to={"lab": "00" * 32})),
        lambda: forger.write(waybill=forger.waybill_with(expires="2026-11-24T12:00:00Z")),
    ):  # fmt: skip
        forge()
        outcome = desk.run(*words)
        assert outcome.code == 6, outcome.err
    desk.parcel.path.write_bytes(whole)
    label.write_bytes(papers)
    fits = {"verify": 0, "open": 0, "import": 5}[verb]  # 5: the file holds, and was cut from another base
    assert desk.run(*words).code == fits


@pytest.mark.parametrize("name", ["-knee.sealed", "--yes", "--json", "-", "--", "-h"])
def test_names_that_look_like_options_are_names_after_two_dashes(desk: Desk, name: str) -> None:
    """A84. The sealed file is called like an option, so that a script with `*` would run with it.

    Powers: names the files in the folder of a script. Control: after `--`, or with `./` before it, the file is opened.
    """
    desk.parcel.path.rename(desk.folder / name)
    bare = desk.words("open", "--out", "got1")
    bare.remove("knee.sealed")
    for position, words in enumerate(([*bare, "--", name], [*bare, f"./{name}"])):
        words[words.index("got1")] = f"got{position}"
        outcome = desk.run(*words[:-1], *(["--again"] if position else []), words[-1]) if position else desk.run(*words)
        assert outcome.code == 0, outcome.err
        assert (desk.folder / f"got{position}").read_bytes() == desk.parcel.organ
    unmarked = desk.run(*bare, name)
    assert unmarked.code in {0, 2, 4, 6}
    assert "Traceback" not in unmarked.err


def test_each_outcome_has_its_exit_code(desk: Desk) -> None:
    """A85. A script tells done, refused, not addressed to me, no such file, wrong policy and wrong command apart.

    Powers: none; a script that must not take one outcome for another. Control: done is 0, and only done.
    """
    (desk.folder / "policy.toml").write_text("max_epsilon = 1.0\n")
    opening = desk.words("open", "--json", "--out", "got")
    damaged = desk.folder / "damaged"
    damaged.write_bytes(desk.parcel.path.read_bytes()[:-1])
    expected = {
        ("refused", 6, "container-damaged"): desk.words("open", "--json", "--out", "got", sealed="damaged"),
        ("not mine", 6, "not-for-this-key"): desk.words("open", "--json", "--out", "got", by="clinic"),
        ("not there", 4, "not-a-file"): desk.words("open", "--json", "--out", "got", sealed="nowhere"),
        ("other base", 5, "base-not-expected"): [*opening, "--base-sha256", "00" * 32],
        ("policy", 7, "demand-epsilon"): [*opening, "--policy", "policy.toml"],
        ("no output folder", 4, "not-a-file"): desk.words("open", "--json", "--out", "no/such/folder/got"),
    }
    before = set(listing(desk.folder)) | {"R/trusted/waybills.db"}
    for (what, code, error), words in expected.items():
        outcome = desk.run(*words)
        assert (outcome.code, outcome.error, outcome.out) == (code, error, ""), what
        assert {name for name in listing(desk.folder) if "waybills.db" not in name} <= before
    assert desk.run("open", "knee.sealed").code == 2
    assert desk.run(*opening).code == 0
    assert desk.run(*opening).error in {"waybill-replayed", "output-exists"}


def test_whoever_is_not_a_recipient_reads_the_same_words(desk: Desk) -> None:
    """A86. An outsider runs the command on files that are intact, damaged, cut or stale: word for word the same answer.

    Powers: any sealed file and keys of its own on the roster. Control: a recipient opens the intact file.
    """
    whole = desk.parcel.path.read_bytes()
    label_path(desk.parcel.path).unlink()
    said = set()
    forger = Forger(desk.parcel)
    for data in (whole, whole[:-1] + b"\0", whole[:-20]):
        desk.parcel.path.write_bytes(data)
        said.add(desk.run(*desk.words("open", "--out", "got", by="clinic")))
    forger.write(waybill=forger.waybill_with(expires="2026-11-24T12:00:01Z"))
    said.add(desk.run(*desk.words("open", "--out", "got", by="clinic")))
    assert len(said) == 1
    assert said.pop().code == 6
    desk.parcel.path.write_bytes(whole)
    assert desk.run(*desk.words("open", "--out", "got")).code == 0


@pytest.mark.parametrize("names", ["one name", "a name each"])
def test_of_many_commands_at_once_one_opens(desk: Desk, names: str) -> None:
    """A88. One file is opened by four processes at the same moment, into one output or into one each.

    Powers: starts commands, or delivers one file to four watchers. Control: exactly one has the organ, whole.
    """
    outs = ["got"] * 4 if names == "one name" else [f"got{number}" for number in range(4)]
    outcomes = run_together(desk.folder, [desk.words("open", "--json", "--out", out) for out in outs])
    assert sorted(outcome.code for outcome in outcomes).count(0) == 1, outcomes
    assert {outcome.error for outcome in outcomes if outcome.code} <= {"waybill-replayed", "output-exists"}
    winner = desk.folder / next(outcome.result["organ"] for outcome in outcomes if not outcome.code)
    assert winner.read_bytes() == desk.parcel.organ
    assert passport_path(winner).exists()
    written = {path.name for path in desk.folder.glob("got*")}
    assert written == {winner.name, passport_path(winner).name}


def test_of_many_threads_at_once_one_opens(desk: Desk) -> None:
    """A88. One file is opened by eight threads of one process, with one memory on disk.

    Powers: delivers one file many times at the same moment. Control: exactly one has the organ, whole.
    """
    parcel, barrier, codes = desk.parcel, threading.Barrier(8), []

    def work(number: int) -> None:
        seen = DiskSeen(desk.folder / "seen.db", now=NOW)
        barrier.wait()
        try:
            parcel.open(out=desk.folder / f"got{number}", seen=seen)
            codes.append("opened")
        except WaybillReplayed as error:
            codes.append(error.code)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == ["opened", *["waybill-replayed"] * 7]
    (winner,) = (path for path in desk.folder.glob("got*") if path.suffix != ".passport")
    assert winner.read_bytes() == parcel.organ


def test_a_newer_format_says_what_to_do(desk: Desk) -> None:
    """A89. A file of a newer not-fed arrives: the command says so and to update, instead of guessing.

    Powers: none; an honest sender with a newer not-fed. Control: this version's file opens.
    """
    forger, whole = Forger(desk.parcel), desk.parcel.path.read_bytes()
    label_path(desk.parcel.path).unlink()
    kind = "application/vnd.not-fed.waybill.v2+json"
    forger.write(waybill=forger.sign(forger.waybill, kind))
    outcome = desk.run(*desk.words("open", "--json", "--out", "got"))
    assert (outcome.code, outcome.error) == (6, "newer-format")
    assert "update not-fed" in outcome.err
    desk.parcel.path.write_bytes(whole)
    assert desk.run(*desk.words("open", "--out", "got")).code == 0


@pytest.mark.parametrize("paper", ["label", "tlog-proof"])
@pytest.mark.parametrize("kind", ["pipe", "link", "endless", "folder", "huge"])
def test_papers_beside_a_sealed_file_are_plain_files(desk: Desk, paper: str, kind: str) -> None:
    """Own. What lies beside the sealed file as its label or proof is a pipe, a link, a device, a folder, or 10 GB.

    Powers: writes into the folder where files arrive. Control: with the papers as they came, or none, the file opens.
    """
    path = desk.parcel.path.with_name(f"knee.sealed.{paper}")
    kept = path.read_bytes() if path.exists() else None
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind in {"link", "endless"}:
        path.symlink_to(desk.parcel.organ_path if kind == "link" else "/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        path.touch()
        os.truncate(path, 10 << 30)
    started = time.process_time()
    outcome = desk.run(*desk.words("open", "--json", "--out", "got"))
    assert (outcome.code, outcome.error) in {(4, "not-a-file"), (4, "file-too-large")}
    assert time.process_time() - started < 5
    path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()
    if kept is not None:
        path.write_bytes(kept)
    assert desk.run(*desk.words("open", "--out", "got")).code == 0


IMPOSSIBLE = {
    "a round of ten digits": ("--round", "9999999999"), "a round of forty digits": ("--round", "9" * 40),
    "a year of ten digits": ("--valid-days", "9999999999"), "a validity for ever": ("--valid-days", "999999999"),
    "a federation with a space": ("--federation", "low lands"), "another federation": ("--federation", "highlands"),
    "a negative round": ("--round", "-1"), "no days": ("--valid-days", "0"), "half a day": ("--valid-days", "0.5"),
    "nobody": ("--to", ""), "commas": ("--to", ",,"), "a megabyte": ("--to", "x" * 100_000),
    "another sharing": ("--sharing", "everybody"),
}  # fmt: skip


@pytest.mark.parametrize("which", IMPOSSIBLE)
def test_impossible_values_are_wrong_commands_and_not_crashes(desk: Desk, which: str) -> None:
    """Own. Numbers, names and dates that cannot be are given to `seal`: a typed refusal, never a traceback.

    Powers: writes the command line of a script, with values computed elsewhere. Control: with possible values it seals.
    """
    words = ["seal", "knee.organ", "--identity", desk.world.keys / "clinic", "--roster", "R", "--out", "x.sealed",
             "--passphrase-file", desk.world.keys / "pw"]  # fmt: skip
    to = [] if "--to" in IMPOSSIBLE[which] else ["--to", "hub"]
    outcome = desk.run(*words, *to, *IMPOSSIBLE[which], "--json")
    assert outcome.code in {2, 4, 6}, outcome
    assert not (desk.folder / "x.sealed").exists()
    assert desk.run(*words, "--to", "hub").code == 0


def test_the_working_folder_is_not_where_code_comes_from(desk: Desk) -> None:
    """Own. The folder with the sealed files holds modules called like those that not-fed imports.

    Powers: puts files into the folder where files arrive and where the command is run. Control: the command answers.
    """
    for name in ("numpy", "typer", "json", "cryptography", "pydantic", "tuf", "click", "not_fed", "sitecustomize"):
        (desk.folder / f"{name}.py").write_text("import pathlib; pathlib.Path('owned').touch(); raise SystemExit(0)\n")
    script = Path(sys.executable).with_name("not-fed")
    done = subprocess.run([script, "verify", "knee.sealed", "--roster", "R", "--json"], cwd=desk.folder, text=True,
                          capture_output=True, check=False)  # fmt: skip
    assert not (desk.folder / "owned").exists()
    assert done.returncode in {0, 6}  # 6: this machine's clock is not the test's
    assert json.loads(done.stdout or done.stderr)["schema"] in {"not-fed/verified/1", "not-fed/error/1"}


def test_a_clock_that_is_wrong_opens_nothing_silently(desk: Desk) -> None:
    """Own. The machine's clock is years off, as after a dead battery: everything would be expired, or nothing would.

    Powers: sets the clock, or answers for the time server. Control: with the right clock the file opens.
    """
    for wrong in (NOW - timedelta(days=3650), NOW + timedelta(days=3650)):
        assert_refused(desk.parcel, Exception, now=wrong)  # type: ignore[arg-type]
    assert desk.run(*desk.words("open", "--out", "got")).code == 0


def test_many_files_do_not_leak_descriptors(desk: Desk) -> None:
    """Own. A stream of damaged files arrives at a process that lives long: each refusal must give back what it took.

    Powers: sends as many bad files as it likes. Control: after two hundred refusals the good file opens.
    """
    whole = desk.parcel.path.read_bytes()
    assert_refused_before = len(os.listdir("/proc/self/fd"))  # noqa: PTH208
    threads = threading.active_count()
    for number in range(200):
        place = number * 37 % len(whole)
        desk.parcel.path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert_refused(desk.parcel, Exception, label=desk.parcel.sealed.label)  # type: ignore[arg-type]
    assert len(os.listdir("/proc/self/fd")) <= assert_refused_before + 1  # noqa: PTH208
    assert threading.active_count() <= threads
    desk.parcel.path.write_bytes(whole)
    assert desk.run(*desk.words("open", "--out", "got")).code == 0


def test_every_option_that_counts_days_has_an_end() -> None:
    """Own. A number of days is given that ends after the calendar does, to any command that takes days.

    Powers: writes the command line of a script. Control: there are such options, each with a smallest and a last value.
    """
    days = [
        option for found in ALL_COMMANDS.values() for option in found.params if (option.name or "").endswith("_days")
    ]
    assert len(days) > 2
    for option in days:
        assert isinstance(option.type, click.IntRange), option.name
        assert option.type.min is not None, option.name
        assert (option.type.max or 10**9) <= 36_500, option.name


def test_an_import_asks_before_it_writes(desk: Desk) -> None:
    """Own. An organ is imported in a script without a terminal, hoping that no answer counts as yes.

    Powers: runs the command without a person. Control: asked for a plan only, it verifies and writes nothing.
    """
    words = desk.words("import", "--into", "nowhere", "--out", "model")
    before = set(listing(desk.folder))
    assert desk.run(*words).code != 0
    assert {name for name in listing(desk.folder) if "waybills.db" not in name} <= before
    save_base(tiny_llama(), desk.folder / "base")
    asked = desk.run(*desk.words("import", "--into", "base", "--out", "model"))
    assert asked.code == 5  # refused for its base, before the question
    assert not (desk.folder / "model").exists()
