"""What plugins import: the contracts of methods, tasks, schedules, balancers and backbones, and nothing else of mtpeft.

Everything is loaded when first used, so importing this module imports no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mtpeft.backbone.extract import evaluating as evaluating
    from mtpeft.backbone.features import Features as Features
    from mtpeft.backbone.features import FeaturesInfo as FeaturesInfo
    from mtpeft.backbone.features import ImageConfig as ImageConfig
    from mtpeft.backbone.pyramid import FeaturePyramid as FeaturePyramid
    from mtpeft.balancing import Balancer as Balancer
    from mtpeft.data.reader import Reader as Reader
    from mtpeft.data.reader import open_data as open_data
    from mtpeft.errors import DataError as DataError
    from mtpeft.errors import MtpeftError as MtpeftError
    from mtpeft.errors import NotApplicable as NotApplicable
    from mtpeft.errors import UsageError as UsageError
    from mtpeft.errors import did_you_mean as did_you_mean
    from mtpeft.hookspecs import API_VERSION as API_VERSION
    from mtpeft.hookspecs import hookimpl as hookimpl
    from mtpeft.names import SHARED as SHARED
    from mtpeft.peft.method import Context as Context
    from mtpeft.peft.method import Method as Method
    from mtpeft.peft.module_map import ModuleMap as ModuleMap
    from mtpeft.peft.parts import InputPart as InputPart
    from mtpeft.peft.parts import KeyValuePart as KeyValuePart
    from mtpeft.peft.parts import LowRankPart as LowRankPart
    from mtpeft.peft.parts import OutputPart as OutputPart
    from mtpeft.peft.parts import Part as Part
    from mtpeft.peft.parts import PerTask as PerTask
    from mtpeft.peft.parts import SidePart as SidePart
    from mtpeft.peft.parts import TokenPart as TokenPart
    from mtpeft.peft.parts import WeightPart as WeightPart
    from mtpeft.peft.parts import zeros as zeros
    from mtpeft.peft.route import Route as Route
    from mtpeft.peft.route import Segment as Segment
    from mtpeft.peft.route import TokenLayout as TokenLayout
    from mtpeft.peft.sites import Site as Site
    from mtpeft.plugins import resolve as resolve
    from mtpeft.schedule import Batch as Batch
    from mtpeft.schedule import Begin as Begin
    from mtpeft.schedule import End as End
    from mtpeft.schedule import Evaluate as Evaluate
    from mtpeft.schedule import Event as Event
    from mtpeft.schedule import Schedule as Schedule
    from mtpeft.schedule import TaskSize as TaskSize
    from mtpeft.schedule import Update as Update
    from mtpeft.score import Form as Form
    from mtpeft.score import Score as Score
    from mtpeft.settings import Count as Count
    from mtpeft.settings import Fraction as Fraction
    from mtpeft.settings import NonNegative as NonNegative
    from mtpeft.settings import Positive as Positive
    from mtpeft.settings import Share as Share
    from mtpeft.settings import Whole as Whole
    from mtpeft.settings import checked as checked
    from mtpeft.task import SPLITS as SPLITS
    from mtpeft.task import Dataset as Dataset
    from mtpeft.task import Head as Head
    from mtpeft.task import Metric as Metric
    from mtpeft.task import Sample as Sample
    from mtpeft.task import Split as Split
    from mtpeft.task import Task as Task

_WHERE = {
    "mtpeft.errors": ["DataError", "MtpeftError", "NotApplicable", "UsageError", "did_you_mean"],
    "mtpeft.hookspecs": ["API_VERSION", "hookimpl"],
    "mtpeft.backbone.extract": ["evaluating"],
    "mtpeft.backbone.features": ["Features", "FeaturesInfo", "ImageConfig"],
    "mtpeft.backbone.pyramid": ["FeaturePyramid"],
    "mtpeft.plugins": ["resolve"],
    "mtpeft.peft.module_map": ["ModuleMap"],
    "mtpeft.names": ["SHARED"],
    "mtpeft.peft.method": ["Context", "Method"],
    "mtpeft.peft.parts": [
        "InputPart", "KeyValuePart", "LowRankPart", "OutputPart", "Part", "PerTask", "SidePart", "TokenPart",
        "WeightPart", "zeros",
    ],
    "mtpeft.peft.route": ["Route", "Segment", "TokenLayout"],
    "mtpeft.peft.sites": ["Site"],
    "mtpeft.data.reader": ["Reader", "open_data"],
    "mtpeft.schedule": ["Batch", "Begin", "End", "Evaluate", "Event", "Schedule", "TaskSize", "Update"],
    "mtpeft.balancing": ["Balancer"],
    "mtpeft.settings": ["Count", "Fraction", "NonNegative", "Positive", "Share", "Whole", "checked"],
    "mtpeft.score": ["Form", "Score"],
    "mtpeft.task": ["SPLITS", "Dataset", "Head", "Metric", "Sample", "Split", "Task"],
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
