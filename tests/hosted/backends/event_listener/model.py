"""Second generation: a setup, a ModelResponse, values that are kept, and a fit that hears events."""

import os
from typing import Dict, List, Optional

from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.response import ModelResponse
from label_studio_sdk.label_interface.objects import PredictionValue


class NewModel(LabelStudioMLBase):
    def setup(self):
        self.set("model_version", f"{self.__class__.__name__}-v0.0.1")
        self.builds = (self.get("builds") or 0) + 1
        self.set("builds", self.builds)

    def predict(self, tasks: List[Dict], context: Optional[Dict] = None, **kwargs) -> ModelResponse:
        from_name, to_name, value = self.get_first_tag_occurence("RectangleLabels", "Image")
        labels = self.build_label_map(from_name, ["car", "person"])
        return ModelResponse(
            predictions=[self._one(task, from_name, to_name, labels["car"], context) for task in tasks],
            model_version=self.get("model_version"),
        )

    def _one(self, task, from_name, to_name, label, context):
        x = context["result"][0]["value"]["x"] if context else 10
        region = {
            "from_name": from_name,
            "to_name": to_name,
            "type": "rectanglelabels",
            "original_width": 320,
            "original_height": 240,
            "meta": {
                "text": [
                    f"builds {self.builds}",
                    f"annotations {len(task.get('annotations', []))}",
                    f"heard {self.get('heard')}",
                    f"flavour {self.extra_params.get('flavour')}",
                    f"shade {os.environ.get('SHADE')}",
                ]
            },
            "value": {"x": x, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": [label]},
        }
        return PredictionValue(result=[region], score=0.7)

    def fit(self, event, data, **kwargs):
        if event == "START_TRAINING" and os.environ.get("GATE"):
            with open(os.environ["GATE"]) as gate:
                gate.read()
        if event == os.environ.get("DIES_OF"):
            with open(os.environ["DEATHS"], "a") as deaths:
                deaths.write("x")
            os._exit(9)
        heard = self.get("heard") or []
        number = data["annotation"]["id"] if "annotation" in data else None
        about = data["task"]["id"] if event == "ANNOTATION_DELETED" and "task" in data else data["project"]["id"]
        self.set("heard", heard + [[event, number, about]])
        self.bump_model_version()
