"""What Label Studio's API answers, as frozen values. Fields that we do not use are ignored: newer releases add some."""

from __future__ import annotations

from typing import Any, Literal

import msgspec


class Version(msgspec.Struct, frozen=True):
    release: str


class User(msgspec.Struct, frozen=True):
    id: int
    email: str = ""
    active_organization: int | None = None


class JwtSettings(msgspec.Struct, frozen=True):
    """Which kinds of token the organisation accepts."""

    api_tokens_enabled: bool = True
    legacy_api_tokens_enabled: bool = True


class Project(msgspec.Struct, frozen=True):
    """`model_version` is the title of a backend (live calls) or a version string (stored predictions)."""

    id: int
    title: str = ""
    label_config: str = ""
    model_version: str | None = None
    show_collab_predictions: bool = True
    evaluate_predictions_automatically: bool = False
    sampling: str = ""
    task_number: int | None = None
    total_annotations_number: int | None = None
    """All of them, skipped ones included."""
    created_at: str = ""


class Backend(msgspec.Struct, frozen=True):
    """One row of Settings > Model. `state` is CO connected, DI disconnected, ER error, TR training or PR predicting."""

    id: int
    url: str
    project: int
    title: str = ""
    state: str = ""
    error_message: str | None = None
    model_version: str | None = None
    is_interactive: bool = False
    auth_method: Literal["NONE", "BASIC_AUTH"] | None = None
    basic_auth_user: str | None = None
    basic_auth_pass_is_set: bool = False
    extra_params: Any = None
    auto_update: bool = True

    @property
    def connected(self) -> bool:
        """Whether Label Studio got through the last time it asked."""
        return self.state in ("CO", "TR", "PR")


class Webhook(msgspec.Struct, frozen=True):
    id: int
    url: str
    project: int | None = None
    is_active: bool = True
    send_payload: bool = True
    send_for_all_actions: bool = True
    actions: tuple[str, ...] = ()
    headers: dict[str, str] = {}


class Storage(msgspec.Struct, frozen=True):
    """A source storage. `type` is localfiles, s3, gcs, azure or redis; `presign` only exists for the cloud kinds."""

    id: int
    type: str
    title: str | None = None
    path: str | None = None
    bucket: str | None = None
    container: str | None = None
    prefix: str | None = None
    presign: bool | None = None
    use_blob_urls: bool = False


class TaskPage(msgspec.Struct, frozen=True):
    """One page of tasks as Label Studio writes them, and the counts of the whole selection."""

    tasks: tuple[dict[str, Any], ...]
    total: int
    total_annotations: int = 0
    total_predictions: int = 0


class Imported(msgspec.Struct, frozen=True):
    """The answer to an import of tasks or files."""

    task_count: int = 0
    prediction_count: int = 0
    task_ids: tuple[int, ...] = ()
    file_upload_ids: tuple[int, ...] = ()


class PredictionImport(msgspec.Struct, frozen=True):
    """Label Studio drops invalid predictions without a word: `dropped` is how many of `sent` it did not take."""

    sent: int
    created: int

    @property
    def dropped(self) -> int:
        return self.sent - self.created


class ModelVersion(msgspec.Struct, frozen=True):
    """A version that stored predictions have, with their number."""

    model_version: str | None
    count: int
    latest: str | None = None


class View(msgspec.Struct, frozen=True):
    """A tab of the Data Manager. `data` is what the web page reads: `title`, `ordering`, `filters`, columns."""

    id: int
    project: int
    data: dict[str, Any] = {}

    @property
    def title(self) -> str:
        return str(self.data.get("title") or "")
