"""The command line: signatures and help. A command's work lives in ``mtpeft.commands`` and is imported when invoked."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from mtpeft.commands import streams
from mtpeft.commands.ending import Interrupted, as_error, refuse_deleted_folder, resumable, show, terminable
from mtpeft.errors import MtpeftError, UsageError

app = typer.Typer(
    name="mtpeft",
    add_completion=False,
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Json = Annotated[bool, typer.Option("--json", help="Print JSON on stdout, and nothing else there.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Set any key of the recipe, e.g. optimizer.lr=3e-4. Repeatable."),
]
Run = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder, as `mtpeft train` leaves it.")]


def _example(*lines: str) -> str:
    return "\b\n" + "\n".join(["Example:" if len(lines) == 1 else "Examples:", *(f"  {line}" for line in lines)])


def _print_version(wanted: bool) -> None:
    if wanted:
        from mtpeft import __version__

        print(f"mtpeft {__version__}")
        raise typer.Exit


@app.callback(epilog=_example("mtpeft train --tasks cls,det,seg --method hydra-lora", "mtpeft train --help"))
def root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error. Works anywhere.")] = False,
) -> None:
    """Adapt one frozen vision backbone to many tasks, together or one after another."""
    if context.invoked_subcommand is None:
        print(context.get_help())


@app.command(
    epilog=_example(
        "mtpeft train --tasks cls,det,seg --method hydra-lora",
        "mtpeft train --tasks pets=cls@folder:data/pets,cells=det@voc:data/bccd --method lora@shared+adaptformer@task",
        "mtpeft train recipe.toml --schedule sequential --set methods.lora.rank=16 --out runs/rank-16",
        "mtpeft train --resume --out runs/rank-16",
    )
)
def train(
    recipe: Annotated[Path | None, typer.Argument(metavar="RECIPE", help="A TOML recipe; flags win over it.")] = None,
    tasks: Annotated[
        list[str] | None, typer.Option(metavar="TASKS", help="NAME or NAME=TYPE@READER:PATH, comma-separated.")
    ] = None,
    method: Annotated[
        list[str] | None, typer.Option(metavar="METHOD", help="METHOD, METHOD@shared or METHOD@task, joined by +.")
    ] = None,
    schedule: Annotated[
        str | None, typer.Option(metavar="NAME", help="joint, sequential, interleaved or a plugin's.")
    ] = None,
    backbone: Annotated[
        str | None, typer.Option(metavar="NAME", help='A timm model, or "micro" (embedded, the default).')
    ] = None,
    weights: Annotated[
        str | None, typer.Option(metavar="FILE", help="Local backbone weights (.safetensors, .pth, .bin), or `random`.")
    ] = None,
    steps: Annotated[int | None, typer.Option(metavar="N", help="Updates of a stage.")] = None,
    epochs: Annotated[int | None, typer.Option(metavar="N", help="Passes over the data of a stage.")] = None,
    seed: Annotated[int | None, typer.Option(metavar="N", help="Seed of everything that is drawn.")] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="The run folder; runs/NAME by default.")] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue the run in --out where it stopped; start it if there is none.")
    ] = False,
    from_run: Annotated[
        Path | None, typer.Option("--from", metavar="RUN", help="Start from the parts and heads of another run.")
    ] = None,
    balance: Annotated[
        str | None, typer.Option(metavar="NAME", help="How several losses become one step; equal by default.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print sites, counts, cost and one step's time; write nothing.")
    ] = False,
    settings: Settings = None,
    device: Annotated[str | None, typer.Option(metavar="NAME", help="auto, cpu, cuda or cuda:N.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the summary.")] = False,
    json: Json = False,
) -> None:
    """Train tasks on one frozen backbone and leave a run folder.

    Without data the embedded digits serve (cls, det, seg, ...: mtpeft tasks), without --backbone the micro ViT.
    """
    from mtpeft import config as configs

    flags = {
        "--tasks": _one("--tasks", tasks, ","), "--method": _one("--method", method, "+"),
        "--schedule": schedule, "--backbone": backbone, "--weights": weights,
        "--steps": steps, "--epochs": epochs, "--seed": seed, "--out": out, "--balance": balance, "--device": device,
    }  # fmt: skip
    given = configs.Overrides({flag: value for flag, value in flags.items() if value is not None}, settings or [])
    if resume and recipe is None:
        recipe = _recipe_of(out, tasks is not None)
    config = configs.load(recipe, given).with_folder(resume=resume)
    from mtpeft.commands import train as command

    with resumable(Path(config.output.dir), dry_run):
        command.run(config, resume=resume, from_run=from_run, dry_run=dry_run, json=json, quiet=quiet)


@app.command("eval", epilog=_example("mtpeft eval runs/cls-det-seg-hydra-lora --split val --json"))
def evaluate(
    run: Run,
    split: Annotated[str, typer.Option(metavar="SPLIT", help="train, val or test.")] = "test",
    best: Annotated[bool, typer.Option("--best", help="The best weights on validation, not the last.")] = False,
    pictures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Draw samples of each task: truth, and prediction.")
    ] = None,
    json: Json = False,
) -> None:
    """Evaluate every task of a run again."""
    from mtpeft.commands import eval as command

    command.run(run, split=split, best=best, pictures=pictures, json=json)


@app.command(epilog=_example("mtpeft predict runs/cls-det-seg-hydra-lora --task seg photo.jpg --out predictions"))
def predict(
    run: Run,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files, or folders of them.")],
    task: Annotated[str, typer.Option(metavar="NAME", help="The task to answer; or several: det,seg.")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where JSON and pictures go.")] = Path("predictions"),
    json: Json = False,
) -> None:
    """Predict images: class names as JSON, drawn as pictures."""
    from mtpeft.commands import predict as command

    command.run(run, images=images, task=task, out=out, json=json)


@app.command(epilog=_example("mtpeft report runs/joint runs/sequential"))
def report(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders or results.json files.")],
    baseline: Annotated[
        list[Path] | None,
        typer.Option(metavar="RUN", help="A run of one task alone, or of all jointly: a bound to compare with."),
    ] = None,
    json: Json = False,
) -> None:
    """Report what was learned, forgotten and paid."""
    from mtpeft.commands import report as command

    command.run(runs, baselines=baseline or (), json=json)


@app.command(epilog=_example("mtpeft export runs/pets --to timm --task pets --out pets.safetensors"))
def export(
    run: Run,
    to: Annotated[
        str, typer.Option(metavar="FORMAT", help="A registered exporter; timm: a merged checkpoint for plain timm.")
    ] = "timm",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="The file; RUN/export by default.")] = None,
    task: Annotated[
        str | None, typer.Option(metavar="NAME", help="Whose parts are merged; needed with several.")
    ] = None,
    json: Json = False,
) -> None:
    """Write a run's parts merged into the backbone."""
    from mtpeft.commands import export as command

    command.run(run, to=to, out=out, task=task, json=json)


