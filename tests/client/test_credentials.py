"""Tokens: kept for one registry each, where nobody else reads them, and sent to nobody else."""

from __future__ import annotations

import json
import os
import stat

import httpx
import pytest

from neuraverse.client import Client, accounts, credentials
from neuraverse.client.transport import Transport
from neuraverse.errors import NetworkError, StorageError, UsageError

HERE, THERE = "http://one.test", "http://two.test"


@pytest.fixture
def home(tmp_path):
    """A home that holds tokens of two registries; it was not there before."""
    folder = tmp_path / "a" / "home"
    credentials.remember(folder, HERE, "nvt_one", "alice", "2027-01-01T00:00:00.000Z")
    credentials.remember(folder, THERE, "nvt_two", "bob", "2027-01-01T00:00:00.000Z")
    return folder


class Answers(httpx.BaseTransport):
    """Answers with what a function says, and keeps the requests."""

    def __init__(self, answer):
        self._answer = answer
        self.requests = []

    def handle_request(self, request):
        self.requests.append(request)
        return self._answer(request)


def nobody(_):
    content = b'{"account": null, "open": false}'
    return httpx.Response(200, headers={"content-type": "application/json"}, stream=httpx.ByteStream(content))


def sent(home, url, answer=nobody, ask=accounts.whoami):
    """The Authorization header of each request to a registry."""
    answers = Answers(answer)
    with httpx.Client(transport=answers) as http:
        ask(Client(url, home=home, http=http)._transport)
    return [request.headers.get("authorization") for request in answers.requests]


def test_nobody_else_reads_the_file(home):
    file = home / "credentials.json"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    file.chmod(0o644)  # whoever opened it: the next change closes it again
    credentials.forget(home, THERE)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(home.iterdir()) == [file]


def test_each_registry_gets_its_own(home):
    assert sent(home, HERE) == ["Bearer nvt_one"]
    assert sent(home, f"{THERE}/") == ["Bearer nvt_two"]
    for other in ("http://three.test", "https://one.test", f"{HERE}:8420", f"{HERE}/below", "http://one.tes"):
        assert sent(home, other) == [None]


def test_forgetting_one_keeps_the_other(home):
    assert credentials.forget(home, HERE)
    assert not credentials.forget(home, HERE)
    assert sent(home, HERE) == [None]
    assert sent(home, THERE) == ["Bearer nvt_two"]


def test_a_later_login_replaces_an_earlier_one(home):
    credentials.remember(home, HERE, "nvt_new", "alice", "2027-01-01T00:00:00.000Z")
    assert credentials.kept_for(home, HERE) == "nvt_new"


def test_the_environment_counts_more(home, monkeypatch):
    monkeypatch.setenv("NEURAVERSE_TOKEN", " nvt_env\n")
    assert sent(home, HERE) == ["Bearer nvt_env"]
    assert credentials.kept_for(home, HERE) == "nvt_one"
    monkeypatch.setenv("NEURAVERSE_TOKEN", "")
    assert sent(home, HERE) == ["Bearer nvt_one"]
    with Client(HERE, home=home, token="nvt_said") as client:
        assert client._transport.token == "nvt_said"


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"null", b'"x"', b'{"http://one.test": null}', b'{"http://one.test": {}}'),
        *(
            b'{"http://one.test": {"token": 1}}',
            b'{"x": {"token": "t"}, "y": []}',
            b"\xff\xfe",
            b"[" * 100_000,
        ),
        b" " * (1 << 20) + b"{}",
    ],
)
def test_a_broken_file_is_told_and_not_overwritten(home, content):
    file = home / "credentials.json"
    file.write_bytes(content)
    for use in (
        lambda: credentials.token_for(home, HERE),
        lambda: credentials.remember(home, HERE, "nvt_new", "alice", ""),
        lambda: credentials.forget(home, HERE),
        lambda: Client(HERE, home=home),
    ):
        with pytest.raises(UsageError, match=r"holds no tokens of registries - remove it") as caught:
            use()
        assert "nvt_" not in str(caught.value)
    assert file.read_bytes() == content


