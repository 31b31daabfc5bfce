"""A reader of your own: where text is, and what it says.  labelloop models add examples/own_reader.py"""

import numpy as np


class TopLine:
    labels = ("text",)
    task = "ocr"

    def predict(self, picture):
        ink = np.flatnonzero((picture.mean(axis=2) < 128).any(axis=1))
        if not len(ink):
            return []
        box = (0, ink[0], picture.shape[1], ink[-1] + 1)
        return [{"box": box, "label": "text", "score": 0.7, "text": f"{len(ink)} rows of ink"}]
