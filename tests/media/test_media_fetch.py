"""From a reference to bytes, against real servers."""

from __future__ import annotations

import base64
import gzip
import socket
import subprocess
import threading
import time
import zlib
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from shutil import which

import pytest
from media_site import Answer, FakeOrigin, Names, Reply, Site, ref

from labelloop.core.errors import (
    LabelStudioAuthError,
    LabelStudioUnreachable,
    MediaError,
    MediaForbidden,
    MediaNotFound,
    MediaRefused,
    MediaTimeout,
    MediaTooLarge,
    MediaUndecodable,
    MediaUnreachable,
)
from labelloop.media.load import MediaLoader

Make = Callable[..., MediaLoader]
UPLOAD = "/data/upload/1/5531a9a4-im0.jpg"


# --- as whom ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("uri", [UPLOAD, "/data/local-files/?d=a.jpg", "{studio}" + UPLOAD])
def test_label_studio_gets_the_token(make_loader: Make, studio: Site, uri: str) -> None:
    studio.answers[uri.partition("?")[0].removeprefix("{studio}")] = (200, {}, b"bytes")
    assert make_loader().fetch(ref(uri.format(studio=studio.url))) == b"bytes"
    assert studio.seen[0].headers["authorization"] == "Token secret"


def test_a_public_name_is_fetched_where_label_studio_is(make_loader: Make, studio: Site) -> None:
    studio.answers["/data/local-files/"] = (200, {}, b"bytes")
    origin = FakeOrigin(studio.url, ("https://labels.example.org",))
    assert make_loader(origin).fetch(ref("https://labels.example.org/data/local-files/?d=a")) == b"bytes"
    assert studio.seen[0].headers["authorization"] == "Token secret"


def test_sub_path(make_loader: Make, studio: Site) -> None:
    studio.answers["/ls" + UPLOAD] = (200, {}, b"bytes")
    loader = make_loader(FakeOrigin(studio.url + "/ls"), media_cache_size=0)
    assert loader.fetch(ref(UPLOAD)) == loader.fetch(ref("/ls" + UPLOAD)) == b"bytes"


def test_other_servers_never_see_the_token(make_loader: Make, other: Site) -> None:
    other.answers["/data/upload/1/a.jpg"] = (200, {}, b"bytes")
    loader = make_loader(resolve=Names(other_example="127.0.0.1"), media_allow_hosts="other.example")
    assert loader.fetch(ref(f"http://other.example:{other.port}/data/upload/1/a.jpg")) == b"bytes"
    assert "authorization" not in other.seen[0].headers
    assert other.seen[0].headers["host"] == f"other.example:{other.port}"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirect_to_another_server_leaves_the_token_behind(
    make_loader: Make, studio: Site, other: Site, status: int
) -> None:
    studio.answers[UPLOAD] = (status, {"Location": f"http://minio:{other.port}/bucket/a?sig=1"}, b"")
    other.answers["/bucket/a?sig=1"] = (200, {}, b"bytes")
    loader = make_loader(resolve=Names(minio="127.0.0.1"), media_allow_hosts="minio")
    assert loader.fetch(ref(UPLOAD)) == b"bytes"
    assert "authorization" in studio.seen[0].headers
    assert "authorization" not in other.seen[0].headers


def test_no_redirect_leads_back_to_the_token(make_loader: Make, studio: Site, other: Site) -> None:
    studio.answers[UPLOAD] = (302, {"Location": f"http://minio:{other.port}/a"}, b"")
    other.answers["/a"] = (302, {"Location": studio.url + "/data/upload/secret"}, b"")
    loader = make_loader(resolve=Names(minio="127.0.0.1"), media_allow_hosts="minio")
    with pytest.raises(MediaRefused):  # and Label Studio itself, a private address, is closed to it as well
        loader.fetch(ref(UPLOAD))
    assert studio.paths() == [UPLOAD]


def test_a_redirect_within_label_studio_keeps_the_token(make_loader: Make, studio: Site) -> None:
    studio.answers["/data/upload/1/a"] = (302, {"Location": "/data/upload/1/b"}, b"")
    studio.answers["/data/upload/1/b"] = (200, {}, b"bytes")
    assert make_loader().fetch(ref("/data/upload/1/a")) == b"bytes"
    assert studio.seen[1].headers["authorization"] == "Token secret"


