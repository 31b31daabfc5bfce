"""A real Label Studio on this machine: offline, ready in seconds, gone when we are.

The first start of a release migrates an empty database for a minute. That is done once: the migrated data folder is
kept as a template beside the runtime, with its user and tokens, and every later start begins with a copy of it.
"""

from __future__ import annotations

import contextlib
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import msgspec

from labelloop.core.decoding import from_json
from labelloop.core.errors import RuntimeSetupError
from labelloop.runtimes import venvs
from labelloop.runtimes.processes import child, inherited_environment, tail, take_port
from labelloop.runtimes.venvs import Progress, Runtime

HOST = "127.0.0.1"
EMAIL = "demo@labelloop.example"

_PASSED_ON = ("PATH", "LANG", "LC_ALL", "LC_CTYPE", "TZ", "TMPDIR")
_FIRST_START_S = 600.0  # a minute on an idle machine; CI machines have been seen ten times slower than that
_CREDENTIALS = "credentials.json"


class Credentials(msgspec.Struct, frozen=True):
    """The administrator of one data folder. Made at random when the folder is made: other people may have an account
    on this machine. `token` is a legacy token, `personal_access_token` the newer kind."""

    email: str
    password: str
    token: str
    personal_access_token: str


class LabelStudio(msgspec.Struct, frozen=True):
    """A running Label Studio."""

    url: str
    email: str
    password: str
    token: str
    personal_access_token: str
    pid: int
    data_dir: Path
    log: Path


@contextlib.contextmanager
def start(
    home: Path, *, port: int = 0, data_dir: Path | None = None, progress: Progress | None = None
) -> Iterator[LabelStudio]:
    """Run Label Studio from the runtime in `home` until the block is left; port 0 takes any free one.

    With `data_dir` what people do in it is kept there between starts; without one everything is thrown away. It listens
    on 127.0.0.1 only, may be given backends there too, and reaches nothing outside this machine. Raises
    RuntimeSetupError when the runtime is missing, the port is taken or the server does not come up.
    """
    tell = progress or _silent
    runtime = venvs.look(home, "label-studio")
    if runtime.state != "ready":
        runtime = venvs.check(home, "label-studio")
    if runtime.state != "ready":
        raise RuntimeSetupError(
            f"The Label Studio runtime in {runtime.path} is {runtime.state}.",
            hint="Make it with: labelloop runtimes create label-studio",
        )
    template = _template(runtime, tell)
    with contextlib.ExitStack() as stack:
        if data_dir is None:
            scratch = stack.enter_context(
                tempfile.TemporaryDirectory(prefix="labelloop-ls-", ignore_cleanup_errors=True)
            )
            data_dir = Path(scratch) / "data"
        if not (data_dir / _CREDENTIALS).exists():
            _copy(template, data_dir)
        credentials = from_json((data_dir / _CREDENTIALS).read_bytes(), Credentials)
        yield stack.enter_context(_serve(runtime, data_dir, credentials, port=port, progress=tell))


def _template(runtime: Runtime, progress: Progress) -> Path:
    """The migrated data folder of this release, made now if there is none."""
    release = runtime.spec.requirements[0].partition("==")[2]
    template = runtime.path.parent / f"label-studio-{release}.template"
    with venvs.locked(template.with_suffix(".lock")):
        if (template / _CREDENTIALS).exists():
            return template
        shutil.rmtree(template, ignore_errors=True)
        progress("Label Studio starts for the first time and sets up its database (about a minute)")
        new = Credentials(EMAIL, secrets.token_urlsafe(9), secrets.token_hex(20), personal_access_token="")
        with _serve(runtime, template, new, port=0, progress=progress) as server:
            with _api(server.url, new.token) as api:
                answer = api.post("/api/token/", json={})
            answer.raise_for_status()
            complete = msgspec.structs.replace(new, personal_access_token=answer.json()["token"])
        # Written last and after the server has closed its database: with this file the template is complete.
        _write_private(template / _CREDENTIALS, msgspec.json.encode(complete))
    return template


