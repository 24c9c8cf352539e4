"""Promises that need a process of their own: saved adapters in a fresh one, and timm as it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from test_methods import GROUND

from mtpeft.testing import Case
from mtpeft.testing.case import make_method

FRESH = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from mtpeft.hosts import load
from mtpeft.testing import zoo
torch.set_num_threads(1)
found = {}
for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
    host = load(folder, zoo()["vit"]()).eval()
    images = torch.randn(3, 3, *host.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found |= {f"{folder.name} {task}": host(images, task).pooled.contiguous() for task in host.tasks}
save_file(found, sys.argv[2])
"""

TIMM = """
import timm, timm.models, timm.layers
from timm.models import _registry
def state():
    modules = [m for name, m in sorted(sys.modules.items()) if name.startswith("timm.")]
    classes = {c for m in modules for c in vars(m).values() if isinstance(c, type) and c.__module__.startswith("timm")}
    return (
        {name: id(make) for name, make in _registry._model_entrypoints.items()},
        sorted(timm.list_models(pretrained=True)),
        {f"{c.__module__}.{c.__qualname__}": {k: id(v) for k, v in vars(c).items() if k != "__slotnames__"}
         for c in classes},
    )
"""


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_a_fresh_process_gives_identical_outputs(tmp_path: Path, one_thread) -> None:
    saved, expected = tmp_path / "saved", {}
    for name in GROUND:
        host = Case(name, make_method(name, {"scope": "task"})[1], "vit").host(("a", "b"), random=True)
        host.save(saved / name)
        images = torch.randn(3, 3, *host.image_size, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            expected |= {f"{name} {task}": host(images, task).pooled for task in host.tasks}
    outputs = tmp_path / "outputs.safetensors"
    done = subprocess.run(
        [sys.executable, "-c", FRESH, str(saved), str(outputs)], capture_output=True, text=True, env=_one_thread()
    )
    assert done.returncode == 0, done.stderr
    found = load_file(outputs)
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def test_importing_and_attaching_everything_changes_nothing_in_timm() -> None:
    code = f"""import sys
{TIMM}
import timm.models.swin_transformer
before = state()
from mtpeft.plugins import registry, resolve
from mtpeft.testing import zoo
from mtpeft.peft.host import Host
for name in registry("methods"):
    Host(zoo()["vit"](), [(name, resolve("methods", name)())], ["a"])
after = state()
changed = [name for name in before[2] if after[2].get(name) != before[2][name]]
print(len(before[0]) > 1000, len(before[2]) > 100, before[:2] == after[:2], changed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=_one_thread())
    assert done.stdout.split(maxsplit=3) == ["True", "True", "True", "[]\n"], done.stdout + done.stderr


def _one_thread() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1"}
