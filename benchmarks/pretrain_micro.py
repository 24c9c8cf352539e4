"""Pre-train the embedded micro ViT on procedural scenes and write `mtpeft/backbone/micro.safetensors`.

    python benchmarks/pretrain_micro.py --steps 6500 --out mtpeft/backbone/micro.safetensors

Four temporary linear readouts teach it, and are dropped: what each patch shows (class of the object there), where that
object's box ends, which of the patch's pixels are ink, and (from the class token) what is in the scene at all. The
weights written are the exponential moving average of those trained.
"""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from procedural import CANVAS, CLASSES, OBJECTS, SceneMaker, Scenes
from safetensors.torch import save
from torch import Tensor, nn

from mtpeft.backbone.micro import micro

PATCH = 8
GRID = CANVAS // PATCH
TEXTURES = 9


class Readouts(nn.Module):
    """The temporary linear heads and the losses they are trained with."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.patch = nn.Linear(width, CLASSES + 1)
        self.box = nn.Linear(width, 4)
        self.ink = nn.Linear(width, PATCH * PATCH)
        self.scene = nn.Linear(width, CLASSES)
        self.texture = nn.Linear(width, TEXTURES)

    def forward(self, tokens: Tensor, scenes: Scenes) -> dict[str, Tensor]:
        """Losses of tokens ``(B, 1 + 64, C)``, the class token first."""
        scene, patches = tokens[:, 0], tokens[:, 1:]
        owner, sides = patch_targets(scenes)
        inside = owner < CLASSES
        ink = F.pixel_unshuffle(scenes.ink[:, None], PATCH).flatten(2).transpose(1, 2)
        return {
            "patch": F.cross_entropy(self.patch(patches).flatten(0, 1), owner.flatten(), label_smoothing=0.05),
            "box": F.smooth_l1_loss(self.box(patches)[inside], sides[inside], beta=0.1),
            "ink": F.binary_cross_entropy_with_logits(self.ink(patches), ink),
            "scene": F.cross_entropy(self.scene(scene), presence(scenes.classes), label_smoothing=0.05),
            "texture": F.cross_entropy(self.texture(scene), scenes.texture),
        }


WEIGHTS = {"patch": 2.0, "box": 1.0, "ink": 1.5, "scene": 0.6, "texture": 0.05}


def patch_targets(scenes: Scenes) -> tuple[Tensor, Tensor]:
    """Each patch's object (the one over its centre): class ``(B, 64)`` and distances to its box's sides ``(B, 64, 4)``.

    Distances are in units of 16 pixels; a patch without an object has the class ``CLASSES``; the smallest object wins.
    """
    line = (torch.arange(GRID) + 0.5) * PATCH
    centre = torch.stack(torch.meshgrid(line, line, indexing="xy"), -1).view(1, -1, 1, 2)
    boxes = scenes.boxes[:, None]
    sides = torch.cat([centre - boxes[..., :2], boxes[..., 2:] - centre], -1)
    inside = (sides > 0).all(-1) & (scenes.classes >= 0)[:, None]
    area = (boxes[..., 2:] - boxes[..., :2]).prod(-1).expand(inside.shape).masked_fill(~inside, torch.inf)
    chosen = area.argmin(2, keepdim=True)
    owner = scenes.classes[:, None].expand(inside.shape).gather(2, chosen).masked_fill(~inside.any(2, True), CLASSES)
    return owner[..., 0], sides.gather(2, chosen[..., None].expand(-1, -1, -1, 4))[:, :, 0] / 16


def presence(classes: Tensor) -> Tensor:
    """The scene's objects as a distribution over classes: ``(B, CLASSES)``, each row summing to 1."""
    target = torch.zeros(len(classes), CLASSES + 1)
    target.scatter_add_(1, classes.masked_fill(classes < 0, CLASSES), torch.ones(len(classes), OBJECTS))
    target = target[:, :CLASSES]
    return target / target.sum(1, keepdim=True).clamp(min=1)


