"""The log on disk: the C2SP layout, proofs at every border, writers that are killed, and nothing but hashes inside."""

from __future__ import annotations

import base64
import hashlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from not_fed import canonical, files
from not_fed.envelope.label import PAYLOAD_TYPE as LABEL_TYPE
from not_fed.keys import dsse
from not_fed.trust import log_folder
from not_fed.trust.log import BadEntry, NotLoggable, entry, entry_of, kind_of, read_proof
from not_fed.trust.log_entries import PAYLOAD_TYPES
from not_fed.trust.log_folder import LAST_SIGNED, LogDamaged, LogFolder, NotLogged, create_log
from not_fed.trust.log_tiles import Tiles, tile_path
from not_fed.trust.log_tree import leaf_hash, root_of
from tests.support.logs import FEDERATION, Keeper, leaf, leaves
from tests.support.trust import NOW, Federation, Parcel


@pytest.fixture
def keeper(tmp_path: Path) -> Keeper:
    """An empty log."""
    return Keeper(tmp_path / "log")


@pytest.fixture
def parcel(tmp_path: Path) -> Parcel:
    """A sealed organ with its label."""
    return Parcel(tmp_path, Federation.make(tmp_path / "roster"))


def tree(folder: Path) -> set[str]:
    """The files of a log's tiles."""
    return {str(path.relative_to(folder / "tile")) for path in (folder / "tile").rglob("*") if path.is_file()}


