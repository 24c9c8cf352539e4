"""The detection heads by name; the first is the default."""

from __future__ import annotations

from mtpeft_tasks.detection.detector import Detector
from mtpeft_tasks.detection.faster_rcnn import FasterRCNNDetector
from mtpeft_tasks.detection.fcos import FCOSDetector
from mtpeft_tasks.detection.retinanet import RetinaNetDetector

HEADS: dict[str, type[Detector]] = {
    "fcos": FCOSDetector,
    "retinanet": RetinaNetDetector,
    "faster-rcnn": FasterRCNNDetector,
}
