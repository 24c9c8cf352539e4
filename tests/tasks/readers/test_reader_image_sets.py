"""PASCAL-Context and NYUD-v2 as several tasks on one path."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.io import savemat
from support import image_set_samples
from support.image_set_samples import SIZE, annotation, box, save, struct, texts

from mtpeft.api import DataError, UsageError, open_data
from mtpeft.cli import main
from mtpeft.data.reader import open_reader
from mtpeft.plugins import create
from mtpeft_tasks.readers.nyud import CLASSES as INDOOR
from mtpeft_tasks.readers.pascal_context import CLASSES, PARTS, borders

WIDE = (40, 30)


@pytest.fixture
def pascal(tmp_path) -> Path:
    return image_set_samples.pascal(tmp_path / "PASCAL_MT")


@pytest.fixture
def nyud(tmp_path) -> Path:
    return image_set_samples.nyud(tmp_path / "NYUD_MT")


def first(data: str, gives: str, split: str = "train") -> torch.Tensor:
    return open_data(data, split, gives=gives)[0].target[gives]


def test_splits_are_the_published_ones_with_validation_out_of_training(pascal, nyud):
    for data in (f"pascal-context:{pascal}", f"nyud:{nyud}"):
        splits = {split: open_data(data, split, gives="mask") for split in ("train", "val", "test")}
        shown = {split: {found[index].name for index in range(len(found))} for split, found in splits.items()}
        assert {split: len(names) for split, names in shown.items()} == {"train": 11, "val": 1, "test": 4}
        assert len(set.union(*shown.values())) == 16


def test_every_kind_of_label_is_held_out_alike(pascal):
    data = f"pascal-context:{pascal}"
    names = [open_data(data, "val", gives=gives, seed=3)[0].name for gives in ("mask", "saliency", "normals", "edges")]
    assert len(set(names)) == 1


def test_pascal_semantic(pascal):
    data = open_data(f"pascal-context:{pascal}", "test", gives="mask")
    assert data.classes == CLASSES and len(CLASSES) == 21 and CLASSES[15] == "person"
    for index in range(4):
        mask = data[index].target["mask"]
        assert (mask[0] == 255).all() and mask[12, 12] == 15 and mask[25, 30] == 0 and mask.dtype == torch.uint8


def test_classes_that_are_not_asked_for_are_ignored(pascal):
    data = open_data(f"pascal-context:{pascal}", "test", gives="mask", classes=("person", "cat"))
    assert data.classes == ("cat", "person")
    assert data[0].target["mask"].unique().tolist() == [1, 255]
    with pytest.raises(UsageError, match='no class "hovercraft"'):
        open_data(f"pascal-context:{pascal}", "test", gives="mask", classes=("hovercraft",))


def test_pascal_parts(pascal):
    data = open_data(f"pascal-context:{pascal}?labels=parts", "test", gives="mask")
    assert data.classes == ("background", *PARTS) and len(data.classes) == 7
    masks = [data[index].target["mask"] for index in range(len(data))]
    persons = [mask for mask in masks if mask[12, 12] == 1]
    assert len(masks) == 4 and len(persons) == 2
    assert persons[0][17, 7] == 3 and persons[0][0, 0] == 0  # an upper arm over the head
    assert all((mask == 255).all() for mask in masks if mask[12, 12] != 1)


def test_every_part_of_a_person_has_a_place():
    joined = [small for parts in PARTS.values() for small in parts]
    assert len(joined) == len(set(joined)) == 24


def test_images_without_a_person_are_left_out_where_a_list_says_so(pascal):
    kinds = {f"2008_{number:06}": [15, -1] if number % 2 == 0 else [8] for number in range(16)}
    for name in ("train", "val"):
        texts(pascal / "ImageSets" / "Parts", **{name: [json.dumps(kinds)]})
    data = open_data(f"pascal-context:{pascal}?labels=parts", "test", gives="mask")
    assert len(data) == 2 and all(data[index].target["mask"][12, 12] == 1 for index in range(2))


def test_pascal_saliency_starts_at_the_middle_grey(pascal):
    assert torch.equal(first(f"pascal-context:{pascal}", "saliency"), torch.from_numpy(box()))


def test_pascal_normals_are_of_classes_to_be_trusted(pascal):
    normals = first(f"pascal-context:{pascal}", "normals")
    assert normals.shape == (3, *SIZE) and normals.dtype == torch.float32
    assert torch.allclose(normals[:, 12, 12], torch.tensor([1.0, 0, 0]), atol=0.01)
    assert not normals[:, 25].any()


def test_pascal_edges_are_the_borders_of_regions(pascal):
    edges = first(f"pascal-context:{pascal}", "edges")
    assert edges.dtype == torch.uint8 and set(edges.unique().tolist()) == {0, 1}
    assert edges[12].nonzero().flatten().tolist() == [4, 24] and edges[:, 12].nonzero().flatten().tolist() == [9, 19]


def test_borders_are_one_pixel_wide():
    assert borders(np.array([[1, 1, 2], [1, 1, 2], [3, 3, 3]])).tolist() == [[0, 1, 0], [1, 1, 1], [0, 0, 0]]


def test_nyud(nyud):
    data = open_data(f"nyud:{nyud}", "train", gives="mask")
    assert data.classes == INDOOR and len(INDOOR) == 40
    mask, depth, normals, edges = (first(f"nyud:{nyud}", gives) for gives in ("mask", "depth", "normals", "edges"))
    assert mask[12, 12] == 39 and mask[0, 0] == 255
    assert depth[12, 12] == 2.5 and depth[0, 0] == 0 and depth.dtype == torch.float32
    assert normals[:, 12, 12].tolist() == [1, 0, 0] and normals.shape == (3, *SIZE)
    assert edges[12, 12] == 1 and edges.dtype == torch.uint8


def test_depth_with_a_last_axis_is_taken(nyud):
    for file in (nyud / "depth").iterdir():
        np.save(file, np.load(file)[..., None])
    assert first(f"nyud:{nyud}", "depth").shape == SIZE


def test_one_folder_serves_several_tasks(pascal, tmp_path, capsys):
    """Five tasks, one of them twice of one type, trained in one mixed batch for two updates, each with its metric."""
    recipe = tmp_path / "recipe.toml"
    kinds = {"semantic": "seg", "parts": "seg", "saliency": "saliency", "normals": "normals", "edges": "edges"}
    options = {"parts": "?labels=parts"}
    stanzas = [
        f'[tasks.{name}]\ntype = "{kind}"\ndata = "pascal-context:{pascal}{options.get(name, "")}"\nbatch_size = 2\n'
        for name, kind in kinds.items()
    ]
    recipe.write_text("\n".join(stanzas))
    flags = ["--method", "lora", "--steps", "2", "--out", str(tmp_path / "run"), "--quiet", "--json"]
    assert main(["train", str(recipe), *flags]) == 0
    tasks = json.loads(capsys.readouterr().out)["tasks"]
    assert {name: (task["metric"], task["higher_is_better"]) for name, task in tasks.items()} == {
        "semantic": ("mIoU", True),
        "parts": ("mIoU", True),
        "saliency": ("maxF", True),
        "normals": ("mErr", False),
        "edges": ("odsF", True),
    }


def test_manifest_follows_the_files(pascal):
    data = f"pascal-context:{pascal}"
    before = open_data(data, "test", gives="mask").manifest()
    assert before["count"] == 4 and before["classes"] == list(CLASSES)
    assert before["sha256"] != open_data(data, "test", gives="edges").manifest()["sha256"]
    save(pascal / "semseg" / "VOC12" / "2008_000012.png", np.random.default_rng(0).integers(0, 20, SIZE, np.uint8))
    assert open_data(data, "test", gives="mask").manifest()["sha256"] != before["sha256"]


def test_a_glance_tells_them_apart(pascal, nyud):
    names = ("pascal-context", "nyud", "masks", "voc", "folder")
    readers = {name: create("readers", name, {}, where=name) for name in names}
    assert [name for name, reader in readers.items() if reader.recognises(pascal)] == ["pascal-context"]
    assert "nyud" in [name for name, reader in readers.items() if reader.recognises(nyud)]
    assert not readers["pascal-context"].recognises(nyud)


TEST_IMAGE = "2008_000012"


def write(name: str, content: bytes) -> Callable[[Path], object]:
    return lambda root: (root / name).write_bytes(content)


def remove(name: str) -> Callable[[Path], object]:
    return lambda root: (root / name).unlink()


PASCAL_WRONG = [
    ("mask", remove("ImageSets/Context/train.txt"), r'list ".*train.txt" does not exist'),
    ("mask", remove(f"JPEGImages/{TEST_IMAGE}.jpg"), f'has no image "{TEST_IMAGE}"'),
    ("mask", write("ImageSets/Context/val.txt", b"../../etc/passwd\n"), 'has no image "../../etc/passwd"'),
    ("edges", remove(f"pascal-context/trainval/{TEST_IMAGE}.mat"), rf'"{TEST_IMAGE}" has no labels: ".*mat" does not'),
    ("edges", write(f"pascal-context/trainval/{TEST_IMAGE}.mat", b"MATLAB 5.0 but not really"), "mat.* cannot be read"),
    ("saliency", write(f"sal_distill/{TEST_IMAGE}.png", b"nothing"), "png.* cannot be read: not an image"),
    ("normals", write(f"normals_distill/{TEST_IMAGE}.png", b""), "png.* cannot be read"),
]


@pytest.mark.parametrize(("gives", "spoil", "message"), PASCAL_WRONG)
def test_what_is_wrong_is_named(pascal, gives, spoil, message):
    spoil(pascal)
    with pytest.raises(DataError, match=message) as caught:
        open_data(f"pascal-context:{pascal}", "test", gives=gives)
    assert caught.value.hint


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"other": 1}, "no variable anno"),
        ({"anno": np.zeros((2, 2))}, "is no annotation of parts: "),
        (annotation(15, ("wing", box())), "is no annotation of parts: KeyError 'wing'"),
        (annotation(15, ("hair", np.ones((3, 3)))), "is no annotation of parts: IndexError"),
    ],
)
def test_annotations_of_parts_that_are_none(pascal, content, message):
    savemat(pascal / "human_parts" / f"{TEST_IMAGE}.mat", content)
    with pytest.raises(DataError, match=message):
        open_data(f"pascal-context:{pascal}?labels=parts", "test", gives="mask")


def test_an_annotation_without_objects_shows_no_part(pascal):
    nothing = {"anno": struct("imname objects", ("name", np.zeros((0, 0))))}
    savemat(pascal / "human_parts" / f"{TEST_IMAGE}.mat", nothing)
    data = open_data(f"pascal-context:{pascal}?labels=parts", "test", gives="mask")
    assert (data[0].target["mask"] == 255).all() and data[0].target["mask"].shape == SIZE


def test_a_list_of_persons_that_is_no_json(pascal):
    texts(pascal / "ImageSets" / "Parts", val=["{"])
    with pytest.raises(DataError, match=r'Parts/val.txt" cannot be read'):
        open_data(f"pascal-context:{pascal}?labels=parts", "test", gives="mask")


def test_a_value_beyond_the_classes(nyud):
    save(nyud / "segmentation" / "img_0012.png", box(41))
    with pytest.raises(DataError, match=r'img_0012.png" has the value 40, but there are 40 classes'):
        open_data(f"nyud:{nyud}", "test", gives="mask")


@pytest.mark.parametrize(
    ("values", "message"),
    [(np.zeros(3), "has the shape"), (np.array([[None]]), "cannot be read"), (np.full(SIZE, "a"), "has the shape")],
)
def test_arrays_that_are_no_maps(nyud, values, message):
    np.save(nyud / "depth" / "img_0012.npy", values)
    with pytest.raises(DataError, match=rf'img_0012.npy" {message}'):
        open_data(f"nyud:{nyud}", "test", gives="depth")


def test_labels_of_another_size_than_their_image(nyud):
    np.save(nyud / "depth" / "img_0012.npy", np.ones(WIDE))
    data = open_data(f"nyud:{nyud}", "test", gives="depth")
    with pytest.raises(DataError, match=r'img_0012.npy" is 30 x 40, its image 40 x 30'):
        data[0]


def test_a_split_without_any_label_is_refused(nyud):
    for file in (nyud / "depth").iterdir():
        np.save(file, np.zeros(SIZE))
    with pytest.raises(DataError, match='no labelled pixel for depth in the split "test"'):
        open_data(f"nyud:{nyud}", "test", gives="depth")


def test_a_reader_that_collects_goes_on_without_what_is_wrong(pascal):
    (pascal / "JPEGImages" / f"{TEST_IMAGE}.jpg").unlink()
    reader, path = open_reader(f"pascal-context:{pascal}")
    reader.found = []
    assert len(reader.read(path, "test", gives="mask", seed=0)) == 3 and len(reader.found) == 1


def test_a_target_that_there_is_not(nyud):
    with pytest.raises(UsageError, match='reader "nyud" gives no boxes'):
        open_data(f"nyud:{nyud}", "train", gives="boxes")
