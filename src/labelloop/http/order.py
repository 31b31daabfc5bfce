"""The order of a project in the JSON API: what should be labelled next, first. Takes as long as the command does."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Annotated

import msgspec
import structlog
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelloop.core.decoding import from_json
from labelloop.core.errors import Overloaded, SettingsError, ShuttingDown
from labelloop.core.settings import Settings
from labelloop.http.edge import read_json, reply
from labelloop.http.queries import project_in
from labelloop.jobs.evidence import Seeing
from labelloop.jobs.order import Ordered, Wish, reorder, wish_of
from labelloop.jobs.patience import Patience
from labelloop.jobs.submit import known_project, view_of
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.wire import BadRequest
from labelloop.serving.models import Store
from labelloop.serving.projects import View

log = structlog.get_logger(__name__)

PATIENCE_S = 60.0
"""Somebody waits for the answer."""

Connection = Callable[[int], tuple[str, str]]
OpenLooks = Callable[[View, int, tuple[str, str], Callable[[], None]], Seeing]
"""Second looks at a project's pictures: the view, the project, address and token of its Label Studio, and what raises
when the looking should end."""
Count = Annotated[int, msgspec.Meta(ge=1)]


class Asked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `POST /api/projects/{project}/order` takes; the same as the options of `labelloop order`."""

    strategy: str | None = None
    aggregate: str | None = None
    top_k: Count = 3
    class_balance: bool = False
    empty_quota: Annotated[float, msgspec.Meta(ge=0, le=0.99)] | None = None
    flip: bool = False
    diverse: Count | None = None
    method: str = "k-center"
    first: Count | None = None
    sampling: bool = True
    seed: int = 0
    model: str | None = None


class OrderApi:
    """`connection` tells address and token of a project's Label Studio. Who asks for the order that is being made
    already gets the same answer; another one for the same project is refused until then."""

    def __init__(self, settings: Settings, store: Store, connection: Connection, looks: OpenLooks) -> None:
        self._settings = settings
        self._store = store
        self._connection = connection
        self._looks = looks
        self._running: dict[int, tuple[Asked, asyncio.Task[Ordered]]] = {}
        self._closing = threading.Event()

    def routes(self) -> list[Route]:
        return [Route("/api/projects/{project:int}/order", self.order, methods=["POST"])]

    async def order(self, request: Request) -> Response:
        """`POST {}` or for instance `POST {"strategy": "entropy", "first": 200}`; answers when the order stands."""
        number = project_in(request)
        try:
            asked = from_json(await read_json(request), Asked)
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            hint = 'Send for instance {"strategy": "margin", "first": 200}, or {}.'
            raise BadRequest(f"This order cannot be read: {error}.", hint=hint) from error
        return reply(await self._answer(number, asked))

    def close(self) -> None:
        """End what is being done; whoever asks again goes on where it ended."""
        self._closing.set()

    async def _answer(self, project: int, asked: Asked) -> Ordered:
        running = self._running.get(project)
        if running is not None and running[0] != asked:
            hint = "Ask again when that one is made."
            raise Overloaded(f"Project {project} is being put into another order.", retry_after_s=10, hint=hint)
        if running is None:
            task = asyncio.create_task(asyncio.to_thread(self._order, project, asked))
            self._running[project] = running = asked, task
            task.add_done_callback(lambda _: self._running.pop(project))
        try:
            return await asyncio.shield(running[1])  # somebody else may wait for the same
        except asyncio.CancelledError:
            self.close()  # only a server that stops cancels its requests
            raise

    def _order(self, number: int, asked: Asked) -> Ordered:
        wish = _wish(self._settings, asked)
        url, token = self._connection(number)
        if not url:
            hint = f"Run labelloop connect {number}, or set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY."
            raise SettingsError("Label Studio's address is not known.", hint=hint)
        patience = Patience(PATIENCE_S, check=self._check, tell=lambda level, text: getattr(log, level)(text))
        with Client(url, token) as client:
            project = known_project(client, self._store.registry, number)
            view = view_of(self._settings, self._store.registry, project, asked.model)
            looks = self._looks(view, number, (url, token), self._check) if wish.looks else None
            return reorder(client, number, view, self._store.scores, wish=wish, patience=patience, looks=looks)

    def _check(self) -> None:
        if self._closing.is_set():
            raise ShuttingDown("The server is stopping.")


def _wish(settings: Settings, asked: Asked) -> Wish:
    return wish_of(
        settings,
        strategy=asked.strategy,
        aggregation=asked.aggregate,
        top_k=asked.top_k,
        balance=asked.class_balance,
        empty_quota=asked.empty_quota,
        flip=asked.flip,
        diverse=asked.diverse,
        method=asked.method,
        first=asked.first,
        sampling=asked.sampling,
        seed=asked.seed,
    )
