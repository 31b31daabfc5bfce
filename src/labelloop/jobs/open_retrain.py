"""From the row of a run of the learning loop to a Retrain that can go on."""

from __future__ import annotations

from collections.abc import Sequence

from labelloop.core.errors import JobError
from labelloop.core.regions import Prediction
from labelloop.core.settings import Settings
from labelloop.core.tasks import Task
from labelloop.jobs.kinds import Held
from labelloop.jobs.open import Opener
from labelloop.jobs.order import Wish, reorder
from labelloop.jobs.patience import Patience
from labelloop.jobs.retrain import Parts, Retrain
from labelloop.jobs.training import Training
from labelloop.labelstudio.client import Client
from labelloop.media.load import MediaLoader
from labelloop.serving.projects import View
from labelloop.store.fits import Fits
from labelloop.store.jobs import Job
from labelloop.store.scores import Scores


class RetrainOpener:
    """Makes runs work with the parts of one process; `opener` has the prediction path."""

    def __init__(
        self, settings: Settings, training: Training, opener: Opener, media: MediaLoader, scores: Scores, fits: Fits
    ) -> None:
        self._settings = settings
        self._training = training
        self._opener = opener
        self._media = media
        self._scores = scores
        self._fits = fits

    def open(self, job: Job, held: Held) -> Retrain:
        """Raises LabelloopError when it cannot run: no token, or a run that is not in the store."""
        run = self._training.runs.find(job.id)
        if run is None:
            raise JobError(f"Job {job.id} has no run.", hint=f"Begin a new one: labelloop train {job.project_id}")
        patience = Patience(self._settings.patience_s, check=held.check, tell=held.tell)

        def predict(tasks: Sequence[Task], view: View) -> Sequence[Prediction]:
            found = self._opener.predict(view, held.stopping)(tasks)
            self._opener.remember(tasks, found, view)
            return found

        def order(client: Client, project_id: int, view: View) -> None:
            reorder(client, project_id, view, self._scores, wish=Wish(), patience=patience)

        parts = Parts(
            settings=self._settings,
            training=self._training,
            client=self._opener.client(job),
            fetch=self._media.fetch,
            predict=predict,
            warm=self._opener.warm,
            reorder=order,
            fits=self._fits,
            patience=patience,
        )
        return Retrain(job, run, parts, held)
