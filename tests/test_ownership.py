"""One process at a time owns a place; a dead one's place is taken, and a former owner changes nothing."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lcfbench import ownership
from lcfbench.errors import UserError
from lcfbench.files import LOCK, finish, locked, remove_stale, replacing, write
from lcfbench.ownership import HeldError, LostError, Owner, Record, acquire, holders
from lcfbench.results.reader import list_runs, read_runs
from lcfbench.results.schema import JOURNAL, SAMPLES
from lcfbench.results.writer import RunWriter
from tests.helpers import IDENTITY, sample_row, start_run

HOLD = """
import sys, time, pathlib
from lcfbench import ownership
from lcfbench.files import locked
if len(sys.argv) > 2:  # another system
    ownership._system = lambda: sys.argv[2]
    ownership.platform.node = lambda: sys.argv[2]
with locked(pathlib.Path(sys.argv[1])):
    print('held', flush=True)
    time.sleep(60)
"""


def begin(code: str, *arguments: object, **more: object) -> subprocess.Popen[str]:
    line = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more)


@pytest.fixture
def hold(tmp_path):
    """Starts processes that hold `out`; given a name, as if on a machine of that name."""
    started = []

    def hold(*system: str) -> subprocess.Popen[str]:
        process = begin(HOLD, tmp_path / "out", *system)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield hold
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture(autouse=True)
def nothing_is_owned():
    yield
    ownership._owners.clear()


@pytest.fixture
def soon(monkeypatch):
    """Owners of other systems count as dead after a second."""
    monkeypatch.setenv("LCFBENCH_STALE_SECONDS", "1")


def elsewhere(monkeypatch, name: str = "far") -> None:
    """Makes this process look as one of another machine from now on."""
    monkeypatch.setattr(ownership, "_system", lambda: name)


def own(folder: Path) -> Owner:
    return acquire(folder / LOCK, folder, "it is held")


def record_in(path: Path) -> Record:
    (name,) = os.listdir(path)
    found = Record.read(name)
    assert found is not None
    return found


# -- living and dead ----------------------------------------------------------------------------------


def test_the_owner_is_named(tmp_path, hold):
    other = hold()
    with pytest.raises(HeldError, match=rf"process {other.pid} on .+ since 20\d\d-.+ UTC") as held:
        locked(tmp_path / "out").__enter__()
    assert held.value.record is not None and held.value.record.pid == other.pid


def test_a_killed_owner_is_taken_over_at_once(tmp_path, hold):
    other = hold()
    other.kill()  # not waited for: a zombie is dead
    while ownership.started(other.pid) is not None:
        time.sleep(0.01)
    begun = time.monotonic()
    with locked(tmp_path / "out"):
        assert time.monotonic() - begun < 1
    assert os.listdir(tmp_path) == []


def test_an_owner_of_another_system_is_seen_to_live(tmp_path, hold, soon):
    hold("far")
    with pytest.raises(HeldError, match="on far since"), locked(tmp_path / "out"):
        pass


def test_an_owner_of_another_system_is_dead_when_it_gives_no_sign(tmp_path, hold, soon):
    hold("far").kill()
    begun = time.monotonic()
    with locked(tmp_path / "out") as owner:
        assert 0.9 < time.monotonic() - begun < 10 and owner.feared


@pytest.mark.parametrize("years", [-1, 0, 1])
def test_clocks_say_nothing(tmp_path, soon, monkeypatch, years):
    elsewhere(monkeypatch)
    owner = own(tmp_path)
    when = time.time() + years * 31e6
    os.utime(tmp_path / LOCK, (when, when))
    os.utime(owner.folder, (when, when))
    elsewhere(monkeypatch, "here")
    with pytest.raises(HeldError):
        own(tmp_path)
    assert holders([tmp_path / LOCK])[tmp_path / LOCK] is not None
    owner.release()


def test_another_process_with_the_same_number_is_not_the_owner(tmp_path):
    owner = own(tmp_path)
    reused = replace(owner.record, started="1", token="0" * 12, pid=os.getppid())
    os.rename(owner.folder, tmp_path / LOCK / reused.name)
    own(tmp_path).release()


def test_a_process_of_another_namespace_is_not_looked_up(tmp_path, soon, monkeypatch):
    elsewhere(monkeypatch, "boot pid:[2]")
    owner = own(tmp_path)
    gone = replace(owner.record, pid=2**31 - 1)
    os.rename(owner.folder, tmp_path / LOCK / gone.name)
    owner.record = gone
    elsewhere(monkeypatch, "boot pid:[1]")
    with pytest.raises(HeldError):
        own(tmp_path)
    owner.release()


NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc"]


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*NAMESPACE, "true"], capture_output=True).returncode != 0,
    reason="no right to make a pid namespace",
)
def test_a_real_pid_namespace(tmp_path, soon):
    """Two containers that share a folder: one cannot look up the other's processes."""
    line = [*NAMESPACE, sys.executable, "-c", HOLD, str(tmp_path / "out")]
    other = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert other.stdout is not None and other.stdout.readline() == "held\n"
    with pytest.raises(HeldError), locked(tmp_path / "out"):
        pass
    os.killpg(other.pid, signal.SIGKILL)
    other.communicate()
    begun = time.monotonic()
    with locked(tmp_path / "out"):
        assert 0.9 < time.monotonic() - begun < 10


