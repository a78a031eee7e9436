"""A registry that means harm: each attack ends in an error of the right family, the cache as it was.

The robot holds a good skill and asks for another version, which the registry attacks. Whatever happens, the
good one stays usable and nothing of the other becomes visible.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import socket
import threading
import time

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neuraverse import archive
from neuraverse.client import Client, download, pulling, transport, watching
from neuraverse.errors import (
    ContentError,
    IntegrityError,
    ManifestError,
    NetworkError,
    NotFoundError,
    SignatureError,
)
from neuraverse.manifest import BLOBS, digest_of
from neuraverse.skill import FILES, MANIFEST, SIGNATURE

NAME = "acme/weld-seam"
WANTED = f"{NAME}@1.1.0"
JSON = "application/json"
TAR = "application/x-tar"
ORDER = (MANIFEST, SIGNATURE, *BLOBS)


def answer(content=b"", status=200, kind="application/octet-stream", **headers):
    stream = content if isinstance(content, httpx.SyncByteStream) else httpx.ByteStream(content)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, stream=stream, headers={"content-type": kind, **named})


def problem(status=404, detail="there is none"):
    return answer(json.dumps({"detail": detail, "remedy": ""}).encode(), status, "application/problem+json")


def parts_of(skill):
    return [(name, skill.read(name)) for name in ORDER]


def tar_of(parts):
    return b"".join(archive.pack(parts))


class Body(httpx.SyncByteStream):
    """Chunks for as long as somebody takes them; counts their bytes."""

    def __init__(self, chunks):
        self._chunks = chunks
        self.taken = 0

    def __iter__(self):
        for chunk in self._chunks:
            self.taken += len(chunk)
            yield chunk


def endless(chunk=b"x" * 65536):
    return Body(itertools.repeat(chunk))


def dripping(chunk=b"x"):
    def chunks():
        while True:
            time.sleep(0.02)
            yield chunk

    return Body(chunks())


class Registry:
    """An honest registry out of skills; ``attack(request, honest)`` may give another response than it."""

    def __init__(self, *skills):
        self.skills = skills
        self.requests = []
        self.attack = lambda request, honest: honest(request)

    def __call__(self, request):
        self.requests.append(request)
        return self.attack(request, self.honest)

    def honest(self, request):
        path = request.url.path
        latest = max(self.skills, key=lambda skill: skill.version)
        for skill in self.skills:
            digest = skill.digest.removeprefix("sha256:")
            names = [skill.version, *(["latest"] if skill is latest else [])]
            for which in names:
                if path == f"/v1/skills/{skill.manifest.name}/{which}/archive":
                    return answer(tar_of(parts_of(skill)), kind=TAR, neuraverse_digest=skill.digest)
                if path == f"/v1/skills/{skill.manifest.name}/{which}":
                    named = {"name": skill.manifest.name, "version": skill.version, "digest": skill.digest}
                    return answer(json.dumps(named).encode(), kind=JSON)
            if path == f"/v1/manifests/{digest}":
                return answer(skill.read(MANIFEST))
            if path == f"/v1/manifests/{digest}/signature":
                return answer(skill.read(SIGNATURE))
            for name, entry in skill.manifest.files.items():
                if path == f"/v1/blobs/{entry.sha256}":
                    return answer(skill.read(name))
        return problem()


def instead(ending, made):
    """An attack: where a path ends so, another response, or another body under the honest headers."""

    def attack(request, honest):
        if not request.url.path.endswith(ending):
            return honest(request)
        response = made(request, honest) if callable(made) else made
        if isinstance(response, bytes):
            real = honest(request)
            kept = {k: v for k, v in real.headers.items() if k != "content-length"}
            return httpx.Response(real.status_code, headers=kept, stream=httpx.ByteStream(response))
        return response

    return attack


@pytest.fixture(scope="module")
def skills(make_skill, tmp_path_factory):
    """The good one, the one that is attacked, and another of the same publisher."""
    folder = tmp_path_factory.mktemp("skills")
    return (
        make_skill(folder / "good"),
        make_skill(folder / "wanted", version="1.1.0", seed=1),
        make_skill(folder / "other", name="grind", seed=2),
    )


@pytest.fixture
def registry(skills):
    return Registry(*skills)


@pytest.fixture(params=["archive", "files"])
def way(request, monkeypatch):
    """As a small skill is pulled, and as a large one is."""
    if request.param == "files":
        monkeypatch.setattr(pulling, "ARCHIVE_BYTES", 0)
    return request.param


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(download.random, "uniform", lambda *_: 0.0)


def visible(home):
    """What a later pull would build upon: each skill, with its bytes, and each blob."""
    cache = home / "cache"
    found = {}
    for path in (*cache.glob("skills/*/*"), *cache.glob("blobs/sha256/*")):
        found[str(path.relative_to(cache))] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


@pytest.fixture
def robot(registry, skills, key_store):
    """A robot's client, which holds the good skill; afterwards it still does, and nothing else is visible."""
    good = skills[0]
    with httpx.Client(transport=httpx.MockTransport(registry)) as http:
        client = Client("http://registry.test", home=key_store.home, http=http)
        client.pull(f"{NAME}@1.0.0")
        before = visible(client.home)
        yield client
        after = visible(client.home)
        assert {path for path in after if path.startswith("skills")} == {
            path for path in before if path.startswith("skills")
        }
        for path, digest in after.items():
            if path.startswith("blobs"):  # of the other version, whole
                assert path.endswith(digest)
            else:
                assert digest == before[path]
        held = client.pull(f"{NAME}@1.0.0", offline=True)
        assert held.digest == good.digest
        assert [held.read(name) for name in FILES] == [good.read(name) for name in FILES]


