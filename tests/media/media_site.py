"""Real servers on loopback, and what else these tests share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import cv2
import numpy as np

from labelloop.core.regions import MediaKey
from labelloop.core.tasks import MediaRef

Reply = tuple[int, dict[str, str], bytes]
Answer = Reply | Callable[[BaseHTTPRequestHandler], Reply | None]


@dataclass
class Seen:
    path: str
    headers: dict[str, str]
    client: tuple[str, int]


class Site:
    """A web server: `answers` by path and query, or by path alone; 404 for the rest. Remembers what it was asked."""

    def __init__(self, address: str = "127.0.0.1") -> None:
        self.answers: dict[str, Answer] = {}
        self.seen: list[Seen] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.seen.append(Seen(self.path, {k.lower(): v for k, v in self.headers.items()}, self.client_address))
                answer = site.answers.get(self.path) or site.answers.get(self.path.partition("?")[0], (404, {}, b""))
                reply = answer(self) if callable(answer) else answer
                if reply is None:  # the answer wrote to the socket itself
                    self.close_connection = True
                    return
                status, headers, body = reply
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                if "Content-Length" not in headers and "Transfer-Encoding" not in headers:
                    self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True
            block_on_close = False

            def handle_error(self, request: object, client_address: object) -> None:
                """Clients that hang up are part of these tests."""

        self.server = Server((address, 0), Handler)
        self.port = self.server.server_address[1]
        self.url = f"http://{address}:{self.port}"
        self._thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        self._thread.start()

    def paths(self) -> list[str]:
        return [seen.path for seen in self.seen]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self._thread.join()


@dataclass
class FakeOrigin:
    base_url: str
    public_urls: tuple[str, ...] = ()
    trusted: bool = True
    tokens: list[str | None] = field(default_factory=lambda: ["Token secret"])
    refreshed: int = 0

    def authorization(self) -> str | None:
        return self.tokens[0]

    def refresh(self) -> bool:
        self.refreshed += 1
        if len(self.tokens) > 1:
            self.tokens.pop(0)
            return True
        return False


class Names:
    """The outermost seam: host name -> addresses; numbers stand for themselves. Counts the look-ups."""

    def __init__(self, **table: str | list[str]) -> None:
        self.table: dict[str, Any] = {name.replace("_", "."): value for name, value in table.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> list[str]:
        self.asked.append(host)
        found = self.table.get(host, host if host[0].isdigit() or ":" in host else None)
        if found is None:
            raise OSError("unknown name")
        return [found] if isinstance(found, str) else list(found)


def ref(uri: str, *, task_id: int | None = 1, project_id: int | None = 1) -> MediaRef:
    return MediaRef(uri=uri, key=MediaKey("image"), task_id=task_id, project_id=project_id)


def quadrants(width: int = 64, height: int = 48) -> np.ndarray:
    """Red, green, blue, white, in reading order: every turn and mirror looks different."""
    rgb = np.zeros((height, width, 3), np.uint8)
    rgb[: height // 2, : width // 2] = (255, 0, 0)
    rgb[: height // 2, width // 2 :] = (0, 255, 0)
    rgb[height // 2 :, : width // 2] = (0, 0, 255)
    rgb[height // 2 :, width // 2 :] = 255
    return rgb


def jpeg(rgb: np.ndarray | None = None) -> bytes:
    picture = quadrants() if rgb is None else rgb
    return cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


@contextmanager
def threads(count: int, work: Callable[[int], None]) -> Iterator[None]:
    """Run `work(i)` in `count` threads, from one starting line; errors of the threads come out at the end."""
    line, errors = threading.Barrier(count), []

    def run(i: int) -> None:
        try:
            line.wait(5)
            work(i)
        except BaseException as error:
            errors.append(error)

    running = [threading.Thread(target=run, args=(i,)) for i in range(count)]
    for thread in running:
        thread.start()
    yield
    for thread in running:
        thread.join(20)
    if errors:
        raise errors[0]
