"""First generation, a detector: it draws the mean of the boxes that it has seen, whose size it learned in `fit`."""

import os

from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.utils import get_image_size, get_single_tag_keys
from label_studio_tools.core.utils.io import get_data_dir


class MeanBox(LabelStudioMLBase):
    def __init__(self, score_threshold=0.5, poison=None, device="cpu", **kwargs):
        super().__init__(**kwargs)
        self.score_threshold = score_threshold
        self.poison = poison
        self.device = device
        self.cache = get_data_dir()
        self.builds = 0
        self.from_name, self.to_name, self.value, self.labels_in_config = get_single_tag_keys(
            self.parsed_label_config, "RectangleLabels", "Image"
        )
        self.box = self.train_output.get("box", [10, 10, 20, 20])

    def predict(self, tasks, **kwargs):
        self.builds += 1
        return [self._one(task) for task in tasks]

    def _one(self, task):
        url = task["data"].get(self.value) or task["data"]["$undefined$"]
        if self.poison and self.poison in url:
            os._exit(7)
        path = self.get_local_path(url)
        width, height = get_image_size(path)
        x, y, w, h = self.box
        value = {"x": x, "y": y, "width": w, "height": h, "rectanglelabels": [self.labels_in_config[0]]}
        region = {
            "id": f"{self.device}-{self.builds}",
            "from_name": self.from_name,
            "to_name": self.to_name,
            "type": "rectanglelabels",
            "original_width": width,
            "original_height": height,
            "value": value,
            "score": self.score_threshold,
        }
        wrong = dict(region, value=dict(value, rectanglelabels=["Zebra"]), id="wrong")
        return {"result": [region, wrong], "score": self.score_threshold}

    def fit(self, completions, workdir=None, **kwargs):
        boxes = []
        for completion in completions:
            for annotation in completion["annotations"]:
                for region in annotation["result"]:
                    value = region["value"]
                    boxes.append([value[key] for key in ("x", "y", "width", "height")])
        with open(os.path.join(workdir, "boxes.txt"), "w") as file:
            file.write(repr(boxes))
        mean = [sum(column) / len(boxes) for column in zip(*boxes)]
        return {"box": mean, "count": len(boxes)}
