"""Nothing read from a file is imported, called or unpickled: each call that could stands here with its reason."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = sorted(file for folder in ("mtpeft", "plugins", "tasks") for file in (ROOT / folder).rglob("*.py"))
MODULES = {
    "pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve", "subprocess", "ctypes", "runpy", "code", "pty",
    "importlib", "pkgutil", "imp", "multiprocessing",
}  # fmt: skip
"""Modules that import, unpickle or start processes."""
CALLS = {
    "eval", "exec", "compile", "__import__", "import_module", "entry_points", "globals", "locals", "system", "popen",
    "Process", "create_subprocess_exec", "getoutput", "execv", "execve", "spawnv", "posix_spawn", "attrgetter",
    "methodcaller", "Unpickler", "open_memmap", "loadmat", "load_dataset", "load_from_disk",
    "load_state_dict_from_url", "create_model", "unsafe_load", "full_load", "load_all",
}  # fmt: skip
"""Functions, by their last name, that run or build what an argument names or holds."""
LOADERS = {
    "torch", "np", "numpy", "pickle", "joblib", "yaml", "dill", "marshal", "hub", "jit", "entry_point", "safetensors",
}  # fmt: skip
"""Whose ``load`` and ``loads`` are looked at; ``json`` and ``tomllib`` give plain values."""
HARMLESS = ("re.compile(", "torch.compile(")
OWN = "names that our own source spells"
FIELDS = "the fields of one of our dataclasses"

ALLOWED: dict[str, dict[str, str]] = {
    "mtpeft/plugins.py": {
        "from importlib import import_module": "for what follows",
        "from importlib import metadata": "installed packages",
        "import_module(module)": "what an installed plugin registers; files say ids, and the registry gives this",
        "reduce(getattr, attribute.split('.'), import_module(module))": "the same",
        "metadata.entry_points(group=GROUP)": "installed packages",
        "entry_point.load()": "installed packages",
        "getattr(self._pluggy.hook, hook)": OWN,
        "getattr(plugin, hook, None)": OWN,
    },
    "mtpeft/kinds.py": {
        "from importlib import import_module": "for what follows",
        "import_module('mtpeft.api')": OWN,
        "getattr(import_module('mtpeft.api'), CONTRACTS[kind])": OWN,
    },
    "mtpeft/config.py": {
        "from importlib import import_module": "for what follows",
        "import_module(module)": "out of the constant TABLES",
        "getattr(import_module(module), name)": "out of the constant TABLES",
        "getattr(self, f.name)": FIELDS,
    },
    "mtpeft/backbone/__init__.py": {
        "timm.create_model(name, **options)": "timm's own registry; options that name files are refused",
        "timm.create_model(name, img_size=size, **options)": "the same",
    },
    "mtpeft/backbone/weights_file.py": {
        "from pickle import UnpicklingError": "an exception",
        "torch.load(file, map_location='cpu', weights_only=True)": "an unpickler that builds tensors and plain values",
    },
    "mtpeft/backbone/features.py": {"getattr(self, f.name)": FIELDS, "getattr(p, name)": FIELDS},
    "mtpeft/bench/processes.py": {
        "import multiprocessing": "trials in processes of their own",
        "from multiprocessing.connection import Connection": "a type",
        "from multiprocessing.process import BaseProcess": "a type",
        "self.context.Process(target=_report, args=(theirs, self.threads, config, trained, pictures))": OWN,
    },
    "mtpeft/commands/streams.py": {"getattr(sys, name)": OWN,
                                   "setattr(sys, name, open(os.devnull, 'w', encoding='utf-8'))": OWN},
    "mtpeft/foreign_code.py": {"getattr(sys.modules['torch'], read)": OWN, "getattr(sys.modules['torch'], write)": OWN},
    "mtpeft/settings.py": {"getattr(made, field.name)": FIELDS},
    "mtpeft/peft/find_sites.py": {"getattr(around, name, None)": OWN},
    "mtpeft/peft/hooks.py": {"getattr(x, _TAG, None)": OWN, "setattr(x, _TAG, self._tag())": OWN,
                             "setattr(y, _TAG, self._tag())": OWN},
    "mtpeft/peft/module_map.py": {"getattr(self, self._names[name])": "a name that this container gave itself",
                                  "delattr(self, self._names.pop(name))": "a name that this container gave itself"},
    "mtpeft/training/continue_from.py": {"getattr(before, name)": FIELDS, "getattr(config, name)": FIELDS},
    "mtpeft/training/run_files.py": {"getattr(config, name)": FIELDS, "getattr(before, name)": FIELDS},
    "mtpeft/training/manifest.py": {"from importlib import metadata": "versions of installed packages"},
    "mtpeft/peft/stock/statistics.py": {
        "getattr(self, name)": "out of the class's by_class",
        "setattr(self, name, with_rows(getattr(self, name), classes))": "the same",
    },
    "mtpeft/testing/checks.py": {"getattr(type(method), door)": OWN, "getattr(Method, door)": OWN},
    "mtpeft/testing/continual_checks.py": {"getattr(routine, name)": OWN},
    "plugins/mtpeft_plugins/continual/_closed_form.py": {
        "getattr(self, name)": "out of the class's by_class",
        "setattr(self, name, with_rows(getattr(self, name), len(new)))": "the same",
    },
    "plugins/mtpeft_plugins/continual/hide_prompt.py": {"getattr(self, name)": OWN},
    "plugins/mtpeft_plugins/continual/mas.py": {"getattr(outputs, field.name)": FIELDS},
    "mtpeft/training/position.py": {"getattr(self, f.name)": FIELDS},
    "mtpeft/testing/declarations.py": {"getattr(case.method, field.name)": FIELDS,
                                       "getattr(Declarations, name)": FIELDS},
    "mtpeft/testing/tasks.py": {"import pickle": "for what follows",
                                "pickle.loads(pickle.dumps(metric))": "what the line itself pickled"},
    "mtpeft/testing/training_checks.py": {"getattr(module, name)": OWN},
    "mtpeft/testing/zoo.py": {"timm.create_model(name, pretrained=False, num_classes=0, **settings)": OWN},
    "plugins/mtpeft_plugins/schedules/interleaved.py": {"getattr(self, setting)": OWN},
    "plugins/mtpeft_plugins/unified/noah.py": {
        "setattr(self, name, nn.Parameter(kept.clone()))": OWN,
        "getattr(self, name)": OWN,
    },
    "tasks/mtpeft_tasks/readers/hf.py": {
        "library.load_dataset(path.removeprefix(_HUB) if path.startswith(_HUB) else str(place), self.config or None)":
            "datasets from 4 on, which the extra asks for, run no script of a data set",
        "library.load_from_disk(str(place))": "Arrow tables and JSON",
    },
    "tasks/mtpeft_tasks/readers/image_sets.py": {
        "np.lib.format.open_memmap(path, mode='r')": "NumPy maps no file with objects in it, which alone are pickled",
    },
    "mtpeft/cli.py": {"from mtpeft.commands import eval": "the command of this name"},
    "tasks/mtpeft_tasks/readers/pascal_context.py": {
        "from scipy.io import loadmat": "for what follows",
        "loadmat(file)": "MATLAB's numbers and texts; its functions stay data",
    },
    "tasks/mtpeft_tasks/readers/torchvision.py": {
        "getattr(datasets, name)": "a key of KNOWN; torchvision compares the checksums of CIFAR's pickles before",
        "getattr(data, known.labels)": OWN,
        "getattr(data, known.names)": OWN,
    },
}  # fmt: skip


def dangerous(source: str) -> Iterator[str]:
    """Each import and call of ``source`` that could run what data says, as the source spells it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (f"import {n.name}" for n in node.names if n.name.partition(".")[0] in MODULES)
        elif isinstance(node, ast.ImportFrom) and node.module:
            whole = node.module.partition(".")[0] in MODULES
            for name in node.names:
                loads = node.module.partition(".")[0] in LOADERS and name.name in ("load", "loads", "hub", "jit")
                if whole or (loads and not node.module.startswith("safetensors")) or name.name in CALLS:
                    yield f"from {node.module} import {name.name}"
        elif isinstance(node, ast.Call) and _runs(node) and not ast.unparse(node).startswith(HARMLESS):
            yield ast.unparse(node)