def test_a_copy_has_no_owner(tmp_path, soon):
    (tmp_path / "one").mkdir()
    owner = own(tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "two")
    owner.beat()  # a copy that goes on has its records of several moments
    shutil.copytree(tmp_path / "one" / LOCK, tmp_path / "two" / LOCK, dirs_exist_ok=True)
    own(tmp_path / "two").release()
    owner.confirm()
    owner.release()


def test_a_copy_of_a_dead_owners_lock_is_free_at_once(tmp_path, hold):
    other = hold()
    other.kill()
    other.wait()
    shutil.copytree(tmp_path, tmp_path.with_name("two"))
    begun = time.monotonic()
    with locked(tmp_path.with_name("two") / "out"):
        assert time.monotonic() - begun < 10


@pytest.mark.parametrize("junk", [".nfs0000000000000001", ".DS_Store", "torn~record", "1~.1~3~4~5~6~7~"])
def test_other_things_in_a_lock_are_removed_when_nothing_changes(tmp_path, soon, junk):
    (tmp_path / LOCK).mkdir()
    (tmp_path / LOCK / junk).write_text("")
    own(tmp_path).release()
    assert os.listdir(tmp_path) == []


def test_an_empty_lock_and_the_file_of_an_earlier_version_are_free(tmp_path):
    (tmp_path / LOCK).mkdir()
    own(tmp_path).release()
    (tmp_path / LOCK).touch()
    own(tmp_path).release()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_contender_left_is_removed(tmp_path):
    (tmp_path / f"{LOCK}.0123456789ab" / "1~5~2~3~4~5~0~x").mkdir(parents=True)
    own(tmp_path).release()
    assert os.listdir(tmp_path) == []


# -- several at once ----------------------------------------------------------------------------------

RACE = """
import sys, time, pathlib
from lcfbench import ownership
from lcfbench.ownership import HeldError, acquire
if sys.argv[3]:
    ownership._system = lambda: sys.argv[3]
folder, log = pathlib.Path(sys.argv[1]), open(sys.argv[2], "a")
print("ready", flush=True)
sys.stdin.readline()
won = 0
end = time.monotonic() + 1.5
while time.monotonic() < end:
    try:
        owner = acquire(folder / ".lock", folder, "held")
    except HeldError:
        continue
    won += 1
    log.write("+"); log.flush(); log.write("-"); log.flush()
    owner.release()
print(won)
"""


