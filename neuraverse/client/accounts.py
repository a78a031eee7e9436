"""Signing in, organisations, members, robots, tokens, keys and webhooks, asked of a registry.

Each function is one request. What may be done is the registry's to say; what it answers is checked as far as
anybody reads it, and the rest is handed on.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from neuraverse.client import credentials
from neuraverse.client.answers import COUNT, LIST, MAYBE_COUNT, MAYBE_TEXT, OBJECT, TEXT, checked, rows
from neuraverse.client.refs import Ref
from neuraverse.client.transport import Transport
from neuraverse.errors import NetworkError, UsageError
from neuraverse.keys import home as keys_home

CODE, TOKEN = "nvi_", "nvt_"
"""How invitations and tokens begin."""
_LABEL = "[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?"
_ID = "[0-9a-f]{16}"
_FINGERPRINT = "[0-9a-f]{64}"


@contextlib.contextmanager
def reach(url: str | None = None, *, home: Path | str | None = None) -> Iterator[Transport]:
    """A registry, asked with the token that is held for it.

    Args:
        url: Its address; ``$NEURAVERSE_REGISTRY`` or http://127.0.0.1:8420 if not given.
        home: Where tokens are kept; ``$NEURAVERSE_HOME`` or its default if not given.

    Raises:
        UsageError: The address is no HTTP URL, or the file of tokens is broken.
    """
    with contextlib.closing(Transport(url)) as transport:
        folder = keys_home() if home is None else Path(home)
        transport.token = credentials.token_for(folder, transport.url)
        yield transport


def login(registry: Transport, code: str, name: str = "") -> dict[str, Any]:
    """Use a code, once: the ``account`` that it signs in, its ``token`` and when that ``expires``.

    Args:
        registry: Whoever has a token there joins with the account that it stands for.
        code: An invitation, or what the operator gave.
        name: Of a new account.

    Raises:
        UsageError: The name cannot be one.
        RegistryError: The code is none, was used or has expired, or the name is taken.
        NetworkError: The registry could not be asked.
    """
    body = {"code": code, **({"name": label("account", name)} if name else {})}
    return checked(registry.json("POST", "/v1/login", json=body), account=TEXT, token=TEXT, expires=TEXT)


def logout(registry: Transport) -> None:
    """End the token that is held."""
    _done(registry, "POST", "/v1/logout")


def whoami(registry: Transport) -> dict[str, Any]:
    """Whom the token stands for: ``account`` (None for nobody), ``kind``, ``operator``, ``orgs``, ``token``.

    Raises:
        RegistryError: It stands for nobody any more.
        NetworkError: The registry could not be asked.
    """
    found = checked(registry.json("GET", "/v1/whoami"), account=MAYBE_TEXT)
    if found["account"] is not None:
        checked(found, kind=TEXT, orgs=LIST, token=OBJECT)
        checked(found["token"], id=TEXT, expires=TEXT)
        for each in rows(found, "orgs", name=TEXT, role=TEXT, rights=LIST):
            if not all(isinstance(right, str) for right in each["rights"]):
                raise NetworkError(f"{registry.url} sent rights that are none")
    return found


def make_org(registry: Transport, org: str, visibility: str) -> dict[str, Any]:
    """Make an organisation and be its owner; for operators."""
    body = {"name": label("organisation", org), "visibility": visibility}
    return checked(registry.json("POST", "/v1/orgs", ok=(201,), json=body), name=TEXT, visibility=TEXT)


def describe_org(registry: Transport, org: str) -> dict[str, Any]:
    """What is set for an organisation: ``visibility``, ``protected``, ``quota``, ``used``, ``members``."""
    return _org(registry.json("GET", _at(org)))


def change_org(registry: Transport, org: str, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Set ``visibility`` and ``protected`` (owners) or quotas (operators); a quota of None is the default."""
    return _org(registry.json("PATCH", _at(org), json=dict(changes)))


def show_skill(registry: Transport, name: str, visibility: str) -> None:
    """Show a skill to everybody, to whoever signs in, or to its organisation alone."""
    registry.json("PATCH", f"/v1/skills/{Ref.parse(name).name}", json={"visibility": visibility})


def members(registry: Transport, org: str) -> list[dict[str, Any]]:
    """People: ``name``, ``role``, ``since``."""
    return rows(registry.json("GET", f"{_at(org)}/members"), "members", name=TEXT, role=TEXT, since=TEXT)


def set_role(registry: Transport, org: str, account: str, role: str) -> None:
    """Change a member's role."""
    _done(registry, "PUT", f"{_at(org)}/members/{label('account', account)}", json={"role": role})


def remove_member(registry: Transport, org: str, account: str) -> None:
    """Take a member out; everybody may take themselves out."""
    _done(registry, "DELETE", f"{_at(org)}/members/{label('account', account)}")


