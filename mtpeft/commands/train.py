"""``mtpeft train``: train tasks on one frozen backbone and leave a run folder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mtpeft.commands.output import print_json, terminal
from mtpeft.config import Config
from mtpeft.reports import render
from mtpeft.reports.numbers import size
from mtpeft.reports.paragraphs import Line, paragraph
from mtpeft.training.dry_run import rehearse
from mtpeft.training.progress import choose
from mtpeft.training.session import Session


def run(config: Config, *, resume: bool, from_run: Path | None, dry_run: bool, json: bool, quiet: bool = False) -> None:
    """Train, and print the summary.

    Args:
        resume: go on from the last saved state in ``output.dir``, or start where nothing was saved yet.
        from_run: start from the parts and heads of another run; its tasks are kept and evaluated too.
        dry_run: say what would be trained and what it would cost, and write nothing.

    Raises:
        MtpeftError: for everything that stands in the way, in one sentence.
        KeyboardInterrupt: after Ctrl-C or SIGTERM, with a state saved from which to resume.
    """
    if dry_run:
        report = rehearse(config, from_run)
        print_json(report) if json else print(paragraph(_rehearsal(report)))
        return
    progress = choose(quiet=quiet)
    session = (Session.open if resume else Session.start)(config, progress=progress, source=from_run)
    results = session.train().to_json()
    if json:
        print_json({"run": config.output.dir, "caveats": session.run.caveats, **results})
        return
    print(render(results, terminal()))
    print("\n" + paragraph([*(("note", caveat) for caveat in session.run.caveats), ("run", config.output.dir)]))


def _rehearsal(report: dict[str, Any]) -> Iterator[Line]:
    """What `rehearse` found, for people."""
    parameters = report["parameters"]
    yield "backbone", f"{report['backbone']} ({parameters['backbone']:,} parameters, frozen)"
    for name, sites in report["sites"].items():
        yield name, f"{len(sites)} sites: {', '.join(sites[:4])}{', ...' if len(sites) > 4 else ''}"
    yield "shared", f"{parameters['shared']:,} parameters"
    for kind in ("tasks", "heads"):
        for name, count in parameters[kind].items():
            yield f"{kind[:-1]} {name}", f"{count:,} parameters"
    for stage in report["stages"]:
        yield f"stage {stage['stage'] + 1}", f"{', '.join(stage['tasks'])}: {stage['updates']} updates"
    rates = report["learning_rates"]
    peaks = ", ".join(f"{name} {rate:g}" for name, rate in {**rates["methods"], "heads": rates["heads"]}.items())
    yield "peak rates", f"{peaks}; warm-up {rates['warmup']:.0%} of a stage, then cosine"
    yield "adapter", f"{size(report['adapter_bytes'])} on disk"
    yield "one update", f"{report['update_seconds']:.3f} s, {report['images_per_second']:.0f} images/s"
    yield "training", f"about {report['seconds']:.0f} s, evaluation not counted"
    yield "memory", f"{size(report['peak_memory_bytes'])} at peak"
