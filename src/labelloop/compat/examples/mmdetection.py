"""Detectors and instance segmenters of MMDetection and MMYOLO: any config with its checkpoint.

    labelloop start coco-detector --with config_file=rtmdet_tiny.py checkpoint_file=rtmdet_tiny.pth device=cpu

Boxes go to RectangleLabels; masks to PolygonLabels and BrushLabels. Which of the model's classes mean which label: by
`predicted_values` in the label config, else by name, or as `labels_file` says ({"model class": "label"} in JSON).
"""

import functools
import json
import os
import threading

from label_studio_ml.model import LabelStudioMLBase
from label_studio_sdk.converter.brush import mask2rle

LOADED = {}
LOADING = threading.Lock()


class MMDetection(LabelStudioMLBase):
    def __init__(
        self,
        config_file=None,
        checkpoint_file=None,
        image_dir=None,
        labels_file=None,
        score_threshold=0.3,
        device="cpu",
        trust=False,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not config_file or not checkpoint_file:
            raise ValueError("give both: --with config_file=CONFIG.py checkpoint_file=WEIGHTS.pth")
        self.image_dir = image_dir
        self.score_threshold = float(score_threshold)
        self.model = load(str(config_file), str(checkpoint_file), str(device).replace("gpu", "cuda"), bool(trust))
        self.classes = list(self.model.dataset_meta["classes"])
        self.controls = self._controls(labels_file)

    def _controls(self, labels_file):
        """Controls of pictures that this model can fill, each with the label that a class means."""
        aliases = {}
        if labels_file:
            with open(labels_file, encoding="utf-8") as file:
                aliases = json.load(file)
        found = []
        for control in self.label_interface.controls if self.label_config else ():
            pictures = [shown for shown in control.objects if shown.tag == "Image"]
            if control.tag not in ("RectangleLabels", "PolygonLabels", "BrushLabels") or not pictures:
                continue
            labels = self.build_label_map(control.name, self.classes)
            labels.update({name: label for name, label in aliases.items() if label in control.labels})
            found.append((control, pictures[0], labels))
        return found

    def predict(self, tasks, context=None, **kwargs):
        if not self.controls:
            raise ValueError("the label config has no RectangleLabels, PolygonLabels or BrushLabels on an Image")
        shown = self.controls[0][1]
        pictures = [self._read(task, shown.value_name) for task in tasks]
        with LOADING:
            answers = infer(self.model, pictures)
        return [{"result": self._draw(*pair)} for pair in zip(answers, pictures)]

    def _read(self, task, field):
        import cv2
        import numpy as np

        url = task["data"][field]
        shared = os.path.join(self.image_dir, os.path.basename(url)) if self.image_dir else ""
        path = shared if os.path.exists(shared) else self.get_local_path(url, task_id=task.get("id"))
        with open(path, "rb") as file:
            picture = cv2.imdecode(np.frombuffer(file.read(), np.uint8), cv2.IMREAD_COLOR)  # upright, as EXIF says
        if picture is None:
            raise ValueError(f"{url} is no picture")
        return picture

    def _draw(self, answer, picture):
        found = answer.pred_instances.cpu()
        masks = found.masks.numpy() if "masks" in found else [None] * len(found)
        rows = zip(found.bboxes.tolist(), found.scores.tolist(), found.labels.tolist(), masks)
        result = []
        for box, score, number, mask in rows:
            if score < self.score_threshold:
                continue
            for control, shown, labels in self.controls:
                label = labels.get(self.classes[number])
                for value in values(control.tag, box, mask, picture.shape) if label is not None else ():
                    result.append(
                        {
                            "from_name": control.name,
                            "to_name": shown.name,
                            "type": control.tag.lower(),
                            "original_width": picture.shape[1],
                            "original_height": picture.shape[0],
                            "image_rotation": 0,
                            "value": {**value, control.tag.lower(): [label]},
                            "score": score,
                        }
                    )
        return result


def values(tag, box, mask, shape):
    """What a control of this kind writes: percent of the picture, or a run-length code."""
    height, width = shape[:2]
    left, top = min(max(box[0], 0), width), min(max(box[1], 0), height)
    right, bottom = min(max(box[2], 0), width), min(max(box[3], 0), height)
    if tag == "RectangleLabels":
        x, y, w, h = 100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (bottom - top) / height
        return [{"x": x, "y": y, "width": w, "height": h, "rotation": 0}] if w > 0 and h > 0 else []
    if tag == "BrushLabels":
        return [{"format": "rle", "rle": mask2rle(mask)}] if mask is not None and mask.any() else []
    corners = [[(left, top), (right, top), (right, bottom), (left, bottom)]]
    outlines = corners if mask is None else outlines_of(mask)
    return [{"points": [[100 * x / width, 100 * y / height] for x, y in points]} for points in outlines]


def outlines_of(mask):
    """The outer outlines of a mask's parts, in pixels."""
    import cv2

    found, _ = cv2.findContours(mask.astype("uint8"), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    return [contour[:, 0].tolist() for contour in found if len(contour) > 2 and cv2.contourArea(contour) >= 4]


def infer(model, pictures):
    import warnings

    from mmdet.apis import inference_detector

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return inference_detector(model, pictures)


def load(config_file, checkpoint_file, device, trust):
    """One network for all projects of this process."""
    key = (config_file, checkpoint_file, device)
    with LOADING:
        if key not in LOADED:
            LOADED[key] = _load(*key, trust=trust)
        return LOADED[key]


def _load(config_file, checkpoint_file, device, *, trust):
    import torch

    define_operators(torch)
    from mmdet.apis import init_detector
    from mmengine.config import Config

    config = Config.fromfile(config_file)
    if config.get("default_scope") == "mmyolo":
        import mmyolo  # noqa: F401 - registers its models
        from mmyolo.utils import register_all_modules

        register_all_modules(init_default_scope=True)
    forget_initial_weights(config.model)
    plain_load = torch.load
    torch.load = functools.partial(plain_load, weights_only=not trust)
    try:
        return init_detector(config, checkpoint_file, device=device, palette="random")
    except Exception as error:
        if "weights_only" in str(error) or "WeightsUnpickler" in str(error):
            raise ValueError(
                f"{checkpoint_file} holds more than weights, which loading would run. If you trust where it comes "
                "from: --with trust=true"
            ) from error
        raise
    finally:
        torch.load = plain_load


def forget_initial_weights(part):
    """Backbones name weights to download and begin with; the checkpoint has them all."""
    if isinstance(part, dict):
        if isinstance(part.get("init_cfg"), dict) and "checkpoint" in part["init_cfg"]:
            part["init_cfg"] = None
        for value in part.values():
            forget_initial_weights(value)


def define_operators(torch):
    """torchvision registers shapes for operators that its CPU-less build does not bring: they must be known to torch
    before it is imported. None of them is run: mmcv has its own."""
    signatures = (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "roi_align(Tensor input, Tensor rois, float spatial_scale, int pooled_height, int pooled_width, "
        "int sampling_ratio, bool aligned) -> Tensor",
    )
    if "operators" not in LOADED:
        LOADED["operators"] = torch.library.Library("torchvision", "FRAGMENT")
        for signature in signatures:
            try:
                LOADED["operators"].define(signature)
            except RuntimeError:  # a torchvision that brings it
                return
