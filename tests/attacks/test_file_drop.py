"""Whoever finds, swaps or prepares a stick: what is on it is believed as far as its signatures reach."""

from __future__ import annotations

import base64
import json
import os
import shutil
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from not_fed import canonical, files
from not_fed.coordinator.drop import export_orders, import_answers
from not_fed.coordinator.state import CoordinatorState
from not_fed.envelope.carried import CARRIED_TYPE, MAX_CARRIED_BYTES, CarriedAnswer, sign_carried
from not_fed.envelope.dsse import parse_statement
from not_fed.errors import NotFedError
from not_fed.home import Home
from not_fed.site.drop import export_answer, import_order
from tests.support.dropped import Post, now
from tests.support.federation import state_of, tiny_prepared


@pytest.fixture
def post(tmp_path: Path) -> Post:
    """A federation in mode bank, before its first order."""
    return Post(tiny_prepared(tmp_path, log=True), tmp_path / "sticks")


@pytest.fixture
def second(post: Post) -> Post:
    """The same after its first round, with the second round's order on every stick."""
    post.step()
    post.hand_out()
    return post


def site_refuses(post: Post, folder: Path, *, site: str = "clinic") -> str:
    """The code with which the site refuses a stick, after checking that nothing was done and nothing is answered."""
    home = post.prepared.sites[site]
    before = state_of(home, but=("log", "state.db-wal", "state.db-shm", "log.coordinator.checkpoint"))
    with pytest.raises(NotFedError) as caught:
        import_order(home, folder, now=now())
    after = state_of(home, but=("log", "state.db-wal", "state.db-shm", "log.coordinator.checkpoint"))
    assert {name for name in after if name.startswith(("organs", "outbox", "inbox"))} == {
        name for name in before if name.startswith(("organs", "outbox", "inbox"))
    }
    return caught.value.code


def coordinator_refuses(post: Post, folder: Path, *, site: str = "clinic") -> str:
    """The code with which one site's answer is not used, after checking that nothing was counted or stored."""
    home = post.prepared.coordinator
    state = CoordinatorState(home)
    before = state.answers("first"), {path.name for path in (home / "bank").rglob("*")}
    done = import_answers(home, folder, now=now())
    assert site not in done.counted
    assert (state.answers("first"), {path.name for path in (home / "bank").rglob("*")}) == before
    return done.errors[site].code


def a_parcel(folder: Path) -> Path:
    """One of the sealed organs in an order."""
    return sorted(folder.glob("orders/clinic/*.sealed"))[0]


def test_an_order_for_another_site_is_refused(second: Post, tmp_path: Path) -> None:
    """Own. Another site's order is carried under this site's name. Powers: the whole stick. Control: the site's own is
    taken, and answered.
    """
    shutil.copytree(second.stick("ward"), tmp_path / "swapped")
    (tmp_path / "swapped" / "orders" / "ward").rename(tmp_path / "swapped" / "orders" / "clinic")
    assert site_refuses(second, tmp_path / "swapped") == "stick-incomplete"
    assert site_refuses(second, second.stick("ward")) == "stick-empty"
    assert second.work("clinic").size_bytes > 0


@pytest.mark.parametrize("place", [0, 400, -20])
def test_an_altered_task_is_refused(second: Post, place: int) -> None:
    """Own. One byte of the task is changed. Powers: writes on the stick. Control: the untouched task is done."""
    task = second.stick("clinic") / "orders" / "clinic" / "task"
    kept = task.read_bytes()
    changed = bytearray(kept)
    changed[place] ^= 1
    task.write_bytes(changed)
    assert site_refuses(second, second.stick("clinic")) in ("signature-refused", "signed-malformed")
    task.write_bytes(kept)
    assert second.work("clinic").received == 2


def test_an_altered_parcel_is_refused(second: Post) -> None:
    """Own. One byte of a sealed organ is changed, or some are added. Powers: writes on the stick. Control: with the
    bytes that the task names the order is done, and nothing is left out.
    """
    parcel = a_parcel(second.stick("clinic"))
    kept = parcel.read_bytes()
    parcel.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    assert site_refuses(second, second.stick("clinic")) == "stick-altered"
    parcel.write_bytes(kept + b"more")
    assert site_refuses(second, second.stick("clinic")) == "stick-altered"
    parcel.write_bytes(kept)
    assert second.work("clinic").left_out == ()