def blob(skills, name="model.safetensors"):
    return f"/v1/blobs/{skills[1].manifest.files[name].sha256}"


def flipped(data):
    return data[:10] + bytes([data[10] ^ 1]) + data[11:]


# --- other bytes


def test_other_bytes_for_the_manifest(robot, registry, skills, way):
    good, wanted, _ = skills
    for data in (
        good.read(MANIFEST),
        flipped(wanted.read(MANIFEST)),
        b"",
        b"{}",
        b"\xff" * 1000,
        b"[" * 99_999,
    ):
        changed = dict(parts_of(wanted)) | {MANIFEST: data}
        registry.attack = instead(wanted.digest[7:], data)
        if way == "archive":
            registry.attack = instead("/archive", tar_of(changed.items()))
        with pytest.raises((IntegrityError, ManifestError)):
            robot.pull(WANTED)
        # … and when the header tells the digest of those bytes
        told = answer(tar_of(changed.items()), kind=TAR, neuraverse_digest=digest_of(data))
        registry.attack = instead("/archive", told)
        if way == "archive":
            with pytest.raises(ContentError):
                robot.pull(WANTED)
    assert not any("/blobs/" in request.url.path for request in registry.requests)


@pytest.mark.parametrize("name", BLOBS)
def test_other_bytes_for_a_file(robot, registry, skills, way, name):
    wanted = skills[1]
    data = wanted.read(name)
    for lie in (flipped(data), data + b"x", b"", data[:-1] + b"\0", skills[2].read(MANIFEST)):
        if way == "archive":
            registry.attack = instead("/archive", tar_of((dict(parts_of(wanted)) | {name: lie}).items()))
        else:
            registry.attack = instead(blob(skills, name), lie)
        with pytest.raises((IntegrityError, NetworkError)) as caught:
            robot.pull(WANTED)
        assert isinstance(caught.value, IntegrityError) or len(lie) < len(data)


# --- others' papers


def test_another_skills_signature(robot, registry, skills, way):
    good, wanted, other = skills
    forged = json.dumps(json.loads(wanted.read(SIGNATURE)) | {"x": 1}).encode()
    for signature in (good.read(SIGNATURE), other.read(SIGNATURE), b"", b"{}", forged, b"[" * 60_000):
        if way == "archive":
            parts = dict(parts_of(wanted)) | {SIGNATURE: signature}
            registry.attack = instead("/archive", tar_of(parts.items()))
        else:
            registry.attack = instead(
                "", lambda r, honest, s=signature: _with_signature(r, honest, s, skills[1])
            )
        with pytest.raises(SignatureError):
            robot.pull(WANTED)
    assert not any("/blobs/" in request.url.path for request in registry.requests)


def _with_signature(request, honest, signature, skill):
    if request.url.path.endswith("/archive"):
        parts = dict(parts_of(skill)) | {SIGNATURE: signature}
        return answer(tar_of(parts.items()), kind=TAR, neuraverse_digest=skill.digest)
    return answer(signature) if request.url.path.endswith("/signature") else honest(request)


