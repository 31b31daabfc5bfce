"""A picture server behind a token, as lean as Python allows: `/data/upload/<n>/<name>` gives one of the pictures.

Every number is another address with the same few files behind it, so a cache never helps.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import uvicorn

TOKEN = b"Token benchmark"


def application(folder: Path) -> Any:
    pictures = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]

    async def answer(scope: Any, _receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        if headers.get(b"authorization") != TOKEN:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"{}"})
            return
        body = pictures[int(scope["path"].split("/")[3]) % len(pictures)]
        size = str(len(body)).encode()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"content-type", b"image/jpeg"), (b"content-length", size)],
            }
        )
        await send({"type": "http.response.body", "body": body})

    return answer


if __name__ == "__main__":
    uvicorn.run(
        application(Path(sys.argv[1])), port=int(sys.argv[2]), access_log=False, log_level="error", lifespan="off"
    )
