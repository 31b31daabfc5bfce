"""Detectors and instance segmenters of MMDetection and MMYOLO: any config with its checkpoint.

    labelloop start coco-detector --with config_file=rtmdet_tiny.py checkpoint_file=rtmdet_tiny.pth device=cpu

Boxes go to RectangleLabels; masks to PolygonLabels and BrushLabels. Which of the model's classes mean which label: by
`predicted_values` in the label config, else by name, or as `labels_file` says ({"model class": "label"} in JSON).
"""

import json
import threading

from label_studio_ml.model import LabelStudioMLBase
from labelloop_brush import mask2rle
from labelloop_label_config import LabelInterface, label_map
from labelloop_openmmlab import BATCH, batch_of, classes_of, device_of, infer, load_model, outlines_of, read_task

ONE_AT_A_TIME = threading.Lock()


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
        batch_size=BATCH,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not config_file or not checkpoint_file:
            raise ValueError("give both: --with config_file=CONFIG.py checkpoint_file=WEIGHTS.pth")
        self.image_dir = image_dir
        self.score_threshold = float(score_threshold)
        self.batch_size = batch_of(batch_size)
        self.model, config, meta = load_model(str(config_file), str(checkpoint_file), device_of(device), bool(trust))
        self.classes = classes_of(meta, config)
        self.controls = self._controls(labels_file)

    def _controls(self, labels_file):
        """Controls of pictures that this model can fill, each with the label that a class means."""
        aliases = {}
        if labels_file:
            with open(labels_file, encoding="utf-8") as file:
                aliases = json.load(file)
        found = []
        for control in LabelInterface(self.label_config).controls if self.label_config else ():
            pictures = [shown for shown in control.objects if shown.tag == "Image"]
            if control.tag not in ("RectangleLabels", "PolygonLabels", "BrushLabels") or not pictures:
                continue
            labels = label_map(control, self.classes)
            labels.update({name: label for name, label in aliases.items() if label in control.labels})
            found.append((control, pictures[0], labels))
        return found

    def predict(self, tasks, context=None, **kwargs):
        if not self.controls:
            raise ValueError("the label config has no RectangleLabels, PolygonLabels or BrushLabels on an Image")
        shown = self.controls[0][1]
        pictures = [read_task(self, task, shown.value_name) for task in tasks]
        with ONE_AT_A_TIME:
            answers = infer(self.model, pictures, self.batch_size)
            return [{"result": self._draw(*pair)} for pair in zip(answers, pictures)]

    def _draw(self, answer, picture):
        found = answer.pred_instances
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
