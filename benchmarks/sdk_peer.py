"""An empty model of the official SDK, for gunicorn: what `serving.py empty --peer` measures beside ours.

python -m venv peer && peer/bin/pip install label-studio-ml==1.0.9 gunicorn
"""

from __future__ import annotations

from typing import Any

from label_studio_ml.api import init_app
from label_studio_ml.model import LabelStudioMLBase


class Empty(LabelStudioMLBase):  # type: ignore[misc]
    def predict(self, tasks: list[Any], **_told: Any) -> list[dict[str, Any]]:
        return [{"result": [], "score": 0.0} for _ in tasks]


app = init_app(model_class=Empty)
