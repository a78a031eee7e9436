"""Share: sign in and out, tokens, and accounts of robots."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuraverse.cli import options
from neuraverse.cli.options import SHARE, example, group
from neuraverse.cli.output import Out, note
from neuraverse.errors import NetworkError, RegistryError, UsageError

if TYPE_CHECKING:
    from neuraverse.client.transport import Transport

HOURS = 24.0
LOGIN_DAYS, ROBOT_DAYS = 90.0, 365.0
_NEAR = ("http://127.", "http://localhost", "http://[::1]")
RobotName = Annotated[
    str, typer.Argument(metavar="ORG/ROBOT", help="The robot, such as acme/arm-7.", show_default=False)
]
Days = Annotated[float, typer.Option("--days", metavar="N", min=0.001, help="How long the token holds.")]


class Scope(StrEnum):
    """What a token may be limited to."""

    READ = "read"
    PUBLISH = "publish"
    CURATE = "curate"
    FLEET = "fleet"
    REPORT = "report"
    ADMIN = "admin"
    HOST = "host"


def add_to(app: typer.Typer) -> None:
    """Register the commands of this module."""
    lines = ("neuraverse login --name alice", "neuraverse login < code.txt")
    app.command("login", rich_help_panel=SHARE, epilog=example(*lines))(login)
    app.command("logout", rich_help_panel=SHARE, epilog=example("neuraverse logout"))(logout)
    app.command("whoami", rich_help_panel=SHARE, epilog=example("neuraverse whoami"))(whoami)
    token = group(
        "token",
        "Tokens of your own, for scripts: limited, and over when you say so.",
        ("make", make_token, '"nightly build" --scope publish --org acme --days 30'),
        ("list", list_tokens, ""),
        ("revoke", revoke_token, "0f8a1c2b3d4e5f60"),
    )
    app.add_typer(token, name="token", rich_help_panel=SHARE)
    robot = group(
        "robot",
        "Accounts of robots, each with a token of its own.",
        ("add", add_robot, "acme/arm-7"),
        ("list", list_robots, "acme"),
        ("token", robot_token, "acme/arm-7"),
        ("remove", remove_robot, "acme/arm-7 --yes"),
    )
    app.add_typer(robot, name="robot", rich_help_panel=SHARE)


def login(
    name: Annotated[
        str, typer.Option("--name", metavar="NAME", help="What to call your account, if it is new.")
    ] = "",
    renew: Annotated[
        bool, typer.Option("--renew", help="Take a new token for the one that is kept, which ends.")
    ] = False,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Sign in to a registry with a code, which works once, or with a token.

    It asks for the code and does not show it, or reads it from stdin where that is no terminal. The code
    comes from the operator's first start, from an invitation, or is a token that you have. What it gets is
    kept in NEURAVERSE_HOME, where nobody else can read it.
    """
    from neuraverse.client import accounts, credentials
    from neuraverse.keys import home

    out = Out(json)
    with accounts.reach(registry) as there:
        if there.url.startswith("http://") and not there.url.startswith(_NEAR):
            note(f"{there.url} has no TLS: whoever is on the way can read the code and the token")
        credentials.ready(home())
        if renew:
            made = _renewed(there)
        else:
            secret = _secret()
            signs_in = secret.startswith(accounts.TOKEN)
            made = _with_token(there, secret) if signs_in else _with_code(there, secret, name)
        old, there.token = there.token, made["token"]
        credentials.remember(home(), there.url, made["token"], made["account"], made["expires"])
        if renew:
            there.token = old
            accounts.logout(there)
        if os.environ.get(credentials.VARIABLE):
            note(f"{credentials.VARIABLE} is set, and counts more than what is kept now")
        out.line(f"signed in to {there.url} as {made['account']}, until {made['expires']}")
        out.json({"registry": there.url, "account": made["account"], "expires": made["expires"]})


def _secret() -> str:
    """The code, which is no argument: others on the machine can read those."""
    from neuraverse.client.accounts import CODE, TOKEN

    if sys.stdin.isatty():
        given = typer.prompt("code", hide_input=True, err=True)
    else:
        given = sys.stdin.readline(1000)
    given = given.strip()
    if not given:
        raise UsageError("no code came from stdin", remedy="neuraverse login < FILE, or run it in a terminal")
    if not given.startswith((CODE, TOKEN)):
        raise UsageError(
            f"that is neither a code, which begins with {CODE}, nor a token, which begins with {TOKEN}",
            remedy="give it whole, as you got it",
        )
    return str(given)


def _with_token(there: Transport, token: str) -> dict[str, Any]:
    from neuraverse.client import accounts

    there.token = token
    found = accounts.whoami(there)
    return {"account": str(found["account"]), "token": token, "expires": found["token"]["expires"]}


def _with_code(there: Transport, code: str, name: str) -> dict[str, Any]:
    """Use the code: as who one is already, or as somebody new."""
    from neuraverse.client import accounts

    account = None
    if there.token:
        try:
            account = accounts.whoami(there)["account"]
        except RegistryError as error:
            note(f"the token that is held for {there.url} does not count any more: {error.message}")
            there.token = None
    if account is not None and name not in ("", account):
        raise UsageError(
            f"you are signed in as {account}", remedy="`neuraverse logout` first, or leave out --name"
        )
    if account is None and not name and sys.stdin.isatty():
        name = typer.prompt("name of the account", err=True).strip()
    return accounts.login(there, code, name)


def _renewed(there: Transport) -> dict[str, Any]:
    from neuraverse.client import accounts

    there.token = _kept(there)
    if there.token is None:
        raise UsageError(f"no token is kept for {there.url}", remedy="ask for a code, and `neuraverse login`")
    account = accounts.whoami(there)["account"]
    made = accounts.make_token(there, "login", list(Scope), None, LOGIN_DAYS * HOURS)
    return {"account": account, **made}


