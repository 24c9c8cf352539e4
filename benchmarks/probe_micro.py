"""What the frozen micro backbone's features hold: linear probes on scenes of real digits, beside random weights.

    python benchmarks/probe_micro.py

Fitted on the training scenes, measured on the validation scenes; the test scenes are not looked at.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from mtpeft.backbone.micro import micro
from mtpeft_tasks.digits import Digits

SCENES = {"cls": 640, "seg": 400}


def images_of(data: Digits, count: int) -> Tensor:
    """The first ``count`` images as ``(N, 3, 64, 64)`` in [-1, 1]."""
    images = np.stack([np.asarray(data[index].image) for index in range(min(count, len(data)))])
    return torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1


@torch.inference_mode()
def tokens(model: nn.Module, images: Tensor) -> Tensor:
    """``(N, 1 + 64, C)``, the class token first."""
    return torch.cat([model.forward_features(part) for part in images.split(100)])


def digit(model: nn.Module) -> float:
    """Accuracy of which digit, from the class token."""
    inputs, labels = {}, {}
    for split in ("train", "val"):
        data = Digits("cls", split)
        inputs[split] = tokens(model, images_of(data, SCENES["cls"]))[:, 0].numpy()
        labels[split] = [data[index].target["label"] for index in range(len(inputs[split]))]
    return _fit(inputs, labels)


def patch(model: nn.Module) -> tuple[float, float]:
    """Balanced accuracy of which digit (or none) a patch shows, and IoU of ink per pixel, from patch tokens."""
    inputs, labels, ink = {}, {}, {}
    for split in ("train", "val"):
        data, kind = Digits("seg", split), SCENES["seg"]
        inputs[split] = tokens(model, images_of(data, kind))[:, 1:].flatten(0, 1).numpy()
        masks = torch.stack([data[index].target["mask"] for index in range(min(kind, len(data)))])
        cells = F.pixel_unshuffle(masks[:, None].float(), 8).flatten(2).transpose(1, 2).flatten(0, 1)  # (N * 64, 64)
        labels[split] = torch.stack([(cells == value).sum(1) for value in range(1, 11)], 1)
        labels[split] = torch.where(labels[split].sum(1) < 8, 0, labels[split].argmax(1) + 1).numpy()
        ink[split] = (cells > 0).numpy()
    return _fit(inputs, labels, balanced=True), _ink(inputs, ink)


def _fit(inputs: dict, labels: dict, balanced: bool = False) -> float:
    probe = make_pipeline(StandardScaler(), LogisticRegression(C=0.1, max_iter=200))
    right = probe.fit(inputs["train"], labels["train"]).predict(inputs["val"]) == np.asarray(labels["val"])
    if not balanced:
        return float(right.mean())
    return float(np.mean([right[np.asarray(labels["val"]) == value].mean() for value in np.unique(labels["val"])]))


def _ink(inputs: dict, ink: dict) -> float:
    """Least squares from tokens to pixels, thresholded: intersection over union of ink."""
    ones = {split: np.hstack([values, np.ones((len(values), 1), np.float32)]) for split, values in inputs.items()}
    weights = np.linalg.lstsq(ones["train"], ink["train"].astype(np.float32), rcond=None)[0]
    found, true = ones["val"] @ weights > 0.4, ink["val"]
    return float((found & true).sum() / (found | true).sum())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="weights to measure in place of the packaged ones")
    options = parser.parse_args()
    model = micro(pretrained=options.weights is None)
    if options.weights:
        model.load_state_dict(load_file(options.weights))
    print("| weights | digit of the scene | digit of the patch (balanced) | ink IoU |\n|---|--:|--:|--:|")
    for name, module in (("pre-trained", model), ("random", micro(pretrained=False))):
        balanced, iou = patch(module.eval())
        print(f"| {name} | {digit(module):.3f} | {balanced:.3f} | {iou:.3f} |", flush=True)


if __name__ == "__main__":
    main()
