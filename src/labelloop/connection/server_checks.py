"""Checks that concern the two servers as a whole: address, token, backend, address rules."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from labelloop.connection.addresses import is_loopback, reachable_from_outside, same_address, serve_command
from labelloop.connection.backend import HEALTH_LIMIT_S, Answer, BackendProbe, BasicAuth
from labelloop.connection.findings import Finding, fail, ok, warn
from labelloop.connection.wiring import webhook_url
from labelloop.core.errors import LabelStudioRejected
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.session import NOT_LABEL_STUDIO_HINT


class Installation(msgspec.Struct, frozen=True):
    """What somebody has: a Label Studio (address, token) and a backend (address, user name and password)."""

    url: str
    token: str
    backend_url: str
    basic_auth: BasicAuth | None = None


def check_address(client: Client) -> Iterator[Finding]:
    """Reachable, and really Label Studio, at its own path."""
    try:
        release = client.version()
    except LabelStudioRejected as error:
        message = f"{client.base_url} is not Label Studio's address: {error.message}"
        yield fail("address", message, NOT_LABEL_STUDIO_HINT)
        return
    if not client.is_at_api():
        message = f"Label Studio {release} answers at {client.base_url}, but its API is at another path."
        yield fail("address", message, NOT_LABEL_STUDIO_HINT)
        return
    yield ok("address", f"Label Studio {release} answers at {client.base_url}.")


def check_token(client: Client) -> Iterator[Finding]:
    """Accepted, and of a kind that lasts."""
    user = client.whoami()
    kinds = {"legacy": "legacy token", "personal": "personal access token", "access": "access token"}
    kind = client.credentials.kind
    yield ok("token", f"The {kinds.get(kind, kind)} of {user.email or f'user {user.id}'} is accepted.")
    if kind == "access":
        yield warn(
            "token",
            "It is a short-lived access token: it stops working after about five minutes.",
            "Use the personal access token itself (Account & Settings > Personal Access Token).",
        )


def check_backend(installation: Installation) -> Iterator[Finding]:
    """The backend as seen from here: answers, fast enough, lets us in, models warm."""
    check, backend_url, basic_auth = "backend", installation.backend_url, installation.basic_auth
    if same_address(backend_url, installation.url):
        fix = "Give the backend's own address as --backend-url, for instance http://127.0.0.1:9090."
        yield fail(check, f"{backend_url} is Label Studio itself.", fix)
        return
    probe = BackendProbe(backend_url, basic_auth=basic_auth)
    health = probe.health()
    if not health.fine:
        yield _not_answering(backend_url, health)
        return
    milliseconds = f"{health.seconds * 1000:.0f} ms"
    if health.seconds > HEALTH_LIMIT_S:
        message = f"{backend_url}/health takes {milliseconds}; Label Studio waits {HEALTH_LIMIT_S:.0f} s."
        yield fail(check, message, "Give the machine more room, or put fewer inferences at a time on it (--threads).")
    else:
        yield ok(check, f"{backend_url} answers /health in {milliseconds}.")
    if probe.versions().status == 401:
        other = "does not take this" if basic_auth else "asks for a"
        fix = "Pass --basic-auth-user and --basic-auth-pass as the backend was started with."
        yield fail("backend login", f"{backend_url} {other} user name and password.", fix)
        return
    yield from _warmth(probe.ready())


def _not_answering(backend_url: str, health: Answer) -> Finding:
    if not health.status:
        fix = f"Start it: {serve_command(backend_url)}. If it runs at another address, give that as --backend-url."
        return fail("backend", f"Nothing answers at {backend_url}: {health.error}.", fix)
    reason = f"status {health.status}" if not 200 <= health.status < 300 else health.error
    fix = "Give the backend's own address as --backend-url; another program may use this port."
    return fail("backend", f"{backend_url}/health is not an ML backend's ({reason}).", fix)


def _warmth(ready: Answer) -> Iterator[Finding]:
    """labelloop says which models are still loading; other backends do not know /ready."""
    models = ready.body.get("models") if isinstance(ready.body, dict) else None
    if not isinstance(models, dict):
        return
    cold = {name: state for name, state in models.items() if state != "ready"}
    if not models:
        fix = "Add one: labelloop models add FILE.onnx --name NAME"
        yield warn("models", "The backend has no model to serve.", fix)
    elif cold:
        listed = ", ".join(f"{name} ({state})" for name, state in cold.items())
        fix = "Wait a moment and look again; if it stays so, the backend's log says why."
        yield warn("models", f"Not ready: {listed}.", fix)
    else:
        yield ok("models", f"Loaded and warm: {', '.join(models)}.")


def check_rules(client: Client, backend_url: str) -> Iterator[Finding]:
    """Label Studio's two address switches, and names that only mean something here. Stores nothing."""
    refusals: dict[str, LabelStudioRejected] = {}
    for what, ask, url in (
        ("call the backend", client.check_backend_address, backend_url),
        ("send webhooks", client.check_webhook_address, webhook_url(backend_url)),
    ):
        try:
            ask(url)
        except LabelStudioRejected as error:
            # An older release may not know the question; only a refusal with a known way out counts.
            if error.hint and error.status in (400, 403, 500):
                refusals[what] = error
    for refusal in {str(error): error for error in refusals.values()}.values():
        what = " or ".join(what for what, error in refusals.items() if str(error) == str(refusal))
        # Without webhooks predictions still work, unless the address switch leaves the registration half-made.
        make = warn if refusal.status == 400 else fail
        yield make("address rules", f"Label Studio would not {what}: {refusal.message}", refusal.hint)
    if not refusals:
        yield ok("address rules", f"Label Studio may call {backend_url} and send webhooks there.")
    if is_loopback(backend_url) and not is_loopback(client.base_url):
        message = f"Label Studio runs at {client.base_url}: there, {backend_url} is its own machine, not this one."
        yield warn("backend address", message, reachable_from_outside(backend_url, client.base_url))
