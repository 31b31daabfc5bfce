"""Texts of tasks: bytes -> str, and markup -> what a person reads of it."""

from __future__ import annotations

from html.parser import HTMLParser

from labelloop.core.errors import MediaUndecodable

_UNSEEN = ("script", "style", "head", "template", "noscript")
_INLINE = ("a", "abbr", "b", "bdi", "bdo", "cite", "code", "em", "font", "i", "kbd", "mark", "q", "s", "small", "span",
           "strong", "sub", "sup", "u", "var", "wbr")  # fmt: skip


def decode_text(data: bytes) -> str:
    """UTF-8 (with or without a byte order mark), or UTF-16 with one. Raises MediaUndecodable."""
    try:
        return data.decode("utf-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise MediaUndecodable(
            f"The text is no UTF-8: {error.reason} at byte {error.start}.", hint="Save it again as UTF-8."
        ) from error


def plain_text(markup: str) -> str:
    """The words of an HTML document or fragment, its blocks a line each. Takes whatever people write: what is not
    closed ends with the text."""
    reader = _Reader()
    reader.feed(markup)
    reader.close()
    lines = (" ".join(line.split()) for line in "".join(reader.parts).splitlines())
    return "\n".join(line for line in lines if line)


class _Reader(HTMLParser):
    """Collects what is seen. `_hidden` counts the unseen elements that are open."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._hidden = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        del attrs
        self._hidden += tag in _UNSEEN
        self._break_at(tag)

    def handle_endtag(self, tag: str) -> None:
        self._hidden -= tag in _UNSEEN and self._hidden > 0
        self._break_at(tag)

    def handle_data(self, data: str) -> None:
        if not self._hidden:
            self.parts.append(data.replace("\n", " "))

    def _break_at(self, tag: str) -> None:
        if tag not in _INLINE:
            self.parts.append("\n")
