"""Both kinds of token against a Label Studio whose clock the test moves."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from labelloop.core.errors import LabelStudioAuthError, LabelStudioUnreachable
from labelloop.labelstudio.tokens import Credentials, claims_of, kind_of
from labelloop.testing import FakeLabelStudio


@pytest.fixture
def studio() -> Iterator[FakeLabelStudio]:
    with FakeLabelStudio() as server:
        yield server


def ours(studio: FakeLabelStudio, token: str) -> Credentials:
    """Credentials that live on the server's clock."""
    return Credentials(studio.url, token, clock=studio.clock)


def test_kinds(studio: FakeLabelStudio) -> None:
    personal = studio.personal_access_token
    access = studio.tokens.access_for(personal)
    assert access is not None
    cases = {
        "": "empty",
        "  \n": "empty",
        studio.token: "legacy",
        "a.b.c": "legacy",
        "a.bm90IGpzb24.c": "legacy",
        personal: "personal",
        f"Token {personal}\n": "personal",
        f"Bearer {access}": "access",
    }
    assert {token: kind_of(token) for token in cases} == cases
    assert claims_of(personal)["token_type"] == "refresh"


def test_a_legacy_token_needs_no_exchange(studio: FakeLabelStudio) -> None:
    credentials = ours(studio, f" Token {studio.token} ")
    assert credentials.authorization() == f"Token {studio.token}"
    assert not credentials.refresh()
    assert studio.requests == []


def test_a_personal_token_is_exchanged_once_until_thirty_seconds_are_left(studio: FakeLabelStudio) -> None:
    credentials = ours(studio, studio.personal_access_token)
    first = credentials.authorization()
    assert first.startswith("Bearer ")
    studio.advance(269)
    assert credentials.authorization() == first
    studio.advance(2)
    assert credentials.authorization() != first
    assert studio.tokens.refreshes == 2


def test_a_wrong_wall_clock_on_the_server_does_no_harm(studio: FakeLabelStudio) -> None:
    studio.advance(-86_400)  # its access tokens have expired, by our calendar
    credentials = Credentials(studio.url, studio.personal_access_token)
    assert credentials.authorization() == credentials.authorization()
    assert studio.tokens.refreshes == 1


def test_threads_with_a_401_share_one_exchange(studio: FakeLabelStudio) -> None:
    credentials = ours(studio, studio.personal_access_token)
    together = threading.Barrier(8)
    answers: list[bool] = []

    def refused() -> None:
        credentials.authorization()
        together.wait()
        answers.append(credentials.refresh())

    threads = [threading.Thread(target=refused) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 8
    assert studio.tokens.refreshes == 2


def test_a_revoked_token_says_where_to_get_another(studio: FakeLabelStudio) -> None:
    credentials = ours(studio, studio.personal_access_token)
    studio.tokens.revoke_personal()
    with pytest.raises(LabelStudioAuthError, match="Personal Access Token"):
        credentials.authorization()
    assert not credentials.refresh()


def test_no_token_says_which_setting_is_missing(studio: FakeLabelStudio) -> None:
    with pytest.raises(LabelStudioAuthError, match="LABEL_STUDIO_API_KEY"):
        ours(studio, "").authorization()


def test_a_server_that_is_down_is_unreachable_and_not_a_bad_token(studio: FakeLabelStudio) -> None:
    credentials = ours(studio, studio.personal_access_token)
    studio.stop()
    with pytest.raises(LabelStudioUnreachable, match="did not answer"):
        credentials.authorization()


def test_an_address_that_exchanges_nothing_says_so(studio: FakeLabelStudio) -> None:
    credentials = Credentials(f"{studio.url}/elsewhere", studio.personal_access_token)
    with pytest.raises(LabelStudioAuthError, match="sub-path"):
        credentials.authorization()
