"""Key points of your own: the middle of what is red or blue.  labelloop models add examples/own_points.py"""

import numpy as np


class Marks:
    labels = ("red", "blue")
    task = "pose"

    def predict(self, picture):
        found = []
        for label, channel in (("red", 0), ("blue", 2)):
            others = np.delete(picture, channel, axis=2).max(axis=2).astype(int)
            rows, columns = np.nonzero(picture[:, :, channel] > others + 80)
            if len(rows):
                point = (columns.mean() + 0.5, rows.mean() + 0.5)
                found.append({"point": point, "label": label, "score": 0.9})
        return found
