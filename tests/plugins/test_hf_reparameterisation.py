"""Beside HF PEFT: the same weights in its tuner and in ours give the same outputs and gradients.

Run as a script, it writes ``benchmarks/results/fidelity/METHOD.json``.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from mtpeft.peft.host import Host
from mtpeft.plugins import resolve

LINEARS = "attn.qkv attn.proj mlp.fc1 mlp.fc2"
TARGETS = r"blocks\.\d+\.(attn\.qkv|attn\.proj|mlp\.fc1|mlp\.fc2)"
TOLERANCE = 1e-5
pytestmark = pytest.mark.hf


@dataclass
class Pair:
    """A method here and there.

    Attributes:
        tensors: our tensor's name -> theirs, and how theirs is laid out as ours.
        fixed: copies what is drawn at random and never trained into our common module.
        note: what a reader of the comparison should know.
    """

    method: str
    settings: dict[str, Any]
    config: str
    options: dict[str, Any]
    tensors: dict[str, tuple[str, Callable[[Tensor], Tensor]]]
    fixed: Callable[[nn.Module, nn.Module], None] = field(default=lambda common, layer: None)
    note: str = ""


def same(tensor: Tensor) -> Tensor:
    return tensor


def vera_bases(common: nn.Module, layer: nn.Module) -> None:
    common.A.copy_(layer.vera_A["default"])
    common.B.copy_(layer.vera_B["default"])


def randlora_bases(common: nn.Module, layer: nn.Module) -> None:
    """Theirs pairs row ``k n + j`` of the scaled ``A`` with column ``k n + j`` of the flattened ``B``."""
    terms, large, rank = common.B.shape
    flat = layer.randlora_B["default"][:large, :terms].flatten(1)  # (large, n r)
    common.B.copy_(flat.view(large, rank, terms).permute(2, 0, 1))
    common.A.copy_(layer.randlora_A["default"][:, 0, : common.A.shape[1]])


def fourier_places(common: nn.Module, layer: nn.Module) -> None:
    rows, columns = layer.indices["default"]
    weight = layer.get_base_layer().weight
    common.get_buffer(f"of_{weight.numel()}").copy_(rows * weight.shape[1] + columns)


PAIRS = [
    Pair("lora", {"rank": 4, "alpha": 8}, "LoraConfig", {"r": 4, "lora_alpha": 8},
         {"A": ("lora_A.default.weight", same), "B": ("lora_B.default.weight", same)}),
    Pair("dora", {"rank": 4, "alpha": 8}, "LoraConfig", {"r": 4, "lora_alpha": 8, "use_dora": True},
         {"direction.A": ("lora_A.default.weight", same), "direction.B": ("lora_B.default.weight", same),
          "magnitude": ("lora_magnitude_vector.default.weight", same)}),
    Pair("adalora", {"rank": 6, "target": 4, "alpha": 12}, "AdaLoraConfig",
         {"init_r": 6, "target_r": 4, "lora_alpha": 12, "total_step": 10},
         {"P": ("lora_B.default", same), "l": ("lora_E.default", torch.flatten), "Q": ("lora_A.default", same)},
         note="forward and gradients; their scale divides by the rank + 1e-5"),
    Pair("loha", {"rank": 4, "alpha": 8}, "LoHaConfig", {"r": 4, "alpha": 8},
         {"B1": ("hada_w1_a.default", same), "A1": ("hada_w1_b.default", same),
          "B2": ("hada_w2_a.default", same), "A2": ("hada_w2_b.default", same)}),
    Pair("lokr", {"rank": 2, "alpha": 4}, "LoKrConfig", {"r": 2, "alpha": 4},
         {"W1.B": ("lokr_w1.default", same), "W2.B": ("lokr_w2_a.default", same),
          "W2.A": ("lokr_w2_b.default", same)}),
    Pair("oft", {"block": 8}, "OFTConfig", {"r": 0, "oft_block_size": 8, "use_cayley_neumann": False},
         {"Q": ("oft_R.default.weight", same)},
         note="their exact inverse (use_cayley_neumann=False); its default is a truncated series"),
    Pair("boft", {"block": 8, "factors": 1}, "BOFTConfig", {"boft_block_size": 8, "boft_n_butterfly_factor": 1},
         {"A": ("boft_R.default", same), "gain": ("boft_s.default", torch.flatten)},
         note="one butterfly factor: theirs needs a CUDA extension for more, and falls back to one without saying so"),
    Pair("hra", {"rank": 4}, "HRAConfig", {"r": 4}, {"U": ("hra_u.default", same)}),
    Pair("vera", {"rank": 16}, "VeraConfig", {"r": 16},
         {"up": ("vera_lambda_b.default", same), "down": ("vera_lambda_d.default", same)}, vera_bases),
    Pair("randlora", {"rank": 8, "alpha": 16}, "RandLoraConfig", {"r": 8, "randlora_alpha": 16},
         {"l": ("randlora_lambda.default", torch.t), "g": ("randlora_gamma.default", same)}, randlora_bases,
         note="their bases with B's columns reordered, because theirs pairs them with the rows of A in another order"),
    Pair("fourierft", {"coefficients": 50, "scale": 20}, "FourierFTConfig", {"n_frequency": 50, "scaling": 20},
         {"coefficients": ("fourierft_spectrum.default", same)}, fourier_places),
]  # fmt: skip


def tiny() -> nn.Module:
    torch.manual_seed(0)
    size = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    return timm.create_model("vit_tiny_patch16_224", num_classes=0, **size).eval()


def their_model(pair: Pair) -> nn.Module:
    """PEFT's model with every trained tensor moved away from where it starts."""
    import peft

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config = getattr(peft, pair.config)(target_modules=TARGETS, **pair.options)
        model = peft.get_peft_model(tiny(), config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model


def compare(pair: Pair) -> tuple[float, float]:
    """Largest difference of the outputs, and of the gradients in units of the largest gradient."""
    theirs = their_model(pair)
    host = Host(tiny(), [("ours", resolve("methods", pair.method)(at=LINEARS, **pair.settings))], ["task"]).eval()
    names = [
        (part.get_parameter(mine), theirs.get_parameter(f"base_model.model.{site}.{name}"), lay)
        for site, part in host.parts.by_owner["ours"]["shared"].items()
        for mine, (name, lay) in pair.tensors.items()
    ]
    assert len(names) == len(host.shared_parameters())
    with torch.no_grad():
        for mine, other, lay in names:
            mine.copy_(lay(other))
        for site, part in host.parts.by_owner["ours"]["shared"].items():
            pair.fixed(part.common, theirs.get_submodule(f"base_model.model.{site}"))
    images = torch.randn(3, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    outputs = host(images, "task").pooled, theirs(images)
    for output in outputs:
        (output * torch.arange(output.numel()).cos().view_as(output)).sum().backward()
    largest = max(float(mine.grad.abs().max()) for mine, _, _ in names)
    gradients = max(float((mine.grad - lay(other.grad)).abs().max()) for mine, other, lay in names) / largest
    with torch.no_grad():
        assert float((outputs[0] - tiny()(images)).abs().max()) > 1e-2  # the update is felt
    return float((outputs[0] - outputs[1]).abs().max()), gradients


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair.method)
def test_outputs_and_gradients_equal_those_of_hf_peft(pair: Pair) -> None:
    pytest.importorskip("peft.tuners", reason='the extra "hf" is not installed')  # tests/peft would pass for "peft"
    outputs, gradients = compare(pair)
    assert outputs <= TOLERANCE
    assert gradients <= TOLERANCE


def main() -> None:
    import peft

    folder = Path(__file__).parents[2] / "benchmarks" / "results" / "fidelity"
    folder.mkdir(parents=True, exist_ok=True)
    for pair in PAIRS:
        outputs, gradients = compare(pair)
        note = "two-block ViT, four linear layers each, all trained tensors moved"
        found = {
            "method": pair.method,
            "reference": f"peft {peft.__version__}",
            "max_output_difference": outputs,
            "max_gradient_difference": gradients,
            "note": f"{note}; {pair.note}" if pair.note else note,
        }
        (folder / f"{pair.method}.json").write_text(json.dumps(found, indent=2) + "\n")
        print(pair.method, outputs, gradients)


if __name__ == "__main__":
    main()