def _kept(there: Transport) -> str | None:
    from neuraverse.client import credentials
    from neuraverse.keys import home

    return credentials.kept_for(home(), there.url)


def logout(registry: options.Registry = None, json: options.Json = None) -> None:
    """End the token that is kept for a registry, there and here."""
    from neuraverse.client import accounts, credentials
    from neuraverse.keys import home

    out = Out(json)
    with accounts.reach(registry) as there:
        there.token = _kept(there)
        said = f"signed out of {there.url}"
        if there.token is None:
            said = f"no token is kept for {there.url}"
        else:
            try:
                accounts.logout(there)
            except RegistryError as error:
                note(f"it had ended already: {error.message}")
            except NetworkError as error:
                credentials.forget(home(), there.url)
                raise NetworkError(
                    f"the token is forgotten here, but {error.message}",
                    remedy="there it counts on; `neuraverse token revoke` ends it from another login",
                ) from error
            credentials.forget(home(), there.url)
        if os.environ.get(credentials.VARIABLE):
            note(f"{credentials.VARIABLE} is set, and is still sent")
        out.line(said)
        out.json({"registry": there.url, "ended": there.token is not None})


def whoami(registry: options.Registry = None, json: options.Json = None) -> None:
    """Show whom the token stands for that is sent to a registry, and what it allows."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.whoami(there)
        if found["account"] is None:
            out.line(f"nobody is signed in to {there.url}")
        else:
            rights = {each["name"]: f"{each['role']}: {', '.join(each['rights'])}" for each in found["orgs"]}
            out.fields(
                [
                    ("account", found["account"]),
                    ("kind", "operator" if found.get("operator") is True else found["kind"]),
                    *rights.items(),
                    ("token", f"{found['token']['id']}, until {found['token']['expires']}"),
                    ("registry", there.url),
                ]
            )
        out.json(found | {"registry": there.url})


def make_token(
    description: Annotated[
        str, typer.Argument(metavar="TEXT", help="What it is for; the list shows it.", show_default=False)
    ],
    scope: Annotated[
        list[Scope] | None,
        typer.Option(
            "--scope",
            metavar="|".join(Scope),
            help="What it may do; may be said more than once. read if not given.",
            show_default=False,
        ),
    ] = None,
    org: Annotated[
        str | None, typer.Option("--org", metavar="ORG", help="The only organisation that it may act in.")
    ] = None,
    days: Days = LOGIN_DAYS,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """Make a token, for a script or a build. It is printed now, alone on stdout, and never again."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        made = accounts.make_token(there, description, scope or [Scope.READ], org, days * HOURS)
    _give(out, made, f"token {made['id']} for {', '.join(map(str, made['scopes']))}")


def list_tokens(registry: options.Registry = None, json: options.Json = None) -> None:
    """List your tokens: what they are for, what they may do, and when they end."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.tokens(there)
    out.table(
        ("id", "what for", "may", "in", "ends"),
        [
            (
                each["id"],
                each["label"],
                ", ".join(map(str, each["scopes"])),
                each["org"] or "all",
                f"revoked {each['revoked_at']}" if each["revoked_at"] else each["expires_at"],
            )
            for each in found
        ],
    )
    out.json(found)


def revoke_token(
    token: Annotated[str, typer.Argument(metavar="ID", help="As `token list` shows it.", show_default=False)],
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """End one of your tokens, at once."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        accounts.revoke_token(there, token)
    out.line(f"the token {token} counts no more")
    out.json({"id": token})


def add_robot(
    robot: RobotName, days: Days = ROBOT_DAYS, registry: options.Registry = None, json: options.Json = None
) -> None:
    """Give a robot an account. Its token is printed now, alone on stdout, and never again.

    The robot reads what its organisation reads, and reports what it runs. Put the token into its
    NEURAVERSE_TOKEN, or let it `neuraverse login`.
    """
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        made = accounts.add_robot(there, robot, days * HOURS)
    _give(out, made, f"the robot {made['robot']} has an account")


def list_robots(org: options.Org, registry: options.Registry = None, json: options.Json = None) -> None:
    """List an organisation's robots, and when each was heard of last."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        found = accounts.robots(there, org)
    out.table(
        ("robot", "since", "last heard of"),
        [(each["robot"], each["since"], each["last_seen"] or "never") for each in found],
    )
    out.json(found)


def robot_token(
    robot: RobotName, days: Days = ROBOT_DAYS, registry: options.Registry = None, json: options.Json = None
) -> None:
    """Give a robot another token, printed alone on stdout; those that it had end at once."""
    from neuraverse.client import accounts

    out = Out(json)
    with accounts.reach(registry) as there:
        made = accounts.robot_token(there, robot, days * HOURS)
    _give(out, made, f"a new token for {made['robot']}")


def remove_robot(
    robot: RobotName,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    registry: options.Registry = None,
    json: options.Json = None,
) -> None:
    """End a robot's account for good; what it reported stays."""
    from neuraverse.client import accounts

    out = Out(json)
    if not yes:
        typer.confirm(f"end the account of {robot} for good? Its name is not given out again", abort=True)
    with accounts.reach(registry) as there:
        accounts.remove_robot(there, robot)
    out.line(f"{robot} has no account any more")
    out.json({"robot": robot})


def _give(out: Out, made: dict[str, Any], said: str) -> None:
    """Show a token, once."""
    note(f"{said}, until {made['expires']}; it is shown now and never again:")
    out.secret(made["token"])
    out.json(made, secret=True)
