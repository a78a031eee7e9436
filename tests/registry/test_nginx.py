"""Behind a real nginx, as docs/deploying.md says: uploads, streams, and files that nginx sends itself."""

from __future__ import annotations

import re
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpx
import pytest

from neuraverse.client import Client
from neuraverse.registry import Settings, background
from tests import servers

PAGE = Path(__file__).parents[2] / "docs" / "deploying.md"


def certificate(folder):
    """A certificate for loopback that signs itself; the paths of it and of its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "skills.example")])
    now = datetime.now(UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, private = folder / "skills.pem", folder / "skills.key"
    pem.write_bytes(made.public_bytes(Encoding.PEM))
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return pem, private


@pytest.fixture
def site(tmp_path):
    """The server block of the page, on loopback, in front of a registry; its address and certificate."""
    folder, data = tmp_path / "nginx", tmp_path / "data"
    folder.mkdir()
    pem, private = certificate(folder)
    with background(Settings.load(data=data, collect_hours=0, x_accel_prefix="/_blobs/")) as upstream:
        (port,) = servers.free_ports(1)
        (config,) = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
        for old, new in (
            ("127.0.0.1:8420", upstream.removeprefix("http://")),
            ("listen 443 ssl", f"listen 127.0.0.1:{port} ssl"),
            ("/etc/ssl/skills.pem", str(pem)),
            ("/etc/ssl/skills.key", str(private)),
            ("/var/lib/neuraverse/blobs/", f"{data}/blobs/"),
        ):
            assert old in config, old
            config = config.replace(old, new)
        with servers.nginx(config, folder, port) as address:
            yield address.replace("http://", "https://"), pem


def test_the_page_s_nginx_serves_a_registry(site, publisher, key_store, tiny_skill, monkeypatch):
    url, pem = site
    monkeypatch.setenv("SSL_CERT_FILE", str(pem))  # the standard setting for a certificate of one's own
    with Client(url, home=publisher.home) as author:
        author.publish(tiny_skill.path)
    with Client(url, home=key_store.home) as robot:
        assert robot.pull("acme/weld-seam").digest == tiny_skill.digest
    context = ssl.create_default_context(cafile=str(pem))
    with httpx.Client(base_url=url, verify=context) as http:
        entry = tiny_skill.manifest.files["model.safetensors"]
        answer = http.get(f"/v1/blobs/{entry.sha256}")
        assert answer.content == tiny_skill.read("model.safetensors")
        assert answer.headers["server"].startswith("nginx")
        assert "x-accel-redirect" not in answer.headers
        assert answer.headers["etag"] == f'"{entry.sha256}"'
        part = http.get(f"/v1/blobs/{entry.sha256}", headers={"Range": "bytes=5-9"})
        assert (part.status_code, part.content) == (206, answer.content[5:10])
        assert http.get(f"/_blobs/sha256/{entry.sha256[:2]}/").status_code == 404  # internal
        with http.stream("GET", "/v1/events/stream?after=0", timeout=10) as stream:
            lines = stream.iter_lines()
            assert any(line == "event: published" for line in lines)


def test_a_certificate_that_nobody_vouches_for(site, key_store):
    from neuraverse.errors import NetworkError

    url, _ = site
    with Client(url, home=key_store.home) as robot, pytest.raises(NetworkError, match="certificate"):
        robot.pull("acme/weld-seam")
