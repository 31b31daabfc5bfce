"""Every setting in one table, and the only reader of the environment.

A setting `x` is read from `LABELLOOP_X`; the other names in a row are the ones that people already have
in their compose files for the official SDK and for other backends. Command line options win over both.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, Literal

import platformdirs
from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    field_validator,
    model_validator,
)

from labelloop.core.errors import SettingsError

PREFIX = "LABELLOOP_"

_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}


def parse_bytes(value: Any) -> Any:
    """'200MB', '1.5 G' or a plain number of bytes. Units are decimal. Raises ValueError."""
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"\s*([0-9.]+)\s*([KMGT]?)(?:i?B)?\s*", value, re.IGNORECASE)
    if not match:
        raise ValueError(f"{value!r} is not a size; write for instance 200MB or 2GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def parse_device(value: Any) -> Any:
    """OpenMMLab writes `gpu:0` where ONNX Runtime and torch write `cuda:0`; what is behind `openvino:` is its own."""
    text = str(value).strip().lower()
    if re.fullmatch(r"openvino(:[a-z0-9.]+)?", text):
        return text
    if not re.fullmatch(r"auto|cpu|(cuda|gpu)(:[0-9]+)?", text):
        raise ValueError(f"{value!r} is not a device; write cpu, cuda, cuda:0, gpu:0, openvino or auto")
    return text.replace("gpu", "cuda")


def parse_listen(text: str) -> tuple[str, int | None]:
    """Host and port of "host", "host:port", "::1" or "[::1]:port". Raises ValueError."""
    text = text.strip()
    match = re.fullmatch(r"(?:\[([^\[\]]+)\]|([^\s:/\[\]]+))(?::([0-9]{1,5}))?", text)
    if match and int(match[3] or 0) <= 65535:
        return match[1] or match[2], int(match[3]) if match[3] else None
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        raise ValueError(f"{text!r} is not an address to listen on; write 0.0.0.0 or 0.0.0.0:9090") from None
    return text, None


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Bytes = Annotated[int, BeforeValidator(parse_bytes)]
Device = Annotated[str, BeforeValidator(parse_device)]
Names = Annotated[tuple[str, ...], BeforeValidator(_split)]


def _names(name: str, *others: str) -> AliasChoices:
    return AliasChoices(PREFIX + name.upper(), *others)


class Settings(BaseModel):
    """The table: name, default, one line of help. Values do not change after start.

    Takes a value by the setting's name or by one of its names in the environment; `read_settings` hands on what the
    environment says under the name found there, so that an error names what the person wrote.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)

    # where things are kept
    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("labelloop", appauthor=False)),
        validation_alias=_names("home"),
        description="Folder of the store, the model files, the cache and the runtimes.",
    )
    database_url: str = Field(
        "",
        validation_alias=_names("database_url"),
        description="SQLAlchemy URL of the store, for instance postgresql://USER@HOST/NAME; empty: SQLite in home.",
    )
    artifacts_url: str = Field(
        "",
        validation_alias=_names("artifacts_url"),
        description="fsspec URL of the model files; empty: a folder in home.",
    )

    # the server
    host: str = Field(
        "127.0.0.1",
        validation_alias=_names("host", "ML_BACKEND_ADDR"),
        description="Address to listen on; may be ADDRESS:PORT if no port is given.",
    )
    port: int = Field(
        9090,
        ge=0,
        le=65535,
        validation_alias=_names("port", "ML_BACKEND_PORT"),
        description="Port to listen on; 0 takes any free one.",
    )
    basic_auth_user: str = Field(
        "",
        validation_alias=_names("basic_auth_user", "BASIC_AUTH_USER", "ML_SERVER_BASIC_AUTH_USER"),
        description="User name that Label Studio must send; empty: no authentication.",
    )
    basic_auth_pass: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("basic_auth_pass", "BASIC_AUTH_PASS", "ML_SERVER_BASIC_AUTH_PASS"),
        description="Password that Label Studio must send. As an option it is visible in the process list; "
        "as a variable it is not.",
    )
    log_level: Annotated[Literal["debug", "info", "warning", "error"], BeforeValidator(_lower)] = Field(
        "info", validation_alias=_names("log_level", "LOG_LEVEL"), description="debug, info, warning or error."
    )
    log_format: Annotated[Literal["auto", "json", "text"], BeforeValidator(_lower)] = Field(
        "auto", validation_alias=_names("log_format"), description="json, text, or auto: text on a terminal."
    )

    # Label Studio
    label_studio_url: str = Field(
        "",
        validation_alias=_names("label_studio_url", "LABEL_STUDIO_URL", "LABEL_STUDIO_HOSTNAME", "LABEL_STUDIO_HOST"),
        description="Address of Label Studio, with its sub-path if it has one.",
    )
    label_studio_token: SecretStr = Field(
        SecretStr(""),
        validation_alias=_names("label_studio_token", "LABEL_STUDIO_API_KEY", "LABEL_STUDIO_TOKEN"),
        description="Personal access token or legacy token.",
    )

    # models
    models_dir: Path | None = Field(
        None,
        validation_alias=_names("models_dir", "ML_MODELS_DIR"),
        description="Folder of ONNX files to serve; 7.onnx serves project 7.",
    )
    labels: Names = Field(
        (),
        validation_alias=_names("labels", "ML_LABELS"),
        description="Class names, comma separated, for files that carry none.",
    )
    device: Device = Field(
        "auto",
        validation_alias=_names("device", "ML_PROVIDER"),
        description="cpu, cuda, cuda:0, gpu:0, openvino or auto.",
    )
    threads: int = Field(
        0,
        ge=0,
        validation_alias=_names("threads"),
        description="Inferences at a time on the CPU, one core each; 0: one per core.",
    )
    max_batch: int = Field(
        0,
        ge=0,
        validation_alias=_names("max_batch"),
        description="Most pictures in one inference; 0: one on a CPU, 16 on a GPU.",
    )
    score_threshold: float | None = Field(
        None,
        ge=0,
        le=1,
        validation_alias=_names("score_threshold", "SCORE_THRESHOLD"),
        description="Regions below are dropped, unless the label config says otherwise.",
    )
    labels_file: Path | None = Field(
        None,
        validation_alias=_names("labels_file"),
        description='JSON file {"model class": "project label"}; it wins over what the label config and the names say.',
    )

    # requests
    queue_limit: int = Field(
        64,
        ge=1,
        validation_alias=_names("queue_limit"),
        description="Requests in work or waiting above which /predict answers 503.",
    )
    max_loaded: int = Field(
        8,
        ge=1,
        validation_alias=_names("max_loaded"),
        description="Models in memory above which the least recently used one goes. "
        "Models assigned to projects are never unloaded.",
    )
    predict_deadline_s: float = Field(
        90.0,
        gt=0,
        validation_alias=_names("predict_deadline_s"),
        description="Answer with what is done after this time; Label Studio hangs up after 100 s.",
    )
    failed_items: Annotated[Literal["empty", "skip"], BeforeValidator(_lower)] = Field(
        "empty",
        validation_alias=_names("failed_items"),
        description="A picture that cannot be had: 'empty' stores an empty prediction, 'skip' lets it be asked again.",
    )

    # media
    image_dir: Path | None = Field(
        None,
        validation_alias=_names("image_dir", "IMAGE_DIR", "LABEL_STUDIO_BASE_DATA_DIR"),
        description="Folder shared with Label Studio: uploads are read there instead of over HTTP.",
    )
    local_files_root: Path | None = Field(
        None,
        validation_alias=_names(
            "local_files_root", "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT", "LOCAL_FILES_DOCUMENT_ROOT"
        ),
        description="Document root of local-files storages, if this machine sees the same disk.",
    )
    media_allow_hosts: Names = Field(
        (),
        validation_alias=_names("media_allow_hosts"),
        description="Private hosts, addresses or networks (10.0.0.0/8) that task URLs may name; * allows all.",
    )
    media_cache_size: Bytes = Field(
        2 * 10**9,
        validation_alias=_names("media_cache_size"),
        description="Disk space for downloaded media, for instance 2GB; 0: none.",
    )
    media_cache_ttl_s: float = Field(
        3600.0,
        ge=0,
        validation_alias=_names("media_cache_ttl_s"),
        description="How long a downloaded URL counts as fresh (uploads: always).",
    )
    media_max_size: Bytes = Field(
        200 * 10**6, gt=0, validation_alias=_names("media_max_size"), description="Largest file to download."
    )
    media_max_pixels: int = Field(
        200 * 10**6,
        gt=0,
        validation_alias=_names("media_max_pixels"),
        description="Largest picture to decode, width times height.",
    )
    media_timeout_s: float = Field(
        30.0, gt=0, validation_alias=_names("media_timeout_s"), description="Time for one download as a whole."
    )
    media_workers: int = Field(
        12,
        ge=2,
        validation_alias=_names("media_workers"),
        description="Downloads at a time; a third is kept for people.",
    )

    # films
    film_live_s: float = Field(
        60.0,
        gt=0,
        validation_alias=_names("film_live_s"),
        description="Longest film that /predict follows things through; longer ones are for `labelloop prelabel`.",
    )
    film_every: int = Field(
        1, ge=1, validation_alias=_names("film_every"), description="Look at every n-th frame of a film."
    )
    tracker: Annotated[Literal["bytetrack", "oc-sort", "bot-sort", "c-biou"], BeforeValidator(_lower)] = Field(
        "bytetrack",
        validation_alias=_names("tracker"),
        description="What follows things from frame to frame: bytetrack, oc-sort, bot-sort or c-biou.",
    )
    film_max_size: Bytes = Field(
        20 * 10**9, gt=0, validation_alias=_names("film_max_size"), description="Largest film to download."
    )
    film_cache_size: Bytes = Field(
        20 * 10**9,
        validation_alias=_names("film_cache_size"),
        description="Disk space for downloaded films; one that is in work stays, whatever its size.",
    )
    film_timeout_s: float = Field(
        3600.0, gt=0, validation_alias=_names("film_timeout_s"), description="Time for the download of one film."
    )

    # jobs
    jobs: bool = Field(
        True, validation_alias=_names("jobs"), description="Run background jobs inside `labelloop serve`."
    )
    watch: Names = Field(
        (),
        validation_alias=_names("watch"),
        description="Projects that `labelloop serve` watches, ids or titles, comma separated; remembered in the store.",
    )
    watch_interval_s: float = Field(
        5.0,
        ge=0.5,
        validation_alias=_names("watch_interval_s"),
        description="Time between two looks at a watched project.",
    )
    patience_s: float = Field(
        86_400.0,
        gt=0,
        validation_alias=_names("patience_s"),
        description="How long a job waits for a Label Studio that is away before it gives up; it can be resumed then.",
    )
    import_settle_s: float = Field(
        10.0,
        ge=0,
        validation_alias=_names("import_settle_s"),
        description="How long an import whose answer was lost may still be at work inside Label Studio.",
    )

    import_size: int = Field(
        5000,
        ge=1,
        le=20_000,
        validation_alias=_names("import_size"),
        description="Most predictions in one import of a job; less where a proxy limits request bodies.",
    )

    # learning
    val_share: float = Field(
        0.25,
        gt=0,
        lt=1,
        validation_alias=_names("val_share"),
        description="Share of the annotated tasks that is held out from training; more moves tasks one way only.",
    )
    split_salt: str = Field(
        "",
        validation_alias=_names("split_salt"),
        description="Another text deals the tasks to training and held-out data anew. Old models have then seen both.",
    )
    annotators: Annotated[Literal["ground_truth", "latest", "consensus"], BeforeValidator(_lower)] = Field(
        "ground_truth",
        validation_alias=_names("annotators"),
        description="Whose word counts on a task that several people annotated.",
    )
    promote: Annotated[Literal["auto", "always", "never", "ask"], BeforeValidator(_lower)] = Field(
        "auto",
        validation_alias=_names("promote"),
        description="When a trained model goes live: if it is better (auto), always, never, or if told to (ask).",
    )
    promote_metric: Literal["AP50", "AP"] = Field(
        "AP50",
        validation_alias=_names("promote_metric"),
        description="What better means: average precision at IoU 0.5, or the mean over 0.5 to 0.95.",
    )
    promote_choice_metric: Literal["accuracy", "macro-F1"] = Field(
        "macro-F1",
        validation_alias=_names("promote_choice_metric"),
        description="The same for choices about pictures or texts: the share that is right, or the mean F1 of labels.",
    )
    promote_margin: float = Field(
        0.005,
        ge=0,
        le=1,
        validation_alias=_names("promote_margin"),
        description="By how much a trained model must be better on the held-out pictures.",
    )
    promote_confidence: float = Field(
        0.9,
        ge=0.5,
        le=1,
        validation_alias=_names("promote_confidence"),
        description="In which share of 1,000 resamples of the held-out pictures it must be better.",
    )
    promote_min_pictures: int = Field(
        4,
        ge=1,
        validation_alias=_names("promote_min_pictures"),
        description="Held-out pictures below which nothing can be told and nothing is promoted.",
    )
    promote_min_boxes: int = Field(
        10, ge=1, validation_alias=_names("promote_min_boxes"), description="The same for boxes on them."
    )
    acquisition: Literal["least_confidence", "margin", "entropy"] = Field(
        "margin",
        validation_alias=_names("acquisition"),
        description="How doubtful a region is; gives every prediction its score, and `labelloop order` its default.",
    )
    aggregation: Literal["max", "mean", "sum", "top-k"] = Field(
        "top-k",
        validation_alias=_names("aggregation"),
        description="How the doubts of a picture's regions become one number; top-k is the mean of the three largest.",
    )

    @field_validator("host")
    @classmethod
    def _can_be_listened_on(cls, value: str) -> str:
        parse_listen(value)
        return value

    @field_validator("label_studio_url")
    @classmethod
    def _is_http(cls, value: str) -> str:
        value = re.sub(r"/projects/[0-9]+([/?#].*)?$", "", value.strip()).rstrip("/")  # copied from a project's page
        if value and not re.match(r"https?://[^/]+", value):
            raise ValueError(f"{value!r} is not an address; write for instance http://label-studio.example.org:8080")
        return value

    @field_validator("database_url")
    @classmethod
    def _names_its_driver(cls, value: str) -> str:
        """The driver that is installed, instead of the one that SQLAlchemy takes for Postgres."""
        return re.sub(r"^postgres(ql)?://", "postgresql+psycopg://", value.strip())

    @model_validator(mode="after")
    def _password_is_whole(self) -> Settings:
        if bool(self.basic_auth_user) != bool(self.basic_auth_pass.get_secret_value()):
            raise ValueError("Basic authentication needs both, a user name and a password")
        return self

    @property
    def following(self) -> str:
        """What tracks depend on beside the model: part of the version of predictions about films."""
        return f"{self.tracker}/{self.film_every}"

    @property
    def listen(self) -> tuple[str, int]:
        """Host and port to listen on. `ML_BACKEND_ADDR` may be written host:port."""
        host, port = parse_listen(self.host)
        return host, self.port if port is None or "port" in self.model_fields_set else port