class StaticClient:
    """What a C2SP client does with the folder as a web server would show it; shares no code with the library."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        lines = (folder / "checkpoint").read_text().split("\n")
        self.size, self.root = int(lines[1]), base64.b64decode(lines[2])

    def fetch(self, kind: str, number: int, width: int) -> bytes:
        name = f"{number:03}" if number < 1000 else f"x{number // 1000:03}/{number % 1000:03}"
        path = self.folder / "tile" / kind / name
        return (path if width == 256 else path.with_name(f"{path.name}.p") / str(width)).read_bytes()

    def leaves(self) -> Iterator[bytes]:
        for number in range((self.size + 255) // 256):
            data = self.fetch("entries", number, min(256, self.size - number * 256))
            while data:
                length = int.from_bytes(data[:2], "big")
                yield data[2 : 2 + length]
                data = data[2 + length :]

    def check_levels(self) -> None:
        """Each tile of each level: the exact bytes that section "Merkle Tree" of tlog-tiles gives it."""
        row = [hashlib.sha256(b"\0" + entry).digest() for entry in self.leaves()]
        level = 0
        while row:
            for number in range((len(row) + 255) // 256):
                part = row[number * 256 : number * 256 + 256]
                assert self.fetch(str(level), number, len(part)) == b"".join(part)
            row = [self.whole(row[at : at + 256]) for at in range(0, len(row) // 256 * 256, 256)]
            level += 1

    def whole(self, row: list[bytes]) -> bytes:
        while len(row) > 1:
            pairs = zip(row[::2], row[1::2], strict=True)
            row = [hashlib.sha256(b"\1" + left + right).digest() for left, right in pairs]
        return row[0]


def test_the_folder_has_the_tiles_of_the_specification_s_example(keeper: Keeper) -> None:
    """70,000 entries: 273 full level 0 tiles, a partial one of 112, one full level 1 tile, one of 17, level 2 has 1."""
    entries = leaves(0, 70_000)
    keeper.add(*entries[:65_000])
    keeper.add(*entries[65_000:])
    found = tree(keeper.folder)
    for kind in ("0", "entries"):
        assert {name for name in found if name.startswith(f"{kind}/")} == {
            *(f"{kind}/{number:03}" for number in range(273)), f"{kind}/273.p/112",
        }  # fmt: skip
    assert {name for name in found if name[0] in "12"} == {"1/000", "1/001.p/17", "2/000.p/1"}
    client = StaticClient(keeper.folder)
    assert (client.size, list(client.leaves())) == (70_000, entries)
    client.check_levels()
    assert client.root == root_of([leaf_hash(entry) for entry in entries])
    assert keeper.log().audit() == {"seal": 70_000, "roster": 0, "recall": 0}
    for number in (0, 255, 256, 65_535, 65_536, 69_887, 69_888, 69_999):
        assert read_proof(keeper.log().proof(entries[number])).index == number
        assert keeper.verify(keeper.log().proof(entries[number]), entries[number]).size == 70_000
    for size in (1, 255, 256, 257, 65_000, 65_535, 65_536, 65_537, 69_999, 70_000):
        assert keeper.log().root_at(size) == root_of([leaf_hash(entry) for entry in entries[:size]])
    level1 = keeper.folder / "tile" / "1" / "000"  # below the hash that the root is made from
    level1.write_bytes(level1.read_bytes()[::-1])
    with pytest.raises(LogDamaged):
        keeper.log().audit()


def test_tile_paths_are_those_of_the_specification() -> None:
    for index, text in ((0, "000"), (999, "999"), (1000, "x001/000"), (1234067, "x001/x234/067")):
        assert tile_path(3, index) == Path("tile/3") / text
    assert tile_path("entries", 1234067, width=9) == Path("tile/entries/x001/x234/067.p/9")
    widths = {(0, 272): 256, (0, 273): 112, (0, 274): 0, (1, 0): 256, (1, 1): 17, (2, 0): 1, (3, 0): 0}
    for (level, index), width in widths.items():
        assert Tiles(Path("x"), 70_000).width(level, index) == width
    assert Tiles(Path("x"), 256).width(1, 0) == 1


def test_every_entry_is_proved_at_every_size_around_a_border(keeper: Keeper) -> None:
    entries = leaves(0, 520)
    sizes = {0: root_of([])}
    for start, stop in ((0, 1), (1, 2), (2, 9), (9, 254), (254, 256), (256, 257), (257, 300), (300, 511), (511, 520)):
        assert keeper.add(*entries[start:stop]) == list(range(start, stop))
        log = keeper.log()
        for number in {0, 1, start, stop - 1} & set(range(stop)):
            assert read_proof(log.proof(entries[number])).index == number
            keeper.verify(log.proof(entries[number]), entries[number])
        sizes[stop] = root_of([leaf_hash(entry) for entry in entries[:stop]])
        assert log.checkpoint.root == sizes[stop]
        for size, root in sizes.items():
            assert log.root_at(size) == root
            log.consistency(size)
        StaticClient(keeper.folder).check_levels()


def test_an_entry_has_one_index_however_often_it_is_added(keeper: Keeper) -> None:
    assert keeper.add(leaf(1), leaf(2), leaf(1)) == [0, 1, 0]
    note = keeper.note
    assert keeper.add(leaf(2), leaf(1)) == [1, 0]
    assert keeper.add() == []
    assert keeper.note == note  # nothing new, nothing signed
    assert keeper.add(leaf(3), leaf(2), *leaves(4, 400), leaf(3)) == [2, 1, *range(3, 399), 2]
    assert keeper.log().checkpoint.size == 399


def test_only_entries_get_into_a_log(keeper: Keeper) -> None:
    digest = "ab" * 32
    assert entry("recall", digest) == f"not-fed.log/v1 recall {digest}".encode()
    assert [kind_of(entry(kind, digest)) for kind in ("seal", "roster", "recall")] == ["seal", "roster", "recall"]
    for data in (b"", b"x", leaf(1)[:-1], leaf(1) + b"0", leaf(1).upper(), leaf(1) + b"\n", b"Patient 17 has",
                 leaf(1).replace(b"seal", b"else"), leaf(1).replace(b"v1", b"v2"), b"\xff" * 80):  # fmt: skip
        with pytest.raises(BadEntry):
            keeper.add(data)
    for kind, text in (("seal", "AB" * 32), ("seal", "ab"), ("name", digest), ("seal", digest + "\n")):
        with pytest.raises(BadEntry):
            entry(kind, text)  # type: ignore[arg-type]
    assert keeper.log().checkpoint.size == 0


def test_what_is_not_there_is_not_proved(keeper: Keeper) -> None:
    with pytest.raises(NotLogged):
        keeper.log().proof(leaf(1))
    keeper.add(*leaves(0, 300))
    with pytest.raises(NotLogged):
        keeper.log().proof(leaf(300))
    with pytest.raises(NotLogged):
        keeper.log().consistency_text(301)
    with pytest.raises(files.NotAFile):
        LogFolder(keeper.folder.parent)
    with pytest.raises(files.NotAFile):
        log_folder.append(keeper.folder / "tile", leaf(1), signer=keeper.signer, now=NOW)
    with pytest.raises(files.OutputExists):
        create_log(keeper.folder, federation=FEDERATION, signer=keeper.signer, now=NOW)


class Killed(BaseException):
    """Stands in for SIGKILL at a chosen write."""


@pytest.mark.parametrize("before_or_after", ["before", "after"])
def test_a_kill_at_any_write_leaves_the_log_before_or_after(
    keeper: Keeper, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before_or_after: str
) -> None:
    """Killed at each of the writes of an append that fills tiles; then somebody appends something else."""
    first = keeper.add(*leaves(0, 200))
    old, write = keeper.log().checkpoint, files.write_atomic
    remove = shutil.rmtree
    reached = 0
    for step in range(12):
        target = Keeper(Path(shutil.copytree(keeper.folder, tmp_path / f"{step}")), signer=keeper.signer)
        left = [step]

        def dying(path: Path, data: bytes, left: list[int] = left, **more: bool | int) -> None:
            if left[0] == 0 and before_or_after == "before":
                raise Killed
            write(path, data, **more)  # type: ignore[arg-type]
            if left[0] == 0:
                raise Killed
            left[0] -= 1

        def removing(path: Path, left: list[int] = left, **more: bool) -> None:
            if left[0] == 0:
                raise Killed
            left[0] -= 1
            remove(path, **more)  # type: ignore[call-overload]

        monkeypatch.setattr(files, "write_atomic", dying)
        monkeypatch.setattr(log_folder.shutil, "rmtree", removing)
        try:
            target.add(*leaves(200, 600))
            done = True
        except Killed:
            reached, done = reached + 1, False
        monkeypatch.undo()
        size = target.log().checkpoint.size
        assert size in ({600} if done else {200, 600})
        assert size <= int((target.folder / LAST_SIGNED).read_bytes().split(b"\n")[1])  # known before it is shown
        assert target.log().audit()["seal"] == size
        after = target.add(*leaves(0, 3, "other"), *leaves(0, 200))
        assert after[3:] == first  # nothing was lost
        assert after[0] in (200, 600)
        assert target.log().root_at(200) == old.root
        assert target.log().audit()["seal"] == after[0] + 3
        if size == 600:
            assert after[0] == 600
    assert reached >= 9  # the writes: two bundles, two level 0 tiles, one level 1 tile, two notes; and the removals


def test_a_log_killed_between_its_two_notes_goes_on_from_what_it_signed(keeper: Keeper) -> None:
    """The checkpoint was signed and not yet published: nothing else may ever have that size."""
    keeper.add(*leaves(0, 5))
    published = keeper.note
    keeper.add(*leaves(5, 8))
    signed = keeper.log().checkpoint
    (keeper.folder / "checkpoint").write_bytes(published)
    assert keeper.log().audit()["seal"] == 5  # to a reader the log is what it was
    assert keeper.add(leaf(6)) == [6]  # nothing new, but now it is published
    assert keeper.log().checkpoint == signed
    (keeper.folder / "checkpoint").write_bytes(published)
    assert keeper.add(leaf(99)) == [8]
    assert keeper.log().root_at(8) == signed.root


WORKER = """
import os, sys
from pathlib import Path
from not_fed.keys import LogSigner
from not_fed.trust.log_folder import LogFolder, append_many
from tests.support.logs import leaves
from tests.support.trust import NOW
folder, pem = Path(sys.argv[1]), bytes.fromhex(sys.argv[2])
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if child:
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)
        continue
    signer = LogSigner.from_pem("hub", pem)
    while True:
        size = LogFolder(folder).checkpoint.size
        append_many(folder, leaves(size, size + 1 + size % 90), signer=signer, now=NOW)
