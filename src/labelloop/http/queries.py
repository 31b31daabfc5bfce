"""What an address says: behind the question mark, and in its path."""

from __future__ import annotations

from starlette.requests import Request

from labelloop.labelstudio.wire import BadRequest


def number_in(request: Request, name: str) -> int | None:
    """A number that a database can hold; None when it is not given. Raises BadRequest."""
    text = request.query_params.get(name)
    if text is None or (text.isascii() and text.isdigit() and len(text) < 19):
        return int(text) if text else None
    raise BadRequest(f"{text[:40]!r} is not a number.")


def project_in(request: Request) -> int:
    """The project that an address names. Raises BadRequest for a number that no project can have."""
    number: int = request.path_params["project"]
    if number >= 2**63:
        raise BadRequest("There is no project with so large a number.")
    return number
