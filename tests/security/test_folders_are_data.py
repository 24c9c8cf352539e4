"""A run or adapter folder of a stranger is data: what opening it reads, starts and allocates."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import mtpeft
from mtpeft.cli import main
from mtpeft.config import load as load_config
from mtpeft.errors import MtpeftError
from mtpeft.files import file_sha256, sealed, write_json
from mtpeft.plugins import registry, resolve
from mtpeft.toml_text import read_toml
from mtpeft.training.manifest import settings_hash
from mtpeft.training.run_files import named_outside
from mtpeft.training.setup import open_run

PROGRAMS = {"uname", "/sbin/ldconfig", "ldconfig", "gcc", "cc", "ld", "lscpu"}
"""What torch and the standard library ask of the system when they are imported."""


@pytest.fixture(scope="module")
def audits(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What each command does with a run whose files name data outside, heads included."""
    root = tmp_path_factory.mktemp("audited") / "world"
    shutil.copytree(trained, root)
    run = root / "run"
    for path in [run / "config.toml", *run.rglob("adapter.json")]:
        path.write_text(path.read_text().replace(str(trained / "data"), str(root / "data")))
    rewritten(run / "adapter", _set("heads", "cls", "settings", "data")(f"folder:{root / 'data'}"))
    lines = [
        ["report", str(run)],
        ["load", str(run / "adapter")],
        ["predict", str(run), str(root / "picture.png"), "--task", "cls", "--out", str(root / "out")],
        ["export", str(run), "--to", "timm", "--out", str(root / "merged.safetensors")],
        ["eval", str(run)],
    ]
    script = Path(__file__).with_name("audited.py")
    done = subprocess.run(
        [sys.executable, str(script), str(root), json.dumps(lines)], capture_output=True, text=True, check=False
    )
    said = [json.loads(line[5:]) for line in done.stdout.splitlines() if line.startswith("AUDIT")]
    assert len(said) == len(lines), done.stderr
    return {audit["line"][0]: audit | {"root": root} for audit in said}


@pytest.mark.parametrize("command", ["report", "load", "predict", "export"])
def test_nothing_outside_is_read_started_or_changed(command: str, audits: dict[str, dict[str, Any]]) -> None:
    """Beside the installation: the folder, the image and the output, though settings in the folder name other files."""
    audit, root = audits[command], audits[command]["root"]
    assert audit["code"] == 0
    files = {(kind, path) for kind, path in audit["seen"] if kind in ("read", "changed")}
    allowed = tuple(str(root / name) for name in ("run", "picture.png", "out", "merged", ".out", ".merged"))
    assert [path for _, path in files if not path.startswith(allowed) and path != str(root)] == []
    assert any(path.startswith(str(root / "run")) for kind, path in files if kind == "read")
    assert not any(path.startswith(str(root / "run")) for kind, path in files if kind == "changed")
    assert {what for kind, what in audit["seen"] if kind == "started"} <= PROGRAMS
    assert not any(kind == "connected" for kind, _ in audit["seen"])


def test_eval_reads_what_the_configuration_names(trained: Path, audits: dict[str, dict[str, Any]]) -> None:
    assert named_outside(load_config(trained / "run" / "config.toml")) == {
        "tasks.cls.data": f"folder:{trained / 'data'}"
    }
    audit = audits["eval"]
    assert audit["code"] == 0
    assert any(path.startswith(str(audit["root"] / "data")) for kind, path in audit["seen"] if kind == "read")
    assert not any(kind == "connected" for kind, _ in audit["seen"])


