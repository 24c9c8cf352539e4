"""Trained parameters of the addition-based methods on ViT-B/16, by closed forms; and the shapes that make them up."""

from __future__ import annotations

import pytest

from mtpeft.commands.count import count

D, L = 768, 12
ROWS = [
    ("adapter-pfeiffer", "hidden=8", 156768),
    ("adapter-pfeiffer", "hidden=16", 304320),
    ("adapter-pfeiffer", "hidden=64", 1189632),
    ("adapter-houlsby", "hidden=8", 313536),
    ("adapter-plus", "hidden=8", 165984),
    ("adapter-plus", "hidden=16", 313536),
    ("adapter-plus", "hidden=32", 608640),
    ("convpass", "hidden=8", 327552),
    ("convpass", "hidden=8 at=attn", 163776),
    ("sct", "channels=96", 111744),
    ("mona", "hidden=64", 2684928),
    ("vp", "width=30", 69840),
    ("prefix", "tokens=10", 184320),
    ("prefix", "tokens=20", 368640),
    ("e2vpt", "tokens=5 key_values=5", 92160),
    ("vqt", "tokens=10", 92160),
    ("patt", "hidden=64", 2379264),
    ("dtl", "rank=2", 36864),
    ("dtl-plus", "rank=2 kernel=3", 43776),
    ("dtl-plus", "rank=2 kernel=4", 49152),
    ("dtl-plus", "rank=2 kernel=5", 56064),
    ("repadapter", "hidden=8 groups=2", 239808),
    ("repadapter", "hidden=8 groups=2 at=attn.qkv", 119904),
    ("adaptformer", "hidden=8", 156768),
    ("adaptformer", "hidden=64", 1189632),
    ("adaptformer", "hidden=8 ln_in=true", 175200),
    ("adaptformer", "hidden=64 ln_in=true", 1208064),
    ("vpt-shallow", "tokens=10", 7680),
    ("vpt-shallow", "tokens=50", 38400),
    ("vpt-shallow", "tokens=100", 76800),
    ("vpt-deep", "tokens=10", 92160),
    ("vpt-deep", "tokens=50", 460800),
    ("vpt-deep", "tokens=100", 921600),
    ("compacter", "hidden=24 terms=4 rank=1", 4**3 + 2 * L * (2 * (D // 4 + 24 // 4) * 4 + 24 + D)),
    ("bi-adapter", "hidden=32", 2 * D * 32 * L),
    ("lorand", "", 2 * L * (2 * (2 * 8 * (D + D // 2) + 8 * 8) + D + D // 2)),
    ("res-tuning", "hidden=8", 2 * L * (2 * D * 8 + 8 + D)),
    ("res-tuning", "tuner=prefix tokens=10", 2 * L * 2 * 10 * D),
    ("res-tuning", "tuner=prompt tokens=10", 2 * L * 10 * D),
]


@pytest.mark.parametrize(("method", "settings", "expected"), ROWS)
def test_count_is_the_closed_form(method, settings, expected):
    pairs = [f"methods.{method}.{pair}" for pair in settings.split()]
    assert count(method, "vit_base_patch16_224", settings=pairs)["parts"] == expected


@pytest.mark.parametrize(
    ("method", "backbone", "expected"),
    [
        ("mona", "swin_base_patch4_window7_224", 3667456),
        ("mona", "swin_large_patch4_window7_224", 5267712),
        ("adapter-houlsby", "swin_base_patch4_window7_224", 3107328),
        ("adapter-houlsby", "swin_large_patch4_window7_224", 4659456),
        ("lorand", "swin_base_patch4_window7_224", 1197312),
    ],
)
def test_published_counts_of_windowed_backbones(method, backbone, expected):
    settings = ["methods.adapter-houlsby.hidden=64"] if method == "adapter-houlsby" else []
    assert count(method, backbone, settings=settings)["parts"] == expected