def invite(registry: Transport, org: str, role: str, hours: float) -> dict[str, Any]:
    """A ``code`` that makes its bearer a member, once."""
    body = {"role": role, "hours": hours}
    made = registry.json("POST", f"{_at(org)}/invitations", ok=(201,), json=body)
    return checked(made, code=TEXT, id=TEXT, role=TEXT, expires=TEXT)


def invitations(registry: Transport, org: str) -> list[dict[str, Any]]:
    """Invitations: ``id``, ``role``, ``expires_at``, ``used_at``, ``used_by``."""
    found = registry.json("GET", f"{_at(org)}/invitations")
    fields = {"id": TEXT, "role": TEXT, "expires_at": TEXT, "used_at": MAYBE_TEXT, "used_by": MAYBE_TEXT}
    return rows(found, "invitations", **fields)


def withdraw(registry: Transport, org: str, invitation: str) -> None:
    """End an invitation that was not used."""
    _done(registry, "DELETE", f"{_at(org)}/invitations/{_id('invitation', invitation)}")


def audit(registry: Transport, org: str | None, before: int | None = None) -> list[dict[str, Any]]:
    """Who did what in an organisation, or (None) to the registry; the newest first."""
    path = "/v1/audit" if org is None else f"{_at(org)}/audit"
    found = registry.json("GET", path, params={} if before is None else {"before": before})
    return rows(found, "entries", id=COUNT, at=TEXT, actor=TEXT, action=TEXT, target=TEXT, data=OBJECT)


def add_robot(registry: Transport, robot: str, hours: float) -> dict[str, Any]:
    """An account for a robot, ``org/robot``, and its ``token``."""
    org, name = robot_name(robot)
    made = registry.json("POST", f"{_at(org)}/robots", ok=(201,), json={"name": name, "hours": hours})
    return checked(made, robot=TEXT, token=TEXT, id=TEXT, expires=TEXT)


def robot_token(registry: Transport, robot: str, hours: float) -> dict[str, Any]:
    """Another ``token`` for a robot; those before end."""
    org, name = robot_name(robot)
    made = registry.json("POST", f"{_at(org)}/robots/{name}/tokens", ok=(201,), json={"hours": hours})
    return checked(made, robot=TEXT, token=TEXT, id=TEXT, expires=TEXT)


def remove_robot(registry: Transport, robot: str) -> None:
    """End a robot's account."""
    org, name = robot_name(robot)
    _done(registry, "DELETE", f"{_at(org)}/robots/{name}")


def robots(registry: Transport, org: str) -> list[dict[str, Any]]:
    """Robots by name: ``robot``, ``since``, ``last_seen`` and what they follow."""
    found: list[dict[str, Any]] = []
    cursor = ""
    while True:
        page = registry.json("GET", f"{_at(org)}/robots", params={"cursor": cursor})
        found += rows(page, "robots", robot=TEXT, since=TEXT, last_seen=MAYBE_TEXT)
        following = page.get("next")
        if not isinstance(following, str) or following <= cursor:
            return found
        cursor = following


def make_token(
    registry: Transport, description: str, scopes: Sequence[str], org: str | None, hours: float
) -> dict[str, Any]:
    """A ``token`` of one's own for these scopes and, if given, one organisation alone."""
    body: dict[str, Any] = {"label": description, "scopes": list(scopes), "hours": hours}
    body |= {} if org is None else {"org": label("organisation", org)}
    made = registry.json("POST", "/v1/tokens", ok=(201,), json=body)
    return checked(made, token=TEXT, id=TEXT, expires=TEXT, scopes=LIST)


def tokens(registry: Transport) -> list[dict[str, Any]]:
    """One's own tokens, without what they are."""
    fields = {"id": TEXT, "label": TEXT, "scopes": LIST, "expires_at": TEXT, "revoked_at": MAYBE_TEXT}
    return rows(registry.json("GET", "/v1/tokens"), "tokens", **fields, org=MAYBE_TEXT)


def revoke_token(registry: Transport, token: str) -> None:
    """End one of one's own tokens, by its id."""
    _done(registry, "DELETE", f"/v1/tokens/{_id('token', token)}")


def keys(registry: Transport, org: str) -> list[dict[str, Any]]:
    """Keys that sign for an organisation, with those that sign no more."""
    found = registry.json("GET", f"{_at(org)}/keys")
    return rows(found, "keys", fingerprint=TEXT, created_at=TEXT, revoked_at=MAYBE_TEXT)


def add_key(registry: Transport, org: str, pem: bytes) -> str:
    """Let a public key sign for an organisation; its fingerprint."""
    made = registry.json("POST", f"{_at(org)}/keys", ok=(201,), json={"public_key": pem.decode()})
    return str(checked(made, fingerprint=TEXT)["fingerprint"])


