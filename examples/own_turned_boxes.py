"""Turned boxes of your own: a dark thing at any angle.  labelloop models add examples/own_turned_boxes.py"""

import numpy as np


class DarkStick:
    labels = ("stick",)

    def predict(self, picture):
        rows, columns = np.nonzero(picture.mean(axis=2) < 50)
        if len(rows) < 3:
            return []
        points = np.stack([columns, rows], axis=1) + 0.5
        x, y = np.linalg.eigh(np.cov(points.T))[1][:, 1]  # the direction in which they spread most
        axes = np.array([(x, y), (-y, x)])  # along the stick, and across it
        turned = points @ axes.T
        low, high = turned.min(axis=0) - 0.5, turned.max(axis=0) + 0.5
        middle, half = (low + high) / 2 @ axes, (high - low) / 2
        box = (*middle - half, *middle + half)  # before it is turned about its middle
        return [{"box": box, "angle": np.degrees(np.arctan2(y, x)), "label": "stick", "score": 0.9}]
