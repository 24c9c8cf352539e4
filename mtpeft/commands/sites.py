"""``mtpeft sites BACKBONE``: the places where parts may sit."""

from __future__ import annotations

from typing import Any

from mtpeft.commands.output import print_json, print_table

COLUMNS = ("name", "kind", "shape", "path", "note")


def run(backbone: str, *, json: bool) -> None:
    """Print the sites of a backbone, built without weights.

    Raises:
        UsageError: for an unknown backbone.
    """
    from mtpeft.backbone import create_backbone
    from mtpeft.peft.find_sites import find_sites

    made = create_backbone(backbone, pretrained=False)
    rows: list[dict[str, Any]] = [
        {"name": s.name, "kind": s.kind, "shape": list(s.shape), "path": s.path, "bypassed": s.bypassed}
        for s in find_sites(made.module)
    ]
    if json:
        print_json({"backbone": made.name, "sites": rows})
        return
    notes = {True: "read without calling the module", False: ""}
    shown = [{**row, "shape": " x ".join(map(str, row["shape"])), "note": notes[row["bypassed"]]} for row in rows]
    print_table(COLUMNS, shown)
