"""Real weights and real data sets beside the checkout, where there are any: every reader and every weights file."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch

from mtpeft import adapt, head
from mtpeft import backbone as backbones
from mtpeft.config import Overrides, load
from mtpeft.errors import DataError, MtpeftError
from mtpeft.plugins import resolve
from mtpeft.training.setup import setup

pytestmark = pytest.mark.shared_data

VIT = "vit_tiny_patch16_224.augreg_in21k_ft_in1k"
CNN = "mobilenetv2_100"
JOINT = Path(__file__).parents[1] / "tasks" / "recipes" / "pacs-bccd-camvid-joint.toml"


@pytest.fixture
def vit_file(shared_data):
    return shared_data / "weights" / f"{VIT}.safetensors"


def task(kind: str, data: str):
    return resolve("tasks", kind)(data=data)


def test_photographs(shared_data):
    photographs = task("cls", f"folder:{shared_data}/pacs/photo")
    train, val, test = (photographs.dataset(split) for split in ("train", "val", "test"))
    assert len(train) + len(val) == 350
    assert len(test) == 175
    assert train.classes == ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    assert train.manifest()["histogram"].keys() == set(train.classes)
    assert {train[0].image.mode, test[0].image.mode} == {"RGB"}


@pytest.mark.parametrize("domain", ["art_painting", "cartoon", "photo", "sketch"])
def test_every_domain_has_25_test_images_of_each_class(shared_data, domain):
    test = task("cls", f"folder:{shared_data}/pacs/{domain}").dataset("test")
    assert set(test.manifest()["histogram"].values()) == {25}


def test_a_split_of_train_is_disjoint_and_follows_the_seed(shared_data):
    photographs = task("cls", f"folder:{shared_data}/pacs/photo")
    held = [{entry.path for entry in photographs.dataset("val", seed=seed).entries} for seed in (0, 0, 1)]
    kept = {entry.path for entry in photographs.dataset("train", seed=0).entries}
    assert held[0] == held[1] != held[2]
    assert not kept & held[0]


def test_class_folders_in_split_folders(shared_data):
    small = task("cls", f"folder:{shared_data}/cifar10_small")
    assert len(small.dataset("test")) == 1000
    assert len(small.dataset("train")) + len(small.dataset("val")) == 3000
    assert len(small.dataset("train").classes) == 10


def test_cells(shared_data):
    cells = task("det", f"voc:{shared_data}/bccd?degenerate=skip")
    splits = {split: cells.dataset(split) for split in ("train", "val", "test")}
    assert {split: len(data) for split, data in splits.items()} == {"train": 205, "val": 87, "test": 72}
    shown = [data.manifest()["histogram"] for data in splits.values()]
    total = {name: sum(histogram[name] for histogram in shown) for name in shown[0]}
    assert total == {"Platelets": 361, "RBC": 4155 - 2, "WBC": 372}  # two red cells have no area


def test_a_box_without_area_is_an_error_that_names_the_file(shared_data):
    with pytest.raises(DataError, match=r"BloodImage_00(338|343)") as caught:
        for split in ("train", "val", "test"):
            task("det", f"voc:{shared_data}/bccd").dataset(split)
    assert "degenerate=skip" in caught.value.hint


def test_streets(shared_data):
    streets = task("seg", f"masks:{shared_data}/camvid")
    assert [len(streets.dataset(split)) for split in ("train", "val", "test")] == [367, 101, 233]
    sample = streets.dataset("val")[0]
    values = set(sample.target["mask"].unique().tolist())
    assert len(sample.target["classes"]) == 11
    assert values <= {*range(11), 255}
    assert sample.target["mask"].shape == (360, 480)


def test_the_vit_loads_at_its_own_and_at_another_size(vit_file):
    own = backbones.create_backbone(VIT, weights=vit_file)
    assert own.image.size == (224, 224)
    assert own.image.mean == own.image.std == (0.5, 0.5, 0.5)
    other = backbones.create_backbone(VIT, weights=vit_file, image_size=(256, 320))
    with torch.inference_mode():
        assert other.module(torch.zeros(1, 3, 256, 320)).shape == (1, 192)
    assert other.module.pos_embed.shape == (1, 1 + 16 * 20, 192)


def test_the_hash_tells_real_weights_from_random_ones(vit_file):
    again = backbones.create_backbone(VIT, weights=vit_file)
    assert backbones.create_backbone(VIT, weights=vit_file).sha256 == again.sha256
    assert backbones.create_backbone(VIT, pretrained=False).sha256 != again.sha256


def test_the_loaded_vit_is_timms_own(vit_file):
    mine = backbones.create_backbone(VIT, weights=vit_file).module.state_dict()
    overlay = {"file": str(vit_file)}
    timms = timm.create_model(VIT, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=0).state_dict()
    assert mine.keys() == timms.keys()
    assert all(torch.equal(mine[key], timms[key]) for key in mine)


def test_weights_of_another_model_are_refused(vit_file):
    with pytest.raises(MtpeftError, match="does not hold weights for vit_small"):
        backbones.create_backbone("vit_small_patch16_224", weights=vit_file)


def test_a_host_on_the_real_vit_begins_as_the_vit(vit_file):
    model = backbones.create_backbone(VIT, weights=vit_file).module.eval()
    images = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        before = model(images)
        host = adapt(model, "hydra-lora", {"pets": head("cls", ["cat", "dog"])}).eval()
        assert torch.equal(host(images, "pets").pooled, before)


def test_three_kinds_of_heads_on_a_convolutional_network(shared_data, tmp_path):
    weights = next((shared_data / "weights").glob(f"{CNN}*"))
    flags = {"--backbone": CNN, "--weights": weights, "--method": "lora", "--out": tmp_path / "run"}
    run = setup(load(JOINT, Overrides(flags, ["image_size=64"])), check_data=False)
    for name in run.tasks:
        run.meet(name)
        run.host.predict(torch.zeros(2, 3, 64, 64), name)
    assert set(run.host.heads) == {"pacs", "bccd", "camvid"}
