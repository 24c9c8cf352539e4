"""Run folders of a stranger who wants something run, read or written, and a watch over what happens."""

from __future__ import annotations

import json
import os
import site
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.damaged_runs import reseal

_RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "subprocess.Popen", "pickle.find_class"}
_WRITES = {"os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.symlink", "os.link", "os.chmod"}
_in_force: list[Watch] = []


class Watch:
    """What is run, written outside of a folder, or read outside of it and the installation, while it is in force."""

    def __init__(self, folder: Path) -> None:
        ours = [folder, Path(__file__).parents[2], Path(sys.prefix), Path(sys.base_prefix), *site.getsitepackages()]
        system = ["/proc", "/sys", "/dev/null", "/dev/urandom", "/usr", "/lib", "/etc/ld", "/etc/mime", "/etc/local"]
        self.folder, self.seen = str(folder), list[str]()
        self.allowed = tuple(map(os.path.realpath, [*map(str, ours), *system]))

    def __enter__(self) -> Watch:
        _in_force.append(self)
        return self

    def __exit__(self, *raised: object) -> None:
        _in_force.remove(self)

    def meet(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event in _RUNS:
            self.seen.append(f"{event} {arguments[:1]}")
        elif event in _WRITES and not self._inside(arguments[0], (self.folder,)):
            self.seen.append(f"{event} {arguments[0]}")
        elif event == "open" and isinstance(arguments[0], str | bytes):
            writes = (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
            if not self._inside(arguments[0], (self.folder, "/dev/null") if writes else self.allowed):
                self.seen.append(f"open {os.fsdecode(arguments[0])}{' to write' if writes else ''}")

    def _inside(self, path: Any, places: tuple[str, ...]) -> bool:
        return isinstance(path, int) or os.path.realpath(os.fsdecode(path)).startswith(places)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if _in_force:
        _in_force[-1].meet(event, arguments)


sys.addaudithook(_hook)


# --- kinds


def _edit(name: str, change: Callable[[Any], None]) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        path = run / name
        data = json.loads(path.read_text())
        change(data)
        path.write_text(json.dumps(data))
        reseal(path, run)

    return spoil


def _put(*keys: Any, value: Any) -> Callable[[Any], None]:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


def _fifo(name: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        (run / name).unlink()
        os.mkfifo(run / name)

    return spoil


def _link(name: str, target: str) -> Callable[[Path], None]:
    def spoil(run: Path) -> None:
        (run / name).unlink()
        (run / name).symlink_to(target)

    return spoil


def _recipe(old: str, new: str) -> Callable[[Path], None]:
    """Of ``config.toml``, with its hash in the manifest made right."""

    def spoil(run: Path) -> None:
        from mtpeft.toml_text import read_toml
        from mtpeft.training.manifest import settings_hash

        path = run / "config.toml"
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        _edit("manifest.json", _put("config", value=settings_hash(read_toml(path))))(run)

    return spoil


ADAPTER = "adapter/adapter.json"
KINDS: dict[str, Callable[[Path], None]] = {
    **{f"a method called {name}": _edit(ADAPTER, _put("methods", 0, "id", value=name))
       for name in ("os:system", "subprocess:run", "builtins:open", "builtins:exec", "../../x", "mtpeft.cli:main")},
    **{f"a head of type {name}": _edit(ADAPTER, _put("heads", "a", "type", value=name))
       for name in ("os:system", "pathlib:Path", "builtins:eval")},
    **{f"a task called {name!r}": _edit(ADAPTER, _put("tasks", 0, value=name))
       for name in ("../../x", "/etc/passwd", "a/../../b", "\x1b[2J", ".", "con\x00")},
    **{f"a method named {name!r}": _edit(ADAPTER, _put("methods", 0, "name", value=name)) for name in ("../x", "/x")},
    **{f"a package called {name!r}": _edit(ADAPTER, _put("methods", 0, "package", value=name))
       for name in ("--index-url=http://x", "x; rm -rf y", "\x1b[2J")},
    **{f"an image of {size}": _edit(ADAPTER, _put("image_size", value=size)) for size in ([10**6, 10**6], [-1, 0])},
    "a number of blocks without end": _edit(ADAPTER, _put("methods", 0, "settings", value={"at": "x" * 10**6})),
    **{f"a FIFO as {name}": _fifo(name)
       for name in (ADAPTER, "adapter/task.a.safetensors", "results.json", "config.toml", "manifest.json")},
    **{f"{name} links to {target}": _link(name, target)
       for name in (ADAPTER, "results.json") for target in ("/dev/zero", "/dev/stdin")},
    "a recipe whose task is code": _recipe('type = "colours"', 'type = "os:system"'),
    "a recipe whose method is code": _recipe('name = "toy"', 'name = "builtins:exec"'),
    "a recipe whose schedule is code": _recipe('name = "sequential"', 'name = "os:system"'),
    "a recipe whose backbone is a path": _recipe('backbone = "tiny"', 'backbone = "/etc/passwd"'),
    "a recipe that writes elsewhere": _recipe('dir = "', f'dir = "{tempfile.gettempdir()}/elsewhere'),
}  # fmt: skip
