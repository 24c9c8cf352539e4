"""The built-in task types and data readers, registered by name; nothing is imported until it is used."""

from __future__ import annotations

from mtpeft.api import hookimpl


@hookimpl
def register_tasks() -> dict[str, str]:
    return {
        "cls": "mtpeft_tasks.classification.task:Classification",
        "det": "mtpeft_tasks.detection.task:Detection",
        "seg": "mtpeft_tasks.segmentation.task:Segmentation",
    }


@hookimpl
def register_readers() -> dict[str, str]:
    return {
        "folder": "mtpeft_tasks.readers.folder:Folder",
        "voc": "mtpeft_tasks.readers.voc:Voc",
        "coco": "mtpeft_tasks.readers.coco:Coco",
        "yolo": "mtpeft_tasks.readers.yolo:Yolo",
        "masks": "mtpeft_tasks.readers.masks:Masks",
        "cityscapes": "mtpeft_tasks.readers.cityscapes:Cityscapes",
    }
