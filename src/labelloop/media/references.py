"""What a reference in a task means: where to GET it, as whom, and under which name to remember it."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol
from urllib.parse import parse_qs, unquote

import msgspec

from labelloop.core.errors import MediaRefused, MediaUnreachable
from labelloop.core.tasks import MediaRef
from labelloop.media.urls import Url, encode_target, parse_base, parse_url, shorten


class Origin(Protocol):
    """Label Studio as the media of one project are asked for there. Used from several threads at a time."""

    @property
    def base_url(self) -> str:
        """Its address as reached from here, with the sub-path if it has one."""

    @property
    def public_urls(self) -> Sequence[str]:
        """Other addresses people and tasks call it by, for instance the `hostname` of `/setup`."""

    @property
    def trusted(self) -> bool:
        """True when the operator configured `base_url`, so that it may be a private address; False when it came in
        a request: then the address rules hold for it too."""

    def authorization(self) -> str | None:
        """The value of the Authorization header, "Token …" or "Bearer …"; None without credentials."""

    def refresh(self) -> bool:
        """Called after a 401; True if `authorization` may now answer something better."""


OriginFor = Callable[[int | None], Origin | None]
"""Project id -> its Label Studio."""

# every scheme a storage of Label Studio, community or enterprise, writes into tasks
CLOUD_SCHEMES = frozenset(
    ("s3", "s3s", "gs", "gcs", "azure-blob", "azure_spi", "azure-spi", "redis", "rediss", "dbfs", "databricks")
)

_SCHEME = re.compile(r"([a-zA-Z][a-zA-Z0-9+._-]*):(//)?")
_OWN_PATH = re.compile(r"/data/.+|/storage-data/.+|/(?:api/)?(?:tasks|projects)/\d+/(?:resolve|presign)/?")
_UPLOAD, _LOCAL_FILES = "/data/upload/", "/data/local-files/"


class Source(msgspec.Struct, frozen=True):
    """Where the bytes are. `url` is None if Label Studio would be asked and its address is not known."""

    url: Url | None
    identity: str
    """What the cache remembers it by. The address of Label Studio is part of it, credentials are not."""
    own: bool = False
    """A media address of Label Studio itself: it gets the token."""
    trusted: bool = False
    """The first hop may be a private address."""
    forever: bool = False
    """The content under this name never changes."""
    upload: str = ""
    """Path below `/data/upload/`, decoded, to look for on a shared disk."""
    local_file: str = ""
    """Path below the document root of a local-files storage, decoded."""


def locate(ref: MediaRef, origin: Origin | None) -> Source:
    """Every form but `data:`. Raises MediaRefused with the reason for what nobody should fetch."""
    uri = ref.uri.strip()
    if uri.startswith("/") and not uri.startswith("//"):
        return _own(uri, origin) or _refuse_path(uri)
    match = _SCHEME.match(uri)
    scheme = match[1].lower() if match else ""
    if scheme in ("http", "https"):
        return _http(uri, origin)
    if scheme in CLOUD_SCHEMES:
        return _cloud(ref, uri, origin)
    return _refuse_path(uri) if scheme in ("", "file") or len(scheme) == 1 else _refuse_scheme(uri, scheme)


def _own(value: str, origin: Origin | None, *, below: str | None = None) -> Source | None:
    """A path on Label Studio, or None if no media are kept there. `below` is the sub-path to take off; by default
    any of the sub-paths that Label Studio is known by."""
    path, question, query = value.partition("#")[0].partition("?")
    path = _strip(path, origin) if below is None else path[len(below) :]
    if not _OWN_PATH.fullmatch(path):
        return None
    _check_segments(path)
    url = None
    if origin is not None:
        base = parse_base(origin.base_url)
        url = base._replace(target=base.target + encode_target(path + question + query))
    return Source(
        url=url,
        identity=f"own {url.whole}" if url else "",
        own=True,
        trusted=origin is not None and origin.trusted,
        forever=path.startswith(_UPLOAD),
        upload=unquote(path[len(_UPLOAD) :]) if path.startswith(_UPLOAD) else "",
        local_file=parse_qs(query).get("d", [""])[0] if path.startswith(_LOCAL_FILES) else "",
    )


def _strip(path: str, origin: Origin | None) -> str:
    if not path.startswith(("/data/", "/tasks/", "/projects/", "/api/", "/storage-data/")):
        for prefix in _prefixes(origin):
            if path.startswith(prefix + "/"):
                return path[len(prefix) :]
    return path


def _prefixes(origin: Origin | None) -> list[str]:
    names = _names(origin) if origin else []
    return sorted({name.target for name in names if name.target}, key=len, reverse=True)


def _names(origin: Origin) -> list[Url]:
    """Every address of Label Studio, the one to use first."""
    names = [parse_base(origin.base_url)]
    for public in origin.public_urls:
        with suppress(MediaRefused):  # whatever somebody wrote into Label Studio's own settings
            names.append(parse_base(public))
    return names


def _check_segments(path: str) -> None:
    # the server decodes once, and some proxies read a backslash as a slash
    segments = unquote(path).replace("\\", "/").split("/")
    if ".." in segments or "." in segments or "\0" in path or "%00" in path:
        raise MediaRefused(f"The path {shorten(path)!r} leads out of its folder.", hint="Correct it in the task.")


def _http(uri: str, origin: Origin | None) -> Source:
    url = parse_url(uri)
    if origin is not None:
        base, *others = _names(origin)
        for name in (base, *others):
            if _is_at(url, name) and (found := _own(url.target, origin, below=name.target)):
                return found
        if is_below(url, base):
            # pages of Label Studio itself, such as /static/samples: no secret, hence no token
            return Source(url=url, identity=f"http {url.whole}", trusted=origin.trusted)
    return Source(url=url, identity=f"http {url.whole}")


def _is_at(url: Url, name: Url) -> bool:
    """Whether `url` is at the place called `name`. http and https on their usual ports count as one: tasks keep
    the address of the day they were imported, from before TLS was added."""
    same_port = url.port == name.port or {url.port, name.port} == {80, 443}
    return url.host == name.host and same_port and url.target.startswith(name.target + "/")


def is_below(url: Url, base: Url) -> bool:
    """Whether `url` is at `base`: same scheme, host and port, and below its sub-path."""
    below = url.origin == base.origin and url.target.startswith(base.target + "/")
    return below and ".." not in unquote(url.path).replace("\\", "/").split("/")


def _cloud(ref: MediaRef, uri: str, origin: Origin | None) -> Source:
    """Label Studio holds the credentials of the storage: it answers with the bytes or a presigned address."""
    if ref.task_id is not None:
        where = f"tasks/{ref.task_id}"
    elif ref.project_id is not None:
        where = f"projects/{ref.project_id}"
    else:
        raise MediaRefused(
            f"{shorten(uri)!r} can only be had through Label Studio, for a saved task.", hint="Save the task first."
        )
    if origin is None:
        return Source(url=None, identity="")
    base = parse_base(origin.base_url)
    token = base64.urlsafe_b64encode(uri.encode()).decode("ascii")
    url = base._replace(target=f"{base.target}/{where}/resolve/?fileuri={token}")
    # two projects may mean different stores by one bucket name
    scope = ref.project_id if ref.project_id is not None else where
    return Source(
        url=url,
        identity=f"cloud {base.whole} {scope} {uri}",
        own=True,
        trusted=origin.trusted,
    )


def _refuse_path(uri: str) -> Source:
    raise MediaRefused(
        f"{shorten(uri)!r} is a path, and paths named by tasks are not read.",
        hint="Use an upload, a local-files storage (/data/local-files/?d=…) or an http address.",
    )


def _refuse_scheme(uri: str, scheme: str) -> Source:
    raise MediaRefused(
        f"Nothing is known about {scheme!r} addresses ({shorten(uri)!r}).",
        hint="Known: uploads, local-files, http(s), data: and the clouds that Label Studio stores from.",
    )


def no_address(uri: str) -> MediaUnreachable:
    return MediaUnreachable(
        f"{shorten(uri)!r} is kept by Label Studio, whose address is not known.",
        hint="Set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY.",
    )