def _runs(call: ast.Call) -> bool:
    name, owner = _name(call.func), _name(call.func.value) if isinstance(call.func, ast.Attribute) else ""
    if name in ("getattr", "setattr", "delattr"):
        return not isinstance(call.args[1], ast.Constant)
    if name == "eval" and isinstance(call.func, ast.Attribute) and not call.args:
        return False  # evaluation mode of a module
    if name in ("load", "loads", "load_file"):
        return owner in LOADERS
    return name in CALLS or any(_name(argument) in ("getattr", "eval", "exec") for argument in call.args)


def _name(node: ast.expr) -> str:
    return node.id if isinstance(node, ast.Name) else node.attr if isinstance(node, ast.Attribute) else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_each_call_that_could_run_data_has_its_reason(path: Path) -> None:
    there = set(dangerous(path.read_text("utf-8")))
    allowed = ALLOWED.get(path.relative_to(ROOT).as_posix(), {})
    assert there == allowed.keys()


def test_the_allowed_are_files_of_the_tree() -> None:
    assert ALLOWED.keys() <= {path.relative_to(ROOT).as_posix() for path in SOURCES}
    assert all(reason for entries in ALLOWED.values() for reason in entries.values())


@pytest.mark.parametrize(
    "line",
    [
        "import_module(text)", "importlib.import_module(a + b)", "__import__(name)", "eval(text)", "exec(text)",
        "getattr(module, name)()", "setattr(thing, name, 1)", "reduce(getattr, names, module)", "map(eval, texts)",
        "pickle.loads(data)", "torch.load(path)", "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)", "yaml.load(text, Loader)", "yaml.unsafe_load(text)", "os.system(text)",
        "joblib.load(path)", "torch.hub.load(a, b)", "torch.jit.load(path)", "operator.attrgetter(name)(x)",
        "globals()[name]()", "import subprocess", "import pickle as p", "from importlib import import_module as get",
        "from torch import load", "from subprocess import run", "from torch.hub import load_state_dict_from_url",
        "compile(text, '', 'exec')", "timm.create_model(name)",
    ],
)  # fmt: skip
def test_the_test_sees(line: str) -> None:
    assert list(dangerous(line))


@pytest.mark.parametrize(
    "line", ["json.loads(text)", "model.eval()", "getattr(x, 'y', None)", "re.compile('a')", "host.load(p)"]
)
def test_the_test_lets_pass(line: str) -> None:
    assert not list(dangerous(line))