@contextlib.contextmanager
def _serve(
    runtime: Runtime, data_dir: Path, credentials: Credentials, *, port: int, progress: Progress
) -> Iterator[LabelStudio]:
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    port = take_port(port, host=HOST)  # Label Studio would silently take the next one
    url, log = f"http://{HOST}:{port}", data_dir / "label-studio.log"
    program = str(runtime.path / "bin" / "label-studio")
    argv = [program, "start", "--no-browser", "--internal-host", HOST, "--port", str(port)]
    with child(argv, log=log, env=_environment(data_dir, url, credentials), cwd=data_dir) as process:
        began = time.monotonic()
        while not _ready(url, credentials.token):
            if process.poll() is not None or time.monotonic() - began > _FIRST_START_S:
                ended = "ended" if process.returncode is not None else f"was not ready after {_FIRST_START_S:.0f} s"
                raise RuntimeSetupError(
                    f"Label Studio {ended}; the last lines of {log}:\n{tail(log)}\n",
                    hint="If its data is damaged, labelloop demo --fresh starts with an empty one.",
                )
            time.sleep(0.2)
        progress(f"Label Studio is ready after {time.monotonic() - began:.0f} s at {url}")
        yield LabelStudio(url=url, pid=process.pid, data_dir=data_dir, log=log, **msgspec.structs.asdict(credentials))


def _ready(url: str, token: str) -> bool:
    """True once the API answers to the token: /health alone is green before the user exists."""
    with _api(url, token) as api:
        try:
            return api.get("/health").is_success and api.get("/api/current-user/whoami").is_success
        except httpx.HTTPError:
            return False


def _api(url: str, token: str) -> httpx.Client:
    # trust_env=False: never send this through somebody's proxy
    return httpx.Client(base_url=url, headers={"Authorization": f"Token {token}"}, timeout=30, trust_env=False)


def _environment(data_dir: Path, url: str, credentials: Credentials) -> dict[str, str]:
    """Everything the server may know of our environment.

    Label Studio reads any variable X also as plain `X`, so a HOST or DEBUG of the user's shell would change it: only
    named variables are passed on.
    """
    private = str(data_dir / "config")
    passed_on = {name: value for name, value in inherited_environment().items() if name in _PASSED_ON}
    return passed_on | {
        "HOME": private,
        "XDG_CONFIG_HOME": private,
        "XDG_DATA_HOME": private,
        "XDG_CACHE_HOME": private,
        "LABEL_STUDIO_BASE_DATA_DIR": str(data_dir),
        "LABEL_STUDIO_HOST": url,  # handed to backends as "hostname"
        "LABEL_STUDIO_USERNAME": credentials.email,
        "LABEL_STUDIO_PASSWORD": credentials.password,
        "LABEL_STUDIO_USER_TOKEN": credentials.token,
        "LABEL_STUDIO_ENABLE_LEGACY_API_TOKEN": "true",
        "LABEL_STUDIO_DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(data_dir / "files"),
        "DJANGO_DB": "sqlite",
        # a backend on this machine is the point of it; either switch alone is not enough
        "ML_BLOCK_LOCAL_IP": "false",
        "SSRF_PROTECTION_ENABLED": "false",
        # no outbound traffic
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
        "FEATURE_FLAGS_OFFLINE": "true",
        # The tips box asks an outside host on every page and has no switch: a proxy that is not there ends it at once.
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1,localhost",
    }


def _copy(template: Path, data_dir: Path) -> None:
    """Copy under another name and rename, so that a copy cut short is not taken for a data folder."""
    partial = data_dir.with_name(f"{data_dir.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(template, partial, ignore=shutil.ignore_patterns("*.log"))
    partial.replace(data_dir)


def _write_private(path: Path, content: bytes) -> None:
    partial = path.with_suffix(".partial")
    partial.touch(mode=0o600)
    partial.write_bytes(content)
    partial.replace(path)


def _silent(_: str) -> None:
    return None