FILES = {
    "config.toml": "eval", "results.json": "report", "manifest.json": "resume", "adapter/adapter.json": "eval",
    "adapter/shared.safetensors": "eval", "adapter/head.cls.safetensors": "eval", "state/current.json": "resume",
    "adapter": "eval", "state": "resume", "state/000000008/position.json": "resume",
}  # fmt: skip
"""Files of a run, and what reads them."""
LINES: dict[str, Callable[[Path], list[str]]] = {
    "eval": lambda run: ["eval", str(run)],
    "report": lambda run: ["report", str(run)],
    "resume": lambda run: ["train", "--resume", "--out", str(run), "-q"],
}
REPLACED: dict[str, Callable[[Path, Path], None]] = {
    "link": lambda path, outside: path.symlink_to(outside),
    "relative link": lambda path, outside: path.symlink_to(os.path.relpath(outside, path.parent)),
    "fifo": lambda path, outside: os.mkfifo(path),
    "device": lambda path, outside: path.symlink_to("/dev/zero"),
    "circle": lambda path, outside: path.symlink_to(path.name),
}


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", REPLACED)
def test_links_fifos_and_devices(name: str, kind: str, own: Path, tmp_path: Path, capsys: Any) -> None:
    """A link out is refused although what it leads to would do; a FIFO blocks no one; nothing outside is written."""
    outside = tmp_path / "outside"
    path = own / name
    path.rename(outside)
    REPLACED[kind](path, outside)
    before = {file: file.read_bytes() for file in [outside, *outside.rglob("*")] if file.is_file()}
    if name == "adapter" and "link" not in kind:
        shutil.rmtree(own / "state")  # where the finished adapter is missing, the last state's serves
    start = time.perf_counter()
    assert main(LINES[FILES[name]](own)) != 0
    assert time.perf_counter() - start < 60
    said = capsys.readouterr().err
    assert "Traceback" not in said
    if "link" in kind:
        assert "leads out of its folder" in said
    assert before == {file: file.read_bytes() for file in [outside, *outside.rglob("*")] if file.is_file()}


def test_a_log_that_is_a_link_is_not_written_through(own: Path, tmp_path: Path, capsys: Any) -> None:
    outside = tmp_path / "diary"
    outside.write_text("dear diary\n" * 9_999)
    (own / "events.jsonl").unlink()
    (own / "events.jsonl").symlink_to(outside)
    assert main(["train", "--resume", "--out", str(own), "-q", "--set", "schedule.steps=2"]) != 0
    assert outside.read_text() == "dear diary\n" * 9_999
    assert "leads out of its folder" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["../../outside", "/etc", "..", "000000008/../../../outside", "\x00", "x" * 5000])
def test_a_state_lies_in_its_folder(folder: str, own: Path, tmp_path: Path, capsys: Any) -> None:
    shutil.copytree(own / "state", tmp_path / "outside" / "state")
    pointer = json.loads((own / "state" / "current.json").read_text())
    (own / "state" / "current.json").write_text(json.dumps(pointer | {"folder": folder}))
    assert main(["train", "--resume", "--out", str(own), "-q"]) != 0
    assert "Traceback" not in capsys.readouterr().err