@pytest.mark.parametrize(
    "systems", [("", ""), ("", "", ""), ("a", "b"), ("", "", "", "a", "a", "b", "b", "c")]
)
def test_one_of_several_at_once_is_the_owner(tmp_path, systems):
    log = tmp_path / "log"
    (tmp_path / "x").mkdir()
    rivals = [begin(RACE, tmp_path / "x", log, system, stdin=subprocess.PIPE) for system in systems]
    for rival in rivals:
        assert rival.stdout is not None and rival.stdout.readline() == "ready\n"
    for rival in rivals:
        assert rival.stdin is not None
        rival.stdin.write("go\n")
        rival.stdin.flush()
    said = [rival.communicate(timeout=120) for rival in rivals]
    assert not any(problem for _, problem in said), said
    won = [int(out) for out, _ in said]
    assert sum(won) > 0 and log.read_text() == "+-" * sum(won)
    assert os.listdir(tmp_path / "x") == []


@pytest.mark.parametrize("count", [2, 8])
def test_of_several_takers_of_a_dead_owner_one_wins(tmp_path, hold, count):
    other = hold()
    other.kill()
    other.wait()
    takers = [begin(HOLD, tmp_path / "out") for _ in range(count)]
    said = []
    while len(said) < count - 1:
        said = [taker for taker in takers if taker.poll() is not None]
        time.sleep(0.02)
    time.sleep(0.3)
    alive = [taker for taker in takers if taker.poll() is None]
    assert len(alive) == 1
    for taker in said:
        assert f"process {alive[0].pid} on" in taker.communicate()[1].splitlines()[-1]
    alive[0].kill()
    alive[0].communicate()


def test_waiting_ends_when_the_owner_is_gone(tmp_path, hold):
    other, told = hold(), []
    threading.Timer(0.3, other.kill).start()
    with locked(tmp_path / "out", wait=True, say=told.append):
        pass
    assert len(told) == 1 and f"process {other.pid}" in told[0] and told[0].endswith("Waiting.")


# -- a former owner -----------------------------------------------------------------------------------


def taken(folder: Path, monkeypatch) -> tuple[Owner, Owner]:
    """An owner that was silent for too long, and the one that took over."""
    monkeypatch.setenv("LCFBENCH_STALE_SECONDS", "0.3")
    elsewhere(monkeypatch, "far")
    former = own(folder)
    former.beaten = math.inf  # no beat is due
    elsewhere(monkeypatch, "here")
    return former, own(folder)


def as_process_of(owner: Owner) -> None:
    """Two owners of one place are in two processes."""
    ownership._owners.clear()
    ownership._owners[owner.record.token] = owner


def test_a_former_owner_notices(tmp_path, monkeypatch):
    former, owner = taken(tmp_path, monkeypatch)
    with pytest.raises(LostError, match=f"taken over by process {os.getpid()}"):
        former.confirm()
    former.release()
    owner.confirm()
    owner.release()


@pytest.mark.parametrize("when", ["before", "within"])
def test_a_former_owner_writes_and_removes_nothing(tmp_path, monkeypatch, when):
    """`within`: it was paused after it had looked whether it is the owner."""
    former, owner = taken(tmp_path, monkeypatch)
    as_process_of(owner)
    write(tmp_path / "file", b"theirs")
    as_process_of(former)
    if when == "within":
        monkeypatch.setattr(Owner, "confirm", lambda self: None)
    for act in (
        lambda: write(tmp_path / "file", b"mine"),
        lambda: former.remove(tmp_path / "file"),
        lambda: finish_one(tmp_path / "file"),
    ):
        with pytest.raises((LostError, FileNotFoundError)):
            act()
        assert (tmp_path / "file").read_bytes() == b"theirs"
    assert sorted(os.listdir(tmp_path)) == [LOCK, "file"]


def finish_one(path: Path) -> None:
    former = ownership.owner_of(path)
    assert former is not None
    former.put("part", path)


def test_looking_at_the_lock_makes_no_new_names(tmp_path):
    """Every row looks: a new text each time would stay in Python's table of names that paths are made of."""
    owner = acquire(tmp_path / LOCK, tmp_path, "busy")
    before = owner.record.name
    assert owner.folder.name is before is owner.record.name
    owner.beat()
    assert owner.folder.name is owner.record.name != before and owner.folder.is_dir()
    owner.release()


