"""First generation, as tutorials wrote it: TF-IDF and logistic regression, trained on what annotators chose."""

import os
import pickle

from label_studio_ml.model import LabelStudioMLBase
from label_studio_ml.utils import get_choice, get_single_tag_keys, is_skipped
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline


class SimpleTextClassifier(LabelStudioMLBase):
    def __init__(self, **kwargs):
        super(SimpleTextClassifier, self).__init__(**kwargs)
        self.from_name, self.to_name, self.value, self.labels = get_single_tag_keys(
            self.parsed_label_config, "Choices", "Text"
        )
        if self.train_output:
            self.labels = self.train_output["labels"]
            with open(self.train_output["model_file"], "rb") as file:
                self.model = pickle.load(file)
        else:
            self.model = self._new()
            self.model.fit(self.labels, list(range(len(self.labels))))

    def _new(self):
        return make_pipeline(TfidfVectorizer(ngram_range=(1, 2)), LogisticRegression(C=10))

    def predict(self, tasks, **kwargs):
        texts = [task["data"][self.value] for task in tasks]
        predictions = []
        for row in self.model.predict_proba(texts):
            best = row.argmax()
            choices = [self.labels[self.model.classes_[best]]]
            result = {
                "from_name": self.from_name,
                "to_name": self.to_name,
                "type": "choices",
                "value": {"choices": choices},
            }
            predictions.append({"result": [result], "score": row[best]})
        return predictions

    def fit(self, completions, workdir=None, **kwargs):
        texts, labels = [], []
        for completion in completions:
            if is_skipped(completion):
                continue
            texts.append(completion["data"][self.value])
            labels.append(get_choice(completion))
        names = sorted(set(labels))
        self.model = self._new()
        self.model.fit(texts, [names.index(label) for label in labels])
        path = os.path.join(workdir, "model.pkl")
        with open(path, "wb") as file:
            pickle.dump(self.model, file)
        return {"labels": names, "model_file": path}
