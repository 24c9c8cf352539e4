from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from mtpeft import plugins
from mtpeft.cli import app, main
from mtpeft.config import Config
from mtpeft.errors import MtpeftError, NotApplicable
from mtpeft.hookspecs import hookimpl

COMMANDS = [
    "train",
    "eval",
    "predict",
    "report",
    "export",
    "methods",
    "tasks",
    "data",
    "plugins",
    "sites",
    "count",
    "check",
    "bench",
]
MAIN_JOB = ["train", "--tasks", "cls,det,seg", "--method", "hydra-lora"]


class Recorder:
    """Stands in for a command's module and keeps what it was called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        self.error: BaseException | None = None

    def __call__(self, *arguments: Any, **keywords: Any) -> None:
        self.calls.append((arguments, keywords))
        if self.error is not None:
            raise self.error

    @property
    def config(self) -> Config:
        return self.calls[-1][0][0]


@pytest.fixture
def stand_in(monkeypatch, tmp_path: Path):
    """Replace a command's work; the current directory is empty."""
    monkeypatch.chdir(tmp_path)

    def replace(name: str) -> Recorder:
        module, recorder = ModuleType(f"mtpeft.commands.{name}"), Recorder()
        module.run = recorder
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(f"mtpeft.commands.{name}", module, raising=False)
        return recorder

    return replace


