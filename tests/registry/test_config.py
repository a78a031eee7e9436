"""Settings: command line over environment over file over default; what is wrong is named with its place."""

from __future__ import annotations

import tomllib

import pytest

from neuraverse.errors import ConfigError
from neuraverse.registry import Settings


def test_who_counts_more(tmp_path, monkeypatch):
    file = tmp_path / "registry.toml"
    file.write_text('port = 1\nhost = "0.0.0.0"\nlog_format = "json"\n')
    assert Settings.load().port == 8420
    assert Settings.load(file).port == 1
    monkeypatch.setenv("NEURAVERSE_REGISTRY_PORT", "2")
    assert (Settings.load(file).port, Settings.load(file).host) == (2, "0.0.0.0")
    assert Settings.load(file, port=3).port == 3
    assert Settings.load(file, port=None).port == 2


def test_the_client_s_variable_is_not_the_server_s(monkeypatch):
    monkeypatch.setenv("NEURAVERSE_REGISTRY", "http://127.0.0.1:1")
    assert Settings.load().port == 8420


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("prot = 1", r"registry\.toml: prot: is no setting"),
        ("port = 'x'", r"registry\.toml: port: "),
        ("port = 99999", "less than or equal to 65535"),
        ("port =", "is no TOML"),
        ("blobs = 'ftp://x'", "blobs: "),
        ("database = 'mysql://x'", r"must be postgresql://"),
        ("grace_hours = 0", "greater than 0"),
        ("x_accel_prefix = 'blobs'", "x_accel_prefix"),
        ("x_accel_prefix = '/b/'\nblobs = 's3://b'", "leave it empty"),
        ("[registry]\nport = 1", "is no setting"),
    ],
)
def test_what_is_wrong_is_named(tmp_path, text, says):
    file = tmp_path / "registry.toml"
    file.write_text(text)
    with pytest.raises(ConfigError, match=says):
        Settings.load(file)


def test_wrong_places_are_named(tmp_path, monkeypatch):
    with pytest.raises(ConfigError, match=r"cannot read .*nothing\.toml"):
        Settings.load(tmp_path / "nothing.toml")
    with pytest.raises(ConfigError, match="--port: "):
        Settings.load(port=-1)
    monkeypatch.setenv("NEURAVERSE_REGISTRY_PORT", "many")
    with pytest.raises(ConfigError, match="NEURAVERSE_REGISTRY_PORT: "):
        Settings.load()


def test_what_is_shown_can_be_read_again_and_tells_no_secret(tmp_path):
    settings = Settings.load(
        data=tmp_path / "d",
        database="postgresql://robot:hush-hush@db/registry",
        s3_secret_access_key="hush-hush",
        log_format="json",
    )
    shown = settings.as_toml()
    assert "hush-hush" not in shown + repr(settings)
    plain = tomllib.loads(shown)
    assert (plain["log_format"], plain["port"]) == ("json", 8420)
    file = tmp_path / "again.toml"
    file.write_text("\n".join(line for line in shown.splitlines() if "***" not in line))
    assert Settings.load(file).log_format == "json"


def test_every_setting_is_documented():
    from pathlib import Path

    page = (Path(__file__).parents[2] / "docs" / "deploying.md").read_text()
    for name in Settings.model_fields:
        assert f"`{name}`" in page, f"docs/deploying.md lacks {name}"