"""


def test_kills_at_random_moments_lose_nothing_that_a_checkpoint_covered(keeper: Keeper) -> None:
    """Thirty times SIGKILL somewhere in an endless loop of appends; after each, the whole log is read and compared."""
    chance, sizes = random.Random(7), [0]
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, str(keeper.folder), keeper.signer.pem().hex()],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker:
        assert worker.stdout.readline() == "ready\n"
        for number in range(30):
            worker.stdin.write("go\n")
            worker.stdin.flush()
            child = int(worker.stdout.readline())
            while number % 2 and keeper.log().checkpoint.size == sizes[-1]:
                time.sleep(0.002)  # every other time it gets to append at least once, however busy the machine is
            time.sleep(chance.uniform(0.001, 0.12))
            seen = keeper.log().checkpoint
            os.kill(child, signal.SIGKILL)
            assert worker.stdout.readline() == "gone\n"
            log = keeper.log()
            assert log.audit()["seal"] == log.checkpoint.size >= seen.size
            assert log.root_at(seen.size) == seen.root
            assert [log.root_at(size) for size in sizes] == [root_of(hashes(size)) for size in sizes]
            sizes.append(log.checkpoint.size)
        worker.stdin.close()
    assert len(set(sizes)) > 15
    assert keeper.add(leaf(10**6))[0] >= sizes[-1]  # more where the last kill fell between signing and showing
    StaticClient(keeper.folder).check_levels()


def hashes(size: int) -> list[bytes]:
    return [leaf_hash(entry) for entry in leaves(0, size)]


def test_two_writers_take_turns_and_a_reader_never_sees_half(keeper: Keeper) -> None:
    stop, failures = threading.Event(), []

    def write(word: str) -> None:
        for number in range(25):
            keeper.add(*leaves(number * 7, number * 7 + 7, word))

    def read() -> None:
        while not stop.is_set():
            try:
                keeper.log().audit()
            except BaseException as error:  # noqa: BLE001  a thread has nowhere else to say so
                failures.append(error)
                return

    writers = [threading.Thread(target=write, args=(word,)) for word in ("one", "two")]
    reader = threading.Thread(target=read)
    for thread in (reader, *writers):
        thread.start()
    for thread in writers:
        thread.join()
    stop.set()
    reader.join()
    assert failures == []
    assert keeper.log().audit()["seal"] == 350
    assert sorted(keeper.add(*leaves(0, 175, "one"), *leaves(0, 175, "two"))) == list(range(350))


def test_partial_tiles_stay_until_the_full_one_is_there(keeper: Keeper) -> None:
    keeper.add(*leaves(0, 100))
    keeper.add(*leaves(100, 255))
    assert {"0/000.p/100", "0/000.p/255", "entries/000.p/100", "entries/000.p/255"} <= tree(keeper.folder)
    early = keeper.log()
    keeper.add(leaf(255), leaf(256))
    assert tree(keeper.folder) == {
        "0/000", "0/001.p/1", "1/000.p/1", "entries/000", "entries/001.p/1",
    }  # fmt: skip
    assert early.audit()["seal"] == 255  # a reader who has the earlier checkpoint goes on with the full tile
    keeper.verify(early.proof(leaf(254)), leaf(254))


def test_the_log_holds_hashes_only(keeper: Keeper, parcel: Parcel) -> None:
    """A label goes in; of its names, digests and times nothing is in any file of the log. Its salted digest is."""
    label = parcel.path.with_name(f"{parcel.path.name}.label")
    logged = entry_of(label)
    payload = base64.b64decode(canonical.loads(label.read_bytes(), where="label")["payload"])
    assert (logged.kind, logged.digest) == ("seal", hashlib.sha256(payload).hexdigest())
    keeper.add(logged.entry, *leaves(0, 300))
    parts = [path.read_bytes() for path in (keeper.folder / "tile").rglob("*") if path.is_file()]
    for name in ("checkpoint", LAST_SIGNED):
        text, _, signatures = (keeper.folder / name).read_bytes().partition(b"\n\n")
        parts += [text, *(line.split(b" ")[1] for line in signatures.splitlines())]  # the rest is base64 of signatures
    whole = b"\n".join(parts)
    said = set(re.findall(rb'[^"{}\[\]:,]{5,}', payload)) - {FEDERATION.encode()}  # which the log's own name has
    assert {b"clinic", parcel.sealed.sha256.encode()} <= said
    for word in said | {hashlib.sha256(parcel.organ).hexdigest().encode()}:
        assert word not in whole, word
    for raw in (hashlib.sha256(parcel.organ).digest(), bytes.fromhex(parcel.sealed.sha256)):
        assert raw not in whole
    assert logged.digest.encode() in whole  # control: the search does find things


def test_each_file_is_found_to_be_what_it_is(tmp_path: Path, parcel: Parcel) -> None:
    federation = parcel.federation
    metadata = federation.folder / "repository" / "metadata"
    newest = max(metadata.glob("*.targets.json"), key=lambda path: int(path.name.partition(".")[0]))
    digest = hashlib.sha256(newest.read_bytes()).hexdigest()
    for path in (federation.folder, federation.folder / "repository", newest):
        assert (entry_of(path).kind, entry_of(path).digest) == ("roster", digest)
    assert PAYLOAD_TYPES[LABEL_TYPE] == "seal"
    kind = "application/vnd.not-fed.recall.v1+json"
    recall = dsse.sign(b'{"x":1}', payload_type=kind, signer=federation.clinic.signer)
    (tmp_path / "x.recall").write_bytes(recall + b"\n")
    assert (entry_of(tmp_path / "x.recall").kind) == "recall"
    for name, data in (("knee.sealed", None), ("1.root.json", (metadata / "1.root.json").read_bytes()),
                       ("1.targets.json", b"{}"), ("empty", b""), ("list", b"[]"), ("x.label", b'{"payloadType":1}'),
                       ("timestamp.json", (metadata / "timestamp.json").read_bytes())):  # fmt: skip
        if data is not None:
            (tmp_path / name).write_bytes(data)
        with pytest.raises(NotLoggable):
            entry_of(tmp_path / name)
    with pytest.raises(NotLoggable):
        entry_of(tmp_path)
    (tmp_path / "x.label").write_bytes(recall.replace(b"recall", b"label")[:-1])
    with pytest.raises(NotLoggable):
        entry_of(tmp_path / "x.label")
    (tmp_path / "x.label").write_bytes(recall.replace(b"recall", b"label").replace(b'{"payload', b'{ "payload'))
    with pytest.raises(dsse.MalformedSigned):
        entry_of(tmp_path / "x.label")


def test_a_log_s_folder_is_public_and_its_notes_are_both_there(keeper: Keeper) -> None:
    keeper.add(leaf(1))
    assert keeper.folder.stat().st_mode & 0o777 == 0o755
    assert {path.stat().st_mode & 0o777 for path in keeper.folder.rglob("*") if path.is_file()} == {0o644}
    assert (keeper.folder / LAST_SIGNED).read_bytes() == keeper.note


def test_the_keeper_s_own_names_are_refused_when_impossible(tmp_path: Path) -> None:
    with pytest.raises(NotLoggable):
        entry_of(tmp_path)
    with pytest.raises(files.NotAFile):
        entry_of(tmp_path / "a\0b")
