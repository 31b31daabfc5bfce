"""Every error labelloop raises on purpose, as one tree.

Each error carries what happened (`message`) and what to do about it (`hint`); `code` is the short, stable
name that logs, metrics and the JSON API use, so that an operator can count one kind of trouble.
"""

from __future__ import annotations

from typing import ClassVar


class LabelloopError(Exception):
    """Root of the tree. `str(error)` is the message followed by the hint."""

    code: ClassVar[str] = "labelloop"

    def __init__(self, message: str, *, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class SettingsError(LabelloopError):
    """A setting is unknown or has a value that cannot be used."""

    code = "settings"


class LabelConfigError(LabelloopError):
    """The project's label config cannot be read, or has nothing this model could fill."""

    code = "label-config"


# --- media: one item cannot be had; its neighbours are not touched ---------------------------------


class MediaError(LabelloopError):
    """A picture (or film, page, text) of a task could not be had."""

    code = "media"


class MediaNotFound(MediaError):
    code = "media-not-found"


class MediaForbidden(MediaError):
    """The server answered 401 or 403: our credentials are missing, expired or of the wrong kind."""

    code = "media-forbidden"


class MediaRefused(MediaError):
    """We refuse to fetch it: private address, unknown scheme, path outside the allowed folders."""

    code = "media-refused"


class MediaTooLarge(MediaError):
    code = "media-too-large"


class MediaTimeout(MediaError):
    code = "media-timeout"


class MediaUnreachable(MediaError):
    """The server is down, answered 5xx, or broke the connection."""

    code = "media-unreachable"


class MediaUndecodable(MediaError):
    """The bytes arrived and are not a picture that can be decoded."""

    code = "media-undecodable"


class SimulationError(LabelloopError):
    """What is to be simulated makes no sense, or is not what its folder was begun with."""

    code = "simulation"


class FilmTooLong(MediaError):
    """A film takes longer than a request may."""

    code = "film-too-long"


class FilmError(MediaError):
    """A film cannot be made, or is not what it was made from."""

    code = "film"


# --- Label Studio's HTTP API ------------------------------------------------------------------------


class LabelStudioError(LabelloopError):
    """Label Studio could not be asked, or did not do what was asked."""

    code = "label-studio"


class LabelStudioUnreachable(LabelStudioError):
    code = "label-studio-unreachable"


class LabelStudioAuthError(LabelStudioError):
    """The token is missing, expired, of the wrong kind, or not allowed to do this."""

    code = "label-studio-auth"


class LabelStudioRejected(LabelStudioError):
    """Label Studio answered 4xx or 5xx. `status` is its HTTP status."""

    code = "label-studio-rejected"

    def __init__(self, message: str, *, status: int, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status


# --- models -----------------------------------------------------------------------------------------


class ProjectElsewhere(LabelloopError):
    """The number of this project belongs to another project in our store, of another Label Studio."""

    code = "project-elsewhere"


class ModelError(LabelloopError):
    """A model cannot be added, found, loaded or run."""

    code = "model"


class ModelNotFound(ModelError):
    code = "model-not-found"


class ModelUnrecognised(ModelError):
    """The file is a valid model, but nothing here knows how to read its outputs."""

    code = "model-unrecognised"


class ModelUnassigned(ModelError):
    """No model is assigned to this project and there is no default."""

    code = "model-unassigned"


class ModelFailed(ModelError):
    """The model raised while loading or predicting."""

    code = "model-failed"


# --- serving ----------------------------------------------------------------------------------------


class Overloaded(LabelloopError):
    """The queue is full. `retry_after_s` says when a new try makes sense."""

    code = "overloaded"

    def __init__(self, message: str, *, retry_after_s: float, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class DeadlineExceeded(LabelloopError):
    """The caller stops waiting before this item could be done, so it was not started."""

    code = "deadline-exceeded"


class ShuttingDown(LabelloopError):
    """The server is stopping; another one, or the next start, will answer."""

    code = "shutting-down"


class RuntimeSetupError(LabelloopError):
    """An isolated interpreter (Label Studio's, OpenMMLab's) could not be made or started."""

    code = "runtime-setup"


# --- jobs -------------------------------------------------------------------------------------------


class JobError(LabelloopError):
    """A background job cannot be found, started or continued."""

    code = "job"


class JobNotFound(JobError):
    code = "job-not-found"


class LoopNotFound(JobError):
    """The project has no learning loop."""

    code = "loop-not-found"


class JobLost(JobError):
    """Another worker took this job over: it believed that we were dead."""

    code = "job-lost"