def outcome(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(arguments)
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_help_names_every_command(capsys) -> None:
    code, out, err = outcome(capsys, "--help")
    assert (code, err) == (0, "")
    listed = re.findall(r"^  ([a-z]+)  ", out.partition("Commands:")[2], re.MULTILINE)
    assert listed == COMMANDS
    assert outcome(capsys) == (0, out, "")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example_that_parses(capsys, command: str, stand_in) -> None:
    code, out, _ = outcome(capsys, command, "--help")
    assert code == 0
    examples = re.findall(r"^    mtpeft (.+)$", out.partition("Example")[2], re.MULTILINE)
    assert examples
    recorder = stand_in(command)
    for example in examples:
        (runs := Path("runs/rank-16")).mkdir(parents=True, exist_ok=True)
        (runs / "config.toml").write_text('methods = [{ name = "lora" }]\n[tasks.cls]\n')
        Path("recipe.toml").write_text('methods = [{ name = "lora" }]\n[tasks.cls]\n')
        assert main(example.split()) == 0, capsys.readouterr().err
    assert len(recorder.calls) == len(examples)


def test_no_summary_of_a_command_is_cut_off(capsys) -> None:
    assert not re.search(r"[a-z,]\.\.\.$", outcome(capsys, "--help")[1], re.MULTILINE)


def test_version(capsys) -> None:
    assert outcome(capsys, "--version") == (0, f"mtpeft {__import__('mtpeft').__version__}\n", "")


@pytest.mark.parametrize(("flag", "both"), [("--tasks", '"cls,det"'), ("--method", '"cls+det"')])
def test_the_first_of_two_flags_is_not_lost_in_silence(capsys, flag: str, both: str) -> None:
    code, _, err = outcome(capsys, "train", flag, "cls", flag, "det")
    assert (code, err) == (2, f"error: {flag} is given 2 times\n\nhint: say it once: {flag} {both}\n")


def test_flags_become_a_configuration(stand_in) -> None:
    recorder = stand_in("train")
    arguments = (
        "--schedule sequential --steps 5 --seed 2 --backbone vit_tiny_patch16_224 --balance dwa --device cpu --out here"
    )
    assert (
        main([*MAIN_JOB, *arguments.split(), "--set", "optimizer.lr=3e-4", "--set", "methods.hydra-lora.rank=4"]) == 0
    )
    config = recorder.config
    assert list(config.tasks) == ["cls", "det", "seg"]
    assert [m.name for m in config.methods] == ["hydra-lora"]
    assert config.methods[0].settings == {"rank": 4}
    assert (config.schedule.name, config.schedule.settings) == ("sequential", {"steps": 5})
    assert (config.seed, config.backbone, config.balance.name) == (2, "vit_tiny_patch16_224", "dwa")
    assert (config.device, config.output.dir, config.optimizer.lr) == ("cpu", "here", 3e-4)
    expected = {"resume": False, "from_run": None, "dry_run": False, "json": False, "quiet": False}
    assert recorder.calls[-1][1] == expected


def test_switches_of_train(stand_in) -> None:
    recorder = stand_in("train")
    assert main([*MAIN_JOB, "--from", "runs/a", "--dry-run", "--json", "--quiet"]) == 0
    expected = {"resume": False, "from_run": Path("runs/a"), "dry_run": True, "json": True, "quiet": True}
    assert recorder.calls[-1][1] == expected
    assert recorder.config.output.dir == "runs/cls-det-seg-hydra-lora"


def test_a_second_run_gets_a_folder_of_its_own_and_resume_the_last(stand_in) -> None:
    recorder = stand_in("train")
    Path("runs/cls-det-seg-hydra-lora").mkdir(parents=True)
    main(MAIN_JOB)
    assert recorder.config.output.dir == "runs/cls-det-seg-hydra-lora-2"
    main([*MAIN_JOB, "--resume"])
    assert recorder.config.output.dir == "runs/cls-det-seg-hydra-lora"


def test_resume_needs_only_the_run(stand_in, capsys) -> None:
    recorder = stand_in("train")
    main([*MAIN_JOB, "--seed", "4", "--out", "run"])
    first = recorder.config
    Path("run").mkdir()
    Path("run/config.toml").write_text(first.to_toml())
    assert main(["train", "--resume", "--out", "run"]) == 0
    assert recorder.config == first
    assert recorder.calls[-1][1]["resume"] is True
    code, _, err = outcome(capsys, "train", "--resume", "--out", "elsewhere")
    assert (code, err) == (
        2,
        "error: there is no run in elsewhere to resume\n\nhint: mtpeft train --resume --out RUN\n",
    )


def test_arguments_of_the_other_commands(stand_in) -> None:
    run = Path("runs/a")
    wanted = {
        "eval runs/a --split val --best": ((run,), {"split": "val", "best": True, "pictures": None, "json": False}),
        "predict runs/a --task seg a.png b.png --out o": (
            (run,), {"images": [Path("a.png"), Path("b.png")], "task": "seg", "out": Path("o"), "json": False},
        ),
        "report runs/a runs/b --json": (([run, Path("runs/b")],), {"baselines": (), "json": True}),
        "export runs/a --task seg --out f.safetensors": (
            (run,), {"to": "timm", "out": Path("f.safetensors"), "task": "seg", "json": False},
        ),
        "count lora --tasks 3 --set rank=4": (
            ("lora",), {"backbone": "micro", "tasks": 3, "settings": ["rank=4"], "json": False},
        ),
    }  # fmt: skip
    for line, call in wanted.items():
        recorder = stand_in(line.split()[0])
        assert main(line.split()) == 0
        assert recorder.calls == [call]


@pytest.mark.parametrize(
    ("line", "message", "hint"),
    [
        ("train --stepz 3", "No such option: --stepz", "`mtpeft train --help`"),
        ("train --steps many", "'--steps'", "`mtpeft train --help`"),
        ("trane", "trane", "`mtpeft --help`"),
        ("count", "METHOD", "`mtpeft count --help`"),
        ("count lora --tasks 0", "'--tasks'", "`mtpeft count --help`"),
        ("predict run --task cls", "IMAGE", "`mtpeft predict --help`"),
        ("train --tasks cls", "there is no method to train with", "hydra-lora"),
        ("train nowhere.toml", "the recipe nowhere.toml does not exist", "TOML"),
        (
            "train --tasks cls --method lora --set optimizer.lrr=1",
            "there is no setting optimizer.lrr",
            'did you mean "lr"?',
        ),
        ("count lorra", 'there is no method "lorra"', 'did you mean "lora"?'),
        ("count lora --set rank=x", 'methods.lora.rank = "x" (from --set)', "methods.lora.rank takes a whole number"),
        ("count lora --set rnk=2", "there is no setting methods.lora.rnk", 'did you mean "rank"?'),
        ("count lora --backbone micr", "micr", "micro"),
        ("sites vit_tinny_patch16_224", "vit_tinny_patch16_224", "vit_tiny_patch16_224"),
    ],
)
def test_wrong_usage_is_one_sentence_and_a_hint(
    capsys, monkeypatch, tmp_path, line: str, message: str, hint: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = outcome(capsys, *line.split())
    assert (code, out) == (2, "")
    sentence, empty, advice, *rest = err.splitlines()
    assert sentence.startswith("error: ")
    assert message in sentence
    assert (empty, rest) == ("", [])
    assert advice.startswith("hint: ")
    assert hint in advice
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "code", "shown"),
    [
        (MtpeftError("it failed", hint="try again"), 1, "error: it failed\n\nhint: try again\n"),
        (NotApplicable("not here"), 1, "error: not here\n"),
        (ValueError("a\nb"), 1, "error: ValueError: a b\n\nhint: `mtpeft --debug ...` shows where it happened\n"),
        (KeyError(), 1, "error: KeyError\n\nhint: `mtpeft --debug ...` shows where it happened\n"),
        (OSError(28, "No space left"), 1, "error: OSError: [Errno 28] No space left\n\nhint: "),
        (KeyboardInterrupt(), 130, "error: interrupted\n"),
    ],
)
def test_failures(capsys, stand_in, error: BaseException, code: int, shown: str) -> None:
    stand_in("train").error = error
    result, out, err = outcome(capsys, *MAIN_JOB)
    assert (result, out) == (code, "")
    assert err.startswith(shown)
    assert "Traceback" not in err