def test_a_redirect_out_of_the_sub_path_loses_the_token(make_loader: Make, studio: Site) -> None:
    studio.answers["/ls" + UPLOAD] = (302, {"Location": "/beside"}, b"")
    with pytest.raises(MediaRefused):
        make_loader(FakeOrigin(studio.url + "/ls")).fetch(ref(UPLOAD))
    assert studio.paths() == ["/ls" + UPLOAD]


def test_a_user_and_password_in_an_address_are_sent_there_only(make_loader: Make, studio: Site, other: Site) -> None:
    other.answers["/a"] = (302, {"Location": f"http://third.example:{studio.port}/b"}, b"")
    studio.answers["/b"] = (200, {}, b"bytes")
    names = Names(other_example="127.0.0.1", third_example="127.0.0.1")
    loader = make_loader(resolve=names, media_allow_hosts="other.example,third.example")
    assert loader.fetch(ref(f"http://me:p%40ss@other.example:{other.port}/a")) == b"bytes"
    assert other.seen[0].headers["authorization"] == "Basic " + base64.b64encode(b"me:p@ss").decode()
    assert "authorization" not in studio.seen[0].headers


def by_token(token: str, reply: Reply) -> Answer:
    return lambda handler: reply if handler.headers["Authorization"] == token else (401, {}, b'{"detail": "no"}')


def test_an_expired_token_is_refreshed_once(make_loader: Make, studio: Site) -> None:
    studio.answers[UPLOAD] = by_token("Bearer new", (200, {}, b"bytes"))
    origin = FakeOrigin(studio.url, tokens=["Bearer old", "Bearer new"])
    assert make_loader(origin).fetch(ref(UPLOAD)) == b"bytes"
    assert origin.refreshed == 1


def test_a_refused_token(make_loader: Make, studio: Site) -> None:
    studio.answers[UPLOAD] = by_token("Bearer never", (200, {}, b""))
    origin = FakeOrigin(studio.url, tokens=["Bearer old", "Bearer new", "Bearer newest"])
    with pytest.raises(MediaForbidden, match=r"personal access token.*labelloop doctor"):
        make_loader(origin).fetch(ref(UPLOAD))
    assert origin.refreshed == 1
    assert len(studio.seen) == 2


@pytest.mark.parametrize(
    ("error", "kind"),
    [(LabelStudioAuthError("expired"), MediaForbidden), (LabelStudioUnreachable("down"), MediaUnreachable)],
)
def test_a_token_that_cannot_be_had(make_loader: Make, studio: Site, error: Exception, kind: type[MediaError]) -> None:
    class Origin(FakeOrigin):
        def authorization(self) -> str | None:
            raise error

    with pytest.raises(kind):
        make_loader(Origin(studio.url)).fetch(ref(UPLOAD))


def test_a_token_with_a_line_break_is_not_sent(make_loader: Make, studio: Site) -> None:
    with pytest.raises(MediaError, match="stray"):
        make_loader(FakeOrigin(studio.url, tokens=["Token a\nX-Evil: 1"])).fetch(ref(UPLOAD))
    assert not studio.seen


def test_nobody_told_us_the_address(make_loader: Make) -> None:
    loader = make_loader(no_origin=True)
    for uri in (UPLOAD, "s3://b/k"):
        with pytest.raises(MediaUnreachable, match="LABEL_STUDIO_URL"):
            loader.fetch(ref(uri))


# --- to where ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "uri",
    [
        "http://127.0.0.1:{port}/a",
        "http://localhost.example:{port}/a",
        "http://[::ffff:127.0.0.1]:{port}/a",
        "http://169.254.169.254/latest/meta-data/",
        "https://10.0.0.1/a",
    ],
)
def test_tasks_cannot_name_private_addresses(make_loader: Make, other: Site, uri: str) -> None:
    loader = make_loader(resolve=Names(localhost_example="127.0.0.1"))
    with pytest.raises(MediaRefused, match="LABELLOOP_MEDIA_ALLOW_HOSTS"):
        loader.fetch(ref(uri.format(port=other.port)))
    assert not other.seen


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:{port}/a", "http://inside.example:{port}/a", "//127.0.0.1:{port}/a"]
)
def test_neither_can_redirects(make_loader: Make, studio: Site, other: Site, target: str) -> None:
    studio.answers["/start"] = (302, {"Location": target.format(port=other.port)}, b"")
    names = Names(open_example="127.0.0.1", inside_example="127.0.0.1")
    loader = make_loader(resolve=names, media_allow_hosts="open.example")
    for uri in (f"http://open.example:{studio.port}/start", "/data/upload/1/a"):
        studio.answers["/data/upload/1/a"] = studio.answers["/start"]
        with pytest.raises(MediaRefused, match="LABELLOOP_MEDIA_ALLOW_HOSTS"):
            loader.fetch(ref(uri))
    assert not other.seen


