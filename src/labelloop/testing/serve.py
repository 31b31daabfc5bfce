"""Run an ASGI application on a loopback port in a thread: a real server for tests."""

from __future__ import annotations

import asyncio
import socket
import threading
from typing import Any, Literal

import uvicorn

_START_TIMEOUT_S = 10.0


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.ready = threading.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self.ready.set()

    async def main_loop(self) -> None:
        # uvicorn looks ten times a second whether it should stop; a suite of a hundred servers feels that
        await self.on_tick(0)
        if not self.should_exit:
            await self._stop.wait()

    def stop(self) -> None:
        """From another thread. Requests in work are dropped, unless the application wants to be told of its end: then
        they are waited for."""
        self.should_exit = True
        self.force_exit = self.config.lifespan == "off"
        self._loop.call_soon_threadsafe(self._stop.set)


class LoopbackServer:
    """A context manager; `url` is known from the constructor on. It can be stopped and started again on its port."""

    def __init__(
        self, app: Any, *, host: str = "127.0.0.1", port: int = 0, lifespan: Literal["on", "off"] = "off"
    ) -> None:
        self._app = app
        self._lifespan: Literal["on", "off"] = lifespan
        self._socket: socket.socket | None = _listening(host, port)
        self.host, self.port = host, int(self._socket.getsockname()[1])
        self.url = f"http://{host}:{self.port}"
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Returns when requests are answered. Raises RuntimeError when the server does not come up."""
        listening = self._socket or _listening(self.host, self.port)
        self._socket = None
        config = uvicorn.Config(
            self._app, log_level="error", lifespan=self._lifespan, access_log=False, timeout_graceful_shutdown=1
        )
        self._server = _Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listening]}, name=f"loopback-{self.port}", daemon=True
        )
        self._thread.start()
        if not self._server.ready.wait(_START_TIMEOUT_S):
            raise RuntimeError(f"The server on {self.url} did not start within {_START_TIMEOUT_S:.0f} s.")

    def stop(self) -> None:
        """Afterwards connections are refused."""
        if self._server is not None and self._thread is not None:
            self._server.stop()
            self._thread.join(_START_TIMEOUT_S)
            self._server = self._thread = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def __enter__(self) -> LoopbackServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()


def _listening(host: str, port: int) -> socket.socket:
    listening = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((host, port))
    # Without a backlog a client that connects before uvicorn listens would be refused.
    listening.listen(128)
    return listening
