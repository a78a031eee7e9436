"""Proxies, TLS and authorities of one's own, by the variables that every program takes them from."""

from __future__ import annotations

import contextlib
import datetime
import http.server
import ipaddress
import json
import select
import socket
import ssl
import threading
from types import SimpleNamespace

import pytest

from neuraverse.client import Client
from neuraverse.client.surroundings import _certificates
from neuraverse.errors import NetworkError, UsageError

HOST = "registry.test"  # has no address: only a proxy knows the way
PAGE = json.dumps({"skills": [], "next": None}).encode()


@pytest.fixture(autouse=True)
def bare(monkeypatch):
    """No settings but those of the test."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(name, raising=False)
    _certificates.cache_clear()  # a test may write another file of the same name
    yield
    _certificates.cache_clear()


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A certificate authority of our own: ``issue(names, days)`` gives a PEM of key and certificate."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    folder = tmp_path_factory.mktemp("authority")
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "plant authority")])
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)

    def certificate(subject, public, names, days, ca):
        built = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(name)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=30))
            .not_valid_after(now + datetime.timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False
            )
        )
        if ca:
            usage = dict.fromkeys(
                (
                    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment"),
                    *("key_agreement", "encipher_only", "decipher_only"),
                ),
                False,
            )
            built = built.add_extension(
                x509.KeyUsage(key_cert_sign=True, crl_sign=True, **usage), critical=True
            )
        if names:
            built = built.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return built.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)

    root = folder / "root.pem"
    root.write_bytes(certificate(name, key.public_key(), [], 30, True))

    def issue(names, days=30):
        own = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "registry")])
        known = [
            x509.IPAddress(ipaddress.ip_address(n)) if n[0].isdigit() else x509.DNSName(n) for n in names
        ]
        path = folder / f"{'-'.join(names)}-{days}.pem"
        path.write_bytes(
            own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            + certificate(subject, own.public_key(), known, days, False)
        )
        return path

    return SimpleNamespace(root=root, issue=issue)


class Registry(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.server.seen.append(self.saw())
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(PAGE)))
        self.end_headers()
        self.wfile.write(PAGE)

    def log_message(self, *_):
        pass

    def saw(self):
        return self.path, dict(self.headers)


class Server(http.server.ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """A client that does not trust us hangs up."""


@contextlib.contextmanager
def serving(handler, certificate=None):
    with Server(("127.0.0.1", 0), handler) as server:
        server.seen = []
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate)
            server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def plain():
    with serving(Registry) as server:
        yield server


@pytest.fixture
def secure(authority):
    with serving(Registry, authority.issue(["127.0.0.1", HOST])) as server:
        yield server


class Proxy(Registry):
    """Knows that `HOST` lives at ``server.target``, and passes on what is meant for it."""

    def do_CONNECT(self):
        self.server.seen.append(("CONNECT", self.path, self.headers.get("Proxy-Authorization")))
        if self.server.wants and self.headers.get("Proxy-Authorization") != self.server.wants:
            self.send_error(407)
            return
        if self.path.partition(":")[0] != HOST:
            self.send_error(502)
            return
        with socket.create_connection(self.server.target) as there:
            self.send_response(200)
            self.end_headers()
            ends = {self.connection: there, there: self.connection}
            while True:
                for end in select.select(list(ends), [], [], 10)[0]:
                    data = end.recv(65536)
                    if not data:
                        return
                    ends[end].sendall(data)

    def saw(self):
        return "GET", self.path, self.headers.get("Proxy-Authorization")


@pytest.fixture
def proxy():
    with serving(Proxy) as server:
        server.wants = None
        yield server


def address(server, scheme="http", host="127.0.0.1"):
    return f"{scheme}://{host}:{server.server_address[1]}"


def ask(url, home, **options):
    with Client(url, home=home, **options) as client:
        assert client.search() == []


# --- TLS


def test_an_authority_that_nobody_knows(secure, tmp_path):
    with pytest.raises(NetworkError, match=r"cannot reach a registry.*certificate verify failed"):
        ask(address(secure, "https"), tmp_path)
    assert secure.seen == []


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_an_authority_of_ones_own(secure, authority, tmp_path, monkeypatch, variable):
    if variable == "SSL_CERT_FILE":
        monkeypatch.setenv(variable, str(authority.root))
    else:
        import subprocess

        folder = tmp_path / "authorities"
        folder.mkdir()
        (folder / "plant.pem").write_bytes(authority.root.read_bytes())
        done = subprocess.run(["openssl", "rehash", str(folder)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        monkeypatch.setenv(variable, str(folder))
    ask(address(secure, "https"), tmp_path, token="secret")
    assert secure.seen[0][1]["Authorization"] == "Bearer secret"


@pytest.mark.parametrize(("names", "days"), [(["other.test"], 30), (["127.0.0.1"], -1)])
def test_a_certificate_of_another_or_an_expired_one(authority, tmp_path, monkeypatch, names, days):
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))
    with (
        serving(Registry, authority.issue(names, days)) as server,
        pytest.raises(NetworkError, match="certificate verify failed"),
    ):
        ask(address(server, "https"), tmp_path)


def test_tls_where_there_is_none(plain, tmp_path):
    with pytest.raises(NetworkError, match="cannot reach a registry"):
        ask(address(plain, "https"), tmp_path)


def test_no_tls_where_there_is_some(secure, tmp_path):
    with pytest.raises(NetworkError):
        ask(address(secure), tmp_path)


@pytest.mark.parametrize("content", [None, b"", b"no certificate"])
def test_authorities_that_cannot_be_read(tmp_path, monkeypatch, content):
    path = tmp_path / "root.pem"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(UsageError, match=r"certificates cannot be used: .* - check SSL_CERT_FILE"):
        Client("https://registry.test", home=tmp_path)


# --- proxies


def test_https_goes_through_a_tunnel(secure, proxy, authority, tmp_path, monkeypatch):
    """The proxy sees a name and a port, and neither the path nor the token."""
    proxy.target = secure.server_address
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))
    with pytest.raises(NetworkError):
        ask(f"https://{HOST}", tmp_path)
    monkeypatch.setenv("HTTPS_PROXY", address(proxy))
    ask(f"https://{HOST}", tmp_path, token="secret")
    assert proxy.seen == [("CONNECT", f"{HOST}:443", None)]
    path, headers = secure.seen[0]
    assert path.startswith("/v1/skills?")
    assert headers["Authorization"] == "Bearer secret"


def test_a_proxy_that_wants_a_password(secure, proxy, authority, tmp_path, monkeypatch):
    import base64

    proxy.target, proxy.wants = secure.server_address, "Basic " + base64.b64encode(b"me:secret").decode()
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.root))
    monkeypatch.setenv("HTTPS_PROXY", address(proxy))
    with pytest.raises(NetworkError, match="407"):
        ask(f"https://{HOST}", tmp_path)
    monkeypatch.setenv("HTTPS_PROXY", address(proxy, host="me:secret@127.0.0.1"))
    ask(f"https://{HOST}", tmp_path)


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
def test_http_goes_through_a_proxy(proxy, tmp_path, monkeypatch, variable):
    monkeypatch.setenv(variable, address(proxy))
    ask(f"http://{HOST}:8420", tmp_path)
    ((how, path, _),) = proxy.seen
    assert how == "GET"
    assert path.startswith(f"http://{HOST}:8420/v1/skills?")


@pytest.mark.parametrize("spared", [HOST, ".test", "*", f"elsewhere.test,{HOST}"])
def test_some_hosts_are_spared(proxy, tmp_path, monkeypatch, spared):
    monkeypatch.setenv("HTTP_PROXY", address(proxy))
    monkeypatch.setenv("NO_PROXY", spared)
    with pytest.raises(NetworkError, match="cannot reach a registry"):
        ask(f"http://{HOST}:8420", tmp_path)
    assert proxy.seen == []


def test_a_proxy_that_is_down(tmp_path, monkeypatch):
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")
    with pytest.raises(NetworkError, match=r"cannot reach a registry at https://registry\.test"):
        ask(f"https://{HOST}", tmp_path)


@pytest.mark.parametrize("value", ["ftp://127.0.0.1:9", "http://x:port", "socks5://127.0.0.1:9"])
def test_a_proxy_that_cannot_be(tmp_path, monkeypatch, value):
    monkeypatch.setenv("ALL_PROXY", value)
    with pytest.raises(UsageError, match=r"cannot be used: .* - check ALL_PROXY"):
        Client(f"http://{HOST}", home=tmp_path)
