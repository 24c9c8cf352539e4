from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.disk import Operations, broken_at, dead_at, full_from, interrupted_at

from mtpeft import files, locks
from mtpeft.errors import MtpeftError
from mtpeft.training.log import Log


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_file(path, b"old")

    def full(place):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(MtpeftError, match=f'no space left on the disk to write "{path}"'):
        files.write_file(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "folder"
    files.write_folder(path, lambda folder: (folder / "a").write_text("old"))

    def broken(folder):
        (folder / "a").write_text("new")
        raise MtpeftError("no")

    with pytest.raises(MtpeftError, match="no"):
        files.write_folder(path, broken)
    assert (path / "a").read_text() == "old"
    files.write_folder(path, lambda folder: (folder / "b").write_text("new"))
    assert [p.name for p in tmp_path.rglob("*")] == ["folder", "b"]


def test_everything_is_on_the_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(files, "sync", lambda path: told.append((path.name, (tmp_path / "folder").exists())))

    def fill(folder):
        (folder / "inner").mkdir()
        (folder / "inner" / "a").write_text("a")

    files.write_folder(tmp_path / "folder", fill)
    assert told == [("inner", False), ("a", False), (".folder.mtpeft-new", False), (tmp_path.name, True)]


def test_safetensors_without_space_is_the_same_sentence(tmp_path):
    def fill(folder):
        from safetensors import SafetensorError

        raise SafetensorError("I/O error: No space left on device (os error 28)")

    with pytest.raises(MtpeftError, match="no space left on the disk"):
        files.write_folder(tmp_path / "folder", fill)


def test_what_cannot_be_read_is_named(tmp_path):
    with pytest.raises(MtpeftError, match=r'there is no ".*absent.json"'):
        files.read_json(tmp_path / "absent.json")
    save_file({"x": torch.ones(3)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-2])
    with pytest.raises(MtpeftError, match=r"x.safetensors. is truncated or damaged"):
        files.read_tensors(tmp_path / "x.safetensors")


def test_the_log_is_cut_to_what_the_state_knows(tmp_path):
    log = Log(tmp_path / "events.jsonl")
    log.write({"n": 1})
    length = log.sync()
    log.write({"n": 2})
    log.close()
    log = Log(tmp_path / "events.jsonl", length=length)
    log.write({"n": 3})
    log.close()
    assert (tmp_path / "events.jsonl").read_text() == '{"n": 1}\n{"n": 3}\n'


# --- before every file operation


def content(folder: Path | None) -> dict[str, str]:
    return {} if folder is None else files.inventory(folder)


def two_files(text: str) -> Callable[[Path], None]:
    def fill(folder: Path) -> None:
        (folder / "inner").mkdir()
        for name in ("a", "inner/b"):
            (folder / name).write_text(text)
        files.write_tensors(folder / "c.safetensors", {"x": torch.full((3,), float(len(text)))})

    return fill


def number_of_operations(write: Callable[[], None], place: Path) -> int:
    with Operations(place) as operations:
        write()
    return operations.count


def in_a_child(work: Callable[[], None]) -> int:
    """The exit status of a child that works and dies, or comes to its end."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("fails", [dead_at, full_from, broken_at, interrupted_at], ids=lambda fails: fails.__name__)
def test_a_folder_is_old_or_new_whatever_operation_fails(tmp_path, fails, before):
    def write(folder: Path, text: str) -> None:
        files.write_folder(folder, two_files(text))

    whole = {}
    for text in ("old", "new text"):
        write(tmp_path / "whole", text)
        whole[text] = content(tmp_path / "whole")
    counted = tmp_path / ("whole" if before else "another")
    count = number_of_operations(lambda: write(counted, "new text"), tmp_path)
    assert count >= 12
    for number in range(1, count + 1):
        folder = tmp_path / str(number) / "folder"
        if before:
            write(folder, "old")

        def work(folder: Path = folder, number: int = number) -> None:
            with Operations(tmp_path, fails(number)):
                write(folder, "new text")

        if fails is dead_at:
            assert in_a_child(work) == 9
        else:
            with suppress(MtpeftError, KeyboardInterrupt):
                work()
        assert content(files.standing_folder(folder)) in ([whole["old"]] if before else [{}]) + [whole["new text"]]
        write(folder, "new text")
        assert content(folder) == whole["new text"]
        assert [place.name for place in folder.parent.iterdir()] == ["folder"]


@pytest.mark.parametrize("fails", [dead_at, full_from, broken_at, interrupted_at], ids=lambda fails: fails.__name__)
def test_a_file_is_old_or_new_whatever_operation_fails(tmp_path, fails):
    path = tmp_path / "file"
    count = number_of_operations(lambda: files.write_file(path, b"old"), tmp_path)
    for number in range(1, count + 1):
        files.write_file(path, b"old")

        def work(number: int = number) -> None:
            with Operations(tmp_path, fails(number)):
                files.write_file(path, b"new")

        if fails is dead_at:
            assert in_a_child(work) == 9
        else:
            with suppress(MtpeftError, KeyboardInterrupt):
                work()
        assert path.read_bytes() in (b"old", b"new")


@pytest.mark.parametrize("ending", [".old", ".tmp", ".lock"])
def test_what_users_call_their_own_is_never_taken_for_ours(tmp_path, ending):
    """``mv runs/x runs/x.old`` is what people do before they train into ``runs/x`` again."""
    theirs = tmp_path / f"x{ending}"
    theirs.mkdir()
    (theirs / "precious").write_text("mine")
    for text in ("one", "two"):
        lock = locks.Lock(tmp_path / "x")
        files.write_folder(tmp_path / "x", two_files(text))
        lock.release()
    assert (theirs / "precious").read_text() == "mine"
    assert {place.name for place in tmp_path.iterdir()} == {"x", theirs.name}


# --- locks

HOLDER = """
import sys, os, time
from pathlib import Path
from mtpeft.locks import Lock
lock = Lock(Path(sys.argv[1]))
print(os.getpid(), flush=True)
if sys.argv[2] == "fork" and os.fork() == 0:
    print(os.getpid(), flush=True)
    time.sleep(60)
time.sleep(60)
"""


def holder(folder: Path, *, forks: bool = False) -> tuple[subprocess.Popen, list[int]]:
    command = [sys.executable, "-c", HOLDER, str(folder), "fork" if forks else "stay"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, [int(process.stdout.readline()) for _ in range(1 + forks)]


def test_a_lock_names_its_holder_and_dies_with_it(tmp_path):
    process, _ = holder(tmp_path / "run")
    try:
        with pytest.raises(MtpeftError, match=rf'run" is being written by process {process.pid} on ') as caught:
            locks.Lock(tmp_path / "run")
        assert "--out" in caught.value.hint
        (tmp_path / "alias").symlink_to(tmp_path / "run")
        with pytest.raises(MtpeftError, match="is being written by"):
            locks.Lock(tmp_path / "alias")
    finally:
        process.kill()
        process.communicate()
    locks.Lock(tmp_path / "run").release()
    assert [place.name for place in tmp_path.iterdir()] == ["alias"]


def test_a_child_of_fork_does_not_keep_a_dead_parents_lock(tmp_path):
    process, (_, child) = holder(tmp_path / "run", forks=True)
    try:
        process.kill()
        process.wait()
        os.kill(child, 0)  # it lives
        locks.Lock(tmp_path / "run").release()
    finally:
        os.kill(child, 9)
        process.communicate()


def test_one_process_may_take_a_lock_several_times(tmp_path):
    first, second = locks.Lock(tmp_path / "run"), locks.Lock(tmp_path / "run")
    first.release()
    first.release()
    assert in_a_child(lambda: locks.Lock(tmp_path / "run") and None) == 1
    second.release()
    assert in_a_child(lambda: locks.Lock(tmp_path / "run") and None) == 0


def test_a_lock_on_nothing_leaves_nothing(tmp_path):
    locks.Lock(tmp_path / "runs" / "x").release()
    assert list(tmp_path.iterdir()) == []


# --- seals


def test_a_sealed_object_is_refused_when_a_value_is_another(tmp_path):
    value = {"b": [1, 2.5, None], "a": {"c": "é"}}
    whole = files.sealed(value)
    assert files.check_seal(whole, tmp_path) == value
    assert files.check_seal(dict(reversed(whole.items())), tmp_path) == value
    for other in (whole | {"b": [1, 2, None]}, whole | {"d": 1}, whole | {"sha256": "0"}, value):
        with pytest.raises(MtpeftError, match="is not what was written"):
            files.check_seal(other, tmp_path)
    assert files.check_seal(value, tmp_path, needed=False) == value