def remove_key(registry: Transport, org: str, fingerprint: str) -> None:
    """Let a key sign nothing more for an organisation."""
    if not re.fullmatch(_FINGERPRINT, fingerprint):
        raise UsageError(
            f"{fingerprint[:100]!r} is no fingerprint of a key", remedy="`neuraverse org key list` shows them"
        )
    _done(registry, "DELETE", f"{_at(org)}/keys/{fingerprint}")


def add_webhook(registry: Transport, org: str, url: str, wanted: Mapping[str, Any]) -> dict[str, Any]:
    """Let events be sent to an address; the answer has the ``secret`` that signs them.

    Args:
        registry: The registry.
        org: Whose webhook; it is sent what the organisation sees.
        url: Where to.
        wanted: Which events: ``org``, ``skill``, ``interface``, ``types``; all if empty.
    """
    made = registry.json("POST", f"{_at(org)}/webhooks", ok=(201,), json={"url": url, **wanted})
    return checked(made, id=TEXT, url=TEXT, secret=TEXT)


def webhooks(registry: Transport, org: str) -> list[dict[str, Any]]:
    """Webhooks, without their secrets, and how each does."""
    fields = {"id": TEXT, "url": TEXT, "error": TEXT, "disabled_at": MAYBE_TEXT, "next_at": TEXT}
    found = registry.json("GET", f"{_at(org)}/webhooks")
    return rows(found, "webhooks", **fields, attempts=COUNT, dead_letters=COUNT, filters=OBJECT)


def remove_webhook(registry: Transport, org: str, webhook: str) -> None:
    """Send nothing more."""
    _done(registry, "DELETE", _webhook(org, webhook))


def dead_letters(registry: Transport, org: str, webhook: str) -> list[dict[str, Any]]:
    """Events that were not taken: ``event``, ``attempts``, ``error``, ``at``."""
    found = registry.json("GET", f"{_webhook(org, webhook)}/dead-letters")
    letters = rows(found, "dead_letters", event=OBJECT, attempts=COUNT, error=TEXT, at=TEXT)
    for each in letters:
        checked(each["event"], id=COUNT, type=TEXT, name=TEXT, version=TEXT)
    return letters


def retry_webhook(registry: Transport, org: str, webhook: str) -> int:
    """Try each dead letter once more, until one is not taken; how many there are."""
    answer = registry.json("POST", f"{_webhook(org, webhook)}/dead-letters/retry")
    return int(checked(answer, retried=COUNT)["retried"])


def try_webhook(registry: Transport, org: str, webhook: str) -> str:
    """Send a message now; why it was not taken, or nothing."""
    answer = checked(registry.json("POST", f"{_webhook(org, webhook)}/test"), error=TEXT, status=MAYBE_COUNT)
    return (
        "" if answer.get("taken") is True else answer["error"] or f"answered with status {answer['status']}"
    )


def label(kind: str, text: str) -> str:
    """`text`, if it can name something of that kind.

    Raises:
        UsageError: It cannot.
    """
    if not re.fullmatch(_LABEL, text):
        raise UsageError(
            f"{text[:100]!r} is no name of {_a(kind)}",
            remedy="use 1 to 64 lower-case letters, digits and inner hyphens",
        )
    return text


def _at(org: str) -> str:
    return f"/v1/orgs/{label('organisation', org)}"


def _webhook(org: str, webhook: str) -> str:
    return f"{_at(org)}/webhooks/{_id('webhook', webhook)}"


def robot_name(name: str) -> tuple[str, str]:
    """Organisation and robot of ``org/robot``.

    Raises:
        UsageError: It names no robot.
    """
    org, slash, robot = name.partition("/")
    if not slash:
        raise UsageError(f"{name[:100]!r} names no robot", remedy="write ORG/ROBOT, such as acme/arm-7")
    return label("organisation", org), label("robot", robot)


def _id(kind: str, text: str) -> str:
    if not re.fullmatch(_ID, text):
        raise UsageError(
            f"that is no id of {_a(kind)}",  # not shown: it may be a token
            remedy="give the 16 hexadecimal digits that the list shows",
        )
    return text


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aio' else 'a'} {kind}"


def _org(plain: dict[str, Any]) -> dict[str, Any]:
    checked(plain, name=TEXT, visibility=TEXT, protected=LIST, quota=OBJECT, used=OBJECT, members=COUNT)
    checked(plain["quota"], bytes=MAYBE_COUNT, versions=MAYBE_COUNT, requests=MAYBE_COUNT, events=MAYBE_COUNT)
    checked(plain["used"], bytes=COUNT, versions=COUNT)
    if not all(isinstance(alias, str) for alias in plain["protected"]):
        raise NetworkError(f"the registry's answer is malformed: aliases of {plain['name'][:100]!r}")
    return plain


def _done(registry: Transport, method: str, path: str, **request: Any) -> None:
    """A request that is answered with nothing."""
    with registry.stream(method, path, ok=(204,), **request):
        pass
