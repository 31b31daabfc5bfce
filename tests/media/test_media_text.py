"""Texts of tasks: what a person reads of markup, and which bytes are text."""

from __future__ import annotations

import pytest

from labelloop.core.errors import MediaUndecodable
from labelloop.media.text import decode_text, plain_text


@pytest.mark.parametrize(
    ("markup", "read"),
    [
        ("no markup at all", "no markup at all"),
        ("<p>One</p><p>two <b>three</b>four</p>", "One\ntwo threefour"),
        ("a &amp; b &lt;c&gt; &eacute;", "a & b <c> é"),
        ("<style>p { color: red }</style><script>if (a < b) {}</script>seen", "seen"),
        ("<div>never <span>closed", "never closed"),
        ("line one<br/>line   two\n\tgoes on", "line one\nline two goes on"),
        ("3 < 4 and 5 > 4", "3 < 4 and 5 > 4"),
        ("</script></script>still read", "still read"),
        ("<!-- a note -->text", "text"),
        ("", ""),
    ],
    ids=[
        "plain",
        "blocks and inline",
        "entities",
        "unseen",
        "unclosed",
        "line breaks",
        "bare signs",
        "stray ends",
        "comment",
        "empty",
    ],
)
def test_markup_is_read_as_people_see_it(markup: str, read: str) -> None:
    assert plain_text(markup) == read


@pytest.mark.parametrize(
    "data",
    ["née".encode(), b"\xef\xbb\xbf" + "née".encode(), "née".encode("utf-16")],
    ids=["utf-8", "with a byte order mark", "utf-16"],
)
def test_bytes_become_text(data: bytes) -> None:
    assert decode_text(data) == "née"


def test_bytes_that_are_no_text_say_so() -> None:
    with pytest.raises(MediaUndecodable, match="no UTF-8"):
        decode_text(b"\xff\xd8\xff\xe0 a picture")
