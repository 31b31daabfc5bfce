"""Our JSON API: what people made of a project's predictions. Reading a large project takes minutes, in a thread."""

from __future__ import annotations

import asyncio
import math
import threading
from collections.abc import Callable

from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelloop.core.errors import Overloaded, SettingsError, ShuttingDown
from labelloop.http.edge import reply
from labelloop.jobs.quality import LISTED, Question, measure
from labelloop.jobs.quality_report import Report
from labelloop.labelstudio.client import Client
from labelloop.labelstudio.filters import parse_moment
from labelloop.labelstudio.wire import BadRequest, project_id_of
from labelloop.learning.mistakes import SURE

AT_ONCE = 2
"""Projects that are read at a time: each keeps a thread, and Label Studio, busy."""
MAX_VERSION = 200
PARAMETERS = ("version", "since", "mistakes", "sure", "overruled", "limit")

Connection = Callable[[int], tuple[str, str]]
Live = Callable[[int], str | None]


class QualityApi:
    """`connection` tells address and token of a project's Label Studio, `live` the version ("NAME@NUMBER") that serves
    it. Whoever asks what is being reckoned already gets the same answer; nothing is kept for later."""

    def __init__(self, connection: Connection, live: Live) -> None:
        self._connection = connection
        self._live = live
        self._running: dict[tuple[int, Question], asyncio.Task[Report]] = {}
        self._closing = threading.Event()

    def routes(self) -> list[Route]:
        return [Route("/api/projects/{project:int}/quality", self.quality, methods=["GET"])]

    async def quality(self, request: Request) -> Response:
        """`?version=&since=&mistakes=false&sure=0.9&overruled=true&limit=500`; changes nothing in Label Studio."""
        number = project_id_of(request.path_params["project"])
        if number is None:
            raise BadRequest("There is no project with so large a number.")
        return reply(await self._answer(number, question_of(request.query_params)))

    def close(self) -> None:
        """End the reading after its page."""
        self._closing.set()

    async def _answer(self, project: int, question: Question) -> Report:
        task = self._running.get((project, question))
        if task is None:
            if len(self._running) >= AT_ONCE:
                hint = "Ask again later, or run: labelloop quality PROJECT --json"
                raise Overloaded(f"{AT_ONCE} projects are being read already.", retry_after_s=10, hint=hint)
            task = asyncio.create_task(asyncio.to_thread(self._measure, project, question))
            self._running[project, question] = task
            task.add_done_callback(lambda _: self._running.pop((project, question)))
        try:
            return await asyncio.shield(task)  # somebody else may wait for the same
        except asyncio.CancelledError:
            self.close()  # only a server that stops cancels its requests
            raise

    def _measure(self, project: int, question: Question) -> Report:
        url, token = self._connection(project)
        if not url:
            hint = f"Run labelloop connect {project}, or set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY."
            raise SettingsError("Label Studio's address is not known.", hint=hint)
        with Client(url, token) as client:
            return measure(client, client.project(project), question, live=self._live(project), look=self._look)

    def _look(self, _done: int, _left: int) -> None:
        if self._closing.is_set():
            raise ShuttingDown("The server is stopping.")


def question_of(parameters: QueryParams) -> Question:
    """The question in an address. Raises BadRequest, and BadFilter for a date."""
    if unknown := [name for name in parameters if name not in PARAMETERS]:
        raise BadRequest(f"There is no parameter {unknown[0][:40]!r}.", hint=f"There are: {', '.join(PARAMETERS)}.")
    since = parameters.get("since")
    return Question(
        version=parameters.get("version", "")[:MAX_VERSION],
        since=parse_moment(since) if since else None,
        mistakes=_flag(parameters, "mistakes", default=True),
        sure=_between(parameters, "sure", default=SURE, most=1.0),
        overruled=_flag(parameters, "overruled", default=False),
        limit=int(_between(parameters, "limit", default=LISTED, most=5000)),
    )


def _flag(parameters: QueryParams, name: str, *, default: bool) -> bool:
    known = {"true": True, "1": True, "false": False, "0": False}
    text = parameters.get(name, str(default)).lower()
    if text not in known:
        raise BadRequest(f"{name} is true or false, not {text[:40]!r}.")
    return known[text]


def _between(parameters: QueryParams, name: str, *, default: float, most: float) -> float:
    text = parameters.get(name, str(default))
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0.0 <= number <= most:
        raise BadRequest(f"{name} is a number from 0 to {most:g}, not {text[:40]!r}.")
    return number
