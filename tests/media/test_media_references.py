"""What a reference means."""

from __future__ import annotations

import base64

import pytest
from media_site import FakeOrigin, ref

from labelloop.core.errors import MediaRefused
from labelloop.media.references import locate
from labelloop.media.urls import parse_url

PLAIN = FakeOrigin("http://studio:8080", ("http://localhost:8080", "https://labels.example.org"))
BELOW = FakeOrigin("http://h/ls", ("https://labels.example.org/pub",))

OWN = [
    (PLAIN, "/data/upload/1/5531a9a4-im0.jpg", "http://studio:8080/data/upload/1/5531a9a4-im0.jpg", "upload"),
    (PLAIN, "/data/upload/1/my_f%C3%B6to.jpg", "http://studio:8080/data/upload/1/my_f%C3%B6to.jpg", "encoded"),
    (PLAIN, "/data/upload/1/föto 1.jpg", "http://studio:8080/data/upload/1/f%C3%B6to%201.jpg", "left raw"),
    (PLAIN, "/data/local-files/?d=a/b%20c.jpg", "http://studio:8080/data/local-files/?d=a/b%20c.jpg", "local file"),
    (PLAIN, "http://studio:8080/data/upload/1/a.jpg", "http://studio:8080/data/upload/1/a.jpg", "absolute"),
    (PLAIN, "http://localhost:8080/data/local-files/?d=a", "http://studio:8080/data/local-files/?d=a", "old name"),
    (PLAIN, "http://labels.example.org/data/upload/1/a", "http://studio:8080/data/upload/1/a", "before TLS"),
    (PLAIN, "HTTPS://Labels.Example.org:443/data/upload/1/a", "http://studio:8080/data/upload/1/a", "letter case"),
    (PLAIN, "/tasks/7/resolve/?fileuri=czM6", "http://studio:8080/tasks/7/resolve/?fileuri=czM6", "shown by the API"),
    (BELOW, "/data/upload/1/a.jpg", "http://h/ls/data/upload/1/a.jpg", "sub-path left out"),
    (BELOW, "/ls/data/upload/1/a.jpg", "http://h/ls/data/upload/1/a.jpg", "sub-path"),
    (BELOW, "/pub/data/upload/1/a.jpg", "http://h/ls/data/upload/1/a.jpg", "public sub-path"),
    (BELOW, "https://labels.example.org/pub/data/upload/1/a", "http://h/ls/data/upload/1/a", "public, absolute"),
]


@pytest.mark.parametrize(("origin", "uri", "url", "what"), OWN)
def test_what_label_studio_keeps(origin: FakeOrigin, uri: str, url: str, what: str) -> None:
    source = locate(ref(uri), origin)
    assert source.own, what
    assert source.trusted
    assert source.url == parse_url(url)
    assert source.forever == ("/data/upload/" in url)


NOT_OWN = [
    (PLAIN, "http://other:8080/data/upload/1/a.jpg", False, "another host"),
    (PLAIN, "http://studio:8081/data/upload/1/a.jpg", False, "another port"),
    (PLAIN, "http://studio.evil.example:8080/data/upload/a", False, "a longer name"),
    (PLAIN, "http://studio:8080@evil.example/data/upload/a", False, "the name as a user"),
    (PLAIN, "http://studio:8080/static/sample.jpg", True, "not a media path"),
    (PLAIN, "http://studio:8080/api/projects/1/", True, "the API"),
    (BELOW, "http://h/data/upload/1/a.jpg", False, "beside the sub-path"),
    (BELOW, "http://h/ls/%2e%2e/admin", False, "out of the sub-path"),
    (BELOW, "http://h/lsx/data/upload/1/a.jpg", False, "a longer sub-path"),
]


@pytest.mark.parametrize(("origin", "uri", "trusted", "what"), NOT_OWN)
def test_what_gets_no_token(origin: FakeOrigin, uri: str, trusted: bool, what: str) -> None:
    source = locate(ref(uri), origin)
    assert not source.own, what
    assert source.trusted is trusted