def test_rows_of_a_former_owner_do_not_reach_the_run(tmp_path, monkeypatch):
    """A run that is paused between its look at the lock and its write until another took it over."""
    monkeypatch.setenv("LCFBENCH_STALE_SECONDS", "0.3")
    elsewhere(monkeypatch, "far")
    former = start_run(tmp_path)
    assert former._owned is not None
    before = former._owned[0]
    before.beaten = math.inf  # no beat is due
    former.append(sample_row(0))
    elsewhere(monkeypatch, "here")
    ownership._owners.clear()
    writer = start_run(tmp_path)
    assert writer.done == {"h000"} and writer._owned is not None
    owner = writer._owned[0]
    writer.append(sample_row(1))
    with monkeypatch.context() as patch:
        patch.setattr(Owner, "confirm", lambda self: None)
        former.append(sample_row(2))  # into a file that has no name
    as_process_of(before)
    for act in (lambda: former.append(sample_row(3)), lambda: former.record(x=1), former.interrupt):
        with pytest.raises(LostError):
            act()
    as_process_of(owner)
    writer.append(sample_row(2))
    writer.finish()
    assert sorted(os.listdir(writer.folder)) == ["manifest.json", SAMPLES]
    (run,) = list_runs(tmp_path)
    assert (run["state"], run["documents"]) == ("complete", 3)


STOPPED = """
import json, sys, pathlib
from lcfbench import ownership
from lcfbench.results.writer import RunWriter
ownership._system = lambda: "far"
identity, row = json.loads(sys.argv[2]), json.loads(sys.argv[3])
writer = RunWriter.open(pathlib.Path(sys.argv[1]), identity, {"chance": 1 / 3})
for index in range(10**6):
    writer.append({**row, "doc_index": index % 50, "doc_hash": f"h{index % 50:03}"})
    print(index, flush=True)
"""


def test_a_stopped_process_that_comes_back_changes_nothing(tmp_path, soon):
    other = begin(STOPPED, tmp_path, json.dumps(IDENTITY), json.dumps(sample_row(0)))
    assert other.stdout is not None
    while int(other.stdout.readline()) < 5:
        pass
    other.send_signal(signal.SIGSTOP)
    writer = start_run(tmp_path)
    assert len(writer.done) > 5
    kept = (writer.folder / JOURNAL).read_bytes()
    other.send_signal(signal.SIGCONT)
    assert "was taken over by process" in other.communicate(timeout=60)[1].splitlines()[-1]
    assert (writer.folder / JOURNAL).read_bytes() == kept
    writer.interrupt()
    assert sorted(os.listdir(writer.folder)) == ["manifest.json", SAMPLES]


# -- beats --------------------------------------------------------------------------------------------


def test_an_owner_in_a_long_call_lives(tmp_path, monkeypatch):
    import ctypes

    monkeypatch.setenv("LCFBENCH_STALE_SECONDS", "0.3")
    elsewhere(monkeypatch)
    owner = own(tmp_path)
    before = owner.record.count
    ctypes.CDLL(None).usleep(900_000)  # releases the interpreter's lock, as the libraries do
    assert owner.record.count - before >= 3
    owner.release()


def test_beats_end_with_the_owner_and_begin_again(tmp_path, monkeypatch):
    monkeypatch.setenv("LCFBENCH_STALE_SECONDS", "0.3")
    for _ in range(2):
        owner = own(tmp_path)
        time.sleep(0.2)
        assert owner.record.count > 0
        owner.release()
        assert os.listdir(tmp_path) == []
        time.sleep(0.2)
        assert not any(thread.name == "lcfbench-owner" for thread in threading.enumerate())
        assert os.listdir(tmp_path) == []


def test_beats_keep_no_process_alive(tmp_path):
    code = "import sys, pathlib; from lcfbench.ownership import acquire; p = pathlib.Path(sys.argv[1])\n"
    process = begin(code + "acquire(p / '.lock', p, 'held')", tmp_path)
    process.communicate(timeout=60)
    assert process.returncode == 0
    own(tmp_path).release()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