@pytest.mark.parametrize("which", [0, 2])
def test_another_skill_under_this_name(robot, registry, skills, way, which):
    """Whole, and signed by the same publisher: an older version, or another skill."""
    stand_in = skills[which]
    named = {"name": NAME, "version": "1.1.0", "digest": stand_in.digest}

    def attack(request, honest):
        if request.url.path.endswith("/archive"):
            return answer(tar_of(parts_of(stand_in)), kind=TAR, neuraverse_digest=stand_in.digest)
        if request.url.path.endswith("/1.1.0"):
            return answer(json.dumps(named).encode(), kind=JSON)
        return honest(request)

    registry.attack = attack
    with pytest.raises(IntegrityError, match="answered"):
        robot.pull(WANTED)
    with pytest.raises(IntegrityError):
        robot.pull(robot.resolve(WANTED))


def test_an_older_version_under_a_range(robot, registry, skills):
    good = skills[0]
    registry.attack = instead(
        "/archive", answer(tar_of(parts_of(good)), kind=TAR, neuraverse_digest=good.digest)
    )
    with pytest.raises(IntegrityError, match=r"answered .*\^1\.1 with"):
        robot.pull(f"{NAME}@^1.1")


# --- bodies without end, and those that drip


def test_endless_bodies(robot, registry, skills, way):
    wanted = skills[1]
    digest = wanted.digest.removeprefix("sha256:")
    for ending in ["/archive"] if way == "archive" else [digest, "/signature", blob(skills)]:
        body = endless()
        registry.attack = instead(ending, answer(body, kind=TAR, neuraverse_digest=wanted.digest))
        with pytest.raises((NetworkError, IntegrityError)):
            robot.pull(WANTED)
        assert 0 < body.taken < 3 << 20


def test_endless_answers(robot, registry):
    for kind, ask in (
        (JSON, lambda: robot.search("x")),
        (JSON, lambda: robot.resolve(f"{NAME}@stable")),
        (JSON, robot.events),
        (JSON, lambda: robot.describe(NAME)),
    ):
        body = endless(b" " * 65536)
        registry.attack = instead("", answer(body, kind=kind))
        with pytest.raises(NetworkError, match="more than 8388608 bytes"):
            ask()
        assert body.taken < 10 << 20


def test_an_archive_that_goes_on_behind_its_end(robot, registry, skills):
    body = Body(itertools.chain([tar_of(parts_of(skills[1]))], itertools.repeat(bytes(65536))))
    registry.attack = instead("/archive", answer(body, kind=TAR, neuraverse_digest=skills[1].digest))
    with pytest.raises(IntegrityError, match="behind its end"):
        robot.pull(WANTED)
    assert body.taken < 1 << 20


def test_bodies_that_drip(robot, registry, skills, way, monkeypatch):
    monkeypatch.setattr(transport, "SLOW_S", 0.1)
    monkeypatch.setattr(transport, "ANSWER_S", 0.1)
    wanted = skills[1]
    digest = wanted.digest.removeprefix("sha256:")
    endings = ["/archive"] if way == "archive" else [digest, "/signature", blob(skills)]
    for ending in endings:
        headers = {"neuraverse_digest": wanted.digest}
        registry.attack = instead(ending, lambda *_, h=headers: answer(dripping(), kind=TAR, **h))
        with pytest.raises(NetworkError, match=r"sent only|took more than"):
            robot.pull(WANTED)


# --- elsewhere


REDIRECTS = (301, 302, 303, 307, 308)


@pytest.mark.parametrize("status", REDIRECTS)
def test_redirects_are_refused(robot, registry, skills, way, status):
    """Of everything but blobs, and of blobs all but 307."""
    digest = skills[1].digest.removeprefix("sha256:")
    endings = ["/archive", digest, "/signature"] + ([blob(skills)] if status != 307 else [])
    for ending in endings[:1] if way == "archive" else endings[1:]:
        registry.attack = instead(ending, answer(status=status, location="http://elsewhere.test/x"))
        with pytest.raises(
            NetworkError, match=r"does not answer as a neuraverse registry: it sent status 30"
        ):
            robot.pull(WANTED)
    registry.attack = instead("", answer(status=status, location="http://elsewhere.test/x"))
    for ask in (
        lambda: robot.resolve(f"{NAME}@stable"),
        robot.search,
        robot.events,
        lambda: robot.manifest(skills[1].digest),
    ):
        with pytest.raises(NetworkError):
            ask()
    assert {request.url.host for request in registry.requests} == {"registry.test"}


