"""The embedded backbone: its file, its size, its numbers, and that timm is left alone."""

from __future__ import annotations

import hashlib

import pytest
import timm
import torch

from mtpeft.backbone import micro as module
from mtpeft.errors import MtpeftError


@pytest.fixture(scope="module")
def model():
    return module.micro().eval()


@pytest.fixture
def images():
    """A fixed picture: a bright ring on a dark ramp, and its negative."""
    line = torch.linspace(-1, 1, 64)
    ring = (-(((line[None] ** 2 + line[:, None] ** 2).sqrt() - 0.5) ** 2) * 60).exp()
    picture = (ring * 1.5 + 0.3 * line - 0.6).clamp(-1, 1).expand(3, 64, 64)
    return torch.stack([picture, -picture])


def test_packaged_weights_match_their_hash_and_size():
    data = module.WEIGHTS.read_bytes()
    assert hashlib.sha256(data).hexdigest() == module.SHA256
    assert len(data) <= 6_000_000


def test_parameter_count_equals_the_closed_form(model):
    width, blocks, patches = 144, 5, 64
    block = 12 * width**2 + 13 * width  # qkv, proj, two MLP matrices; their biases (3+1+4+1) and two norms (4)
    rest = (3 * 64 + 1) * width + width + (patches + 1) * width + 2 * width
    assert sum(p.numel() for p in model.parameters()) == blocks * block + rest


def test_features_are_finite_and_of_the_right_shape(model, images):
    tokens = model.forward_features(images)
    assert tokens.shape == (2, 65, 144)
    assert model(images).shape == (2, 144)
    assert tokens.isfinite().all()


def test_same_numbers_as_when_released(model, images):
    with torch.inference_mode():
        pooled = model(images)
    torch.testing.assert_close(pooled[:, :4], torch.tensor(GOLDEN), atol=2e-4, rtol=1e-3)


GOLDEN = [[-0.0301, -0.5235, -1.1545, 0.5908], [0.1591, -0.4906, -1.1745, 0.6813]]


def test_random_twin_has_the_same_keys_and_other_values(model):
    random = module.micro(pretrained=False)
    assert random.state_dict().keys() == model.state_dict().keys()
    assert not torch.equal(random.blocks[0].attn.qkv.weight, model.blocks[0].attn.qkv.weight)
    assert random.pretrained_cfg["tag"] == "random"
    assert model.pretrained_cfg["tag"] == "procedural"


@pytest.mark.parametrize("size", [(96, 64), (32, 32)])
def test_other_image_sizes_resample_the_positions(size):
    model = module.micro(image_size=size).eval()
    patches = size[0] * size[1] // 64
    assert model.forward_features(torch.zeros(1, 3, *size)).shape == (1, 1 + patches, 144)


def test_a_size_that_patches_do_not_fit_is_refused():
    with pytest.raises(MtpeftError, match="60 x 64") as caught:
        module.micro(image_size=(60, 64))
    assert "56 x 64" in caught.value.hint


def test_damaged_weights_are_refused(monkeypatch, tmp_path):
    damaged = tmp_path / "micro.safetensors"
    damaged.write_bytes(module.WEIGHTS.read_bytes()[:-1] + b"\0")
    monkeypatch.setattr(module, "WEIGHTS", damaged)
    with pytest.raises(MtpeftError, match="damaged") as caught:
        module.micro()
    assert "install mtpeft again" in caught.value.hint


def test_missing_weights_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "WEIGHTS", tmp_path / "none.safetensors")
    with pytest.raises(MtpeftError, match="cannot be read") as caught:
        module.micro()
    assert caught.value.hint == "install mtpeft again"


def test_timm_registry_is_untouched(model):
    assert not timm.list_models("*micro_vit*")
    assert not timm.is_model(model.pretrained_cfg["architecture"])