def test_a_fork_owns_nothing_and_beats_for_its_own(tmp_path, monkeypatch):
    monkeypatch.setenv("LCFBENCH_STALE_SECONDS", "0.3")
    (tmp_path / "child").mkdir()
    owner = own(tmp_path)
    if (child := os.fork()) == 0:
        try:
            owner.release()  # as at the end of a with-block
            mine = own(tmp_path / "child")
            time.sleep(0.5)
            os._exit(0 if mine.record.count > 1 and ownership.owner_of(tmp_path) is None else 1)
        finally:
            os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    owner.confirm()
    before = owner.record.count
    time.sleep(0.3)
    assert owner.record.count > before
    owner.release()


# -- file systems as they are -------------------------------------------------------------------------


def refusing(monkeypatch, name: str, number: int, module: object = os) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(module, name, refuse)


@pytest.mark.parametrize("number", [errno.EPERM, errno.ENOTSUP, errno.ENOSYS])
def test_hard_links_and_locks_of_the_system_are_not_used(tmp_path, monkeypatch, number):
    import fcntl

    for name in ("flock", "lockf", "fcntl"):
        refusing(monkeypatch, name, number, fcntl)
    for name in ("link", "utime"):
        refusing(monkeypatch, name, number)
    writer = start_run(tmp_path)
    with pytest.raises(HeldError):
        start_run(tmp_path)
    writer.append(sample_row(0))
    writer.finish()
    assert len(os.listdir(writer.folder)) == 2


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EDQUOT, errno.ENOSPC])
@pytest.mark.parametrize("name", ["mkdir", "rename"])
def test_a_disk_that_refuses_the_lock_is_one_line(tmp_path, monkeypatch, number, name):
    with monkeypatch.context() as patch:
        refusing(patch, name, number)
        with pytest.raises(UserError, match=r"cannot write .*: "), locked(tmp_path / "out"):
            pass
    with locked(tmp_path / "out"):
        pass
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_be_replaced_while_it_is_empty(tmp_path, monkeypatch):
    """As on Windows and some network disks."""
    rename = os.rename

    def strict(source, target):
        if os.path.isdir(target):
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))
        rename(source, target)

    monkeypatch.setattr(os, "rename", strict)
    (tmp_path / LOCK).mkdir()
    owner = own(tmp_path)
    with pytest.raises(HeldError):
        own(tmp_path)
    owner.release()
    assert os.listdir(tmp_path) == []


def test_readers_that_keep_a_file_open_on_windows_are_waited_for(tmp_path, monkeypatch):
    owner, move, tries = own(tmp_path), os.replace, []

    def busy(source, target):
        tries.append(source)
        if len(tries) < 3:
            raise PermissionError(errno.EACCES, "used by another process")
        move(source, target)

    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setattr(os, "replace", busy)
    write(tmp_path / "file", b"x")
    assert (tmp_path / "file").read_bytes() == b"x" and len(tries) == 3
    owner.release()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
def test_a_disk_that_refuses_any_step_of_a_run_is_one_line(tmp_path, monkeypatch, number):
    """Each call that changes the disk fails in turn; with room again the run is completed, no row lost."""
    calls = ("mkdir", "rename", "replace", "write", "fsync", "ftruncate", "unlink", "open")
    real = {name: getattr(os, name) for name in calls}
    left, failed = 0, 0

    def one_fails(name):
        def call(*args, **more):
            nonlocal left
            changes = name != "open" or args[1] & (os.O_WRONLY | os.O_RDWR)
            if threading.current_thread() is threading.main_thread() and changes:
                left -= 1
                if left == 0:
                    raise OSError(number, os.strerror(number))
            return real[name](*args, **more)

        return call

    def whole(out: Path) -> None:
        writer = start_run(out)
        try:
            for index in range(3):
                if f"h{index:03}" not in writer.done:
                    writer.append(sample_row(index))
                    told.add(index)
            writer.finish()
        except UserError:
            writer.close()
            raise

    for step in range(1, 100):
        out, told = tmp_path / str(step), set[int]()
        left = step
        with monkeypatch.context() as patch:
            for name in calls:
                patch.setattr(os, name, one_fails(name))
            try:
                whole(out)
            except UserError as error:
                assert os.strerror(number) in error.what
                failed += 1
        ended = left > 0
        if told:
            assert len(read_runs([out]).rows) >= len(told)
        whole(out)
        (folder,) = out.iterdir()
        assert sorted(os.listdir(folder)) == ["manifest.json", SAMPLES]
        assert len(read_runs([out]).rows) == 3
        if ended:
            break
    assert ended and failed > 15