@pytest.mark.parametrize("place", [0, len(MAIN_JOB)])
def test_debug_shows_the_traceback_anywhere(capsys, stand_in, place: int) -> None:
    stand_in("train").error = MtpeftError("it failed")
    line = list(MAIN_JOB)
    line.insert(place, "--debug")
    code, out, err = outcome(capsys, *line)
    assert (code, out) == (1, "")
    assert "Traceback (most recent call last)" in err
    assert err.endswith("error: it failed\n")


def test_an_interrupted_run_says_how_to_go_on(capsys, stand_in) -> None:
    stand_in("train").error = KeyboardInterrupt()
    Path("run/state").mkdir(parents=True)
    code, _, err = outcome(capsys, *MAIN_JOB, "--out", "run")
    assert code == 130
    assert err.startswith("error: interrupted\n\nhint: `mtpeft train --resume --out run` goes on")
    assert "--resume" not in outcome(capsys, *MAIN_JOB, "--out", "run", "--dry-run")[2]


@pytest.mark.parametrize(("no_colour", "coloured"), [("", True), ("1", False)])
def test_colour_is_for_terminals_that_want_it(capsys, monkeypatch, no_colour: str, coloured: bool) -> None:
    monkeypatch.setenv("NO_COLOR", no_colour)
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    assert ("\033[" in outcome(capsys, "trane")[2]) is coloured


def test_listings_as_json(capsys) -> None:
    code, out, _ = outcome(capsys, "methods", "--json")
    rows = {row["id"]: row for row in json.loads(out)["methods"]}
    assert code == 0
    assert set(rows) == set(plugins.registry("methods"))
    assert rows["lora"]["category"] == "partial"
    assert rows["lora"] | {"scope": "shared", "mergeable": True, "identity": True, "error": None} == rows["lora"]
    assert all(row["idea"].endswith(".") for row in rows.values())
    tasks = json.loads(outcome(capsys, "tasks", "--json")[1])
    metrics = {"cls": "top-1", "det": "AP", "seg": "mIoU", "multi-label": "mAP", "saliency": "maxF", "edges": "odsF"}
    errors = {"depth": "RMSE", "normals": "mErr"}
    listed = {row["type"]: row["metric"] for row in tasks["tasks"]}
    assert listed == listed | metrics | errors and set(listed) == set(plugins.registry("tasks"))
    assert {row["type"] for row in tasks["tasks"] if not row["higher_is_better"]} == set(errors)
    assert {row["reader"] for row in tasks["readers"]} == set(plugins.registry("readers"))
    listed = json.loads(outcome(capsys, "plugins", "--json")[1])
    assert [row["name"] for row in listed["plugins"]] == list(plugins.manager().plugins)
    assert listed["problems"] == []


def test_one_method_or_task_type_with_its_settings(capsys) -> None:
    code, out, _ = outcome(capsys, "methods", "lora")
    assert code == 0 and "arXiv 2106.09685" in out
    assert re.search(r"^rank +a whole number of at least 1 +8$", out, re.MULTILINE)
    assert re.search(r"^alpha +a number above 0 +\(none\)$", out, re.MULTILINE)
    lora = json.loads(outcome(capsys, "methods", "lora", "--json")[1])
    assert (lora["id"], lora["mergeable"]) == ("lora", True)
    kinds = 'one of "kaiming", "gaussian", "orthogonal", "pissa", "olora", "eva"'
    assert {"setting": "init", "takes": kinds, "default": '"kaiming"'} in lora["settings"]
    assert re.search(r"^head +a table +\{\}$", outcome(capsys, "tasks", "det")[1], re.MULTILINE)
    code, _, err = outcome(capsys, "tasks", "sec")
    assert code == 2 and 'did you mean "seg"?' in err


@pytest.mark.parametrize("name", ["methods", "tasks"])
def test_every_one_can_be_shown(capsys, name: str) -> None:
    for id in plugins.registry(name):
        assert outcome(capsys, name, id)[0] == 0