def test_a_link_in_its_place_is_not_followed(home, tmp_path):
    (home / "credentials.json").rename(tmp_path / "elsewhere.json")
    (home / "credentials.json").symlink_to(tmp_path / "elsewhere.json")
    with pytest.raises(UsageError, match="holds no tokens"):
        credentials.token_for(home, HERE)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_home_that_cannot_be_written(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError):
        credentials.ready(tmp_path / "home")
    tmp_path.chmod(0o700)


@pytest.mark.parametrize("token", ["nvt_a b", "nvt_a\nX: y", "nvt_ä", "nvt_\x00", "x" * 201])
def test_a_token_that_cannot_be_sent_is_not_shown(token):
    with pytest.raises(UsageError, match="characters that no token has") as caught:
        accounts.whoami(Transport(HERE, token=token))
    assert token not in str(caught.value)


def test_a_store_behind_a_redirect_never_gets_it(home):
    def answer(request):
        if request.url.host == "one.test":
            return httpx.Response(307, headers={"location": "http://two.test/v1/whoami"})
        return httpx.Response(200, stream=httpx.ByteStream(b"bytes"))

    def fetch(registry):
        with registry.blob("/v1/blobs/x", {}, (200,)) as found:
            assert found.status_code == 200

    # The store is even a registry that we hold a token of: it is not asked as one.
    assert sent(home, HERE, answer, fetch) == ["Bearer nvt_one", None]


def test_no_other_redirect_is_followed(home):
    def away(_):
        return httpx.Response(307, headers={"location": "http://two.test/"}, stream=httpx.ByteStream(b""))

    answers = Answers(away)
    with httpx.Client(transport=answers, follow_redirects=True) as http:
        client = Client(HERE, home=home, http=http)
        for ask in (
            lambda: accounts.whoami(client._transport),
            lambda: accounts.login(client._transport, "nvi_code", "alice"),
            lambda: accounts.logout(client._transport),
        ):
            with pytest.raises(NetworkError, match="does not answer as a neuraverse registry"):
                ask()
    assert {request.url.host for request in answers.requests} == {"one.test"}


@pytest.mark.parametrize(
    ("ask", "good", "bad"),
    [
        (
            lambda there: accounts.login(there, "nvi_x", "alice"),
            {"account": "alice", "token": "nvt_x", "expires": "2027"},
            [{"token": None}, {"account": 1}, {"expires": []}],
        ),
        (
            accounts.whoami,
            {
                "account": "alice",
                "kind": "person",
                "orgs": [{"name": "acme", "role": "owner", "rights": ["read"]}],
                "token": {"id": "x", "expires": "2027"},
            },
            [
                *({"account": 1}, {"orgs": {}}, {"orgs": [None]}, {"token": None}, {"token": {}}),
                *({"kind": None}, {"orgs": [{"name": "acme", "role": "owner", "rights": [1]}]}),
            ],
        ),
        (
            lambda there: accounts.describe_org(there, "acme"),
            {
                "name": "acme",
                "visibility": "public",
                "protected": ["stable"],
                "members": 1,
                "quota": {"bytes": 1, "versions": None, "requests": None, "events": None},
                "used": {"bytes": 0, "versions": 0},
            },
            [{"quota": {}}, {"used": {"bytes": "many"}}, {"protected": [1]}, {"members": True}],
        ),
        (
            lambda there: accounts.audit(there, "acme"),
            {"entries": [{"id": 1, "at": "", "actor": "", "action": "", "target": "", "data": {}}]},
            [{"entries": {}}, {"entries": [[]]}, {"entries": None}],
        ),
    ],
)
def test_answers_are_not_trusted(ask, good, bad):
    def answering(plain):
        content = httpx.ByteStream(json.dumps(plain).encode())
        kind = {"content-type": "application/json"}
        return Transport(
            HERE,
            httpx.Client(
                transport=httpx.MockTransport(lambda _: httpx.Response(200, headers=kind, stream=content))
            ),
            "nvt_x",
        )

    assert ask(answering(good))
    for change in bad:
        with pytest.raises(NetworkError, match=r"malformed|that are none"):
            ask(answering(good | change))
