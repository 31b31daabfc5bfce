"""What people made of a project's predictions, and where a sure model contradicts them: read from Label Studio page by
page, with nothing kept but counts and the best suspicions.

An annotation whose task has no prediction of the judging model is left out and counted. `labelloop prelabel` stores
what is missing through the one prediction path, durably and for everybody; predicting here as well would be a second
way that forgets what it found.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from datetime import datetime
from itertools import count

import msgspec

from labelloop.core.errors import ModelNotFound
from labelloop.core.regions import Region
from labelloop.jobs.quality_report import Mistake, Mistakes, Report, Tab, in_order_of_numbers, mistake, version_quality
from labelloop.labelstudio.annotated import AnnotatedTask, StoredPrediction, Submission, annotated_pages
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.config import LabelConfig, parse_config
from labelloop.labelstudio.filters import item
from labelloop.labelstudio.records import Project
from labelloop.labelstudio.views import put_tab, remove_tab
from labelloop.learning.mistakes import SURE, suspicions
from labelloop.learning.quality import Review, Tally

TAB = "Likely label mistakes"
LISTED = 500
"""As many were seen to work in one tab: their ids are one text in its filter."""

Look = Callable[[int, int], None]


class Question(msgspec.Struct, frozen=True):
    """What to look at. `version` is a version string of Label Studio, "NAME@NUMBER" or "NAME": only its predictions
    are counted, and it judges. `sure` in [0, 1] is the confidence from which a model's word counts against a person's;
    `limit` suspicions are listed at most, with `overruled` also those that the person saw and decided against."""

    version: str = ""
    since: datetime | None = None
    mistakes: bool = True
    sure: float = SURE
    overruled: bool = False
    limit: int = LISTED


def measure(
    client: Client,
    project: Project,
    question: Question,
    *,
    live: str | None,
    look: Look = lambda _done, _left: None,
) -> Report:
    """Read all annotated tasks and reckon. `live` is the version that serves the project ("NAME@NUMBER"), None when we
    do not know. `look` is told after each page how many tasks are done and how many are left; what it raises ends this.

    Raises LabelStudioError, LabelConfigError, and ModelNotFound for a `version` of which there is no prediction.
    """
    config = parse_config(project.label_config)
    judge = _judge(client, project, question, live)
    reading = _Reading(config, question, judge)
    done = 0
    for page in annotated_pages(client, project.id, since=question.since):
        for task in page.tasks:
            reading.add(task)
        done += len(page.tasks)
        look(done, page.left - len(page.tasks))
    return reading.report(project)


def show_in_tab(client: Client, report: Report) -> Report:
    """Put the tasks with listed mistakes into a tab of the Data Manager, and say so in the report; without any, remove
    the tab of an earlier time. Raises LabelStudioError.

    The Data Manager filters by a list of ids only for annotations (a text column; the one for tasks takes one number),
    which is as good: each mistake is one annotation's. Its rows can't be in the order of suspicion, which is no column.
    """
    listed = report.mistakes.listed if report.mistakes else ()
    if not listed:
        remove_tab(client, report.project, TAB)
        return report
    annotations = ",".join(str(number) for number in sorted({one.annotation for one in listed}))
    filters = {"conjunction": "and", "items": [item("annotations_ids", "contains", "String", annotations)]}
    view = put_tab(client, report.project, TAB, filters=filters)
    url = f"{client.base_url}/projects/{report.project}/data?tab={view.id}"
    return msgspec.structs.replace(report, tab=Tab(view.id, TAB, url, len({one.task for one in listed})))


def is_version(version: str, spec: str) -> bool:
    """Whether a version string in Label Studio is what "NAME", "NAME@NUMBER" or the whole string means."""
    return version == spec or version.startswith((f"{spec}@", f"{spec}."))


def _judge(client: Client, project: Project, question: Question, live: str | None) -> str | None:
    """Whose word is held against people's: the version asked for, the one that serves the project, or the stored one
    that the project shows; None without any."""
    if not question.version:
        stored = project.model_version or ""
        shown = any(row.model_version == stored for row in client.model_versions(project.id)) if stored else False
        return live or (stored if shown else None)
    known = [row.model_version or "" for row in client.model_versions(project.id)]
    if not any(is_version(version, question.version) for version in known):
        hint = f"There are: {', '.join(known)}." if known else f"Store some: labelloop prelabel {project.id}"
        raise ModelNotFound(f"Project {project.id} has no prediction of {question.version!r}.", hint=hint)
    return question.version


class _Reading:
    """What is known so far."""

    def __init__(self, config: LabelConfig, question: Question, judge: str | None) -> None:
        self._config = config
        self._question = question
        self._judge = judge if question.mistakes else None
        self._tally = Tally()
        self._annotations = self._with_prediction = self._with_nothing = self._not_looked_at = 0
        self._compared = self._without_prediction = self._found = self._overruled = 0
        self._best: list[tuple[tuple[bool, float, int], Mistake]] = []  # a heap: the weakest on top
        self._order = count()

    def add(self, task: AnnotatedTask) -> None:
        own = _newest(task, self._judge)
        judged = own.regions(self._config) if own is not None else ()
        for submission in task.submissions:
            self._annotations += 1
            if not submission.looked_at:
                self._not_looked_at += 1
                continue
            annotated = submission.regions(self._config)
            self._review(task, submission, annotated)
            if own is not None:
                self._suspect(task, submission, annotated, own, judged)
            elif self._judge is not None:
                self._without_prediction += 1

    def _review(self, task: AnnotatedTask, submission: Submission, annotated: tuple[Region, ...]) -> None:
        shown = task.predictions.get(submission.parent_prediction or 0)
        review = Review(
            annotated,
            shown.regions(self._config) if shown is not None else None,
            shown.version if shown is not None else "",
            submission.origins(),
        )
        if not review.began_with_prediction:
            self._with_nothing += 1
            return
        self._with_prediction += 1
        if not self._question.version or is_version(review.version, self._question.version):
            self._tally.add(review)

    def _suspect(
        self,
        task: AnnotatedTask,
        submission: Submission,
        annotated: tuple[Region, ...],
        own: StoredPrediction,
        judged: tuple[Region, ...],
    ) -> None:
        self._compared += 1
        overruled = self._judge is not None and _began_with(task, submission, own, judged, self._judge)
        found = suspicions(annotated, judged, sure=self._question.sure)
        if overruled:
            self._overruled += len(found)
        else:
            self._found += len(found)
        if overruled and not self._question.overruled:
            return
        for one in found:
            self._keep(mistake(one, task=task.id, annotation=submission.id, overruled=overruled))

    def _keep(self, found: Mistake) -> None:
        # what a person decided against comes last; among equals the first one read is the first
        rank = (not found.overruled, found.weight, -next(self._order))
        if len(self._best) < self._question.limit:
            heapq.heappush(self._best, (rank, found))
        elif self._best and rank > self._best[0][0]:
            heapq.heapreplace(self._best, (rank, found))

    def report(self, project: Project) -> Report:
        since = self._question.since
        versions = sorted(self._tally.result(), key=lambda found: in_order_of_numbers(found.version))
        return Report(
            project=project.id,
            title=project.title,
            since=since.isoformat() if since else None,
            annotations=self._annotations,
            began_with_prediction=self._with_prediction,
            began_with_nothing=self._with_nothing,
            not_looked_at=self._not_looked_at,
            versions=tuple(version_quality(found) for found in versions),
            mistakes=self._mistakes(),
        )

    def _mistakes(self) -> Mistakes | None:
        if self._judge is None:
            return None
        return Mistakes(
            judge=self._judge,
            sure=self._question.sure,
            compared=self._compared,
            without_prediction=self._without_prediction,
            found=self._found,
            overruled=self._overruled,
            listed=tuple(found for _, found in sorted(self._best, reverse=True)),
        )


def _newest(task: AnnotatedTask, judge: str | None) -> StoredPrediction | None:
    """The judge's last word on a task. Another label map or threshold gives the same model another version string."""
    own = [one for one in task.predictions.values() if judge is not None and is_version(one.version, judge)]
    return max(own, key=lambda one: one.id, default=None)


def _began_with(
    task: AnnotatedTask, submission: Submission, own: StoredPrediction, judged: tuple[Region, ...], judge: str
) -> bool:
    """Whether the person saw what the judge says: then the contradiction is a decision. Where the shown prediction was
    replaced since, the ids tell: they are the same for the same answer."""
    shown = task.predictions.get(submission.parent_prediction or 0)
    if shown is not None:
        return shown.id == own.id or is_version(shown.version, judge)
    copied = {name for name, origin in submission.origins().items() if origin.startswith("prediction")}
    return any(region.id in copied for region in judged)