def rewritten(adapter: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    path = adapter / "adapter.json"
    description = json.loads(path.read_text())
    change(description)
    write_json(path, sealed(description))
    return adapter


def _set(*keys: Any) -> Callable[[Any], Callable[[dict[str, Any]], None]]:
    def to(value: Any) -> Callable[[dict[str, Any]], None]:
        def change(tree: Any) -> None:
            for key in keys[:-1]:
                tree = tree[key]
            tree[keys[-1]] = value

        return change

    return to


NAMES = ("../cls", "/etc/passwd", "..", "a/b", "a\\b", "\x00", "", "\x1b[31m", "x" * 300, "x" * 10**6, "shared")


@pytest.mark.parametrize("name", NAMES, ids=lambda name: repr(name[:9]))
def test_names_lead_nowhere(name: str, own: Path) -> None:
    changes = [_set("tasks")([name]), _set("methods", 0, "name")(name), _set("frozen")([name]), _set("groups")([name]),
               _set("head_of")({name: "cls"}), _set("head_of")({"cls": name}), _set("files")({name: ""}),
               _set("heads")({name: {"type": "cls", "classes": ["a"], "settings": {}}}),
               _set("methods", 0, "id")(name), _set("heads", "cls", "type")(name)]  # fmt: skip
    backbone = mtpeft.create_backbone("micro").module
    for number, change in enumerate(changes):
        if (name, number) in (("shared", 2), ("", 9)):
            continue  # the shared parts may be frozen; a head of no type is the caller's to bring
        copy = Path(shutil.copytree(own / "adapter", own.parent / str(number)))
        with pytest.raises(MtpeftError) as refused:
            mtpeft.load(rewritten(copy, change), backbone)
        assert "\n" not in refused.value.message and len(refused.value.message) < 1000


SIZES: dict[str, Callable[[dict[str, Any]], Any]] = {
    **{f"rank {n}": _set("methods", 0, "settings", "rank")(n) for n in (10**6, 10**9, 10**18, 10**400, -1, 0)},
    **{f"image {n}": _set("image_size")([n, n]) for n in (10**6, 10**9, -(10**6))},
    "image strip": _set("image_size")([8, 10**8]),
    "classes": _set("heads", "cls", "classes")([str(n) for n in range(10**6)]),
    "tasks": _set("tasks")([f"t{n}" for n in range(10**5)]),
    "frozen": _set("frozen")([f"t{n}" for n in range(10**5)]),
    "methods": lambda tree: tree.update(methods=[tree["methods"][0] | {"name": f"m{n}"} for n in range(10**4)]),
    "heads": lambda tree: tree.update(heads={f"h{n}": tree["heads"]["cls"] for n in range(10**4)}),
}


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_refused_before_anything_is_allocated(size: str, own: Path) -> None:
    backbone = mtpeft.create_backbone("micro").module
    adapter = rewritten(own / "adapter", SIZES[size])
    start = time.process_time()
    with pytest.raises(MtpeftError):
        mtpeft.load(adapter, backbone)
    assert time.process_time() - start < 4  # two seconds on a machine of its own


@pytest.mark.parametrize("settings", ["rank = 1000000", "rank = 1000000000"])
def test_a_run_asks_for_no_more_than_its_files_hold(settings: str, own: Path) -> None:
    config = own / "config.toml"
    config.write_text(config.read_text().replace('{ name = "lora" }', f'{{ name = "lora", {settings} }}'))
    manifest = json.loads((own / "manifest.json").read_text())
    manifest["config"] = settings_hash(read_toml(config))  # whoever wrote the folder seals it too
    write_json(own / "manifest.json", sealed(manifest))
    start = time.process_time()
    with pytest.raises(MtpeftError, match="asks for"):
        open_run(own)
    assert time.process_time() - start < 4


def test_numbers_of_every_method_are_bounded(tmp_path: Path) -> None:
    """Each whole-number setting of each registered method, at a thousand million."""
    slow = []
    for id in registry("methods"):
        backbone = mtpeft.create_backbone("micro").module
        try:
            host = mtpeft.adapt(backbone, id, {"t": mtpeft.head("cls", ["a", "b"])})
        except MtpeftError:
            continue
        host.save(tmp_path / id)
        host.detach()
        for setting in fields(resolve("methods", id)):
            if "int" not in str(setting.type) and "Count" not in str(setting.type):
                continue
            copy = Path(shutil.copytree(tmp_path / id, tmp_path / f"{id}.{setting.name}"))
            rewritten(copy, _set("methods", 0, "settings", setting.name)(10**9))
            start = time.process_time()
            with suppress(MtpeftError):
                mtpeft.load(copy, backbone).detach()
            if time.process_time() - start > 4:
                slow.append(f"{id}.{setting.name}")
    assert not slow


def test_tensors_that_do_not_belong_are_refused(own: Path) -> None:
    """Names, shapes and kinds of tensors in a file whose sha256 is right."""
    backbone = mtpeft.create_backbone("micro").module
    for number, spoil in enumerate((
        lambda t: t | {"lora/blocks.0.attn.q/__class__": torch.ones(2)},
        lambda t: {},
        lambda t: {key: torch.ones(0) for key in t},
        lambda t: {key: value.to(torch.int32) for key, value in t.items()},
        lambda t: {key: value * float("nan") for key, value in t.items()},
    )):  # fmt: skip
        copy = Path(shutil.copytree(own / "adapter", own.parent / str(number)))
        for name in ("shared", "head.cls"):
            file = copy / f"{name}.safetensors"
            save_file(spoil(load_file(file)), file)
            rewritten(copy, _set("files", file.name)(file_sha256(file)))
        with pytest.raises(MtpeftError):
            mtpeft.load(copy, backbone)
