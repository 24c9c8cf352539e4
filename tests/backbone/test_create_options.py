"""What a backbone can be told beyond its name."""

from __future__ import annotations

import pytest

from mtpeft.backbone import create_backbone
from mtpeft.config import Overrides, load
from mtpeft.errors import UsageError
from mtpeft.training.run import Run
from mtpeft.training.setup import setup


def test_options_reach_timm() -> None:
    symmetric = create_backbone("mobilenetv2_035", pretrained=False, image_size=32)
    same = create_backbone("mobilenetv2_035", pretrained=False, image_size=32, options={"pad_type": "same"})
    assert type(symmetric.module.conv_stem).__name__ == "Conv2d"
    assert type(same.module.conv_stem).__name__ == "Conv2dSame"


def test_normalization_is_the_backbones_or_a_protocols() -> None:
    own = create_backbone("resnet10t", pretrained=False)
    assert own.image.mean == (0.485, 0.456, 0.406)
    half = create_backbone("resnet10t", pretrained=False, normalization="inception")
    assert (half.image.mean, half.image.std) == ((0.5,) * 3, (0.5,) * 3) and half.sha256 != ""
    none = create_backbone("micro", normalization="none")
    assert (none.image.mean, none.image.std) == ((0.0,) * 3, (1.0,) * 3)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("micro", {"pad_type": "same"}, "brings its own options"),
        ("resnet10t", {"num_classes": 3}, "num_classes is no option"),
        ("resnet10t", {"img_size": 3}, "img_size is no option"),
        ("resnet10t", {"depht": 3}, "depht"),
    ],
)
def test_options_that_cannot_be(name: str, options: dict, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        create_backbone(name, pretrained=False, options=options)


def test_random_weights_are_the_seeds_and_need_no_file() -> None:
    def made(*settings: str, backbone: str = "micro") -> Run:
        flags = {"--tasks": "cls", "--method": "bitfit", "--backbone": backbone, "--weights": "random"}
        return setup(load(None, Overrides(flags, settings)), check_data=False)

    one, same, other = made(), made(), made("seed=1")
    assert one.config.weights == "random" and one.backbone.name.endswith("random")
    assert one.backbone.sha256 == same.backbone.sha256 != other.backbone.sha256
    assert made(backbone="resnet10t").backbone.sha256


@pytest.mark.parametrize("channels", [1, 4])
def test_training_refuses_a_backbone_of_other_channels(channels: int) -> None:
    flags = {"--tasks": "cls", "--method": "bitfit", "--backbone": "resnet10t", "--weights": "random"}
    with pytest.raises(UsageError, match=f"images of {channels} channels"):
        setup(load(None, Overrides(flags, [f"backbone_options.in_chans={channels}"])), check_data=False)
