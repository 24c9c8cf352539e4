"""Readers of real data: what ``READER:PATH?option=value`` names, one layout in one file.

A reader's file bears its name: ``csv, cityscapes, coco, folder, hf, list, masks, nyud, pascal_context, torchvision,
voc, yolo``. What several share: ``files`` (images, lists, held-out splits, names kept below the data's root),
``splits``, ``labels`` (classification), ``boxes``, ``pixels`` (masks), ``shapes`` and ``drawn`` (masks from outlines
and run lengths), ``image_sets`` (several kinds of labels on one), ``table``, ``typed``, ``coco_json``,
``yolo_yaml``.
"""
