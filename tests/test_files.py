from __future__ import annotations

import errno

import pytest
import torch
from safetensors.torch import save_file

from mtpeft import files
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
    with pytest.raises(MtpeftError, match=r"x.safetensors. cannot be read"):
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
