"""The fake Label Studio as a whole."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from starlette.applications import Starlette
from starlette.routing import Mount

from labelloop.testing.label_studio.api_ml import MlApi
from labelloop.testing.label_studio.api_projects import ProjectsApi
from labelloop.testing.label_studio.api_tasks import TasksApi
from labelloop.testing.label_studio.exchange import Around, Ask, Call, route, undisturbed
from labelloop.testing.label_studio.outgoing import Outgoing, Timeouts
from labelloop.testing.label_studio.rows import list_task_row
from labelloop.testing.label_studio.state import State
from labelloop.testing.label_studio.tokens import Tokens
from labelloop.testing.serve import LoopbackServer


class Seen(NamedTuple):
    """One request that arrived; `authorization` is the header as it came."""

    method: str
    path: str
    query: dict[str, str]
    authorization: str


class FakeLabelStudio:
    """A Label Studio 1.23.2 that starts in milliseconds: a real HTTP server on loopback, all data in memory.

        with FakeLabelStudio() as studio, FakeBackend() as backend:
            project = studio.add_project("cells", '<View><Image name="i" value="$image"/>…</View>')
            studio.add_tasks(project, ({"image": f"{n}.jpg"} for n in range(100_000)))
            client = Client(studio.url, studio.token)
            client.add_backend(project, backend.url, title="mine")

    It behaves as the real one was seen to: /health and /setup before predictions, the webhook that appears by itself,
    invalid predictions that vanish from a bulk import, 404 beyond the last page, 500 for a missing upload. The two
    address switches are off here because tests live on loopback; turn `block_backends` (ML_BLOCK_LOCAL_IP) and
    `block_webhooks` (SSRF_PROTECTION_ENABLED) on to get the shipped defaults. `sub_path` serves it below a path.

    Assign `around` to make trouble: it is called with the request, its path and a function that answers as usual, and
    returns what the client gets. So it can refuse, wait, or do the work and lose the answer, as a proxy would.
    """

    def __init__(
        self,
        *,
        sub_path: str = "",
        block_backends: bool = False,
        block_webhooks: bool = False,
        legacy_tokens: bool = True,
        port: int = 0,
    ) -> None:
        self._offset_s = 0.0
        self.requests: list[Seen] = []
        self.around: Around = undisturbed
        self.state = State(self.clock)
        self.tokens = Tokens(self.clock, legacy_api_tokens_enabled=legacy_tokens)
        self.outgoing = Outgoing(
            self.state,
            hostname="",
            access_token=self.tokens.legacy,
            block_backends=block_backends,
            block_webhooks=block_webhooks,
        )
        self._server = LoopbackServer(self._app(sub_path), port=port)
        self.url = self.outgoing.hostname = self._server.url + sub_path

    def _app(self, sub_path: str) -> Starlette:
        projects = ProjectsApi(self.state, self.tokens, self.outgoing)
        tasks = TasksApi(self.state, projects, self.outgoing)
        calls = [*projects.calls(), *MlApi(self.state, projects, self.outgoing).calls(), *tasks.calls()]
        calls.append(Call(["GET"], "/presigned/{uri:path}", tasks.presigned, public=True))
        routes = [route(call, self.tokens, self._note, lambda: self.around) for call in calls]
        return Starlette(routes=[Mount(sub_path, routes=routes)] if sub_path else routes)

    # --- life ---------------------------------------------------------------------------------------

    def __enter__(self) -> FakeLabelStudio:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self._server.start()

    def stop(self) -> None:
        """Data is kept: a later start() goes on with it, on the same port."""
        self._server.stop()

    def clock(self) -> float:
        """Its idea of now, unix seconds."""
        return time.time() + self._offset_s

    def advance(self, seconds: float) -> None:
        """Move its clock: access tokens live 300 s."""
        self._offset_s += seconds

    # --- what a test prepares and looks at ----------------------------------------------------------

    @property
    def token(self) -> str:
        """The legacy token."""
        return self.tokens.legacy

    @property
    def personal_access_token(self) -> str:
        """Created at the first use."""
        return self.tokens.personal or self.tokens.create_personal()

    @property
    def timeouts(self) -> Timeouts:
        """How long it waits for a backend; assign to shorten."""
        return self.outgoing.timeouts

    @timeouts.setter
    def timeouts(self, timeouts: Timeouts) -> None:
        self.outgoing.timeouts = timeouts

    def add_project(self, title: str, label_config: str, **fields: Any) -> int:
        """Returns its id; `fields` are attributes of `state.Project`."""
        return self.state.add_project(title, label_config, **fields).id

    def add_tasks(self, project: int, data: Iterable[dict[str, Any]]) -> list[int]:
        """Returns their ids; no event is sent."""
        return self.state.add_tasks(self.state.projects[project], data)

    def add_upload(self, project: int, name: str, content: bytes) -> str:
        """Store a file and return its address, `/data/upload/…`; put that into a task."""
        return self.state.add_upload(self.state.projects[project], name, content).address

    def predictions(self, task: int) -> list[dict[str, Any]]:
        """What is stored for a task, oldest first."""
        return list(self.state.predictions.get(task, ()))

    def task(self, task: int) -> dict[str, Any]:
        """The task as GET /api/tasks?fields=all shows it, without asking a backend."""
        return list_task_row(self.state, self.state.tasks[task], everything=True)

    def paths(self) -> Sequence[str]:
        """`METHOD /path` of every request so far."""
        return [f"{seen.method} {seen.path}" for seen in self.requests]

    def _note(self, ask: Ask, path: str) -> None:
        self.requests.append(Seen(ask.method, path, ask.query, ask.headers.get("authorization", "")))
