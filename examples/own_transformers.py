"""A model of transformers for which labelloop has no engine: semantic segmentation, from a folder.

labelloop models add examples/own_transformers.py --with folder=/path/to/segformer
"""

import json
from functools import cached_property
from pathlib import Path


class Scene:
    task = "segment"

    def __init__(self, folder):
        self.folder = folder
        names = json.loads(Path(folder, "config.json").read_text())["id2label"]
        self.labels = [names[number] for number in sorted(names, key=int)]

    @cached_property
    def parts(self):  # with the first picture: whoever only asks for the labels need not wait for the weights
        from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

        files = {"pretrained_model_name_or_path": self.folder, "local_files_only": True}
        return AutoImageProcessor.from_pretrained(**files), AutoModelForSemanticSegmentation.from_pretrained(**files)

    def predict(self, picture):
        import torch

        processor, model = self.parts
        with torch.inference_mode():
            small = model(**processor(images=picture, return_tensors="pt")).logits
            shares = torch.nn.functional.interpolate(small, picture.shape[:2], mode="bilinear")[0].softmax(0)
        sure, best = (values.numpy() for values in shares.max(0))
        for number, label in enumerate(self.labels):
            mask = best == number
            if mask.any():
                yield {"mask": mask, "label": label, "score": sure[mask].mean()}
