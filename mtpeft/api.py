"""What plugins import: the contracts of methods, tasks, schedules, balancers and backbones, and nothing else of mtpeft.

Everything is loaded when first used, so importing this module imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_WHERE = {
    "mtpeft.errors": ["DataError", "MtpeftError", "NotApplicable", "UsageError", "did_you_mean"],
    "mtpeft.hookspecs": ["API_VERSION", "hookimpl"],
    "mtpeft.backbone.features": ["Features", "FeaturesInfo", "ImageConfig"],
    "mtpeft.backbone.pyramid": ["FeaturePyramid"],
    "mtpeft.plugins": ["resolve"],
    "mtpeft.peft.keyed": ["Keyed"],
    "mtpeft.peft.method": ["SHARED", "Context", "Method"],
    "mtpeft.peft.parts": [
        "InputPart", "KeyValuePart", "LowRankPart", "OutputPart", "Part", "PerTask", "SidePart", "TokenPart",
        "WeightPart", "zeros",
    ],
    "mtpeft.peft.route": ["Route", "Segment", "TokenLayout"],
    "mtpeft.peft.sites": ["Site"],
    "mtpeft.schedule": ["Batch", "Begin", "End", "Evaluate", "Event", "Schedule", "TaskSize", "Update"],
    "mtpeft.balancing": ["Balancer"],
    "mtpeft.task": ["Dataset", "Head", "Metric", "Sample", "Score", "Task"],
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