@pytest.mark.parametrize(
    ("uri", "what"),
    [
        ("/etc/passwd", "path"),
        ("pictures/a.jpg", "relative path"),
        ("C:\\pictures\\a.jpg", "Windows path"),
        ("file:///etc/passwd", "file"),
        ("ftp://host/a.jpg", "ftp"),
        ("gopher://host/a", "gopher"),
        ("javascript:alert(1)", "script"),
        ("//host/a.jpg", "no scheme"),
        ("", "empty"),
        ("/data/upload/../../etc/passwd", "dots"),
        ("/data/upload/%2e%2e/%2e%2e/api/users", "encoded dots"),
        ("/data/upload/..\\..\\api", "backslashes"),
        ("/data/upload/1/a%00.jpg", "NUL"),
        ("/data/upload/1/a\r\nX-Evil: 1", "line break"),
        ("/api/users/", "the API by its path"),
        ("http://studio:8080/data/../api/users", "absolute, dots"),
        ("http://ho st/a.jpg", "space in the host"),
        ("http://host\\@evil.example/a.jpg", "backslash in the host"),
        ("http://host:99999/a", "port"),
        ("http:///a", "no host"),
        ("http://[::1/a", "half a bracket"),
        ("http://host/a\r\nHost: evil", "line break"),
    ],
)
def test_refused(uri: str, what: str) -> None:
    with pytest.raises(MediaRefused):
        locate(ref(uri), PLAIN)


@pytest.mark.parametrize("scheme", ["s3", "gs", "azure-blob", "azure_spi", "redis"])
def test_clouds_are_asked_of_label_studio(scheme: str) -> None:
    uri = f"{scheme}://bucket/ключ?.jpg"
    source = locate(ref(uri, task_id=7), BELOW)
    assert source.url is not None
    path, _, query = source.url.target.partition("?fileuri=")
    assert path == "/ls/tasks/7/resolve/"
    assert base64.urlsafe_b64decode(query).decode() == uri
    assert source.own
    assert not source.forever


def test_a_cloud_address_of_an_unsaved_task() -> None:
    assert locate(ref("s3://b/k", task_id=None, project_id=3), PLAIN).url == parse_url(
        "http://studio:8080/projects/3/resolve/?fileuri=czM6Ly9iL2s="
    )
    with pytest.raises(MediaRefused, match="saved task"):
        locate(ref("s3://b/k", task_id=None, project_id=None), PLAIN)


def test_identity_is_private_to_the_label_studio_and_the_bucket_to_the_project() -> None:
    def identity(uri: str, origin: FakeOrigin, project_id: int = 1) -> str:
        return locate(ref(uri, project_id=project_id), origin).identity

    assert identity("/data/upload/1/a.jpg", PLAIN) != identity("/data/upload/1/a.jpg", BELOW)
    assert identity("/data/upload/1/a.jpg", PLAIN) == identity("http://localhost:8080/data/upload/1/a.jpg", PLAIN, 2)
    assert identity("s3://b/k", PLAIN, 1) != identity("s3://b/k", PLAIN, 2)
    assert "secret" not in identity("/data/upload/1/a.jpg", PLAIN)


def test_an_unusable_public_name_is_passed_over() -> None:
    origin = FakeOrigin("http://studio:8080", ("", "localhost:8080", "http://[", "http://localhost:8080"))
    assert locate(ref("http://localhost:8080/data/upload/1/a"), origin).own
    assert locate(ref("/data/upload/1/a"), origin).own


def test_messages_keep_secrets() -> None:
    assert str(parse_url("https://user:pw@h/a?X-Amz-Signature=abc")) == "https://h/a"
    with pytest.raises(MediaRefused) as caught:
        parse_url("http://user:pw@h:0/a?token=abc")
    assert "pw" not in str(caught.value)
    assert "abc" not in str(caught.value)
