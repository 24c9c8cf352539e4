"""Runs commands of mtpeft, and prints what each opened, changed and started: ``audited.py ROOT LINES``, in JSON."""

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


def main(root: str, lines: list[list[str]]) -> int:
    seen: list[tuple[str, str]] = []
    kinds = {**dict.fromkeys(READS, "read"), **dict.fromkeys(CHANGES, "changed"), **dict.fromkeys(STARTS, "started"),
             **dict.fromkeys(CONNECTS, "connected")}  # fmt: skip

    def hook(event: str, values: tuple[Any, ...]) -> None:
        kind = kinds.get(event)
        if kind in ("started", "connected"):
            seen.append((kind, str(values[0])))
        elif kind and isinstance(values[0], str | bytes | os.PathLike):
            path = os.path.realpath(os.fsdecode(values[0]))
            if path.startswith(root):
                seen.append((kind, path))

    from mtpeft.cli import main as mtpeft

    sys.addaudithook(hook)
    for line in lines:
        seen.clear()
        code = load(Path(line[1])) if line[0] == "load" else mtpeft(line)
        print("AUDIT" + json.dumps({"line": line, "seen": seen, "code": code}))
    return 0


def load(folder: Path) -> int:
    import mtpeft

    host = mtpeft.load(folder, mtpeft.create_backbone("micro").module)
    host.load(folder)
    return 0


if __name__ == "__main__":
    raise SystemExit(main(os.path.realpath(sys.argv[1]), json.loads(sys.argv[2])))
