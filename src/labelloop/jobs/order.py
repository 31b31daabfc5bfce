"""Put a project into the order in which it should be labelled, and let Label Studio follow it.

The order is reckoned here, from what is remembered of the predictions of one version, and lives in Label Studio as
their scores: ascending, most uncertain first. It is written by changing scores, never by deleting and importing again:
an annotator who has a deleted prediction open cannot submit any more (Label Studio answers 400). A change takes Label
Studio a tenth of a second, so only those are made that the order needs (learning/placement), the front of it first.

Whatever cuts this off, the next run finds the scores as they stand, comes to the same order and makes the changes that
are left. A second run without anything new changes nothing.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import numpy as np
import structlog
from numpy.typing import NDArray

from labelloop.core.errors import JobError, LabelStudioRejected
from labelloop.core.settings import Settings
from labelloop.jobs.evidence import Evidence, Progress, Seeing, Vector
from labelloop.jobs.listing import Listed, Listing
from labelloop.jobs.patience import Patience
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import untouched
from labelloop.labelstudio.records import View as Tab
from labelloop.labelstudio.views import put_tab
from labelloop.learning.acquisition import Acquisition
from labelloop.learning.diversity import Indices
from labelloop.learning.placement import placed
from labelloop.learning.pool import Pool
from labelloop.learning.select import EMPTY_QUOTA, Diversity, Ranking, diversified, rank, shortlist
from labelloop.serving.projects import View
from labelloop.store.scores import Scores

log = structlog.get_logger(__name__)

TAB = "Most uncertain first"
SAMPLING = "Uncertainty sampling"
WRITTEN = 100
"""Tasks whose scores are changed in one go; their ids travel in an address."""
WRITERS = 2
"""110 ms a change alone, 68 with two, 72 with four, 96 with eight: SQLite has one writer."""


class Wish(msgspec.Struct, frozen=True):
    """Which order. `first` wants only so many tasks at their places; the others follow by the scores they have.
    `flip` looks at every task twice. `sampling` lets the big button follow too."""

    acquisition: Acquisition = Acquisition()
    diversity: Diversity | None = None
    empty_quota: float = EMPTY_QUOTA
    flip: bool = False
    first: int | None = None
    sampling: bool = True

    @property
    def looks(self) -> bool:
        """Whether pictures and the model are needed."""
        return self.flip or self.diversity is not None


class Ordered(msgspec.Struct, frozen=True):
    """What was done. `ranked` tasks have a place; `unpredicted` have no prediction of `version` and come last; of
    `read_back` predictions nothing was remembered; `unseen` tasks could not be looked at; `changed` scores had to be
    written. `tab` is the id of the tab; `sampled`: the project's sampling follows the scores too. `switched_from` is
    what the project named as its model version before, None where that was `version` already."""

    project_id: int
    version: str
    ranked: int
    unpredicted: int
    read_back: int
    unseen: int
    changed: int
    tab: int
    sampled: bool
    switched_from: str | None = None


def wish_of(
    settings: Settings,
    *,
    strategy: str | None,
    aggregation: str | None,
    top_k: int,
    balance: bool,
    empty_quota: float | None,
    flip: bool,
    diverse: int | None,
    method: str,
    first: int | None,
    sampling: bool,
    seed: int,
) -> Wish:
    """What a person asks for, the rest from the settings; the command and the API come here. `diverse` is how many are
    chosen so that they differ, by `method`. Raises AcquisitionError for what does not exist."""
    return Wish(
        acquisition=Acquisition(
            strategy=strategy or settings.acquisition,
            aggregation=aggregation or settings.aggregation,  # type: ignore[arg-type]  # it says what exists
            top_k=top_k,
            balance=balance,
            seed=seed,
        ),
        diversity=Diversity(budget=diverse, method=method, seed=seed) if diverse else None,  # type: ignore[arg-type]
        empty_quota=EMPTY_QUOTA if empty_quota is None else empty_quota,
        flip=flip,
        first=first,
        sampling=sampling,
    )


def silent(_stage: str, _done: int, _total: int) -> None:
    """A Progress that nobody sees."""


def reorder(
    client: Client,
    project_id: int,
    view: View,
    scores: Scores,
    *,
    wish: Wish,
    patience: Patience,
    looks: Seeing | None = None,
    progress: Progress = silent,
) -> Ordered:
    """Rank the tasks that nobody has touched by the predictions of `view.name`, write the scores, and set Label Studio
    up to follow them. Safe to repeat and to cut off. `looks` is needed where `wish.looks` says so.

    Raises JobError when there is no prediction of this version, and what the client raises.
    """
    studio = _Studio(client, project_id, patience)
    switched_from = studio.select(view, scores)
    listing = Listing(client, project_id, patience=patience)
    for listed in listing.pages(view.name):  # the last one is everything
        progress("reading tasks", len(listed.task_ids) + listed.unpredicted, listed.total)
    evidence = Evidence(scores, listing, project_id, view, looks, progress)
    read_back = evidence.read_back(listed.task_ids)
    if wish.flip:
        evidence.look_twice(listed.task_ids)
    pool = evidence.pool(listed.task_ids)
    order = pool.task_ids[_order(pool, listed, evidence, wish)]
    tab = patience(studio.put_tab)
    sampled = patience(lambda: studio.set_sampling(wanted=wish.sampling))
    changed = _write(order, listed, listing, studio, version=view.name, progress=progress)
    return Ordered(
        project_id=project_id,
        version=view.name,
        ranked=len(pool),
        unpredicted=listed.unpredicted,
        read_back=read_back,
        unseen=evidence.unseen,
        changed=changed,
        tab=tab.id,
        sampled=sampled,
        switched_from=switched_from,
    )


class _Studio:
    """What is changed in Label Studio."""

    def __init__(self, client: Client, project_id: int, patience: Patience) -> None:
        self._client = client
        self._project_id = project_id
        self._patience = patience

    def select(self, view: View, scores: Scores) -> str | None:
        """Let the project name this version: Label Studio sorts by the scores of the version that it names, and the
        title of a backend gives none. What is remembered of versions that are gone is forgotten. Returns what it named
        before, None if that was the same."""
        version = view.name
        stored = self._patience(lambda: self._client.model_versions(self._project_id))
        names = {row.model_version for row in stored if row.model_version}
        if version not in names:
            raise JobError(
                f"Project {self._project_id} has no prediction of {version} yet.",
                hint=f"Run: labelloop prelabel {self._project_id} --model {view.version.id}",
            )
        scores.forget(self._project_id, keep=names)
        before = self._patience(lambda: self._client.project(self._project_id)).model_version
        if before == version:
            return None
        self._patience(lambda: self._client.set_project(self._project_id, model_version=version))
        return before or ""

    def put_tab(self) -> Tab:
        filters = {"conjunction": "and", "items": untouched()}
        return put_tab(self._client, self._project_id, TAB, ordering=["tasks:predictions_score"], filters=filters)

    def set_sampling(self, *, wanted: bool) -> bool:
        """Whether the stream of tasks follows the scores."""
        before = self._client.project(self._project_id).sampling
        if before == SAMPLING or not wanted:
            return before == SAMPLING
        try:
            return self._client.set_project(self._project_id, sampling=SAMPLING).sampling == SAMPLING
        except LabelStudioRejected as error:
            if error.status >= 500:
                raise
            log.warning("uncertainty sampling cannot be set", project=self._project_id, reason=error.message)
            return False

    def change(self, prediction_id: int, score: float) -> None:
        self._patience(lambda: self._client.set_prediction_score(prediction_id, score))


def _order(pool: Pool, listed: Listed, evidence: Evidence, wish: Wish) -> Indices:
    """Positions in the pool [n], in the order in which its tasks should be labelled."""
    ranking = rank(pool, wish.acquisition, empty_quota=wish.empty_quota)
    if wish.diversity is not None and len(pool):
        ranking = _diversified(ranking, pool, evidence, wish.diversity)
    order = ranking.order()
    if wish.first is None:
        return order
    rest = order[wish.first :]
    as_they_stand = np.argsort(listed.scores_of(pool.task_ids[rest]), kind="stable")  # NaN comes last
    return np.concatenate([order[: wish.first], rest[as_they_stand]])


def _diversified(ranking: Ranking, pool: Pool, evidence: Evidence, diversity: Diversity) -> Ranking:
    candidates = pool.task_ids[shortlist(ranking, diversity)].tolist()
    known = evidence.embeddings(candidates)
    if not any(task in known for task in candidates):
        raise JobError(
            "None of the most uncertain pictures could be looked at.",
            hint="labelloop doctor PROJECT says why pictures cannot be had; without --diverse they are not needed.",
        )
    # a picture that nobody could look at lies in the middle: like all, so there is no reason to choose it
    middle: Vector = np.mean([known[task] for task in candidates if task in known], axis=0)
    unlabelled = set(pool.task_ids.tolist())
    covered = [vector for task, vector in known.items() if task not in unlabelled]
    return diversified(
        ranking,
        diversity,
        embeddings=np.stack([known.get(task, middle) for task in candidates]),
        keys=pool.task_ids,
        covered=np.stack(covered) if covered else None,
    )


def _write(
    order: NDArray[np.int64], listed: Listed, listing: Listing, studio: _Studio, *, version: str, progress: Progress
) -> int:
    """Let the scores of the tasks `order` increase in this order; returns how many tasks that changed."""
    current = listed.scores_of(order)
    wanted = placed(np.arange(len(order)), current)
    places = np.flatnonzero(wanted != current)  # NaN differs from everything
    with ThreadPoolExecutor(WRITERS, thread_name_prefix="order") as threads:
        for start in range(0, len(places), WRITTEN):
            part = {int(order[place]): float(wanted[place]) for place in places[start : start + WRITTEN]}
            there = listing.now(list(part), version)
            changes = [(row["id"], score) for task, score in part.items() for row in there.get(task, ())]
            list(threads.map(lambda change: studio.change(*change), changes))
            progress("writing scores", min(start + WRITTEN, len(places)), len(places))
    return len(places)
