"""Folders of images with boxes: COCO JSON, Pascal VOC XML, YOLO text files, and metadata.jsonl with objects."""
