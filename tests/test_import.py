"""Importing mtpeft imports no torch, touches no network and changes nothing in timm or in the process."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib import import_module, metadata
from pathlib import Path

import pytest

import mtpeft

NO_NETWORK = """
import os, socket, sys
def refuse(*arguments, **keywords):
    raise AssertionError("network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""
STATE = """
import random, warnings, logging, torch, timm
import sklearn.datasets  # draws from Python's generator when it is imported
def state():
    return {
        "timm": sorted(timm.list_models()), "cwd": os.getcwd(), "environment": dict(os.environ), "path": list(sys.path),
        "random": random.getstate(), "torch": torch.get_rng_state().tolist(), "dtype": torch.get_default_dtype(),
        "threads": torch.get_num_threads(), "grad": torch.is_grad_enabled(), "level": logging.root.level,
        "handlers": list(logging.root.handlers), "filters": [str(f) for f in warnings.filters],
        "backends": (torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled()),
    }
"""
EVERYTHING = """
from importlib import import_module
from pkgutil import walk_packages
def everything():
    for package in ("mtpeft", "mtpeft_plugins", "mtpeft_tasks"):
        for module in walk_packages(import_module(package).__path__, package + "."):
            import_module(module.name)
            yield module.name
"""


def run(code: str, folder: Path | None = None) -> str:
    """Run code in a fresh interpreter and return what it printed."""
    done = subprocess.run([sys.executable, "-c", NO_NETWORK + code], capture_output=True, text=True, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


HEAVY = 'print(sorted({"torch", "torchvision", "timm", "sklearn", "matplotlib", "rich"} & set(sys.modules)))'


@pytest.mark.parametrize(
    "module", ["mtpeft", "mtpeft.api", "mtpeft.cli", "mtpeft.config", "mtpeft.plugins", "mtpeft.schedule"]
)
def test_importing_it_imports_nothing_heavy(module: str) -> None:
    assert run(f"import {module}; {HEAVY}") == "[]"


def test_help_and_the_registries_import_nothing_heavy() -> None:
    code = "from mtpeft.cli import main; main(['--help']); main(['train', '--help']); main(['plugins'])\n" + HEAVY
    assert run(code).splitlines()[-1] == "[]"


def test_importing_everything_changes_nothing(tmp_path: Path) -> None:
    code = STATE + EVERYTHING + "before = state(); names = list(everything()); after = state()\n"
    code += "print(len(names) > 20, [key for key in before if before[key] != after[key]])"
    assert run(code, tmp_path) == "True []"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["mtpeft", "mtpeft.api"])
def test_type_checkers_see_the_public_names(name: str) -> None:
    module = import_module(name)
    stub = ast.parse(Path(module.__file__).with_suffix(".pyi").read_text("utf-8"))
    lines = [line for line in stub.body if isinstance(line, ast.ImportFrom)]
    seen = {alias.asname: (f"mtpeft.{line.module}", alias.name) for line in lines for alias in line.names}
    assert set(seen) == set(module.__all__) == set(dir(module))
    for public, (where, own) in seen.items():
        assert getattr(module, public) is getattr(import_module(where), own)


@pytest.mark.parametrize("name", ["mtpeft", "mtpeft.api"])
def test_each_public_name_is_spelled_once(name: str) -> None:
    module = import_module(name)
    source = Path(module.__file__).read_text("utf-8")
    assert not [public for public in module.__all__ if re.search(rf"\b{public}\b", source)]


def test_the_package_says_that_it_is_typed() -> None:
    assert Path(mtpeft.__file__).with_name("py.typed").exists()


def test_public_names_are_there() -> None:
    for name in mtpeft.__all__:
        assert getattr(mtpeft, name) is not None
    assert set(dir(mtpeft)) == set(mtpeft.__all__)
    with pytest.raises(AttributeError, match="No mtpeft attribute nonsense"):
        _ = mtpeft.nonsense
    with pytest.raises(ImportError, match="nonsense"):
        exec("from mtpeft.api import nonsense")


def test_every_name_for_plugins_is_there() -> None:
    from mtpeft import api

    for name in api.__all__:
        assert getattr(api, name) is not None


def test_the_version_is_the_packages() -> None:
    text = (Path(__file__).parents[1] / "pyproject.toml").read_text()
    assert re.search(r'^version = "(.+)"$', text, re.MULTILINE)[1] == mtpeft.__version__ == metadata.version("mtpeft")