def test_a_half_copied_stick_is_refused_and_can_be_copied_again(second: Post) -> None:
    """Own. The stick was pulled out while it was written. Powers: none; it happens. Control: the whole copy is done,
    as if nothing had been.
    """
    parcel = a_parcel(second.stick("clinic"))
    kept = parcel.read_bytes()
    parcel.write_bytes(kept[: len(kept) // 2])
    assert site_refuses(second, second.stick("clinic")) == "stick-incomplete"
    parcel.unlink()
    assert site_refuses(second, second.stick("clinic")) == "stick-incomplete"
    parcel.write_bytes(kept)
    label = parcel.with_suffix(".label")
    text = label.read_bytes()
    label.unlink()
    assert site_refuses(second, second.stick("clinic")) == "stick-incomplete"
    label.write_bytes(text)
    shutil.rmtree(second.stick("clinic") / "log")
    assert site_refuses(second, second.stick("clinic")) == "log-withheld"
    second.hand_out()
    assert second.work("clinic").left_out == ()


def links(path: Path, elsewhere: Path) -> None:
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def fifo(path: Path, elsewhere: Path) -> None:
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    os.mkfifo(path)


def huge(path: Path, elsewhere: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # a hole: it costs nothing to make


FILES, FOLDERS = ("orders/clinic/task", "a parcel", "a label"), ("orders", "orders/clinic", "roster")
TRICKS = [(what, trick) for what in (*FILES, *FOLDERS) for trick in (links, fifo)] + [(what, huge) for what in FILES]


@pytest.mark.parametrize(("what", "trick"), TRICKS)
def test_links_and_special_files_on_a_stick_are_refused(
    what: str, trick: Callable[[Path, Path], None], second: Post, tmp_path: Path
) -> None:
    """Own. A part of the stick is a symbolic link, a FIFO without a writer, or a terabyte. Powers: prepares the stick.
    Control: the same stick with the parts themselves is taken.
    """
    folder = tmp_path / "tricked"
    shutil.copytree(second.stick("clinic"), folder)
    path = {"a parcel": a_parcel(folder), "a label": a_parcel(folder).with_suffix(".label")}.get(what, folder / what)
    trick(path, tmp_path / "elsewhere")
    assert site_refuses(second, folder) in ("not-a-file", "file-too-large", "stick-altered")
    assert second.work("clinic").received == 2


def test_a_stick_cannot_lead_a_writer_elsewhere(post: Post, tmp_path: Path) -> None:
    """Own. The place to which an order or an answer is written is a link to a folder of the reader's own. Powers:
    prepares the stick. Control: onto a plain stick both are written.
    """
    target = tmp_path / "own"
    target.mkdir()
    for names in (("orders",), ("orders", "clinic"), ("answers",), ("answers", "clinic")):
        trap = tmp_path / "-".join(names)
        trap.joinpath(*names).parent.mkdir(parents=True)
        trap.joinpath(*names).symlink_to(target)
        if names[0] == "answers":
            post.hand_out()
            post.work("clinic")
        with pytest.raises(files.NotAFile):
            if names[0] == "orders":
                export_orders(post.prepared.coordinator, trap, now=now())
            else:
                export_answer(post.prepared.sites["clinic"], trap)
        assert list(target.iterdir()) == []


def test_a_name_on_the_stick_leads_nowhere(post: Post, tmp_path: Path) -> None:
    """Own. The stick has answers of sites that do not exist, with names that climb out. Powers: prepares the stick.
    Control: beside them, the invited site's answer is counted.
    """
    post.hand_out()
    post.work("clinic")
    for name in ("stranger", "-rf", "a\nb"):
        shutil.copytree(post.stick("clinic") / "answers" / "clinic", post.stick("clinic") / "answers" / name)
    done = post.take_in("clinic")
    assert (done.counted, done.errors) == ({"clinic": "sealed"}, {})


def _with_payload(line: bytes, answer: CarriedAnswer) -> bytes:
    """The signatures of one answer over another."""
    envelope = json.loads(line)
    envelope["payload"] = base64.b64encode(answer.to_payload()).decode()
    return canonical.dumps(envelope)


def test_a_forged_answer_is_refused(post: Post, tmp_path: Path) -> None:
    """Own. An answer in a site's name is signed by another, or for another coordinator, or is another site's own.
    Powers: another member's keys, and the whole stick. Control: the site's own is counted.
    """
    post.hand_out()
    post.work("clinic")
    post.work("ward")
    answer = post.stick("clinic") / "answers" / "clinic" / "answer"
    line = answer.read_bytes()
    _, said = parse_statement(line, CarriedAnswer, payload_type=CARRIED_TYPE, where="t", max_bytes=MAX_CARRIED_BYTES)
    ward, clinic = (Home(post.prepared.sites[name]).signer() for name in ("ward", "clinic"))
    forged = {
        "signed by another": sign_carried(said, signer=ward),
        "another coordinator": sign_carried(said.model_copy(update={"coordinator": "other"}), signer=clinic),
        "from the future": sign_carried(said.model_copy(update={"issued": now() + timedelta(days=1)}), signer=clinic),
        "another's own": (post.stick("ward") / "answers" / "ward" / "answer").read_bytes(),
        "other words under true signatures": _with_payload(
            line, said.model_copy(update={"left_out": ("0" * 64 + " x",)})
        ),
        "cut off": line[:-10],
        "empty": b"",
        "a flood": b"{" * (MAX_CARRIED_BYTES + 1),
    }
    codes = {}
    for name, data in forged.items():
        answer.write_bytes(data)
        codes[name] = coordinator_refuses(post, post.stick("clinic"))
    assert codes["another coordinator"] == codes["from the future"] == codes["another's own"] == "bad-carried-answer"
    assert codes["signed by another"] == codes["other words under true signatures"] == "signature-refused"
    answer.write_bytes(line)
    assert post.take_in("clinic").counted == {"clinic": "sealed"}


def test_an_altered_sealed_answer_is_refused(post: Post) -> None:
    """Own. The sealed organ beside a true answer is changed, cut, swapped, a link or a FIFO. Powers: writes on the
    stick. Control: with the true bytes it is counted.
    """
    post.hand_out()
    post.work("clinic")
    post.work("ward")
    organ = post.stick("clinic") / "answers" / "clinic" / "organ.sealed"
    kept = organ.read_bytes()
    others = (post.stick("ward") / "answers" / "ward" / "organ.sealed").read_bytes()
    for data, code in (
        (kept[:-1] + bytes([kept[-1] ^ 1]), "stick-altered"),
        (kept[:100], "stick-incomplete"),
        (kept + b"x", "stick-altered"),
        (others, "stick-altered"),
    ):
        organ.write_bytes(data)
        assert coordinator_refuses(post, post.stick("clinic")) == code
    organ.unlink()
    assert coordinator_refuses(post, post.stick("clinic")) == "stick-incomplete"
    os.mkfifo(organ)
    assert coordinator_refuses(post, post.stick("clinic")) == "not-a-file"
    organ.unlink()
    organ.write_bytes(kept)
    assert post.take_in("clinic").counted == {"clinic": "sealed"}


def test_an_answer_of_another_round_does_not_count(second: Post, tmp_path: Path) -> None:
    """Own. A site's first answer is played back in the second round. Powers: kept a copy of the stick. Control: the
    second round's own answer is counted.
    """
    assert coordinator_refuses(second, second.stick("clinic")) == "answer-outdated"
    second.work("clinic")
    assert second.take_in("clinic").counted == {"clinic": "sealed"}


def test_a_signed_answer_for_a_larger_organ_than_the_plan_takes_is_not_read(tmp_path: Path) -> None:
    """Own. A member announces a huge organ and leaves a hole of that size on the stick. Powers: a member's keys.
    Control: at the size that the plan takes, it is counted.
    """
    post = Post(tiny_prepared(tmp_path, plan={"max_parcel_bytes": 1 << 20}), tmp_path / "sticks")
    post.hand_out()
    post.work("clinic")
    answer = post.stick("clinic") / "answers" / "clinic" / "answer"
    line = answer.read_bytes()
    _, said = parse_statement(line, CarriedAnswer, payload_type=CARRIED_TYPE, where="t", max_bytes=MAX_CARRIED_BYTES)
    huge_one = said.model_copy(update={"size_bytes": 1 << 40})
    answer.write_bytes(sign_carried(huge_one, signer=Home(post.prepared.sites["clinic"]).signer()))
    assert coordinator_refuses(post, post.stick("clinic")) == "answer-too-large"
    answer.write_bytes(line)
    assert post.take_in("clinic").counted == {"clinic": "sealed"}