def read_settings(**overrides: Any) -> Settings:
    """Read the environment once; `overrides` (None means not given) win.

    Raises SettingsError for an unknown `LABELLOOP_…` name (with the near one) or a value that cannot be used.
    """
    known = {alias for field in Settings.model_fields.values() for alias in _aliases(field.validation_alias)}
    for name in os.environ:
        if name.startswith(PREFIX) and name not in known:
            near = difflib.get_close_matches(name, [alias for alias in known if alias.startswith(PREFIX)], n=1)
            raise SettingsError(
                f"There is no setting {name}.",
                hint=f"Did you mean {near[0]}?" if near else "See docs/settings.md for the table.",
            )
    given = {name: value for name, value in overrides.items() if value is not None}
    unknown = given.keys() - Settings.model_fields.keys()
    if unknown:
        raise SettingsError(f"There is no setting {', '.join(sorted(unknown))}.")
    try:
        return Settings(**_environment(without=given.keys()), **given)
    except ValidationError as error:
        first = error.errors()[0]
        name = f"The setting {first['loc'][0]}" if first["loc"] else "The settings"
        raise SettingsError(
            f"{name} cannot be used: {first['msg'].removeprefix('Value error, ')}.",
            hint="See docs/settings.md.",
        ) from error


def _environment(*, without: Collection[str]) -> dict[str, str]:
    """What the environment says, by the names found there; of several names for one setting the first in its row that
    is not empty."""
    found = {}
    for name, field in Settings.model_fields.items():
        alias = next((alias for alias in _aliases(field.validation_alias) if os.environ.get(alias)), None)
        if alias is not None and name not in without:
            found[alias] = os.environ[alias]
    return found


def _aliases(alias: Any) -> list[str]:
    return [str(choice) for choice in alias.choices] if isinstance(alias, AliasChoices) else []


def table() -> list[tuple[str, str, str, str]]:
    """Rows (name, environment names, default, help) for docs/settings.md."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "(the user's data folder)" if name == "home" else field.get_default(call_default_factory=False)
        shown = "" if default in (None, (), "") or isinstance(default, SecretStr) else str(default)
        rows.append((name, ", ".join(_aliases(field.validation_alias)), shown, field.description or ""))
    return rows