@pytest.fixture
def with_token(registry, key_store):
    """A client with a token, through an HTTP client that would follow redirects, for large skills."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(pulling, "ARCHIVE_BYTES", 0)

        def make(url="http://registry.test"):
            http = httpx.Client(transport=httpx.MockTransport(registry), follow_redirects=True)
            stack.enter_context(http)
            return Client(url, home=key_store.home, http=http, token="secret")

        yield make


@pytest.mark.parametrize("target", ["http://store.test/bucket/x?signed=1", "https://store.test/x"])
def test_a_blob_may_lie_elsewhere_and_our_token_stays_here(with_token, registry, skills, target):
    content = skills[1].read("model.safetensors")

    def attack(request, honest):
        if request.url.host == "store.test":
            return answer(content)
        if request.url.path == blob(skills):
            return answer(status=307, location=target, set_cookie="session=1; Domain=test")
        return honest(request)

    registry.attack = attack
    skill = with_token().pull(WANTED)
    assert skill.digest == skills[1].digest
    away = [request for request in registry.requests if request.url.host == "store.test"]
    assert [str(request.url) for request in away] == [target]
    assert away[0].method == "GET"
    assert not {"authorization", "cookie", "referer"} & set(away[0].headers)
    here = [request for request in registry.requests if request.url.host == "registry.test"]
    assert all(request.headers["authorization"] == "Bearer secret" for request in here)


def test_what_lies_elsewhere_is_hashed_too(with_token, registry, skills):
    body = endless()

    def attack(request, honest):
        if request.url.host == "store.test":
            return answer(body)
        if request.url.path == blob(skills):
            return answer(status=307, location="http://store.test/x")
        return honest(request)

    registry.attack = attack
    client = with_token()
    with pytest.raises(IntegrityError, match="sends more than"):
        client.pull(WANTED)
    body = answer(flipped(skills[1].read("model.safetensors"))).stream
    with pytest.raises(IntegrityError, match="for the blob"):
        client.pull(WANTED)
    assert not list((client.home / "cache").glob("skills/*"))


@pytest.mark.parametrize("second", [*REDIRECTS, 200, 403, 404, 500])
def test_one_redirect_is_all(with_token, registry, skills, second):
    def attack(request, honest):
        if request.url.host == "store.test":
            if second == 200:
                return answer(b"<html>log in", kind="text/html")
            return answer(b"no", second, location="http://third.test/x")
        if request.url.path == blob(skills):
            return answer(status=307, location="http://store.test/x")
        return honest(request)

    registry.attack = attack
    with pytest.raises(NetworkError):
        with_token().pull(WANTED)
    assert {request.url.host for request in registry.requests} == {"registry.test", "store.test"}


@pytest.mark.parametrize(
    "location",
    [
        "",
        "/v1/blobs/" + "0" * 64,
        "//store.test/x",
        "file:///etc/passwd",
        "ftp://store.test/x",
        "gopher://store.test/x",
        "javascript:alert(1)",
        "http:",
        "http://",
        "http://[::1",
        "http://store.test:port/x",
        "http://store.test\x7f/",
        "http://\N{SNOWMAN}\N{SNOWMAN}:99999999/",
        "x" * 60_000,
    ],
)
def test_a_redirect_to_nowhere(with_token, registry, skills, location):
    def attack(request, honest):
        if request.url.path == blob(skills):
            raw = location.encode()
            return httpx.Response(307, headers=[(b"Location", raw)], stream=httpx.ByteStream(b""))
        return honest(request)

    registry.attack = attack
    with pytest.raises(NetworkError):
        with_token().pull(WANTED)
    assert all(r.url.host == "registry.test" or r.url.host.startswith("xn--") for r in registry.requests)


@pytest.mark.parametrize("host", ["a..b", "x" * 70 + ".test", "..", "xn--"])
def test_a_redirect_to_a_host_that_cannot_be(key_store, answering, host):
    """Over sockets: such a name fails where it is looked up."""
    data = f"HTTP/1.1 307 x\r\nLocation: http://{host}/x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
    url = answering(data.encode())
    with Client(url, home=key_store.home) as client, pytest.raises(NetworkError):
        download.fetch(client._transport, client._cache, "0" * 64, 1000)


def test_from_https_no_way_leads_to_http(with_token, registry, skills):
    registry.attack = instead(blob(skills), answer(status=307, location="http://store.test/x"))
    with pytest.raises(NetworkError, match="sent us to"):
        with_token("https://registry.test").pull(WANTED)
    assert {request.url.scheme for request in registry.requests} == {"https"}


# --- what is no registry


def test_a_page_of_html(robot, registry, way):
    registry.attack = instead("", answer(b"<html>please log in</html>", kind="text/html"))
    for ask in (
        lambda: robot.pull(WANTED),
        lambda: robot.resolve(f"{NAME}@stable"),
        robot.search,
        robot.events,
        lambda: robot.lineage(NAME),
    ):
        with pytest.raises(NetworkError, match="does not answer as a neuraverse registry"):
            ask()
    assert robot.pull(NAME + "@1.0.0").version == "1.0.0"  # as before


def test_gzip_is_not_unpacked(robot, registry, skills, way):
    import gzip

    def attack(request, honest):
        response = honest(request)
        data = gzip.compress(b"".join(response.stream))
        kept = {k: v for k, v in response.headers.items() if k != "content-length"}
        return httpx.Response(
            response.status_code, headers=kept | {"content-encoding": "gzip"}, stream=httpx.ByteStream(data)
        )

    registry.attack = attack
    with pytest.raises((NetworkError, IntegrityError)):
        robot.pull(WANTED)
    with pytest.raises(NetworkError):
        robot.search()
    with pytest.raises(IntegrityError):
        robot.manifest(skills[1].digest)


def test_a_gzip_bomb_stays_small(robot, registry, skills):
    import gzip

    bomb = gzip.compress(b" " * (64 << 20))
    registry.attack = instead("", answer(bomb, kind=JSON, content_encoding="gzip"))
    with pytest.raises(NetworkError, match="broken JSON"):
        robot.search()
    registry.attack = instead("", answer(bomb, kind="application/problem+json", status=404))
    with pytest.raises(NetworkError, match="status 404"):
        robot.search()


@pytest.mark.parametrize("named", [None, [], 5, "", "sha256:x", {"name": 5}, {"a": "\ud800"}])
def test_answers_of_another_shape(robot, registry, skills, named):
    plain = {"name": NAME, "version": "1.1.0", "digest": skills[1].digest}
    shapes = [named, {"name": named}, plain | {"digest": named}, plain | {"version": named}]
    shapes += [plain | {"name": named}, plain | {"warnings": [named]}, plain | {"state": named}]
    for shape in shapes:
        body = json.dumps(shape).encode()
        registry.attack = instead("", lambda *_, body=body: answer(body, kind=JSON))
        with contextlib.suppress(NetworkError, IntegrityError):
            found = robot.resolve(WANTED)
            assert (found.name, found.version, found.digest) == tuple(plain.values())
        for ask in (robot.search, robot.events, lambda: robot.describe(NAME), lambda: robot.lineage(NAME)):
            with pytest.raises(NetworkError):
                ask()


def test_what_a_publisher_says_steers_no_terminal(robot, registry, skills, caplog):
    nasty = "\x1b]0;pwned\x07\x1b[2J\r\n\u202e" + "x" * 100_000
    named = {"name": NAME, "version": "1.1.0", "digest": skills[1].digest, "warnings": [nasty] * 20}
    registry.attack = instead("", answer(json.dumps(named).encode(), kind=JSON))
    robot.resolve(WANTED)
    registry.attack = instead("", problem(detail=nasty))
    with pytest.raises(NotFoundError) as caught:
        robot.resolve(f"{NAME}@stable")
    for text in (caught.value.message, *(record.getMessage() for record in caplog.records)):
        assert len(text) < 2000
        assert all(c.isprintable() for c in text)
    assert len(caplog.records) <= 10


# --- archives


def with_header(name, size):
    """A header that was made by the rules for any name and size."""
    block = bytearray(archive.header("x", 0))
    block[0:100] = name.encode().ljust(100, b"\0")
    block[124:136] = b"%011o\0" % size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def raw(parts):
    return b"".join(
        with_header(n, len(d) if s is None else s) + d + archive.padding(len(d)) for n, d, s in parts
    )


ARCHIVES = {
    "a file too many": lambda parts: raw([*parts, ("extra.txt", b"x", None)]),
    "a file too many in between": lambda parts: raw([*parts[:3], ("x", b"x", None), *parts[3:]]),
    "a file twice": lambda parts: raw([*parts[:3], parts[2], *parts[3:]]),
    "the last file twice": lambda parts: raw([*parts, parts[-1]]),
    "the manifest twice": lambda parts: raw([parts[0], *parts]),
    "the manifest missing": lambda parts: raw(parts[1:]),
    "the signature missing": lambda parts: raw([parts[0], *parts[2:]]),
    "the weights missing": lambda parts: raw([p for p in parts if p[0] != "model.safetensors"]),
    "the last file missing": lambda parts: raw(parts[:-1]),
    "nothing but the manifest": lambda parts: raw(parts[:2]),
    "nothing": lambda parts: b"",
    "another order": lambda parts: raw([*parts[:2], *reversed(parts[2:])]),
    "the files first": lambda parts: raw([*parts[2:], *parts[:2]]),
    "a path upwards": lambda parts: raw([*parts[:2], ("../model.safetensors", b"x", None), *parts[2:]]),
    "an absolute path": lambda parts: raw([*parts, ("/etc/passwd", b"x", None)]),
    "a path": lambda parts: raw([*parts[:-1], ("./README.md", parts[-1][1], None)]),
    "a size too small": lambda parts: raw([*parts[:2], (*parts[2][:2], 10), *parts[3:]]),
    "a size too large": lambda parts: raw([*parts[:2], (*parts[2][:2], 1 << 20), *parts[3:]]),
    "a vast size": lambda parts: raw([*parts[:2], (*parts[2][:2], 8**11 - 1), *parts[3:]]),
    "a vast manifest": lambda parts: raw([("manifest.json", b"", 8**11 - 1)]),
    "an empty file": lambda parts: raw([*parts[:-1], (parts[-1][0], b"", None)]),
    "zeros": lambda parts: bytes(100_000),
}


@pytest.mark.parametrize("name", ARCHIVES)
@pytest.mark.parametrize("end", [b"", bytes(512), bytes(1024)])
def test_archives_that_are_none(robot, registry, skills, name, end, tmp_path):
    parts = [(name, data, None) for name, data in parts_of(skills[1])]
    data = ARCHIVES[name](parts) + end
    registry.attack = instead("/archive", answer(data, kind=TAR, neuraverse_digest=skills[1].digest))
    with pytest.raises(IntegrityError, match=r"archive is malformed|registry sen|registry answered"):
        robot.pull(WANTED)
    assert not list(tmp_path.rglob("extra.txt"))
    assert not [path for path in (robot.home / "cache" / "skills").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("kind", [b"1", b"2", b"3", b"5", b"L", b"x", b"g", b"S"])
def test_members_that_are_no_files(robot, registry, skills, kind):
    """Links, devices, folders, long names, extended headers, sparse files."""
    block = bytearray(archive.header(MANIFEST, 0))
    block[156:157] = kind
    block[157:168] = b"/etc/passwd"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    for data in (bytes(block), tar_of(parts_of(skills[1]))[:-1024] + bytes(block) + bytes(1024)):
        registry.attack = instead("/archive", answer(data, kind=TAR, neuraverse_digest=skills[1].digest))
        with pytest.raises(IntegrityError, match="malformed"):
            robot.pull(WANTED)


# --- on the wire


@pytest.fixture
def wire():
    """A server on loopback that sends what an iterable gives: ``wire(head, chunks=())``; its URL."""
    with contextlib.ExitStack() as stack:

        def make(head, chunks=()):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            ended = threading.Event()

            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = server.accept()
                        with connection, contextlib.suppress(OSError):
                            connection.settimeout(5)
                            connection.recv(65536)
                            connection.sendall(head)
                            for chunk in chunks:
                                if ended.is_set():
                                    break
                                connection.sendall(chunk)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()

            def close():
                ended.set()
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
                thread.join()

            stack.callback(close)
            return f"http://127.0.0.1:{server.getsockname()[1]}"

        yield make


def ask_all(client, skills):
    """Everything that a robot asks; each must end in a `NeuraverseError`."""
    for ask in (
        lambda: client.pull(WANTED),
        lambda: client.pull(skills[1].digest),
        lambda: client.resolve(f"{NAME}@stable"),
        client.search,
        client.events,
    ):
        with pytest.raises((NetworkError, ContentError)):
            ask()
    with pytest.raises((NetworkError, ContentError)):
        download.fetch(client._transport, client._cache, "0" * 64, 1000)
    assert visible(client.home) == {}


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
MESSES = {
    "nothing": b"",
    "no HTTP": b"220 mail.test ESMTP\r\n",
    "ssh": b"SSH-2.0-OpenSSH_9.9\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "half a head": HEAD,
    "more promised than sent": HEAD + b"Content-Length: 1000\r\n\r\n{}",
    "less promised than sent": HEAD + b"Content-Length: 1\r\n\r\n{}",
    "a negative length": HEAD + b"Content-Length: -5\r\n\r\n{}",
    "no number as a length": HEAD + b"Content-Length: many\r\n\r\n{}",
    "a vast length": HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\n{}",
    "two lengths": HEAD + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "a length and chunks": HEAD + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n",
    "broken chunks": HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{}",
    "a vast chunk": HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + b"f" * 30 + b"\r\n{}",
    "an unknown encoding": HEAD + b"Transfer-Encoding: gzip\r\n\r\n{}",
    "a huge header": HEAD + b"X: " + b"x" * 300_000 + b"\r\n\r\n{}",
    "many headers": HEAD + b"X: y\r\n" * 50_000 + b"\r\n{}",
    "broken headers": HEAD + b"no colon\r\n\r\n{}",
    "bytes in headers": b"HTTP/1.1 200 OK\r\nContent-Type: \xff\xfe\r\nX\0Y: z\r\n\r\n{}",
    "a status that is none": b"HTTP/1.1 999999 OK\r\n\r\n{}",
    "an upgrade": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n{}",
    "no content": b"HTTP/1.1 204 x\r\n\r\n",
    "not modified": b"HTTP/1.1 304 x\r\n\r\n",
    "a part": b"HTTP/1.1 206 x\r\nContent-Range: bytes 5-9/10\r\nContent-Length: 2\r\n\r\n{}",
    "go on": b"HTTP/1.1 100 Continue\r\n\r\n" * 100,
}


@pytest.mark.parametrize("name", MESSES)
def test_messes_on_the_wire(wire, key_store, skills, name, monkeypatch):
    monkeypatch.setattr(transport, "READ_S", 5.0)
    with Client(wire(MESSES[name]), home=key_store.home) as client:
        ask_all(client, skills)


def drops():
    for byte in HEAD + b"X: " + b"x" * 10_000:
        time.sleep(0.02)
        yield bytes([byte])


@pytest.mark.parametrize("kind", ["go on", "drops"])
def test_a_head_without_end(wire, key_store, monkeypatch, kind):
    """Interim answers, or a header that drips: each byte comes in time, and the answer never begins."""
    monkeypatch.setattr(transport, "READ_S", 0.2)
    monkeypatch.setattr(transport, "ANSWER_S", 0.2)
    url = wire(b"", itertools.repeat(MESSES["go on"]) if kind == "go on" else drops())
    ended = threading.Event()

    def ask():
        with Client(url, home=key_store.home) as client, contextlib.suppress(NetworkError):
            client.search()
        ended.set()

    threading.Thread(target=ask, daemon=True).start()
    assert ended.wait(1.0)


def test_a_lying_length_of_an_archive(wire, key_store, skills):
    data = tar_of(parts_of(skills[1]))
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {TAR}\r\nNeuraverse-Digest: {skills[1].digest}\r\n"
    for size in (len(data) - 1, len(data) - 1024, 1000, len(data) + 1, 10**12):
        url = wire(f"{head}Content-Length: {size}\r\n\r\n".encode() + data)
        with Client(url, home=key_store.home) as client, pytest.raises((NetworkError, IntegrityError)):
            client.pull(WANTED)
        assert visible(key_store.home) == {}


def test_silence_in_the_midst_of_a_body(answering, key_store, skills, monkeypatch):
    monkeypatch.setattr(transport, "READ_S", 0.1)
    data = tar_of(parts_of(skills[1]))[:5000]
    head = f"HTTP/1.1 200 OK\r\nContent-Type: {TAR}\r\nNeuraverse-Digest: {skills[1].digest}\r\n\r\n"
    client = Client(answering(head.encode() + data, hold=True), home=key_store.home)
    with client, pytest.raises(NetworkError, match=r"silent for 0\.1 s"):
        client.pull(WANTED)
    assert visible(key_store.home) == {}


@settings(
    max_examples=60,
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.data())
def test_spoilt_answers_on_the_wire(wire, key_store, skills, data):
    """The whole answer, heads and all, with some bytes changed, dropped or repeated."""
    body = tar_of(parts_of(skills[1]))
    head = (
        f"HTTP/1.1 200 OK\r\nContent-Type: {TAR}\r\nNeuraverse-Digest: {skills[1].digest}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    ).encode()
    sent = bytearray(head + body)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(head) + 40) | st.integers(0, len(head + body) - 1))
        match data.draw(st.sampled_from(["byte", "drop", "insert", "cut"])):
            case "byte":
                sent[at : at + 1] = bytes([data.draw(st.integers(0, 255))])
            case "drop":
                del sent[at : at + data.draw(st.integers(1, 600))]
            case "insert":
                sent[at:at] = data.draw(st.binary(min_size=1, max_size=20))
            case "cut":
                del sent[at:]
    with Client(wire(bytes(sent)), home=key_store.home) as client:
        try:
            skill = client.pull(WANTED)
        except (NetworkError, ContentError):
            assert visible(key_store.home) == {}
        else:  # it hit what does not matter, such as the reason phrase
            assert skill.digest == skills[1].digest
            client._cache.discard_skill(skill.digest)
            del skill


# --- the event feed


def watched(client, count, seconds=20.0):
    """What `watch` gives, `count` events at most, and nothing after `seconds`."""
    stop, found = threading.Event(), []
    timer = threading.Timer(seconds, stop.set)
    timer.start()
    try:
        for event in client.watch("0", stop=stop):
            found.append(event)
            if len(found) == count:
                stop.set()
    finally:
        timer.cancel()
    return found


def stream(*blocks):
    return answer("".join(blocks).encode(errors="surrogatepass"), kind="text/event-stream")


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(watching, "_FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(watching, "MAX_PAUSE_S", 0.01)
    monkeypatch.setattr(watching, "POLLING_S", 0.01)
    monkeypatch.setattr(watching, "POLL_S", 0.01)


def event(number, **fields):
    texts = {"type": "published", "name": NAME, "version": "1.1.0", "digest": "sha256:x", "at": ""}
    return json.dumps({"id": number, "cursor": f"00000000-{number}"[:20], **texts, **fields})


BLOCKS = {
    "no JSON": "id: 00000000-1\ndata: {\n\n",
    "deep JSON": f"data: {'[' * 100_000}\n\n",
    "an array": "data: []\n\n",
    "no id": "data: {}\n\n",
    "a vast id": f"id: 1\ndata: {event('9' * 5000)}\n\n",
    "a negative id": f"data: {event(-1)}\n\n",
    "texts that are none": f"data: {event(1, name=[])}\n\n",
    "parents that are none": f"data: {event(1, parents=[5])}\n\n",
    "a block without end": "data: " + "x" * 2_000_000,
    "bytes that are no text": "data: \ud800\n\n",
    "nothing": "",
}


@pytest.mark.parametrize("name", BLOCKS)
def test_an_event_feed_that_lies(robot, registry, quick, name):
    """It waits, asks again, and gives what is good, once."""
    rounds = itertools.count()
    good = event(7)

    def attack(request, honest):
        if request.url.path == "/v1/events":
            done = next(rounds) > 2
            page = {"events": [json.loads(good)] if done else [], "next": "00000000-7" if done else "0"}
            return answer(json.dumps(page).encode(), kind=JSON)
        return stream(BLOCKS[name])

    registry.attack = attack
    assert [found.id for found in watched(robot, 1)] == [7]


def test_events_out_of_order_come_once(robot, registry, quick):
    def attack(request, honest):
        if request.url.path == "/v1/events":
            return answer(b'{"events": [], "next": "0"}', kind=JSON)
        return stream(*(f"id: 00000000-{n}\ndata: {event(n)}\n\n" for n in (1, 3, 2, 3, 1, 4)))

    registry.attack = attack
    assert [found.id for found in watched(robot, 3)] == [1, 3, 4]


@pytest.mark.parametrize("number", ["9" * 5000, "-1", "x", "\N{SUPERSCRIPT TWO}", ""])
def test_a_reset_to_nowhere(robot, registry, quick, number):
    """An id that is no cursor means the beginning."""

    def attack(request, honest):
        if request.url.path == "/v1/events":
            return answer(b'{"events": [], "next": "0"}', kind=JSON)
        return stream(f"id: {number}\nevent: reset\n\n")

    registry.attack = attack
    (found,) = watched(robot, 1)
    assert found.type == "reset"


def test_a_list_without_end(robot, registry):
    """Each page names a next one."""
    pages = itertools.count()
    summary = {"name": NAME, "version": "1.0.0", "digest": "sha256:x", "title": "", "description": ""}
    summary |= {"robot": "", "rate": 1.0, "lower": 1.0, "n": 1, "created": ""}

    def attack(request, honest):
        number = next(pages)
        assert number < 1000, "it asks for ever"
        page = {"skills": [summary] * 100, "next": f"acme/{number:09d}"}
        return answer(json.dumps(page).encode(), kind=JSON)

    registry.attack = attack
    with pytest.raises(NetworkError):
        robot.search()