@app.command(epilog=_example("mtpeft methods", "mtpeft methods lora"))
def methods(
    name: Annotated[str | None, typer.Argument(metavar="METHOD", help="Show this one with its settings.")] = None,
    json: Json = False,
) -> None:
    """List methods, built-in and from plugins, or show one."""
    from mtpeft.commands import methods as command

    command.run(name, json=json)


@app.command(epilog=_example("mtpeft tasks", "mtpeft tasks seg"))
def tasks(
    name: Annotated[str | None, typer.Argument(metavar="TYPE", help="Show this one with its settings.")] = None,
    json: Json = False,
) -> None:
    """List task types, their metrics and data readers, or show one."""
    from mtpeft.commands import tasks as command

    command.run(name, json=json)


@app.command(
    epilog=_example("mtpeft data data/pets --page pets.html", "mtpeft data voc:data/cells?degenerate=skip --json")
)
def data(
    path: Annotated[str, typer.Argument(metavar="PATH", help="A data set, or READER:PATH?option=value.")],
    task: Annotated[
        str | None, typer.Option(metavar="TYPE", help="The task type to look at it as; by default, what fits.")
    ] = None,
    page: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a page of samples (.html).")] = None,
    recipe: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the recipe stanza, if all is well.")
    ] = None,
    seed: Annotated[int, typer.Option(metavar="N", help="Of splits that are held out of the training data.")] = 0,
    json: Json = False,
) -> None:
    """Look at a data set before training on it."""
    from mtpeft.commands import data as command

    command.run(path, type=task or "", json=json, page_file=page, recipe=recipe, seed=seed)


@app.command(epilog=_example("mtpeft plugins --json"))
def plugins(json: Json = False) -> None:
    """List plugins with their state; say which failed and why."""
    from mtpeft.commands import plugins as command

    command.run(json=json)


