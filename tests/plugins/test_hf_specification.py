"""Beside HF PEFT: (IA)^3 and LoRA's starts from the weight give the same outputs and gradients.

Run as a script, it writes ``benchmarks/results/fidelity/METHOD.json``.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from mtpeft.backbone.extract import Extractor
from mtpeft.peft.host import Host
from mtpeft.plugins import resolve

TOLERANCE = 1e-5
pytestmark = pytest.mark.hf
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "fidelity"


def backbone(name: str = "vit_tiny_patch16_224", **settings) -> nn.Module:
    """Two blocks with random weights. EVA-02's base model keeps q, k and v apart, so that theirs can leave q alone."""
    torch.manual_seed(0)
    settings |= {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 0}
    return timm.create_model(name, pretrained=False, **settings).eval()


def ours(model: nn.Module, method: str, **settings) -> Host:
    return Host(model, [(method, resolve("methods", method)(**settings))], ["a"]).eval()


def theirs(model: nn.Module, config: str, **options) -> nn.Module:
    pytest.importorskip("peft.tuners", reason='the extra "hf" is not installed')  # tests/peft would pass for "peft"
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return peft.get_peft_model(model, getattr(peft, config)(**options)).eval()


def compare(host: Host, model: nn.Module, pairs: list[tuple[Tensor, Tensor]]) -> tuple[float, float]:
    """Largest difference of outputs and of gradients, relative to the largest value (or 1 for outputs)."""
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    weights = torch.randn(3, 32, generator=torch.Generator().manual_seed(2))
    mine, other = host(images, "a").pooled, Extractor(model.get_base_model(), (32, 32))(model.get_base_model(), images)
    (mine * weights).sum().backward()
    (other.pooled * weights).sum().backward()
    outputs = float((mine - other.pooled).detach().abs().max() / other.pooled.detach().abs().max().clamp(min=1))
    gradients = [(a.grad - b.grad.view_as(a)).abs().max() / b.grad.abs().max() for a, b in pairs]
    return outputs, float(torch.stack(gradients).max())


def ia3_beside_theirs() -> tuple[float, float]:
    host = ours(backbone("eva02_base_patch14_224"), "ia3")
    targets = ["k_proj", "v_proj", "fc2"]
    model = theirs(backbone("eva02_base_patch14_224"), "IA3Config", target_modules=targets, feedforward_modules=["fc2"])
    layers, pairs = dict(model.get_base_model().named_modules()), []
    for placed in host.parts_of(host.methods["ia3"], ["a"]):
        other = layers[placed.site.path].ia3_l["default"]
        with torch.no_grad():
            placed.part.gain.add_(torch.randn_like(placed.part.gain) * 0.3)
            other.copy_(placed.part.gain.view_as(other))
        pairs.append((placed.part.gain, other))
    assert len(pairs) == sum(name.endswith("ia3_l") for name in layers)
    return compare(host, model, pairs)


def lora_beside_theirs(init: str) -> tuple[float, float]:
    """From the start that each computes for itself; then both are moved in the same way."""
    host = ours(backbone(), "lora", rank=4, init=init, at="attn.qkv mlp.fc1")
    model = theirs(backbone(), "LoraConfig", r=4, lora_alpha=4, target_modules=["qkv", "fc1"], init_lora_weights=init)
    layers, pairs = dict(model.get_base_model().named_modules()), []
    for placed in host.parts_of(host.methods["lora"], ["a"]):
        layer = layers[placed.site.path]
        for mine, other in ((placed.part.A, layer.lora_A), (placed.part.B, layer.lora_B)):
            other = other["default"].weight
            assert torch.allclose(mine, other, atol=1e-5), f"{init}: the factors at {placed.site.name} start elsewhere"
            with torch.no_grad():
                step = torch.randn_like(mine) * 0.1
                mine.add_(step)
                other.add_(step)
            pairs.append((mine, other))
    return compare(host, model, pairs)


def test_ia3_is_theirs():
    assert max(ia3_beside_theirs()) < TOLERANCE


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_lora_from_the_weight_is_theirs(init):
    assert max(lora_beside_theirs(init)) < TOLERANCE


def write() -> None:
    import peft

    found = {
        "ia3": (ia3_beside_theirs(), "two-block EVA-02 with q, k and v apart: on a fused qkv theirs scales q too"),
        "lora-pissa": (lora_beside_theirs("pissa"), 'lora with init = "pissa"; theirs edits the frozen weight'),
        "lora-olora": (lora_beside_theirs("olora"), 'lora with init = "olora"; theirs edits the frozen weight'),
    }
    for name, ((outputs, gradients), note) in found.items():
        entry = {
            "method": name,
            "reference": f"peft {peft.__version__}",
            "max_output_difference": outputs,
            "max_gradient_difference": gradients,
            "note": note,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(entry, indent=2) + "\n")


if __name__ == "__main__":
    write()
