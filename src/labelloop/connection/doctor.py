"""Say what is wrong between Label Studio and a backend, and how to mend it. Changes nothing on either side."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import msgspec

from labelloop.connection import project_checks as checks
from labelloop.connection import server_checks as servers
from labelloop.connection import wiring
from labelloop.connection.backend import BackendProbe
from labelloop.connection.findings import Finding, attempt, fail, failed, skipped, warn
from labelloop.connection.project_checks import Coverage, Look
from labelloop.connection.server_checks import Installation
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.records import Backend, Project


def diagnose(
    installation: Installation,
    project: int | str | None = None,
    *,
    coverage: Coverage | None = None,
    look: Look | None = None,
) -> list[Finding]:
    """All findings of `examine`, in the order of the checks."""
    return list(examine(installation, project, coverage=coverage, look=look))


def examine(
    installation: Installation,
    project: int | str | None = None,
    *,
    coverage: Coverage | None = None,
    look: Look | None = None,
) -> Iterator[Finding]:
    """Check the servers, then one project (id or title), or every project that is connected to the backend.

    Checks that do not need each other go on after a failure; those that cannot be made are told as one skipped line.
    `coverage` and `look` know the models and the media; without them their lines are left out or made smaller.
    """
    if not installation.url:
        hint = "Pass --url http://host:8080 or set LABEL_STUDIO_URL."
        yield fail("address", "Label Studio's address is not known.", hint)
        yield from servers.check_backend(installation)
        return
    with Client(installation.url, installation.token, attempts=1, timeout_s=30.0) as client:
        address = list(attempt("address", lambda: servers.check_address(client)))
        yield from address
        token = [] if failed(address) else list(attempt("token", lambda: servers.check_token(client)))
        yield from token
        backend = list(servers.check_backend(installation))
        yield from backend
        if failed([*address, *token]):
            message = (
                "Address rules, registration, webhook, labels and predictions need a Label Studio that lets us in."
            )
            yield skipped("project", message, "Mend the failed lines above and run labelloop doctor again.")
            return
        rules = list(attempt("address rules", lambda: servers.check_rules(client, installation.backend_url)))
        yield from rules
        seen = _Seen(answering=not failed(backend), allowed=not failed(rules))
        rounds = _Rounds(client, installation, seen, coverage=coverage, look=look)
        yield from rounds.one(project) if project is not None else rounds.connected()


class _Seen(NamedTuple):
    """What the checks of the servers found: does the backend answer here, may Label Studio call it?"""

    answering: bool
    allowed: bool


class _Rounds:
    """The project checks with what they share."""

    def __init__(
        self,
        client: Client,
        installation: Installation,
        seen: _Seen,
        *,
        coverage: Coverage | None,
        look: Look | None,
    ) -> None:
        self._client = client
        self._installation = installation
        self._seen = seen
        self._coverage = coverage
        self._look = look

    def one(self, project: int | str) -> Iterator[Finding]:
        found = checks.find_rejected(self._client, project)
        if isinstance(found, Finding):
            yield found
            return
        yield from self._project(found, self._client.backends(found.id))

    def connected(self) -> Iterator[Finding]:
        """Every project that has a row of ours; Label Studio asks its backends while we look."""
        seen = 0
        for project in self._client.projects():
            backends = self._client.backends(project.id)
            if wiring.ours(backends, self._installation.backend_url):
                seen += 1
                yield from self._project(project, backends)
        if not seen:
            message = f"No project is connected to {self._installation.backend_url}."
            fix = f"labelloop connect PROJECT --backend-url {self._installation.backend_url}"
            yield warn("projects", message, fix)

    def _project(self, project: Project, backends: list[Backend]) -> Iterator[Finding]:
        """One check after the other; an error of Label Studio ends one, not all."""
        subject = f"{project.title} (project {project.id})"
        for finding in self._checks(project, backends):
            yield msgspec.structs.replace(finding, subject=subject)

    def _checks(self, project: Project, backends: list[Backend]) -> Iterator[Finding]:
        client, url, auth = self._client, self._installation.backend_url, self._installation.basic_auth
        coverage, row = self._coverage, next(iter(wiring.ours(backends, url)), None)
        yield from checks.check_rows(
            client, project, backends, url, reachable_here=self._seen.answering, allowed=self._seen.allowed
        )
        yield from attempt("webhook", lambda: checks.check_webhook(client, project, url, auth))
        yield from attempt("storages", lambda: checks.check_storages(client, project))
        if coverage is not None:
            yield from attempt("labels", lambda: checks.check_labels(client, project, row, coverage))
        yield from attempt("picture", lambda: checks.check_picture(client, project, self._look))
        if not self._seen.answering:
            fix = "Mend the backend's failed line above."
            yield skipped("prediction", "The backend does not answer here.", fix)
            return
        probe = BackendProbe(url, basic_auth=auth)
        yield from attempt("prediction", lambda: checks.check_prediction(client, project, row, probe))
