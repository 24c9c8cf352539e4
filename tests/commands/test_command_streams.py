"""Output that cannot be delivered: silence or one sentence with a right exit code, and no traceback."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

MTPEFT = f"{sys.executable} -c 'import sys; from mtpeft.cli import main; sys.exit(main())'"


def shell(line: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | more
    return subprocess.run(
        ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("command", ["--version", "plugins", "plugins --json", "methods"])
def test_a_full_device_is_one_sentence(tmp_path, command):
    done = shell(f"{MTPEFT} {command} >/dev/full", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and "No space left on device" in done.stderr.splitlines()[0]
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr


@pytest.mark.parametrize("command", ["--version", "plugins", "methods"])
def test_a_closed_stdout_is_silence(tmp_path, command):
    done = shell(f"{MTPEFT} {command} >&-", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_everything_closed_leaves_the_exit_code(tmp_path):
    assert shell(f"{MTPEFT} plugins <&- >&- 2>&-", tmp_path).returncode == 0
    assert shell(f"{MTPEFT} plugginz >&- 2>&-", tmp_path).returncode == 2
    assert shell(f"{MTPEFT} plugginz 2>/dev/full", tmp_path).returncode == 2


@pytest.mark.parametrize("command", ["plugins", "methods", "methods --json"])
def test_a_reader_that_has_gone_is_silence_and_a_failure(tmp_path, command):
    done = shell(f"({MTPEFT} {command}; echo $? >code) | true", tmp_path)
    assert done.stderr == ""
    assert (tmp_path / "code").read_text().strip() == "1"


def test_a_deleted_folder_is_one_sentence(tmp_path):
    (tmp_path / "gone").mkdir()
    done = shell(f"cd gone; rmdir ../gone; {MTPEFT} train --tasks cls --method lora", tmp_path)
    assert done.returncode == 1
    assert "error: the current folder does not exist any more\n\nhint: cd to one that does\n" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_encoding_that_lacks_letters_spells_them_out(tmp_path):
    done = shell(f"{MTPEFT} methods arc", tmp_path, PYTHONIOENCODING="ascii")
    assert done.returncode == 0 and done.stderr == ""
