"""Text in pictures with MMOCR: a detector that finds lines and a recogniser that reads them.

    labelloop start my_ocr --with det_config=dbnet.py det_ckpt=dbnet.pth recog_config=crnn.py recog_ckpt=crnn.pth

Every line becomes a place (Rectangle, RectangleLabels, Polygon or PolygonLabels), its label (Labels) and what is
written there (TextArea with perRegion="true"), which share one id: to Label Studio they are one region.
"""

import math
import threading
import uuid

from label_studio_ml.model import LabelStudioMLBase
from labelloop_label_config import LabelInterface, label_map
from labelloop_openmmlab import BATCH, batch_of, device_of, infer, load_model, read_task

ONE_AT_A_TIME = threading.Lock()
PLACES = ("RectangleLabels", "PolygonLabels", "Rectangle", "Polygon")
CROPS = 32
"""Lines read in one batch."""


class MMOCR(LabelStudioMLBase):
    def __init__(
        self,
        det_config=None,
        det_ckpt=None,
        recog_config=None,
        recog_ckpt=None,
        image_dir=None,
        label="Text",
        score_threshold=0.3,
        device="cpu",
        trust=False,
        batch_size=BATCH,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if not all((det_config, det_ckpt, recog_config, recog_ckpt)):
            raise ValueError("give all four: --with det_config=… det_ckpt=… recog_config=… recog_ckpt=…")
        self.image_dir = image_dir
        self.score_threshold = float(score_threshold)
        self.batch_size = batch_of(batch_size)
        device = device_of(device)
        self.detector = load_model(str(det_config), str(det_ckpt), device, bool(trust))[0]
        self.recogniser = load_model(str(recog_config), str(recog_ckpt), device, bool(trust))[0]
        self.place, self.words, self.label = self._controls(str(label)) if self.label_config else (None, None, None)

    def _controls(self, wanted):
        """The control that draws lines, the one that takes their text, and (control, label) for what they are called:
        `wanted` or what has it among its `predicted_values`, else the first label there is."""
        controls = LabelInterface(self.label_config).controls
        shown = [one for one in controls if any(tag.tag == "Image" for tag in one.objects)]
        places = sorted((one for one in shown if one.tag in PLACES), key=lambda one: PLACES.index(one.tag))
        if not places:
            raise ValueError(f"the label config has none of {', '.join(PLACES)} on an Image")
        place = places[0]
        words = next((one for one in shown if one.tag == "TextArea"), None)
        named = place if place.labels else next((one for one in shown if one.tag == "Labels" and one.labels), None)
        if named is None:
            return place, words, None
        return place, words, (named, label_map(named, [wanted]).get(wanted, named.labels[0]))

    def predict(self, tasks, context=None, **kwargs):
        picture_tag = next(tag for tag in self.place.objects if tag.tag == "Image")
        pictures = [read_task(self, task, picture_tag.value_name) for task in tasks]
        with ONE_AT_A_TIME:
            answers = infer(self.detector, pictures, self.batch_size)
            lines = [self._lines(*pair) for pair in zip(answers, pictures)]
            crops = [crop(picture, quad) for quads, picture in zip(lines, pictures) for quad, _ in quads]
            read = iter(self._words(crops))
        predictions = []
        for quads, picture in zip(lines, pictures):
            regions = [(quad, score, *next(read)) for quad, score in quads]
            result = [part for one in regions for part in self._draw(picture_tag.name, picture.shape, *one)]
            scores = [score for _, score, _, _ in regions]
            predictions.append({"result": result, "score": sum(scores) / len(scores) if scores else 0.0})
        return predictions

    def _lines(self, answer, picture):
        """Quads (four points, clockwise from the text's top left) and scores of the lines of a picture, from top to
        bottom."""
        instances = answer.pred_instances
        found = [(quad_of(points), float(score)) for points, score in zip(instances.polygons, instances.scores)]
        kept = [(quad, score) for quad, score in found if score >= self.score_threshold and min(sides(quad)) >= 2]
        return sorted(kept, key=lambda one: (min(y for _, y in one[0]), min(x for x, _ in one[0])))

    def _words(self, crops):
        """Text and confidence of each crop. Crops of one width go together: beside a wider one a line would be padded,
        and what stands in the padding is read too."""
        read = [("", 0.0)] * len(crops)
        by_shape = {}
        for number, picture in enumerate(crops):
            by_shape.setdefault(picture.shape, []).append(number)
        for numbers in by_shape.values():
            for number, answer in zip(numbers, infer(self.recogniser, [crops[number] for number in numbers], CROPS)):
                read[number] = said(answer)
        return read

    def _draw(self, to_name, shape, quad, score, text, confidence):
        """The regions of one line, all with its place."""
        place = value_of(self.place.tag, quad, shape)
        common = {
            "id": uuid.uuid4().hex[:10],
            "to_name": to_name,
            "original_width": shape[1],
            "original_height": shape[0],
            "image_rotation": 0,
        }
        kind = self.place.tag.lower()
        named, label = self.label or (None, None)
        own = {kind: [label]} if named is self.place else {}
        parts = [{**common, "from_name": self.place.name, "type": kind, "value": {**place, **own}, "score": score}]
        if named is not None and named is not self.place:
            value = {**place, "labels": [label]}
            parts.append({**common, "from_name": named.name, "type": "labels", "value": value, "score": score})
        if self.words is not None:
            value = {**place, "text": [text]}
            parts.append(
                {**common, "from_name": self.words.name, "type": "textarea", "value": value, "score": confidence}
            )
        return parts


def said(answer):
    """Text, and the mean confidence of its characters."""
    scores = [float(score) for score in answer.pred_text.score]
    return str(answer.pred_text.item), sum(scores) / len(scores) if scores else 0.0


STEEP_DEG = 60
"""A line that rises more is taken for one that stands upright, like a sign with a letter a row."""


def quad_of(points):
    """The smallest rectangle around an outline [x0, y0, x1, y1, …], clockwise from the corner where its text begins."""
    import cv2
    import numpy as np

    corners = cv2.boxPoints(cv2.minAreaRect(np.asarray(points, dtype=np.float32).reshape(-1, 2)))  # clockwise
    turned = [np.roll(corners, -first, axis=0) for first in range(4)]
    best = min((quad for quad in turned if quad[1][0] > quad[0][0]), key=_unlikely)
    return [(float(x), float(y)) for x, y in best]


def _unlikely(quad):
    """Text runs along the longer side, from left to right."""
    rise = abs(math.degrees(math.atan2(quad[1][1] - quad[0][1], quad[1][0] - quad[0][0])))
    along, across = sides(quad)
    return not (along >= across and rise <= STEEP_DEG), rise


def sides(quad):
    """Width and height in pixels."""
    return math.dist(quad[0], quad[1]), math.dist(quad[0], quad[3])


def crop(picture, quad):
    """What is in a quad, upright."""
    import cv2
    import numpy as np

    width, height = (max(1, round(side)) for side in sides(quad))
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32)
    return cv2.warpPerspective(
        picture, cv2.getPerspectiveTransform(np.array(quad, np.float32), corners), (width, height)
    )


def value_of(tag, quad, shape):
    """A place in percent of the picture: a rectangle turned about its first corner, or four points."""
    height, width = shape[:2]
    if tag.startswith("Polygon"):
        inside = [(min(max(x, 0), width), min(max(y, 0), height)) for x, y in quad]
        return {"points": [[100 * x / width, 100 * y / height] for x, y in inside], "closed": True}
    angle = math.degrees(math.atan2(quad[1][1] - quad[0][1], quad[1][0] - quad[0][0]))
    along, across = sides(quad)
    left, top = quad[0]
    if abs(angle) < 2:  # what a person cannot see need not be turned back
        xs, ys = [min(max(x, 0), width) for x, _ in quad], [min(max(y, 0), height) for _, y in quad]
        left, top, along, across, angle = min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys), 0.0
    return {
        "x": 100 * left / width,
        "y": 100 * top / height,
        "width": 100 * along / width,
        "height": 100 * across / height,
        "rotation": angle % 360,
    }
