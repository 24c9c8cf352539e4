"""Runs a command of mtpeft, and prints what it opened, imported from files and started: ``audited.py ROOT ARGS``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

STARTS = ("subprocess.Popen", "os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "pty.spawn")
CONNECTS = ("socket.connect", "socket.getaddrinfo", "urllib.Request")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.symlink", "os.link", "os.truncate")
READS = ("open", "os.listdir", "os.scandir")


def main(root: str, arguments: list[str]) -> int:
    seen: dict[str, list[str]] = {"read": [], "changed": [], "started": [], "connected": []}
    kinds = {**dict.fromkeys(READS, "read"), **dict.fromkeys(CHANGES, "changed"), **dict.fromkeys(STARTS, "started"),
             **dict.fromkeys(CONNECTS, "connected")}  # fmt: skip

    def hook(event: str, values: tuple[Any, ...]) -> None:
        kind = kinds.get(event)
        if kind in ("started", "connected"):
            seen[kind].append(event)
        elif kind and isinstance(values[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(values[0]))
            if path.startswith(root):
                seen[kind].append(path)

    from mtpeft.cli import main as mtpeft

    sys.addaudithook(hook)
    code = load(Path(arguments[1])) if arguments[0] == "load" else mtpeft(arguments)
    print("AUDIT" + json.dumps(seen | {"code": code}))
    return 0


def load(folder: Path) -> int:
    import mtpeft

    host = mtpeft.load(folder, mtpeft.create_backbone("micro").module)
    host.load(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(os.path.realpath(sys.argv[1]), sys.argv[2:]))