def optimizers(model: nn.Module, readouts: nn.Module) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the blocks, AdamW for the rest."""
    matrices = [p for name, p in model.named_parameters() if name.startswith("blocks") and p.ndim == 2]
    inside = {id(p) for p in matrices}
    rest = [p for p in model.parameters() if id(p) not in inside]
    groups = [{"params": rest}, {"params": list(readouts.parameters())}]
    return [
        torch.optim.Muon(matrices, lr=3e-3, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98), weight_decay=0.02),
    ]


def rate(step: int, steps: int, warmup: int = 200, decay: float = 0.3) -> float:
    """Warm-up, a plateau, and a linear decay over the last 30 % of the steps."""
    return min(1.0, (step + 1) / warmup, (steps - step) / (decay * steps))


class Training:
    """Model, readouts, optimizers and average, with everything needed to go on after an interruption."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.model = micro(pretrained=False)
        for block in self.model.blocks:
            block.attn.fused_attn = False  # the fused kernel's bfloat16 backward is 3 times slower on CPU
        self.readouts = Readouts(self.model.num_features)
        self.optimizers = optimizers(self.model, self.readouts)
        self.base = [[group["lr"] for group in optimizer.param_groups] for optimizer in self.optimizers]
        self.average = {name: value.clone() for name, value in self.model.state_dict().items()}
        self.maker = SceneMaker(seed)
        self.step = 0

    def update(self, scenes: Scenes, factor: float) -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            losses = self.readouts(self.model.forward_features(scenes.images * 2 - 1), scenes)
        sum(WEIGHTS[name] * loss for name, loss in losses.items()).backward()
        nn.utils.clip_grad_norm_([*self.model.parameters(), *self.readouts.parameters()], 1.0)
        for optimizer, base in zip(self.optimizers, self.base, strict=True):
            for group, lr in zip(optimizer.param_groups, base, strict=True):
                group["lr"] = lr * factor
            optimizer.step()
            optimizer.zero_grad()
        self.step += 1
        momentum = min(0.997, self.step / (self.step + 10))
        for name, value in self.model.state_dict().items():
            self.average[name].lerp_(value, 1 - momentum)
        return losses

    def state(self) -> dict:
        return {
            "step": self.step,
            "generator": self.maker.generator.get_state(),
            "average": self.average,
            "modules": [self.model.state_dict(), self.readouts.state_dict()],
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
        }

    def restore(self, state: dict) -> None:
        self.step, self.average = state["step"], state["average"]
        self.maker.generator.set_state(state["generator"])
        for module, saved in zip((self.model, self.readouts), state["modules"], strict=True):
            module.load_state_dict(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)


def write(average: dict[str, Tensor], path: Path) -> str:
    """Write the weights and give their sha256."""
    data = save({name: value.contiguous() for name, value in average.items()})
    path.write_bytes(data)
    return hashlib.sha256(data).hexdigest()


def train(options: argparse.Namespace) -> None:
    training = Training(options.seed)
    if options.state.exists():
        training.restore(torch.load(options.state, weights_only=True))
    started, running = time.monotonic(), {}
    while training.step < options.steps:
        losses = training.update(training.maker(options.batch), rate(training.step, options.steps))
        for name, loss in losses.items():
            running[name] = 0.98 * running.get(name, loss.item()) + 0.02 * loss.item()
        if training.step % 100 == 0:
            shown = " ".join(f"{name} {value:.3f}" for name, value in running.items())
            print(f"{training.step} {time.monotonic() - started:.0f}s {shown}", flush=True)
        if training.step % 500 == 0 or training.step == options.steps:
            torch.save(training.state(), options.state)
            print(training.step, "sha256", write(training.average, options.out), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("micro.safetensors"))
    parser.add_argument("--state", type=Path, default=Path("pretrain_state.pt"), help="where to save, and go on from")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    train(options)


if __name__ == "__main__":
    main()
