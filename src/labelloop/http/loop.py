"""The learning loop in the JSON API: where a project is, switching it on and off, training now, what runs made."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from labelloop.core.errors import JobError
from labelloop.http.edge import read_json, reply
from labelloop.jobs.training import Training, loop_options
from labelloop.labelstudio import wire
from labelloop.store.loops import Loop, LoopOptions


class LoopApi:
    def __init__(self, training: Training) -> None:
        self._training = training

    def routes(self) -> list[Route]:
        return [
            Route("/api/projects/{project:int}/loop", self.state, methods=["GET"]),
            Route("/api/projects/{project:int}/loop", self.change, methods=["PUT"]),
            Route("/api/projects/{project:int}/train", self.train, methods=["POST"]),
            Route("/api/projects/{project:int}/runs", self.runs, methods=["GET"]),
        ]

    async def state(self, request: Request) -> Response:
        return reply(await asyncio.to_thread(self._training.state, _project(request)))

    async def change(self, request: Request) -> Response:
        """`PUT {"enabled": true, "options": {"min_new": 20}}`; both may be left out, options one by one."""
        body = await _object(request)
        number = _project(request)
        return reply(await asyncio.to_thread(self._change, number, body))

    async def train(self, request: Request) -> Response:
        """`POST {}` or `POST {"options": {"budget_s": 30}}`: a run begins now, or the one that is at work is named."""
        body = await _object(request)
        number = _project(request)
        job, new = await asyncio.to_thread(self._begin, number, body)
        return reply({"job": job, "status": "accepted" if new else "running"}, status=201 if new else 200)

    async def runs(self, request: Request) -> Response:
        return reply({"runs": await asyncio.to_thread(self._training.runs.of_project, _project(request))})

    def _change(self, number: int, body: dict[str, Any]) -> Any:
        known = self._training.loops.find(number)
        options = _changed(known, body)
        enabled = body.get("enabled", known.enabled if known else False)
        if not isinstance(enabled, bool):
            raise wire.BadRequest('"enabled" is true or false.')
        self._training.loops.set(number, self._address(number), enabled=enabled, options=options)
        return self._training.state(number)

    def _begin(self, number: int, body: dict[str, Any]) -> tuple[str, bool]:
        known = self._training.loops.find(number)
        options = _changed(known, body)
        address = self._address(number)
        if known is None:  # what is said of this run is no wish for later ones
            self._training.loops.set(number, address, enabled=False, options=LoopOptions())
        job, new = self._training.begin(number, address, options, reason="the JSON API")
        return job.id, new

    def _address(self, number: int) -> str:
        address = self._training.address_of(number)
        if address is None:
            raise JobError(
                "No Label Studio is connected.", hint=f"Run: labelloop connect {number} --url http://… --token …"
            )
        return address


async def _object(request: Request) -> dict[str, Any]:
    return wire.decode_object(await read_json(request))


def _changed(known: Loop | None, body: dict[str, Any]) -> LoopOptions:
    changes = body.get("options", {})
    if not isinstance(changes, dict):
        raise wire.BadRequest('"options" is an object, as in {"options": {"min_new": 20}}.')
    if "trainer_options" in changes:
        # the trainer `command` runs what its options name: whoever may call this API must not choose programs
        raise wire.BadRequest("Options of a trainer are set with labelloop loop PROJECT --with NAME=VALUE, not here.")
    try:
        return loop_options(known.options if known else None, changes)
    except JobError as error:
        raise wire.BadRequest(error.message) from error


def _project(request: Request) -> int:
    number: int = request.path_params["project"]
    if number >= 2**63:
        raise wire.BadRequest("There is no project with so large a number.")
    return number
