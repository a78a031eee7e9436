"""Small skills in one round trip; references by range; going on without a network; what was revoked."""

from __future__ import annotations

import logging

import httpx
import pytest

from neuraverse import archive
from neuraverse.client import Client, publishing
from neuraverse.errors import IntegrityError, NetworkError, NotFoundError, RevokedError, SignatureError
from neuraverse.skill import FILES
from tests.client.test_pull import NAME, cached_files


@pytest.fixture
def published(author, tiny_skill):
    author.publish(tiny_skill.path)
    return tiny_skill


def test_one_round_trip(published, through):
    client, meddler = through()
    skill = client.pull(NAME)
    assert skill.digest == published.digest
    assert [r.url.path for r in meddler.requests] == [f"/v1/skills/{NAME}/latest/archive"]
    for name in FILES:
        assert (skill.path / name).read_bytes() == (published.path / name).read_bytes()
    meddler.requests.clear()
    assert client.pull(NAME).digest == published.digest
    (again,) = meddler.requests
    assert again.headers["if-none-match"] == f'"{published.digest[7:]}-tar"'


def test_a_publish_takes_two_round_trips_and_a_child_sends_what_changed(
    author, published, through, publisher, make_skill, tmp_path
):
    client, meddler = through(home=publisher.home)
    child = make_skill(tmp_path / "child", version="1.1.0", seed=1, parents=[published.digest])
    client.publish(child.path)
    asked, sent = meddler.requests
    assert (asked.url.path, sent.url.path) == ("/v1/blobs/missing", "/v1/skills")
    sizes = {name: entry.size for name, entry in child.manifest.files.items()}
    assert b"model.safetensors\0" in sent.content
    assert b"evaluation.json\0" not in sent.content
    assert len(sent.content) < sum(sizes.values()) + 20_000


def test_a_large_skill_goes_up_in_pieces_and_resumes(
    author, through, publisher, tiny_skill, monkeypatch, net
):
    monkeypatch.setattr(publishing, "PARCEL_BYTES", 0)
    monkeypatch.setattr(publishing, "PIECE_BYTES", 1000)
    patches = []

    def meddle(request, response):
        if request.method == "PATCH":
            patches.append(request.url.path)
            if len(patches) == 3:  # it arrived, and the answer got lost
                response.close()
                raise httpx.ReadError("cut")
        return response

    client, _ = through(meddle, home=publisher.home)
    done = []
    assert (
        client.publish(tiny_skill.path, progress=lambda *step: done.append(step)).digest == tiny_skill.digest
    )
    total = sum(entry.size for entry in tiny_skill.manifest.files.values())
    assert done[-1] == (total, total)
    assert len(patches) >= total // 1000
    assert author.pull(NAME).digest == tiny_skill.digest


def test_ranges(author, robot, published, make_skill, tmp_path):
    for number, version in enumerate(("1.1.0", "1.2.0-rc.1", "2.0.0")):
        author.publish(make_skill(tmp_path / version, version=version, seed=number + 1).path)
    assert robot.pull(f"{NAME}@^1.0").version == "1.1.0"
    assert robot.resolve(f"{NAME}@~1.0").version == "1.0.0"
    assert robot.resolve(f"{NAME}@>=1.1 <3").version == "2.0.0"
    assert robot.resolve(f"{NAME}@^1.2.0-rc.1").version == "1.2.0-rc.1"
    with pytest.raises(NotFoundError, match="has no version"):
        robot.pull(f"{NAME}@^3")


def test_without_a_network_it_goes_on(author, robot, published, key_store, caplog):
    robot.pull(NAME)
    robot.pull(f"{NAME}@^1")
    caplog.set_level(logging.WARNING)
    away = httpx.MockTransport(lambda request: httpx.Response(503))
    with Client(robot.url, home=key_store.home, http=httpx.Client(transport=away)) as client:
        for ref in (NAME, f"{NAME}@^1", f"{NAME}@1.0.0", published.digest):
            assert client.pull(ref).digest == published.digest
            assert client.pull(ref, offline=True).digest == published.digest
        assert "going on with acme/weld-seam@1.0.0" in caplog.text
        for ref in (f"{NAME}@2.0.0", "acme/other"):
            with pytest.raises(NetworkError):
                client.pull(ref)
            with pytest.raises(NetworkError, match="not in the cache"):
                client.pull(ref, offline=True)


