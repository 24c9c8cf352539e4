"""The methods page, ``docs/methods.md``: what every registered method declares, and what was measured of it.

Run it after a method is added or changed::

    python benchmarks/methods_page.py            # measures every method again, and writes the page
    python benchmarks/methods_page.py lora vera  # measures these only
    python benchmarks/methods_page.py --text     # writes the page with what was measured before

Measured facts (counts on ViT-B/16 in the default configuration, and the families of `mtpeft.testing.zoo` that a method
attaches to) are kept in ``benchmarks/results/methods.json``.
"""

from __future__ import annotations

import inspect
import json
import sys
import warnings
from collections.abc import Sequence
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any

from mtpeft.commands.count import count
from mtpeft.commands.methods import describe
from mtpeft.commands.output import prose
from mtpeft.peft.method import Method
from mtpeft.plugins import registry, resolve
from mtpeft.settings import as_toml
from mtpeft.testing import Case, zoo
from mtpeft.testing.checks import refused

ROOT = Path(__file__).resolve().parents[1]
PAGE, FACTS = ROOT / "docs" / "methods.md", ROOT / "benchmarks" / "results" / "methods.json"
BACKBONE = "vit_base_patch16_224"
COMMON = ("scope", "at", "blocks")
CATEGORIES = {
    "addition": "Addition: new modules or tokens",
    "partial": "Partial: the backbone's own weights, chosen or reparameterised",
    "unified": "Unified: several of these at once",
    "multitask": "Multi-task: parts that tasks share and route",
    "continual": "Continual: parts for one task after another",
}

Facts = dict[str, Any]


def built_in() -> list[str]:
    """Ids of the methods that this distribution brings, sorted."""
    return sorted(entry.id for entry in registry("methods").values() if entry.reference.startswith("mtpeft_plugins."))


def measure(method: str) -> Facts:
    """Trained parameters on ViT-B/16, and what each family of the zoo says: an empty text, or why it is refused."""
    return {"count": count(method, BACKBONE)["parts"], "families": {name: family(method, name) for name in zoo()}}


def family(method: str, name: str) -> str:
    """Why a method cannot be attached to a family of the zoo; empty where it can."""
    error = refused(Case(method, resolve("methods", method)(), name))
    return "" if error is None else error.message


def render(facts: dict[str, Facts]) -> str:
    """The whole page."""
    entries = {name: describe(registry("methods")[name]) for name in built_in()}
    known = [key for key in CATEGORIES if any(row["category"] == key for row in entries.values())]
    lines = [
        "# Methods",
        "",
        "Written by `python benchmarks/methods_page.py`; a test keeps it in step with the code. *Parameters* are those",
        "trained on ViT-B/16 at 224 px in the default configuration, heads apart. Every method works in scope `shared`",
        "and `task`, and composes with others: `--method lora+vpt-shallow`. *Merges* means that the parts fold into",
        "plain timm weights; *identity* that the features at step 0 are those of the backbone, bit for bit.",
    ]
    for category in known:
        names = [name for name, row in entries.items() if row["category"] == category]
        lines += ["", f"## {CATEGORIES[category]}", "", *table(names, entries, facts)]
        for name in names:
            lines += ["", *section(name, entries[name], facts[name])]
    return "\n".join(lines) + "\n"


def table(names: Sequence[str], entries: dict[str, dict[str, Any]], facts: dict[str, Facts]) -> list[str]:
    head = ["| id | idea | parameters | merges | identity | families |", "|---|---|--:|---|---|--:|"]
    return head + [row(name, entries[name], facts[name]) for name in names]


def row(name: str, entry: dict[str, Any], facts: Facts) -> str:
    works = sum(not reason for reason in facts["families"].values())
    flags = ["yes" if entry[key] else "no" for key in ("mergeable", "identity")]
    cells = [f"[`{name}`](#{name})", entry["idea"], f"{facts['count']:,}", *flags]
    return f"| {' | '.join(cells)} | {works} of {len(facts['families'])} |"


def section(name: str, entry: dict[str, Any], facts: Facts) -> list[str]:
    """Paper, equations, sites, settings and families of one method."""
    cls = resolve("methods", name)
    method, module = cls(), sys.modules[cls.__module__]
    works = [key for key, reason in facts["families"].items() if not reason]
    lines = [f"### {name}", "", prose(inspect.cleandoc(module.__doc__ or "")), ""]
    lines += [f"- **paper**: {entry['paper'] or 'none'}", f"- **sites**: {sites(method.at)}"]
    lines += [f"- **settings**: {settings(cls) or 'none of its own'}; learning rate {method.declares.learning_rate:g}"]
    lines += [f"- **meant for**: {entry['families'] or 'all'}", f"- **attaches to**: {', '.join(works) or 'none'}"]
    for reason in dict.fromkeys(reason for reason in facts["families"].values() if reason):
        names = ", ".join(key for key, found in facts["families"].items() if found == reason)
        lines.append(f"- **refuses** {names}: {reason}")
    return lines


def sites(pattern: str) -> str:
    return (
        ", else ".join(f"`{' '.join(alternative.split())}`" for alternative in pattern.split("|") if pattern) or "none"
    )


def settings(cls: type[Method]) -> str:
    """The fields that a method adds, with their defaults, as a recipe has them."""
    own = [field for field in fields(cls) if field.name not in COMMON and field.init]
    values = {field.name: field.default if field.default is not MISSING else field.default_factory() for field in own}
    return ", ".join(f"`{name} = {'none' if value is None else as_toml(value)}`" for name, value in values.items())


def main(arguments: Sequence[str]) -> None:
    warnings.simplefilter("ignore")
    facts = json.loads(FACTS.read_text()) if FACTS.exists() else {}
    names = [] if "--text" in arguments else [name for name in arguments if name in built_in()] or built_in()
    for name in names:
        print(name, file=sys.stderr, flush=True)
        facts[name] = measure(name)
        FACTS.write_text(json.dumps({name: facts[name] for name in built_in() if name in facts}, indent=1) + "\n")
    PAGE.parent.mkdir(exist_ok=True)
    PAGE.write_text(render(facts))


if __name__ == "__main__":
    main(sys.argv[1:])
