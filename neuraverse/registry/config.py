"""How a registry is set up: command line over environment over file over default.

Each setting is an environment variable ``NEURAVERSE_REGISTRY_<NAME>`` and a key of the TOML file that
``--config`` names. ``neuraverse serve --print-config`` shows what holds.
"""

from __future__ import annotations

import json
import os
import tomllib
from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from neuraverse.errors import ConfigError
from neuraverse.manifest import MAX_FILE_BYTES

ENV_PREFIX = "NEURAVERSE_REGISTRY_"


class Settings(BaseSettings):
    """Every setting of the server. `Settings.load` reads them."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, extra="forbid", frozen=True)

    data: Path = Path("registry")
    """Folder of the registry, made if missing: database, blobs and lock, unless they are elsewhere."""
    database: SecretStr = SecretStr("")
    """``postgresql://USER:PASSWORD@HOST/NAME``; empty is SQLite in the data folder."""
    blobs: Annotated[str, Field(pattern="^$|^s3://")] = ""
    """``s3://BUCKET/PREFIX``; empty is the data folder."""
    s3_endpoint: str | None = None
    """Address of an S3-compatible store, such as http://127.0.0.1:9000; empty is Amazon's."""
    s3_region: str | None = None
    s3_access_key_id: SecretStr | None = None
    """Empty: what AWS_ACCESS_KEY_ID and the machine's role give."""
    s3_secret_access_key: SecretStr | None = None
    presign: bool = True
    """Answer downloads from an object store with a presigned URL; false passes the bytes through."""
    presign_seconds: Annotated[int, Field(ge=1, le=7 * 86_400)] = 3600
    x_accel_prefix: Annotated[str, Field(pattern="^$|^/.*/$")] = ""
    """Internal location of an nginx in front, such as /_blobs/, that serves DATA/blobs/; empty is none."""
    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 for all."""
    port: Annotated[int, Field(ge=0, le=65_535)] = 8420
    """0 takes a free one."""
    open: bool = False
    """Whether anybody may publish under names that no organisation with members has; for a desk or class."""
    anonymous: bool = True
    """Whether public skills can be read without signing in."""
    quota_bytes: Annotated[int, Field(ge=0)] = 100 << 30
    """What an organisation may store, unless it was given a quota of its own; 0 is without limit."""
    quota_versions: Annotated[int, Field(ge=0)] = 100_000
    quota_requests: Annotated[int, Field(ge=0)] = 60_000
    """Requests a minute by an organisation's members and robots, at each server process."""
    quota_events: Annotated[int, Field(ge=0)] = 10_000
    """Events an hour."""
    max_blob_bytes: Annotated[int, Field(ge=1, le=MAX_FILE_BYTES)] = MAX_FILE_BYTES
    upload_hours: Annotated[float, Field(gt=0, le=8760)] = 24.0
    """How long an upload may take."""
    grace_hours: Annotated[float, Field(gt=0, le=8760)] = 24.0
    """How long a blob is kept that no version refers to."""
    collect_hours: Annotated[float, Field(ge=0, le=8760)] = 6.0
    """How often what nobody refers to is removed; 0 leaves that to ``neuraverse registry gc``."""
    body_idle_s: Annotated[float, Field(gt=0, le=3600)] = 30.0
    """A request whose headers or body stay silent that long is given up."""
    body_bytes_per_s: Annotated[float, Field(gt=0)] = 1024.0
    """And so is a body that is slower than this, after `body_idle_s`."""
    max_connections: Annotated[int, Field(ge=10, le=1_000_000)] = 10_000
    webhook_networks: Annotated[tuple[IPv4Network | IPv6Network, ...], NoDecode] = ()
    """Networks such as 10.0.0.0/8 that webhooks are sent to, besides the public Internet."""
    shutdown_s: Annotated[float, Field(ge=0, le=3600)] = 10.0
    """Requests in flight may finish for this long after SIGTERM."""
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["debug", "info", "warning", "error"] = "info"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The command line comes first, then the environment; the file is merged by `load`."""
        return init_settings, env_settings

    @field_validator("webhook_networks", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """In the environment they are one text, with commas between."""
        return (
            [each.strip() for each in value.split(",") if each.strip()] if isinstance(value, str) else value
        )

    @field_validator("database")
    @classmethod
    def _known(cls, value: SecretStr) -> SecretStr:
        text = value.get_secret_value()
        if text and not text.startswith(("postgresql://", "postgres://", "sqlite:///")):
            raise ValueError("must be postgresql://USER:PASSWORD@HOST/NAME, or empty for SQLite")
        return value

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.x_accel_prefix and self.blobs:
            raise ValueError(
                "x_accel_prefix serves the data folder; with blobs in an object store leave it empty"
            )
        return self

    @classmethod
    def load(cls, file: Path | None = None, **given: Any) -> Self:
        """Settings from everywhere.

        Args:
            file: TOML file.
            given: What was said on the command line; None means not said.

        Raises:
            ConfigError: A setting is unknown or wrong; the message names it and where it came from.
        """
        read = {} if file is None else _read(file)
        said = {name: value for name, value in given.items() if value is not None}
        try:
            below = {k: v for k, v in read.items() if k not in said and k not in _environment(cls)}
            return cls(**{**below, **said})
        except ValidationError as error:
            raise _sentence(error, file, read, said) from error

    @property
    def database_url(self) -> str:
        """Address of the database, password included."""
        given = self.database.get_secret_value()
        if given.startswith("postgres://"):
            return f"postgresql://{given.removeprefix('postgres://')}"
        return given or f"sqlite:///{self.data / 'registry.db'}"

    def as_toml(self) -> str:
        """Every setting as a file for ``--config``, secrets hidden; what is not set is a comment."""
        lines = []
        for name, value in self.model_dump(mode="json").items():
            lines.append(
                f"# {name} =" if value is None else f"{name} = {json.dumps(value, ensure_ascii=False)}"
            )
        return "\n".join(lines) + "\n"


def _environment(cls: type[Settings]) -> set[str]:
    return {name for name in cls.model_fields if f"{ENV_PREFIX}{name}".upper() in os.environ}


def _read(file: Path) -> Mapping[str, Any]:
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ConfigError(f"cannot read {file}: {error.strerror}", remedy="check --config") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{file} is no TOML: {error}") from error


def _sentence(
    error: ValidationError, file: Path | None, read: Mapping[str, Any], said: Mapping[str, Any]
) -> ConfigError:
    first = error.errors(include_url=False, include_input=False)[0]
    name = str(first["loc"][0]) if first["loc"] else ""
    what = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        what = "is no setting"
    if not name:
        return ConfigError(what)
    place = (
        f"--{name}" if name in said else f"{file}: {name}" if name in read else f"{ENV_PREFIX}{name.upper()}"
    )
    return ConfigError(f"{place}: {what}", remedy="`neuraverse serve --print-config` shows every setting")