def test_listings_as_plain_tables(capsys) -> None:
    assert re.search(r"^lora +partial +yes +yes +\S", outcome(capsys, "methods")[1], re.MULTILINE)
    assert re.search(r"^det +AP +% +mtpeft ", outcome(capsys, "tasks")[1], re.MULTILINE)
    listed = outcome(capsys, "plugins")[1]
    assert re.search(r"^builtin-methods +mtpeft +\S+ +loaded +\d\.\d{3} +register_.*, register_methods,", listed, re.M)


@pytest.mark.parametrize("line", ["methods", "methods boft", "tasks", "tasks multi-label"])
def test_docstrings_are_printed_without_their_markup(capsys, line: str) -> None:
    code, out, _ = outcome(capsys, *line.split())
    assert code == 0 and "``" not in out and "::\n" not in out


def test_a_narrow_terminal_cuts_no_id(capsys, monkeypatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "80")
    out = outcome(capsys, "methods")[1]
    shown = {line.split()[0] for line in out.splitlines() if line[:1].strip()}
    assert set(plugins.registry("methods")) <= shown and "…" not in out


def test_counts_are_printed_without_and_with_heads(capsys) -> None:
    out = outcome(capsys, "count", "lora", "--backbone", "vit_base_patch16_224", "--tasks", "2")[1]
    assert re.search(r"^ +294,912  trained parameters, heads apart$", out, re.MULTILINE)
    assert re.search(r"^ *1,832,912  with a linear head of 1,000 classes for each task$", out, re.MULTILINE)
    assert re.search(r"^ +0\.344 %  of the backbone's parameters$", out, re.MULTILINE)
    assert "head of" not in outcome(capsys, "count", "lora")[1]  # of the micro ViT's pre-training no classes are known


class Broken:
    @hookimpl
    def register_methods(self) -> dict[str, str]:
        return {"broken": "nonsense_package:Method"}


class Clash:
    @hookimpl
    def register_methods(self) -> dict[str, str]:
        return {"lora": "collections:OrderedDict"}


def test_a_method_that_cannot_be_imported_is_listed_with_its_error(capsys) -> None:
    plugins.manager().register(Broken(), "broken-plugin")
    rows = {row["id"]: row for row in json.loads(outcome(capsys, "methods", "--json")[1])["methods"]}
    assert "No module named 'nonsense_package'" in rows["broken"]["error"]
    assert rows["lora"]["error"] is None


def test_plugins_lists_what_breaks_the_contract_and_fails(capsys) -> None:
    plugins.manager().register(Clash(), "clash")
    code, out, err = outcome(capsys, "plugins", "--json")
    assert code == 1
    assert json.loads(out)["problems"][0]["error"].startswith('two plugins register the method "lora"')
    assert err.startswith('error: two plugins register the method "lora"')


def test_sites_of_a_backbone(capsys) -> None:
    code, out, _ = outcome(capsys, "sites", "micro", "--json")
    sites = {site["name"]: site for site in json.loads(out)["sites"]}
    assert code == 0
    assert sites["blocks.0.attn.q"] == {
        "name": "blocks.0.attn.q", "kind": "slice", "shape": [144, 144], "path": "blocks.0.attn.qkv", "bypassed": False,
    }  # fmt: skip
    assert "blocks.0.attn.q  " in outcome(capsys, "sites", "micro")[1]


@pytest.mark.parametrize(
    ("line", "shared", "owned"),
    [
        ("lora --tasks 3", 12 * 2 * 8 * 2 * 192, 0),
        ("lora@task --tasks 3", 0, 12 * 2 * 8 * 2 * 192),
        (
            "lora@shared+lora@task --tasks 2 --set rank=4 --set methods.lora-2.rank=2",
            12 * 2 * 4 * 2 * 192,
            12 * 2 * 2 * 2 * 192,
        ),
    ],
)
def test_counts_equal_the_closed_form(capsys, line: str, shared: int, owned: int) -> None:
    """LoRA on q and v of 12 blocks of width 192: rank x (in + out) for each of the two."""
    code, out, _ = outcome(capsys, "count", *line.split(), "--backbone", "vit_tiny_patch16_224", "--json")
    counted = json.loads(out)
    tasks = int(line.partition("--tasks ")[2][0])
    assert code == 0
    assert (counted["shared"], counted["per_task"]) == (shared, owned)
    assert counted["parts"] == shared + tasks * owned
    assert counted["bytes"] == 4 * counted["parts"]
    assert counted["head"] == tasks * 193 * 1000
    assert counted["percent"] == pytest.approx(100 * counted["parts"] / 5524416)
    assert counted["backbone"].startswith("vit_tiny_patch16_224.")


def test_the_commands_are_those_of_the_help() -> None:
    assert [command.name or command.callback.__name__ for command in app.registered_commands] == COMMANDS
