"""A project as people leave it, made through Label Studio's API with what the editor sends, and counted by hand.

Boxes are 20 % wide and 20 % high at a given x, so two of one row that are 10 % apart overlap by 1/3.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import httpx

from labelloop.jobs.quality_report import Regions
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.records import Project

CONFIG = """<View><Image name="photo" value="$image"/><RectangleLabels name="things" toName="photo">
<Label value="Car"/><Label value="Bus"/></RectangleLabels></View>"""
FIRST, SECOND, GONE = "cars@1.aaaaaaaa", "cars@2.bbbbbbbb", "old@1.cccccccc"
TASKS = 9

REGIONS_OF_FIRST = Regions(
    predicted=5, accepted=2, changed=2, relabelled=1, wrong=1, missed=1, acceptance_rate=0.4, edit_iou=2 / 3
)
CLASSES_OF_FIRST = {
    "Bus": Regions(0, 0, 0, 0, wrong=0, missed=1, acceptance_rate=None, edit_iou=None),
    "Car": Regions(5, 2, 2, 1, wrong=1, missed=0, acceptance_rate=0.4, edit_iou=2 / 3),
}


def box(name: str, x: float, label: str = "Car", **more: Any) -> dict[str, Any]:
    """One result: `score` for a prediction, `origin` as the editor notes it."""
    value = {"x": x, "y": 10, "width": 20, "height": 20, "rotation": 0, "rectanglelabels": [label]}
    place = {"from_name": "things", "to_name": "photo", "type": "rectanglelabels"}
    return {
        "id": name,
        **place,
        "original_width": 200,
        "original_height": 100,
        "image_rotation": 0,
        "value": value,
        **more,
    }


class ReviewedProject:
    """`first[i]` is task i; see `people` for what happened to each."""

    def __init__(self, client: Client, token: str, title: str) -> None:
        self.client = client
        self._http = httpx.Client(
            base_url=client.base_url, headers={"Authorization": f"Token {token}"}, trust_env=False
        )
        self.project_id = client.create_project(title, CONFIG).id
        pictures = [{"image": f"/{number}.jpg"} for number in range(TASKS)]
        self.tasks = client.import_tasks(self.project_id, pictures).task_ids
        self.annotations: dict[int, list[int]] = {}

    @property
    def project(self) -> Project:
        return self.client.project(self.project_id)

    def close(self) -> None:
        self._http.close()

    def predict(self, number: int, version: str, result: Sequence[dict[str, Any]]) -> None:
        row = {"task": self.tasks[number], "result": list(result), "score": 0.5, "model_version": version}
        assert self.client.import_predictions(self.project_id, [row]).created == 1

    def prediction(self, number: int, version: str) -> int:
        rows = self.client.predictions(self.tasks[number])
        return next(row["id"] for row in rows if row["model_version"] == version)

    def annotate(self, number: int, result: Sequence[dict[str, Any]], *, shown: str = "", **more: Any) -> int:
        """Submit as the editor does; `shown` is the version that it was begun with."""
        more |= {"parent_prediction": self.prediction(number, shown)} if shown else {}
        body = {"result": list(result), "lead_time": 2.5, "was_cancelled": False, "ground_truth": False, **more}
        answer = self._http.post(f"/api/tasks/{self.tasks[number]}/annotations/", json=body).raise_for_status()
        made: int = answer.json()["id"]
        self.annotations.setdefault(number, []).append(made)
        return made

    def change(self, annotation: int, result: Sequence[dict[str, Any]]) -> None:
        """Update in the editor."""
        self._http.patch(f"/api/annotations/{annotation}/", json={"result": list(result)}).raise_for_status()

    def annotate_from_predictions(self, number: int, version: str) -> None:
        """The Data Manager's "Create Annotations From Predictions"."""
        body = {
            "project": self.project_id,
            "model_version": version,
            "selectedItems": {"all": False, "included": [self.tasks[number]]},
        }
        query = {"id": "predictions_to_annotations", "project": self.project_id}
        self._http.post("/api/dm/actions", params=query, json=body).raise_for_status()

    def people(self) -> None:
        """Everything that happened, in the order of the tasks."""
        kept, drawn = {"origin": "prediction"}, {"origin": "manual"}
        changed = {"origin": "prediction-changed"}
        # 0: one kept, one moved by half its width, a bus missed. The second version calls the kept one a bus.
        self.predict(0, FIRST, [box("a", 0, score=0.9), box("b", 30, score=0.8)])
        self.predict(0, SECOND, [box("s", 0, "Bus", score=0.96)])
        self.annotate(0, [box("a", 0, **kept), box("b", 40, **changed), box("n", 70, "Bus", **drawn)], shown=FIRST)
        # 1: two annotators: one leaves it as it is, one deletes it. The second version said nothing here.
        self.predict(1, FIRST, [box("a", 0, score=0.9)])
        self.annotate(1, [box("a", 0, score=0.9, **kept)], shown=FIRST)
        self.annotate(1, [], shown=FIRST)
        # 2: another class. The second version agrees with the class, a third of overlap away.
        self.predict(2, FIRST, [box("a", 0, score=0.9)])
        self.predict(2, SECOND, [box("s", 10, "Bus", score=0.94)])
        self.annotate(2, [box("a", 0, "Bus", **changed)], shown=FIRST)
        # 3: skipped.
        self.predict(3, FIRST, [box("a", 0, score=0.9)])
        self.annotate(3, [box("a", 0, **kept)], shown=FIRST, was_cancelled=True)
        # 4: an annotation that nobody looked at.
        self.predict(4, FIRST, [box("a", 0, score=0.9)])
        self.annotate_from_predictions(4, FIRST)
        # 5: drawn from nothing. The second version sees the same car and one more.
        self.predict(5, SECOND, [box("s", 0, score=0.95), box("t", 60, score=0.97), box("u", 80, score=0.5)])
        self.annotate(5, [box("n", 0, **drawn)])
        # 6: of the second version's two, one is deleted: the person saw it.
        self.predict(6, SECOND, [box("s", 0, score=0.95), box("t", 60, score=0.92)])
        self.annotate(6, [box("s", 0, **kept)], shown=SECOND)
        # 7: begun with a version whose predictions are deleted since.
        self.predict(7, GONE, [box("a", 0, score=0.9), box("b", 30, score=0.9)])
        self.annotate(7, [box("a", 0, **kept), box("b", 35, **changed), box("n", 70, **drawn)], shown=GONE)
        assert self.client.delete_model_version(self.project_id, GONE) == 1
        # 8: nobody was here.
        self.predict(8, SECOND, [box("s", 0, score=0.99)])
