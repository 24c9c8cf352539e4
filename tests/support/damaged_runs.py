"""Files of a run changed in many ways, and every way in which a run is read."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch

import mtpeft
from mtpeft import files
from mtpeft.errors import MtpeftError
from mtpeft.evaluation import summarize
from mtpeft.training.checkpoint import current_state
from mtpeft.training.run_files import read_results
from mtpeft.training.session import Session
from mtpeft.training.setup import open_run
from support.training_toy import config, tiny

SETTINGS = ("schedule.steps=4", "schedule.eval_every=2")
CHOICES = {"tasks": "a=colours,b=colours", "schedule": "sequential"}
HOSTILE: tuple[Any, ...] = (
    None, True, -1, 0, 1.5, 10**9, 10**400, 1e308, "", "x", "../../x", "/dev/zero", "a\x00b", "\x1b[2J", "os:system",
    [], {}, [[]], ["x"], {"x": 1}, "9" * 5000, "\ud800",
)  # fmt: skip
IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))


def train(folder: Path) -> Path:
    """A finished run of two tasks."""
    Session.start(config(folder, *SETTINGS, **CHOICES)).train()
    return folder


# --- reading


def read_by_load(folder: Path) -> Any:
    host = mtpeft.load(folder / "adapter", tiny()).eval()
    with torch.no_grad():
        return {name: (host.predict(IMAGES, name).tolist(), host.head_of(name).classes) for name in host.tasks}


def read_by_open(folder: Path) -> Any:
    run = open_run(folder, device="cpu")
    with torch.no_grad():
        return {n: (run.host.predict(IMAGES, n).tolist(), run.host.head_of(n).classes) for n in run.host.tasks}


def read_by_report(folder: Path) -> Any:
    return summarize(read_results(folder))


def read_by_resume(folder: Path) -> Any:
    session = Session.resume(config(folder, *SETTINGS, **CHOICES))
    session.lock.release()
    tensors = session.run.host.contents({}).files()
    return session.loop.at, {name: {k: v.tolist() for k, v in group.items()} for name, group in tensors}


def read_by_from(folder: Path) -> Any:
    second = folder.with_name("second")
    shutil.rmtree(second, ignore_errors=True)
    session = Session.start(config(second, *SETTINGS, tasks="c=colours"), source=folder)
    session.lock.release()
    shutil.rmtree(second)
    return {name: {k: v.tolist() for k, v in group.items()} for name, group in session.run.host.contents({}).files()}


READERS: dict[str, Callable[[Path], Any]] = {
    "load": read_by_load,
    "open": read_by_open,
    "report": read_by_report,
    "resume": read_by_resume,
    "from": read_by_from,
}


def outcome(read: Callable[[Path], Any], folder: Path, reference: Any) -> str:
    """``refused``, ``same``, ``other`` or ``raw: EXCEPTION``."""
    try:
        value = read(folder)
    except MtpeftError:
        return "refused"
    except Exception as error:
        return f"raw: {type(error).__name__}: {error}"
    return "same" if value == reference else "other"


# --- changing


def text_files(folder: Path) -> list[Path]:
    """Everything in a run that people could read, the files of its state too."""
    state = current_state(folder / "state")
    return [
        *(folder / name for name in ("config.toml", "manifest.json", "results.json", "events.jsonl")),
        folder / "adapter" / "adapter.json",
        folder / "state" / "current.json",
        state / "position.json",
        state / "adapter" / "adapter.json",
    ]


def tensor_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.safetensors"))


def flip(path: Path, random: Random) -> None:
    """One bit."""
    data = bytearray(path.read_bytes())
    place = random.randrange(8 * len(data))
    data[place // 8] ^= 1 << place % 8
    path.write_bytes(data)


def damage(path: Path, random: Random) -> None:
    """Bytes that are cut off, put to zero, inserted, or all gone."""
    data = path.read_bytes()
    place = random.randrange(max(1, len(data)))
    noise = random.randbytes(random.randrange(1, 40))
    path.write_bytes(
        random.choice([b"", data[:place], data[:place] + bytes(len(noise)) + data[place + len(noise) :],
                       data[:place] + noise + data[place:], data + noise])
    )  # fmt: skip


def rewrite(path: Path, random: Random) -> None:
    """A value somewhere in a JSON file is another, of another type, or missing."""
    value = json.loads(path.read_text())
    holder, key = random.choice(list(_places(value)))
    how = random.randrange(4)
    if how == 0 and isinstance(holder, dict):
        del holder[key]
    elif how == 1 and isinstance(holder, dict):
        holder[f"{key}x"] = holder.pop(key)
    elif how == 2 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    else:
        holder[key] = copy.deepcopy(random.choice(HOSTILE))
    path.write_text(json.dumps(value))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    for key in list(value) if isinstance(value, dict) else range(len(value)):
        yield value, key
        if isinstance(value[key], dict | list):
            yield from _places(value[key])


def reseal(path: Path, folder: Path) -> None:
    """Make every hash right again, as one who wants to be believed would."""
    data = json.loads(path.read_text())
    if path.name != "current.json" and "sha256" in data:
        path.write_text(json.dumps(files.sealed(data)))
    pointer = folder / "state" / "current.json"
    if path.is_relative_to(folder / "state") and path != pointer:
        about = json.loads(pointer.read_text())
        about["files"] = files.inventory(folder / "state" / about["folder"])
        pointer.write_text(json.dumps(about))


def change(folder: Path, random: Random) -> tuple[str, bool]:
    """Change one file of a run; its name, and whether the hashes were made right again."""
    believed = random.random() < 0.5
    paths = [path for path in text_files(folder) if path.suffix == ".json"] if believed else text_files(folder)
    path = random.choice(paths if believed or random.random() < 0.6 else tensor_files(folder))
    if believed:
        rewrite(path, random)
        reseal(path, folder)
    else:
        ways = [flip, damage] + ([rewrite] if path.suffix == ".json" else [])
        random.choice(ways)(path, random)
    return path.relative_to(folder).as_posix(), believed
