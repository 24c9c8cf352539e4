"""timm backbones: made by name, described, hashed. Never forked, never edited in value."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import timm
import timm.data
import torch
from torch import Tensor, nn

from mtpeft.backbone.features import ImageConfig
from mtpeft.backbone.weights_file import read_weights
from mtpeft.errors import MtpeftError, UsageError, did_you_mean
from mtpeft.plugins import registry, resolve

NORMALIZATIONS = {
    "imagenet": (timm.data.IMAGENET_DEFAULT_MEAN, timm.data.IMAGENET_DEFAULT_STD),
    "inception": (timm.data.IMAGENET_INCEPTION_MEAN, timm.data.IMAGENET_INCEPTION_STD),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}
"""Mean and std by the names that protocols give them; published tables differ by which one they took."""

_TIMMS_OWN = {*inspect.signature(timm.create_model).parameters, "num_classes", "img_size", "features_only"}
"""Arguments that are not the architecture's, ``checkpoint_path`` among them, which timm would load by itself."""

_LARGEST_SIDE = 2**14
"""Pixels: position embeddings are allocated for the size that a file asks for."""


@dataclass
class Backbone:
    """A pre-trained model with what must be recorded of it.

    Attributes:
        module: a timm model without classifier.
        image: how it wants its images.
        name: ``arch.tag`` (timm's bare names move from tag to tag, so the tag is always written out).
        sha256: hash of its weights and buffers.
    """

    module: nn.Module
    image: ImageConfig
    name: str
    sha256: str


def create_backbone(
    name: str,
    *,
    weights: str | Path | None = None,
    image_size: int | tuple[int, int] | None = None,
    pretrained: bool = True,
    options: Mapping[str, Any] | None = None,
    normalization: str = "backbone",
) -> Backbone:
    """Make a backbone by its registered or timm name.

    Args:
        name: ``micro``, a plugin's, or ``arch.tag`` of timm.
        weights: a local file of weights for a timm model, read by `read_weights`; without it timm asks its hub.
        image_size: pixels, one number or (height, width); default: the backbone's own.
        pretrained: False for random weights, from torch's global generator.
        options: further arguments of ``timm.create_model``, e.g. ``{"pad_type": "same"}``.
        normalization: mean and std of images: the ``backbone``'s own, or those that `NORMALIZATIONS` names.

    Raises:
        UsageError: for an unknown name or option.
        MtpeftError: where weights are missing, corrupt, of another model, or pickled objects.
    """
    size = (image_size, image_size) if isinstance(image_size, int) else image_size
    if size and not 1 <= min(size) <= max(size) <= _LARGEST_SIDE:
        raise UsageError(
            f"image_size = {image_size} is no size of images", hint=f"sides have 1 to {_LARGEST_SIDE} pixels"
        )
    if name in registry("backbones"):
        if weights is not None or options:
            what = "weights" if weights is not None else "options"
            raise UsageError(f'backbone "{name}" brings its own {what}', hint=f"leave {what} out, or name a timm model")
        module = resolve("backbones", name)(image_size=size, pretrained=pretrained)
    else:
        module = _from_timm(name, weights, size, pretrained, dict(options or {}))
    found = describe(module, size)
    if normalization == "backbone":
        return found
    mean, std = NORMALIZATIONS[normalization]
    return replace(found, image=replace(found.image, mean=mean, std=std))


def describe(module: nn.Module, image_size: tuple[int, int] | None = None) -> Backbone:
    """A `Backbone` of a timm model that the user already holds."""
    config = timm.data.resolve_model_data_config(module)
    embedded = getattr(getattr(module, "patch_embed", None), "img_size", None)
    height, width = image_size or embedded or config["input_size"][1:]
    image = ImageConfig((height, width), config["mean"], config["std"], config["interpolation"])
    return Backbone(module, image, full_name(module), state_sha256(module.state_dict()))


def full_name(module: nn.Module) -> str:
    """``arch.tag`` of a timm model."""
    config = getattr(module, "pretrained_cfg", None) or {}
    name, tag = config.get("architecture") or type(module).__name__, config.get("tag")
    return f"{name}.{tag}" if tag else name


def state_sha256(state: Mapping[str, Tensor]) -> str:
    """Hash of all parameters and persistent buffers, by name, shape, type and value, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype};".encode())
        if not tensor.is_meta:
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _from_timm(
    name: str, weights: str | Path | None, size: tuple[int, int] | None, pretrained: bool, chosen: dict[str, Any]
) -> nn.Module:
    _check_name(name, weights)
    _check_options(chosen)
    own: dict[str, Any] = {"num_classes": 0, "pretrained": pretrained}
    if weights is not None and pretrained:  # timm filters and resizes a state dict as it does its own files
        own["pretrained_cfg_overlay"] = {"state_dict": read_weights(Path(weights)), "custom_load": False}
    try:
        made: Any = _sized(name, size, chosen | own)
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        raise _no_weights(name, weights, pretrained, error) from error
    except Exception as error:  # safetensors and hub clients raise types of their own
        if chosen and isinstance(error, TypeError):
            raise UsageError(f"{name} cannot be built with {chosen}: {error}", hint="see timm.create_model") from None
        if not pretrained:
            raise
        raise _no_weights(name, weights, pretrained, error) from error
    cast("dict[str, Any]", made.pretrained_cfg).pop("state_dict", None)
    return made


def is_elsewhere(name: str) -> bool:
    """Whether a backbone's name says where its files are: in a folder, or at a hub."""
    return ":" in name or "/" in name


def _check_name(name: str, weights: str | Path | None) -> None:
    """
    Raises:
        UsageError: for a name that neither a plugin nor timm has, and a hub's name beside a file of weights.
    """
    known = [*registry("backbones"), *timm.list_models()]
    if name.split(".")[0] not in known and not is_elsewhere(name):
        raise UsageError(f'there is no backbone "{name}"', hint=_closest(name, known))
    if weights is not None and is_elsewhere(name):
        raise UsageError(
            f'"{name}" says where its weights are, and so does weights = "{weights}"',
            hint="beside a file of weights, name an architecture of timm",
        )


def _check_options(chosen: Mapping[str, Any]) -> None:
    """Options go to the architecture; where weights come from, and what else timm does, they do not say.

    Raises:
        UsageError: for an argument of ``timm.create_model`` itself.
    """
    for option in chosen:
        if option in _TIMMS_OWN or option.startswith("pretrained"):
            raise UsageError(f"{option} is no option of the backbone", hint="say it by weights and image_size")


def _sized(name: str, size: tuple[int, int] | None, options: dict) -> nn.Module:
    """Build at an image size where the architecture has one; convolutional ones take any size as they are."""
    if size is None:
        return timm.create_model(name, **options)
    try:
        return timm.create_model(name, img_size=size, **options)
    except TypeError as error:
        if "img_size" not in str(error):
            raise
        return timm.create_model(name, **options)


def _no_weights(name: str, weights: str | Path | None, pretrained: bool, error: Exception) -> MtpeftError:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if weights is not None:
        return MtpeftError(
            f'"{weights}" does not hold weights for {name}: {reason}',
            hint="check that file and backbone belong together",
        )
    if pretrained:
        return MtpeftError(
            f"the weights of {name} could not be loaded: {reason}",
            hint="without a network, give a local file: --weights FILE",
        )
    return MtpeftError(f"{name} cannot be built: {reason}", hint="see `mtpeft sites NAME` with another backbone")


def _closest(name: str, known: list[str]) -> str:
    hint = did_you_mean(name, known)
    return hint if len(hint) < 200 else hint.split("There is:")[0].strip() or "timm.list_models() has the names"
