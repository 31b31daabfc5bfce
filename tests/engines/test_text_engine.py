"""Text classifiers: the same numbers as scikit-learn's, from a file that is data and no code."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import msgspec
import numpy as np
import pytest

from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.regions import Whole
from labelloop.core.settings import read_settings
from labelloop.engines.base import EngineOptions
from labelloop.engines.text import TextEngine
from labelloop.engines.text_file import FORMAT, Reader, TextModel, features, read
from labelloop.serving.models import add_model, open_registry

CPU = EngineOptions(device="cpu")


def by_hand(*, several: bool = False) -> TextModel:
    """Two words decide between two classes."""
    return TextModel(
        labels=("Good", "Bad"),
        several=several,
        words=("fine", "awful"),
        idf=np.array([1.0, 2.0], np.float32),
        weights=np.array([[5.0, -5.0], [-5.0, 5.0]], np.float32),
        intercepts=np.array([0.5, 0.0], np.float32),
    )


@pytest.fixture
def file(tmp_path: Path) -> Path:
    by_hand().write(tmp_path / "reviews.npz")
    return tmp_path / "reviews.npz"


def test_the_formula_by_hand() -> None:
    reader = Reader(by_hand())
    x = np.array([1 + np.log(2), 2.0]) / np.hypot(1 + np.log(2), 2.0)  # "fine" twice, "awful" once
    raw = np.array([[5, -5], [-5, 5]]) @ x + (0.5, 0.0)
    assert reader.scores("Fine, FINE! awful") == pytest.approx(np.exp(raw) / np.exp(raw).sum())
    assert Reader(by_hand(several=True)).scores("Fine, fine, awful") == pytest.approx(1 / (1 + np.exp(-raw)))
    assert reader.scores("nothing known") == pytest.approx(np.exp([0.5, 0]) / np.exp([0.5, 0]).sum())
    assert reader.scores("") == pytest.approx(reader.scores("nothing known"))


@pytest.mark.parametrize("several", [False, True], ids=["exclusive", "several"])
@pytest.mark.parametrize("classes", [2, 3])
def test_the_same_probabilities_as_scikit_learn(several: bool, classes: int) -> None:
    pytest.importorskip("sklearn", reason="needs the extra labelloop[train]")
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier

    texts = ["the soup was cold", "lovely soup, lovely people", "the train was late", "late again!", "Züge fahren nie"]
    vectoriser = TfidfVectorizer(analyzer=lambda text: list(features(text)), sublinear_tf=True)
    rows = vectoriser.fit_transform(texts)
    if several:
        truth = np.array([[1, 0, 1], [1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 1, 0]])[:, :classes]
        fitted = OneVsRestClassifier(LogisticRegression()).fit(rows, truth)
        weights = np.concatenate([one.coef_ for one in fitted.estimators_])
        intercepts = np.concatenate([one.intercept_ for one in fitted.estimators_])
    else:
        fitted = LogisticRegression().fit(rows, [0, 0, 1, 1, classes - 1])
        weights, intercepts = fitted.coef_, fitted.intercept_
        if classes == 2:  # scikit-learn keeps one row for two classes
            weights, intercepts = np.concatenate([0 * weights, weights]), np.concatenate([0 * intercepts, intercepts])
    words = tuple(vectoriser.get_feature_names_out())
    model = TextModel(tuple("abc"[:classes]), several, words, vectoriser.idf_, weights, intercepts)
    reader = Reader(model)
    asked = [*texts, "the soup is late, late, LATE", "unknown", ""]
    expected = fitted.predict_proba(vectoriser.transform(asked))
    assert np.array([reader.scores(text) for text in asked]) == pytest.approx(expected, abs=1e-6)


def test_features_know_words_pairs_and_parts() -> None:
    found = list(features("Late Train"))
    assert found[:3] == ["late", "train", "late train"]
    assert {"# la", "#late", "#ain "} <= set(found)
    assert set(features("列車遅延")) & set(features("列車の遅延")), "scripts without spaces have parts in common"


def test_a_file_comes_back_and_is_the_same_each_time(tmp_path: Path, file: Path) -> None:
    again = read(file)
    assert (again.labels, again.words, again.several) == (("Good", "Bad"), ("fine", "awful"), False)
    again.write(tmp_path / "again.npz")
    assert (tmp_path / "again.npz").read_bytes() == file.read_bytes()


def test_the_engine_answers_with_the_likeliest_first(file: Path) -> None:
    card = TextEngine.describe(file, ModelCard(name="reviews"))
    assert (card.engine, card.task, card.labels) == ("text", "text", ("Good", "Bad"))
    engine = TextEngine(file, card, CPU)
    good, bad = engine.predict([engine.prepare(text) for text in ("just fine", "awful, awful")])
    assert [(r.label, type(r.shape)) for r in good] == [("Good", Whole)], "Bad is less likely than one in a thousand"
    assert bad[0].label == "Bad"
    assert 0.99 < bad[0].score <= 1
    vectors = engine.embed(["a cold soup", "the soup is cold", "trains"])
    assert vectors.shape == (3, 128)
    assert vectors[0] @ vectors[1] > 0.5 > vectors[0] @ vectors[2]


def test_the_registry_knows_the_file_by_its_suffix(tmp_path: Path, file: Path) -> None:
    settings = read_settings(home=tmp_path / "home")
    registry = open_registry(settings)
    version = add_model(registry, file, ModelCard(name="reviews"), settings)
    assert version.card.engine == "text"
    assert registry.path(version).read_bytes() == file.read_bytes()


def write_arrays(path: Path, **changes: object) -> None:
    about = {"format": FORMAT, "labels": ["a", "b"], "several": False, "words": ["x"]} | changes.pop("about", {})
    arrays = {
        "about": np.frombuffer(msgspec.json.encode(about), np.uint8),
        "idf": np.ones(1, np.float32),
        "weights": np.ones((2, 1), np.float32),
        "intercepts": np.zeros(2, np.float32),
    } | changes
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"weights": None}, "weights"),
        ({"weights": np.ones((1, 1), np.float32)}, r"weights is \[1, 1\] and not \[2, 1\]"),
        ({"idf": np.full(1, np.nan, np.float32)}, "not finite"),
        ({"about": {"format": 99}}, "its format is 99"),
        ({"about": {"labels": ["a", "a"]}}, "not different"),
        ({"about": {"labels": 3}}, "Expected"),
        ({"idf": np.array([object()])}, "[Oo]bject arrays"),
    ],
    ids=["an array is missing", "shapes", "not a number", "a later format", "twins", "no list", "a pickle inside"],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, changes: dict[str, object], says: str) -> None:
    write_arrays(tmp_path / "odd.npz", **changes)
    with pytest.raises(ModelError, match=says):
        read(tmp_path / "odd.npz")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("exploded"),))


def test_a_pickle_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("model.npz").write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(ModelError, match="no text classifier"):
        read(Path("model.npz"))
    assert not Path("exploded").exists()


def test_an_archive_that_promises_too_much_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("labelloop.engines.text_file.MAX_UNPACKED", 1_000_000)
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("about.npy", bytes(2_000_000))
    with pytest.raises(ModelError, match="memory"):
        read(tmp_path / "bomb.npz")