def test_a_revoked_skill_is_not_pulled_from_the_cache_either(author, robot, published, key_store):
    robot.pull(f"{NAME}@1.0.0")
    author.state(NAME, "revoke", version="1.0.0", reason="burns through thin sheet")
    for ref in (f"{NAME}@1.0.0", published.digest):
        if ref != published.digest:
            with pytest.raises(RevokedError, match="burns through thin sheet"):
                robot.pull(ref)
    with pytest.raises(NotFoundError):
        robot.pull(NAME)


def test_a_yanked_version_is_chosen_only_by_name(author, robot, published, make_skill, tmp_path, caplog):
    author.publish(make_skill(tmp_path / "next", version="1.1.0", seed=1).path)
    author.state(NAME, "yank", version="1.1.0", reason="too fast")
    assert robot.pull(NAME).version == robot.pull(f"{NAME}@^1").version == "1.0.0"
    caplog.set_level(logging.WARNING)
    assert robot.pull(f"{NAME}@1.1.0").version == "1.1.0"
    assert "acme/weld-seam@1.1.0 was yanked: too fast" in caplog.text
    author.state(NAME, "unyank", version="1.1.0")
    assert robot.pull(NAME).version == "1.1.0"


def test_a_version_never_changes_whoever_says_so(author, published, through, net, make_skill, tmp_path):
    """A signed, valid, other skill of the same name and version: from a registry that was rolled back."""
    client, _ = through()
    client.pull(NAME)
    other = make_skill(tmp_path / "other", seed=7)
    parts = [(name, other.read(name)) for name in ("manifest.json", "signature.json")]
    parts += [(name, other.read(name)) for name in other.manifest.files]
    tar = b"".join(archive.pack(parts))

    def meddle(request, response):
        headers = {"neuraverse-digest": other.digest, "content-type": "application/x-tar"}
        return net.replaced(response, tar, 200, **headers)

    client, _ = through(meddle, home=client.home)
    with pytest.raises(IntegrityError, match="a version never changes"):
        client.pull(NAME)


@pytest.mark.parametrize(
    ("spoil", "error"),
    [
        (lambda tar: tar.replace(b"Follow a seam", b"Follow a beam"), IntegrityError),
        (lambda tar: tar.replace(b"# Follow a seam", b"# Follow a beam"), IntegrityError),
        (lambda tar: tar[:-1024], (IntegrityError, NetworkError)),
        (lambda tar: tar[:3000], (IntegrityError, NetworkError)),
        (lambda tar: tar + bytes(512), IntegrityError),
        (lambda tar: tar.replace(b"README.md\0", b"../etc.md"), IntegrityError),
        (lambda tar: b"<html>" + bytes(10_000), IntegrityError),
        (lambda tar: b"", (IntegrityError, NetworkError)),
    ],
)
def test_a_spoilt_archive_leaves_nothing(published, through, net, spoil, error):
    def meddle(request, response):
        headers = {"neuraverse-digest": published.digest, "content-type": "application/x-tar"}
        return net.replaced(response, spoil(response.read()), 200, **headers)

    client, _ = through(meddle)
    with pytest.raises(error):
        client.pull(NAME)
    assert cached_files(client.home) == []
    good, _ = through(home=client.home)
    assert good.pull(NAME).digest == published.digest


def test_an_archive_signed_by_a_stranger(published, through, key_store, tmp_path):
    from neuraverse.trust import KeyStore

    client, _ = through(home=KeyStore(tmp_path / "trusts-nobody").home)
    with pytest.raises(SignatureError, match="not trusted for acme"):
        client.pull(NAME)
    assert cached_files(client.home) == []