@pytest.mark.parametrize("target", ["file:///etc/passwd", "ftp://h/a", "s3://b/k", "http://h:0/", "data:,a"])
def test_redirects_to_other_schemes(make_loader: Make, studio: Site, target: str) -> None:
    studio.answers[UPLOAD] = (302, {"Location": target}, b"")
    with pytest.raises(MediaRefused):
        make_loader().fetch(ref(UPLOAD))


def test_a_redirect_in_circles(make_loader: Make, studio: Site) -> None:
    studio.answers[UPLOAD] = (302, {"Location": UPLOAD}, b"")
    with pytest.raises(MediaRefused, match="more than 5"):
        make_loader().fetch(ref(UPLOAD))
    assert len(studio.seen) == 6


def test_a_rebound_name_is_looked_up_once_and_connected_as_checked(
    make_loader: Make, sites: Callable[..., Site]
) -> None:
    checked, inside = sites("127.0.0.2"), sites("127.0.0.1")
    checked.answers["/a"] = (200, {"Connection": "close"}, b"bytes")
    names = Names()
    answers = iter(["127.0.0.2", "127.0.0.1"])  # the second look-up would lead inside

    def rebinding(host: str, port: int) -> list[str]:
        names.asked.append(host)
        return [next(answers)]

    loader = make_loader(resolve=rebinding, media_allow_hosts="127.0.0.2/32", media_cache_size=0)
    assert loader.fetch(ref(f"http://rebind.example:{checked.port}/a")) == b"bytes"
    assert names.asked == ["rebind.example"]
    with pytest.raises(MediaRefused):  # a new connection is a new look-up, checked again
        loader.fetch(ref(f"http://rebind.example:{checked.port}/a"))
    assert not inside.seen


def test_a_connection_of_label_studio_does_not_serve_a_task_that_names_its_address(
    make_loader: Make, studio: Site
) -> None:
    loader = make_loader(FakeOrigin(studio.url + "/data"), media_cache_size=0)
    with pytest.raises(MediaNotFound):
        loader.fetch(ref(UPLOAD))  # leaves a kept-alive, trusted connection
    with pytest.raises(MediaRefused):
        loader.fetch(ref(f"{studio.url}/elsewhere"))


def test_an_address_from_a_request_is_not_trusted(make_loader: Make, studio: Site) -> None:
    origin = FakeOrigin(studio.url, trusted=False)
    with pytest.raises(MediaRefused, match=r"calls itself 127\.0\.0\.1:.* LABEL_STUDIO_URL"):
        make_loader(origin).fetch(ref(UPLOAD))
    assert not studio.seen


# --- how much and how long --------------------------------------------------------------------------


def test_an_announced_size_is_refused_before_it_comes(make_loader: Make, studio: Site) -> None:
    studio.answers[UPLOAD] = (200, {"Content-Length": str(10**12)}, b"")
    with pytest.raises(MediaTooLarge, match="LABELLOOP_MEDIA_MAX_SIZE"):
        make_loader(media_max_size=1000).fetch(ref(UPLOAD))


def endless(handler: BaseHTTPRequestHandler) -> None:
    """A body without length or end."""
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n\r\n")
    while True:
        handler.wfile.write(b"x" * 65536)


