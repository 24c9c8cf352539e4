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
    from mtpeft.files import open_regular as open_regular
    from mtpeft.hookspecs import API_VERSION as API_VERSION
    from mtpeft.hookspecs import hookimpl as hookimpl
    from mtpeft.names import SHARED as SHARED
    from mtpeft.peft.declarations import Declarations as Declarations
    from mtpeft.peft.host import Answer as Answer
    from mtpeft.peft.host import Host as Host
    from mtpeft.peft.memory import Key as Key
    from mtpeft.peft.memory import Memory as Memory
    from mtpeft.peft.method import Method as Method
    from mtpeft.peft.method import Passes as Passes
    from mtpeft.peft.module_map import ModuleMap as ModuleMap
    from mtpeft.peft.mounts import PartAtSite as PartAtSite
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
    from mtpeft.peft.routine import Batches as Batches
    from mtpeft.peft.routine import Context as Context
    from mtpeft.peft.routine import Routine as Routine
    from mtpeft.peft.routine import Targets as Targets
    from mtpeft.peft.routine import TaskBatch as TaskBatch
    from mtpeft.peft.sites import Site as Site
    from mtpeft.peft.stock.bottlenecks import Activation as Activation
    from mtpeft.peft.stock.bottlenecks import Bottleneck as Bottleneck
    from mtpeft.peft.stock.bottlenecks import ParallelBottleneck as ParallelBottleneck
    from mtpeft.peft.stock.bottlenecks import SequentialBottleneck as SequentialBottleneck
    from mtpeft.peft.stock.calibration import Calibrated as Calibrated
    from mtpeft.peft.stock.calibration import InputMoments as InputMoments
    from mtpeft.peft.stock.calibration import first_batches as first_batches
    from mtpeft.peft.stock.calibration import recording as recording
    from mtpeft.peft.stock.calibration import summed_gradients as summed_gradients
    from mtpeft.peft.stock.calibration import uncalibrated as uncalibrated
    from mtpeft.peft.stock.fixed_random import FixedSeed as FixedSeed
    from mtpeft.peft.stock.fixed_random import fixed_uniform as fixed_uniform
    from mtpeft.peft.stock.grid import over_grid as over_grid
    from mtpeft.peft.stock.grid import window_of as window_of
    from mtpeft.peft.stock.low_rank import LowRankUpdate as LowRankUpdate
    from mtpeft.peft.stock.low_rank import factors_from_weight as factors_from_weight
    from mtpeft.peft.stock.low_rank import fill_down as fill_down
    from mtpeft.peft.stock.low_rank import principal_directions as principal_directions
    from mtpeft.peft.stock.prompts import PrefixKeysValues as PrefixKeysValues
    from mtpeft.peft.stock.prompts import PromptTokens as PromptTokens
    from mtpeft.peft.stock.prompts import drawn_prompts as drawn_prompts
    from mtpeft.peft.stock.refusals import refuse_convolution as refuse_convolution
    from mtpeft.peft.stock.refusals import refuse_reordered as refuse_reordered
    from mtpeft.peft.stock.refusals import refuse_reshaped as refuse_reshaped
    from mtpeft.peft.stock.replacement import Replacement as Replacement
    from mtpeft.plugins import resolve as resolve
    from mtpeft.schedule import Batch as Batch
    from mtpeft.schedule import Begin as Begin
    from mtpeft.schedule import End as End
    from mtpeft.schedule import Evaluate as Evaluate
    from mtpeft.schedule import Event as Event
    from mtpeft.schedule import Schedule as Schedule
    from mtpeft.schedule import TaskSize as TaskSize
    from mtpeft.schedule import Update as Update
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
    from mtpeft.task import Score as Score
    from mtpeft.task import Split as Split
    from mtpeft.task import Task as Task

_WHERE = {
    "mtpeft.errors": ["DataError", "MtpeftError", "NotApplicable", "UsageError", "did_you_mean"],
    "mtpeft.hookspecs": ["API_VERSION", "hookimpl"],
    "mtpeft.backbone.extract": ["evaluating"],
    "mtpeft.backbone.features": ["Features", "FeaturesInfo", "ImageConfig"],
    "mtpeft.backbone.pyramid": ["FeaturePyramid"],
    "mtpeft.files": ["open_regular"],
    "mtpeft.plugins": ["resolve"],
    "mtpeft.peft.module_map": ["ModuleMap"],
    "mtpeft.names": ["SHARED"],
    "mtpeft.peft.host": ["Answer", "Host"],
    "mtpeft.peft.memory": ["Key", "Memory"],
    "mtpeft.peft.method": ["Method", "Passes"],
    "mtpeft.peft.routine": ["Batches", "Context", "Routine", "Targets", "TaskBatch"],
    "mtpeft.peft.declarations": ["Declarations"],
    "mtpeft.peft.mounts": ["PartAtSite"],
    "mtpeft.peft.parts": [
        "InputPart", "KeyValuePart", "LowRankPart", "OutputPart", "Part", "PerTask", "SidePart", "TokenPart",
        "WeightPart", "zeros",
    ],
    "mtpeft.peft.route": ["Route", "Segment", "TokenLayout"],
    "mtpeft.peft.sites": ["Site"],
    "mtpeft.peft.stock.bottlenecks": ["Activation", "Bottleneck", "ParallelBottleneck", "SequentialBottleneck"],
    "mtpeft.peft.stock.calibration": [
        "Calibrated", "InputMoments", "first_batches", "recording", "summed_gradients", "uncalibrated",
    ],
    "mtpeft.peft.stock.fixed_random": ["FixedSeed", "fixed_uniform"],
    "mtpeft.peft.stock.grid": ["over_grid", "window_of"],
    "mtpeft.peft.stock.low_rank": ["LowRankUpdate", "factors_from_weight", "fill_down", "principal_directions"],
    "mtpeft.peft.stock.prompts": ["PrefixKeysValues", "PromptTokens", "drawn_prompts"],
    "mtpeft.peft.stock.refusals": ["refuse_convolution", "refuse_reordered", "refuse_reshaped"],
    "mtpeft.peft.stock.replacement": ["Replacement"],
    "mtpeft.data.reader": ["Reader", "open_data"],
    "mtpeft.schedule": ["Batch", "Begin", "End", "Evaluate", "Event", "Schedule", "TaskSize", "Update"],
    "mtpeft.balancing": ["Balancer"],
    "mtpeft.settings": ["Count", "Fraction", "NonNegative", "Positive", "Share", "Whole", "checked"],
    "mtpeft.task": ["SPLITS", "Dataset", "Head", "Metric", "Sample", "Score", "Split", "Task"],
}  # fmt: skip
_MODULE_OF = {name: module for module, names in _WHERE.items() for name in names}

__all__ = sorted(_MODULE_OF)


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return __all__
