"""Levels of the pyramid: widths and sizes for every kind of backbone, and strides that cannot be made."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mtpeft.backbone.features import Features, FeaturesInfo
from mtpeft.backbone.pyramid import FeaturePyramid
from mtpeft.errors import UsageError


def plain(stride: int, channels: int = 16, maps: int = 1, side: int = 64) -> FeaturesInfo:
    return FeaturesInfo(channels, (channels,) * maps, (stride,) * maps, 1, (side, side))


def hierarchical(*strides: int, side: int = 64) -> FeaturesInfo:
    channels = tuple(8 * (1 + index) for index in range(len(strides)))
    return FeaturesInfo(channels[-1], channels, strides, 0, (side, side))


def features(info: FeaturesInfo, sizes: list[tuple[int, int]], batch: int = 2) -> Features:
    maps = tuple(torch.randn(batch, c, *size) for c, size in zip(info.channels, sizes, strict=True))
    return Features(torch.randn(batch, info.pooled), maps)


def sizes(levels: list[torch.Tensor]) -> list[tuple[int, int]]:
    return [tuple(level.shape[-2:]) for level in levels]


@settings(max_examples=25, deadline=None)
@given(
    stride=st.sampled_from([8, 14, 16]),
    rows=st.integers(1, 9),
    columns=st.integers(1, 9),
    octaves=st.sets(st.integers(-3, 3), min_size=1),
)
def test_levels_of_a_plain_backbone_double_exactly_and_halve_upwards(stride, rows, columns, octaves):
    octaves = sorted(level for level in octaves if stride * 2.0**level % 1 == 0)
    if not octaves:
        return
    info = plain(stride)
    pyramid = FeaturePyramid(info, 8, [int(stride * 2.0**level) for level in octaves])
    levels = pyramid(features(info, [(rows, columns)]))
    assert sizes(levels) == [
        (rows * 2**-level, columns * 2**-level) if level <= 0 else (-(-rows // 2**level), -(-columns // 2**level))
        for level in octaves
    ]
    assert {level.shape[:2] for level in levels} == {(2, 8)}


@settings(max_examples=25, deadline=None)
@given(height=st.integers(33, 300), width=st.integers(33, 300))
def test_levels_of_a_hierarchical_backbone_keep_the_sizes_of_its_maps(height, width):
    info = hierarchical(4, 8, 16, 32)
    own = [(-(-height // s), -(-width // s)) for s in info.strides]
    levels = FeaturePyramid(info, 8, (8, 16, 32, 64, 128))(features(info, own))
    coarser = [(-(-own[-1][0] // by), -(-own[-1][1] // by)) for by in (2, 4)]
    assert sizes(levels) == [*own[1:], *coarser]
    assert {level.shape[1] for level in levels} == {8}


@pytest.mark.parametrize(
    ("info", "strides"),
    [
        (plain(8), (4, 8, 16)),
        (plain(14), (7, 14, 28)),
        (plain(16, maps=3), (8, 16, 32)),
        (plain(7), (7, 14)),
        (hierarchical(4, 8, 16, 32), (8, 16, 32)),
        (hierarchical(2, 4, 8, 16, 32), (8, 16, 32)),
        (hierarchical(16, 32, 64), (16, 32)),
        (hierarchical(2, 4), (2, 4)),
    ],
)
def test_default_strides(info, strides):
    assert FeaturePyramid(info, 8).strides == strides == FeaturePyramid.default_strides(info)


def test_strides_are_sorted_and_counted_once():
    assert FeaturePyramid(plain(8), 8, (16, 8, 16)).strides == (8, 16)


def test_a_plain_pyramid_reads_the_last_map_alone():
    info = plain(8, maps=2)
    one = features(info, [(4, 4), (4, 4)])
    other = Features(one.pooled, (torch.zeros_like(one.maps[0]), one.maps[1]))
    pyramid = FeaturePyramid(info, 8)
    for level, same in zip(pyramid(one), pyramid(other), strict=True):
        assert torch.equal(level, same)


def test_the_deepest_map_of_a_stride_is_used():
    info = hierarchical(8, 16, 16)
    given_ = features(info, [(8, 8), (4, 4), (4, 4)])
    changed = Features(given_.pooled, (given_.maps[0], given_.maps[1] + 1, given_.maps[2]))
    pyramid = FeaturePyramid(info, 8)
    for level, same in zip(pyramid(given_), pyramid(changed), strict=True):
        assert torch.equal(level, same)


@pytest.mark.parametrize("info", [plain(8), hierarchical(4, 8, 16, 32)], ids=["plain", "hierarchical"])
def test_samples_do_not_meet_and_every_parameter_is_used(info):
    batch = features(info, [(64 // s, 64 // s) for s in info.strides], batch=3)
    pyramid = FeaturePyramid(info, 8)
    together = pyramid(batch)
    for index in range(3):
        for level, alone in zip(together, pyramid(batch[index : index + 1]), strict=True):
            torch.testing.assert_close(level[index : index + 1], alone)
    sum((level * torch.randn_like(level)).sum() for level in together).backward()
    assert all(parameter.grad.abs().max() > 0 for parameter in pyramid.parameters())


@pytest.mark.parametrize(
    ("info", "strides", "wrong"),
    [
        (plain(16), (8, 12), 12),
        (plain(14), (8,), 8),
        (plain(8), (0,), 0),
        (plain(8), (-8,), -8),
        (hierarchical(8, 16, 32), (4, 8), 4),
        (hierarchical(8, 32), (8, 16, 32), 16),
        (hierarchical(8, 16, 32), (16, 32, 96), 96),
        (hierarchical(8, 16), (64,), 64),
    ],
)
def test_strides_that_cannot_be_made_are_named(info, strides, wrong):
    with pytest.raises(UsageError, match=f"^A feature map of stride {wrong} cannot be made") as caught:
        FeaturePyramid(info, 8, strides)
    assert str(info.strides[-1]) in caught.value.message
    assert "doubling" in caught.value.hint
