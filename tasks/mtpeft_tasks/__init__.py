"""The built-in task types, heads and data readers, registered by name; nothing is imported until it is used."""

from __future__ import annotations

from mtpeft.api import hookimpl


@hookimpl
def register_tasks() -> dict[str, str]:
    return {
        "cls": "mtpeft_tasks.classification.task:Classification",
        "multi-label": "mtpeft_tasks.classification.multi_label:MultiLabel",
        "det": "mtpeft_tasks.detection.task:Detection",
        "seg": "mtpeft_tasks.segmentation.task:Segmentation",
        "depth": "mtpeft_tasks.depth.task:DepthEstimation",
        "normals": "mtpeft_tasks.normals.task:SurfaceNormals",
        "saliency": "mtpeft_tasks.saliency.task:Saliency",
        "edges": "mtpeft_tasks.edges.task:EdgeDetection",
    }


@hookimpl
def register_heads() -> dict[str, str]:
    """``cls/NAME`` serve one or several labels of an image, ``pixels/NAME`` every type that predicts for each pixel."""
    return {
        "cls/linear": "mtpeft_tasks.classification.heads:Linear",
        "cls/cosine": "mtpeft_tasks.classification.heads:Cosine",
        "det/fcos": "mtpeft_tasks.detection.fcos:FCOSDetector",
        "det/retinanet": "mtpeft_tasks.detection.retinanet:RetinaNetDetector",
        "det/faster-rcnn": "mtpeft_tasks.detection.faster_rcnn:FasterRCNNDetector",
        "pixels/linear": "mtpeft_tasks.segmentation.heads:Linear",
        "pixels/upernet": "mtpeft_tasks.segmentation.upernet:UPerNet",
        "pixels/setr-pup": "mtpeft_tasks.segmentation.setr_pup:SETRPUP",
        "pixels/mask-transformer": "mtpeft_tasks.segmentation.mask_transformer:MaskTransformer",
        "seg/query": "mtpeft_tasks.segmentation.query:Query",
    }


@hookimpl
def register_readers() -> dict[str, str]:
    return {
        "folder": "mtpeft_tasks.readers.folder:Folder",
        "csv": "mtpeft_tasks.readers.csv:Csv",
        "list": "mtpeft_tasks.readers.list:ListFiles",
        "torchvision": "mtpeft_tasks.readers.torchvision:TorchvisionData",
        "hf": "mtpeft_tasks.readers.hf:HuggingFace",
        "voc": "mtpeft_tasks.readers.voc:Voc",
        "coco": "mtpeft_tasks.readers.coco:Coco",
        "yolo": "mtpeft_tasks.readers.yolo:Yolo",
        "masks": "mtpeft_tasks.readers.masks:Masks",
        "nyud": "mtpeft_tasks.readers.nyud:Nyud",
        "pascal-context": "mtpeft_tasks.readers.pascal_context:PascalContext",
        "cityscapes": "mtpeft_tasks.readers.cityscapes:Cityscapes",
    }