def endless_chunks(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    while True:
        handler.wfile.write(b"10000\r\n" + b"x" * 65536 + b"\r\n")


@pytest.mark.parametrize("answer", [endless, endless_chunks])
def test_a_body_without_end_is_stopped(make_loader: Make, studio: Site, answer: Answer) -> None:
    studio.answers[UPLOAD] = answer
    with pytest.raises(MediaTooLarge):
        make_loader(media_max_size=10**6).fetch(ref(UPLOAD))


def test_the_largest_that_is_allowed(make_loader: Make, studio: Site) -> None:
    studio.answers[UPLOAD] = (200, {}, b"x" * 1000)
    assert len(make_loader(media_max_size=1000).fetch(ref(UPLOAD))) == 1000
    with pytest.raises(MediaTooLarge):
        make_loader(media_max_size=999, media_cache_size=0).fetch(ref(UPLOAD))


def test_a_header_without_end_is_stopped(make_loader: Make, studio: Site) -> None:
    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            handler.wfile.write(b"X-More: and more\r\n" * 1000)

    studio.answers[UPLOAD] = answer
    with pytest.raises(MediaUnreachable):
        make_loader().fetch(ref(UPLOAD))


@pytest.mark.parametrize("start", [b"", b"HTTP/1.1 200 OK\r\nX-", b"HTTP/1.1 200 OK\r\nContent-Length: 999999\r\n\r\n"])
def test_a_dripping_server_does_not_hold_a_worker(make_loader: Make, studio: Site, start: bytes) -> None:
    released = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(start)
        while not released.wait(0.02):  # each byte well within any timeout per read
            handler.wfile.write(b"H" if start else b"")
            handler.wfile.flush()

    studio.answers[UPLOAD] = answer
    started = time.monotonic()
    try:
        with pytest.raises(MediaTimeout, match="LABELLOOP_MEDIA_TIMEOUT_S"):
            make_loader(media_timeout_s=0.25).fetch(ref(UPLOAD))
    finally:
        released.set()
    assert time.monotonic() - started < 2


def test_a_compressed_body_is_unpacked(make_loader: Make, studio: Site) -> None:
    loader = make_loader()
    for name, packed in (
        ("gzip", gzip.compress(b"bytes" * 100)),
        ("deflate", zlib.compress(b"bytes" * 100)),
        ("Deflate", zlib.compress(b"bytes" * 100)[2:-4]),
    ):
        studio.answers[f"/data/upload/{name}"] = (200, {"Content-Encoding": name}, packed)
        assert loader.fetch(ref(f"/data/upload/{name}")) == b"bytes" * 100
    assert studio.seen[0].headers["accept-encoding"] == "identity"


def test_a_compressed_bomb_is_not(make_loader: Make, studio: Site) -> None:
    studio.answers[UPLOAD] = (200, {"Content-Encoding": "gzip"}, gzip.compress(b"\0" * 50_000_000))
    with pytest.raises(MediaTooLarge):
        make_loader(media_max_size=10**6).fetch(ref(UPLOAD))


@pytest.mark.parametrize(
    ("encoding", "body"),
    [
        pytest.param("br", b"x", id="not asked for"),
        pytest.param("gzip", b"x", id="damaged"),
        pytest.param("gzip", gzip.compress(b"x" * 99)[:-9], id="cut short"),
    ],
)
def test_a_body_that_cannot_be_unpacked(make_loader: Make, studio: Site, encoding: str, body: bytes) -> None:
    studio.answers[UPLOAD] = (200, {"Content-Encoding": encoding}, body)
    with pytest.raises(MediaUndecodable, match=encoding):
        make_loader().fetch(ref(UPLOAD))


# --- what goes wrong --------------------------------------------------------------------------------


def test_a_missing_upload_is_not_asked_for_again(make_loader: Make, studio: Site) -> None:
    studio.answers[UPLOAD] = (500, {}, b"<h1>Server Error</h1>")
    with pytest.raises(MediaNotFound, match="upload is missing"):
        make_loader().fetch(ref(UPLOAD))
    assert len(studio.seen) == 1


@pytest.mark.parametrize(
    ("status", "kind", "tries"),
    [
        (404, MediaNotFound, 1),
        (403, MediaForbidden, 1),
        (400, MediaUnreachable, 1),
        (500, MediaUnreachable, 1),
        (206, MediaUnreachable, 1),
        (304, MediaUnreachable, 1),
        (429, MediaUnreachable, 3),
        (502, MediaUnreachable, 3),
        (503, MediaUnreachable, 3),
        (504, MediaUnreachable, 3),
    ],
)
def test_statuses(make_loader: Make, studio: Site, status: int, kind: type[MediaError], tries: int) -> None:
    studio.answers["/data/local-files/"] = (status, {}, b"")
    with pytest.raises(kind, match=str(status)):
        make_loader().fetch(ref("/data/local-files/?d=a"))
    assert len(studio.seen) == tries


def in_turn(*answers: Answer) -> Answer:
    rest = iter(answers)

    def answer(handler: BaseHTTPRequestHandler) -> Reply | None:
        now = next(rest)
        return now(handler) if callable(now) else now

    return answer


def hang_up(handler: BaseHTTPRequestHandler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def half(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nbytes")


def half_chunked(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nbytes\r\n")


def rubbish(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"220 mail.example ESMTP\r\n")


@pytest.mark.parametrize(
    "trouble", [hang_up, half, half_chunked, rubbish, (503, {}, b""), (429, {"Retry-After": "0"}, b"")]
)
def test_passing_trouble_is_tried_again(make_loader: Make, studio: Site, trouble: Answer) -> None:
    studio.answers[UPLOAD] = in_turn(trouble, (200, {}, b"bytes"))
    assert make_loader().fetch(ref(UPLOAD)) == b"bytes"


@pytest.mark.parametrize("trouble", [hang_up, half, half_chunked, rubbish])
def test_lasting_trouble_ends(make_loader: Make, studio: Site, trouble: Answer) -> None:
    studio.answers[UPLOAD] = trouble
    with pytest.raises(MediaUnreachable):
        make_loader().fetch(ref(UPLOAD))
    assert len(studio.seen) == 3


def test_nobody_listens(make_loader: Make) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(MediaUnreachable, match="Cannot connect"):
        make_loader(FakeOrigin(f"http://127.0.0.1:{port}")).fetch(ref(UPLOAD))


def test_a_wait_longer_than_the_time_limit_is_not_begun(make_loader: Make, studio: Site) -> None:
    studio.answers[UPLOAD] = (503, {"Retry-After": "5"}, b"")
    started = time.monotonic()
    with pytest.raises(MediaUnreachable):
        make_loader(media_timeout_s=1.0).fetch(ref(UPLOAD))
    assert time.monotonic() - started < 1
    assert len(studio.seen) == 1


# --- the wire ---------------------------------------------------------------------------------------


def until_closed(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\n\r\nbytes")


def in_chunks(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nby\r\n3\r\ntes\r\n0\r\n\r\n")


def with_hints(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(
        b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes"
    )


@pytest.mark.parametrize("answer", [until_closed, in_chunks, with_hints])
def test_forms_of_answers(make_loader: Make, studio: Site, answer: Answer) -> None:
    studio.answers[UPLOAD] = answer
    assert make_loader().fetch(ref(UPLOAD)) == b"bytes"


def test_connections_are_kept(make_loader: Make, studio: Site) -> None:
    studio.answers["/data/upload/a"] = studio.answers["/data/upload/c"] = (200, {}, b"bytes")
    loader = make_loader()
    loader.fetch(ref("/data/upload/a"))
    with pytest.raises(MediaNotFound):
        loader.fetch(ref("/data/upload/b"))
    loader.fetch(ref("/data/upload/c"))
    assert len({seen.client for seen in studio.seen}) == 1


def test_a_connection_that_died_while_idle_is_replaced(make_loader: Make, studio: Site) -> None:
    closed = threading.Event()

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nbytes")
        handler.wfile.flush()
        handler.connection.shutdown(socket.SHUT_RDWR)
        closed.set()

    studio.answers["/data/upload/a"] = studio.answers["/data/upload/b"] = answer
    loader = make_loader()
    assert loader.fetch(ref("/data/upload/a")) == b"bytes"
    assert closed.wait(60)
    assert loader.fetch(ref("/data/upload/b")) == b"bytes"
    assert len(studio.seen) == 2


def test_the_second_address_of_a_name_is_tried(make_loader: Make, other: Site) -> None:
    other.answers["/a"] = (200, {}, b"bytes")
    names = Names(two_example=["127.0.0.3", "127.0.0.1"])  # nobody listens at the first
    loader = make_loader(resolve=names, media_allow_hosts="127.0.0.0/8")
    assert loader.fetch(ref(f"http://two.example:{other.port}/a")) == b"bytes"


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A key and a self-signed certificate for pictures.example."""
    if which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    folder = tmp_path_factory.mktemp("tls")
    key, pem = folder / "key.pem", folder / "cert.pem"
    command = (
        "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=pictures.example"
    )
    names = ["-addext", "subjectAltName=DNS:pictures.example"]
    subprocess.run([*command.split(), "-keyout", key, "-out", pem, *names], check=True, capture_output=True, timeout=30)
    return key, pem


def test_tls_verifies_the_name_though_the_address_is_connected(
    make_loader: Make, other: Site, certificate: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    import ssl

    key, pem = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)
    other.server.socket = context.wrap_socket(other.server.socket, server_side=True)
    other.answers["/a"] = (200, {}, b"bytes")
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))
    loader = make_loader(
        resolve=Names(pictures_example="127.0.0.1", wrong_example="127.0.0.1"), media_allow_hosts="127.0.0.1"
    )
    assert loader.fetch(ref(f"https://pictures.example:{other.port}/a")) == b"bytes"
    assert loader.fetch(ref(f"https://pictures.example:{other.port}/a?again")) == b"bytes"
    assert len({seen.client for seen in other.seen}) == 1
    with pytest.raises(MediaUnreachable, match="certificate"):
        loader.fetch(ref(f"https://wrong.example:{other.port}/a"))


# --- clouds and data: -------------------------------------------------------------------------------


def test_a_cloud_address_proxied_by_label_studio(make_loader: Make, studio: Site) -> None:
    studio.answers["/tasks/7/resolve/?fileuri=czM6Ly9idWNrZXQva2V5LmpwZw=="] = (200, {"ETag": '"e"'}, b"bytes")
    assert make_loader().fetch(ref("s3://bucket/key.jpg", task_id=7)) == b"bytes"
    assert studio.seen[0].headers["authorization"] == "Token secret"


def test_a_cloud_address_presigned_by_label_studio(make_loader: Make, studio: Site, other: Site) -> None:
    signed = f"http://minio:{other.port}/bucket/key.jpg?X-Amz-Signature=abc"
    studio.answers["/tasks/7/resolve/"] = (303, {"Location": signed}, b"")
    other.answers["/bucket/key.jpg"] = (200, {}, b"bytes")
    names = Names(minio="127.0.0.1")
    with pytest.raises(MediaRefused, match="LABELLOOP_MEDIA_ALLOW_HOSTS=minio"):
        make_loader(resolve=names).fetch(ref("s3://bucket/key.jpg", task_id=7))
    loader = make_loader(resolve=names, media_allow_hosts="minio")
    assert loader.fetch(ref("s3://bucket/key.jpg", task_id=7)) == b"bytes"
    assert "authorization" not in other.seen[0].headers
    assert other.paths() == ["/bucket/key.jpg?X-Amz-Signature=abc"]


def test_an_expired_signature_does_not_blame_the_token(make_loader: Make, studio: Site, other: Site) -> None:
    studio.answers["/tasks/7/resolve/"] = (303, {"Location": f"http://minio:{other.port}/k?sig=s3cret"}, b"")
    other.answers["/k"] = (403, {}, b"<Error/>")
    loader = make_loader(resolve=Names(minio="127.0.0.1"), media_allow_hosts="minio")
    with pytest.raises(MediaForbidden, match="signature") as caught:
        loader.fetch(ref("s3://bucket/key.jpg", task_id=7))
    assert "s3cret" not in str(caught.value)


PIXEL = base64.b64encode(b"\xff\xfe\xfdbytes").decode()


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        (f"data:image/jpeg;base64,{PIXEL}", "base64"),
        (f"data:;base64,{PIXEL}", "no type"),
        (f"DATA:image/jpeg;charset=x;BASE64,{PIXEL}", "parameters, upper case"),
        (f"data:image/jpeg;base64,{PIXEL.rstrip('=')}", "without padding"),
        (f"data:image/jpeg;base64,{PIXEL.replace('/', '_').replace('+', '-')}", "urlsafe alphabet"),
        (f"data:image/jpeg;base64,{PIXEL[:4]}\n{PIXEL[4:]}", "wrapped"),
        (f"data:image/jpeg;base64,{PIXEL.replace('/', '%2F').replace('=', '%3D')}", "percent-encoded base64"),
        ("data:image/jpeg,%FF%FE%FDbytes", "percent-encoded"),
    ],
)
def test_data_uris(make_loader: Make, uri: str, what: str) -> None:
    assert make_loader(no_origin=True).fetch(ref(uri)) == b"\xff\xfe\xfdbytes", what


@pytest.mark.parametrize("uri", ["data:image/png;base64", "data:image/png;base64,A", "data:image/png;base64,ä!"])
def test_damaged_data_uris(make_loader: Make, uri: str) -> None:
    with pytest.raises(MediaUndecodable):
        make_loader().fetch(ref(uri))


def test_data_uris_have_the_size_limit_too(make_loader: Make) -> None:
    loader = make_loader(media_max_size=1000)
    assert len(loader.fetch(ref("data:;base64," + base64.b64encode(b"x" * 1000).decode()))) == 1000
    for size in (1001, 100_000):
        with pytest.raises(MediaTooLarge):
            loader.fetch(ref("data:;base64," + base64.b64encode(b"x" * size).decode()))