def test_a_beat_whose_answer_was_lost_is_one(tmp_path, monkeypatch):
    owner, rename = own(tmp_path), os.rename

    def twice(source, target):
        rename(source, target)
        rename(source, target)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", twice)
        owner.beat()
    owner.confirm()
    assert record_in(tmp_path / LOCK).count == 1
    owner.release()


def test_a_lock_that_was_removed_by_hand_is_noticed(tmp_path):
    owner = own(tmp_path)
    shutil.rmtree(tmp_path / LOCK)
    with pytest.raises(LostError, match="is gone"):
        write(tmp_path / "file", b"x")
    owner.release()


def test_parts_of_other_systems_stay_while_they_may_be_written(tmp_path):
    own_part = tmp_path / f".x.999999999-{ownership.home_of(tmp_path)}"
    others = [tmp_path / ".x.999999999-0123456789", tmp_path / ".x.2024"]
    for part in (own_part, *others):
        part.touch()
    write(tmp_path / "x", b"")
    assert not own_part.exists() and all(part.exists() for part in others)
    remove_stale(tmp_path, locked=True)
    assert not others[0].exists()


def test_an_exchange_is_the_owners_alone(tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    former, owner = taken(tmp_path / "out", monkeypatch)
    as_process_of(former)
    with pytest.raises(LostError), replacing(tmp_path / "out") as made:
        (made / "a").touch()
    assert os.listdir(tmp_path / "out") == [LOCK]
    finish(tmp_path / "out")


# -- runs ---------------------------------------------------------------------------------------------


def test_a_list_says_who_runs_and_where(tmp_path, monkeypatch):
    monkeypatch.setenv("LCFBENCH_STALE_SECONDS", "0.3")
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.5)
    here, killed = start_run(tmp_path), start_run(tmp_path, seed=2)
    elsewhere(monkeypatch, "far")
    monkeypatch.setattr(ownership.platform, "node", lambda: "far")
    far = start_run(tmp_path, seed=3)
    monkeypatch.undo()
    monkeypatch.setattr(ownership, "BEAT_SECONDS", 0.5)
    killed.close()
    said = {run["run_id"]: (run["state"], run.get("host")) for run in list_runs(tmp_path)}
    assert said == {
        here.run_id: ("running", None),
        killed.run_id: ("stopped", None),
        far.run_id: ("running", "far"),
    }
    ownership._owners.pop(far._owned[0].record.token)
    old = time.time() - 1000
    os.utime(far.folder / LOCK, (old, old))
    assert {run["run_id"]: run["state"] for run in list_runs(tmp_path)}[far.run_id] == "stopped"
    here.close()


@pytest.mark.parametrize("text", ["", "no", "-1", "nan", "inf", "0"])
def test_a_wrong_number_of_seconds_is_named(monkeypatch, text):
    monkeypatch.setenv("LCFBENCH_STALE_SECONDS", text)
    if text == "":
        assert ownership.stale_seconds() == 60
    else:
        with pytest.raises(UserError, match="LCFBENCH_STALE_SECONDS"):
            ownership.stale_seconds()


def test_a_run_that_fails_to_close_is_given_up(tmp_path, monkeypatch):
    writer = start_run(tmp_path)
    with monkeypatch.context() as patch:
        refusing(patch, "fsync", errno.ENOSPC)
        with pytest.raises(UserError, match="cannot write"):
            writer.finish()
    again: RunWriter = start_run(tmp_path)
    again.interrupt()