@app.command(epilog=_example("mtpeft sites vit_base_patch16_224"))
def sites(
    backbone: Annotated[str, typer.Argument(metavar="BACKBONE", help='A timm model, or "micro".')],
    json: Json = False,
) -> None:
    """List the places in a backbone where a part may sit."""
    from mtpeft.commands import sites as command

    command.run(backbone, json=json)


@app.command(epilog=_example("mtpeft count lora --backbone vit_base_patch16_224 --set methods.lora.rank=16 --json"))
def count(
    method: Annotated[str, typer.Argument(metavar="METHOD", help="METHOD, METHOD@shared or METHOD@task, joined by +.")],
    backbone: Annotated[str, typer.Option(metavar="NAME", help='A timm model, or "micro".')] = "micro",
    tasks: Annotated[int, typer.Option(metavar="N", min=1, help="How many tasks.")] = 1,
    settings: Settings = None,
    json: Json = False,
) -> None:
    """Count what a method trains on a backbone."""
    from mtpeft.commands import count as command

    command.run(method, backbone=backbone, tasks=tasks, settings=settings or [], json=json)


@app.command(epilog=_example("mtpeft check lora --family vit --family swin"))
def check(
    name: Annotated[str, typer.Argument(metavar="METHOD|PACKAGE", help="A method, or a package that brings some.")],
    family: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A family of the zoo; repeat for more. Default: ten.")
    ] = None,
    compile: Annotated[bool, typer.Option("--compile", help="Also compile each into one graph (slow).")] = False,
    json: Json = False,
) -> None:
    """Hold a method to what it declares: the conformance kit."""
    from mtpeft.commands import check as command

    command.run(name, families=family or [], compile=compile, json=json)


@app.command(
    epilog=_example(
        "mtpeft bench tasks/recipes/vtab-1k.toml --workers 2",
        "mtpeft bench recipe.toml --set methods.lora.rank=16 --out runs/bench-rank-16",
    )
)
def bench(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe with tasks and a [bench] table.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the records. Default: runs/bench-RECIPE.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Trainings at a time.")] = 1,
    settings: Settings = None,
    table: Annotated[bool, typer.Option("--table", help="Train nothing; print the table of what there is.")] = False,
    pictures: Annotated[bool, typer.Option("--pictures", help="Draw test samples of what is tested.")] = False,
    json: Json = False,
) -> None:
    """Compare methods on tasks over seeds, at one budget."""
    from mtpeft.commands import bench as command

    command.run(
        recipe, out=out, workers=workers, settings=settings or [], table_only=table, pictures=pictures, json=json
    )


def _one(flag: str, given: list[str] | None, joint: str) -> str | None:
    """Of two flags the parser takes the last; where one has room for both, the first must not be lost in silence."""
    if given and len(given) > 1:
        raise UsageError(f"{flag} is given {len(given)} times", hint=f'say it once: {flag} "{joint.join(given)}"')
    return given[0] if given else None


def _recipe_of(folder: Path | None, described: bool) -> Path | None:
    """The recipe that a run keeps, so that ``--resume --out RUN`` is enough to go on."""
    kept = folder / "config.toml" if folder else None
    if kept is not None and kept.is_file():
        return kept
    if not described:
        where = f"in {folder}" if folder else "named"
        raise UsageError(f"there is no run {where} to resume", hint="mtpeft train --resume --out RUN")
    return None


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line; the entry point ``mtpeft``.

    Returns:
        0, or 1 for a failure, 2 for wrong usage, 130 when interrupted by Ctrl-C, 143 by SIGTERM. Output that cannot
        be written is a failure, and a silent one where its reader has gone.
    """
    streams.prepare()
    code = _run(arguments)
    undelivered = streams.deliver(sys.stdout)
    if undelivered and code == 0:
        code = 1
        if not isinstance(undelivered, BrokenPipeError):
            show(MtpeftError(f"the output cannot be written: {undelivered.strerror}"))
    streams.deliver(sys.stderr)
    return code


def _run(arguments: Sequence[str] | None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        refuse_deleted_folder()
        with terminable():
            result = app(arguments, prog_name="mtpeft", standalone_mode=False)
    except SystemExit as ended:  # the parser's answer to a broken pipe
        return ended.code if isinstance(ended.code, int) else 1
    except (KeyboardInterrupt, typer.Abort) as interrupted:
        error: Exception = Interrupted(interrupted)
    except Exception as caught:
        error = caught
    else:
        return result if isinstance(result, int) else 0
    if debug:
        traceback.print_exception(error)
    shown = as_error(error)
    show(shown)
    return shown.exit_code
