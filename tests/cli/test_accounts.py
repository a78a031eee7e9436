"""Signing in, organisations, tokens and robots, by the command line, against a registry that is closed."""

from __future__ import annotations

import json
import logging
import os
import pty
import re
import shutil
import signal
import sqlite3
import stat
import subprocess
import sys
from types import SimpleNamespace

import httpx
import pytest
from typer.testing import CliRunner

from neuraverse.cli.accounts import Scope
from neuraverse.cli.operate import _with
from neuraverse.cli.orgs import Role
from neuraverse.cli.webhooks import Type
from neuraverse.client import transport
from neuraverse.registry import Settings, background, events
from neuraverse.registry.tenants import access
from neuraverse.registry.tenants.accounts import first_operator
from tests import servers


def runner(home):
    """What runs a command in a home: ``run("whoami", code=0, stdin="", token="")``; with None, any code."""

    def run(*words, code=0, stdin="", token=""):
        from neuraverse.cli.app import app

        env = {"NEURAVERSE_HOME": str(home)} | ({"NEURAVERSE_TOKEN": token} if token else {})
        words = [str(word) for word in words]
        done = CliRunner(env=env).invoke(app, words, input=stdin, catch_exceptions=False)
        assert code is None or done.exit_code == code, done.output
        assert "Traceback" not in done.output
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        if code in (1, 2):
            assert len(errors) == 1, done.stderr
        return SimpleNamespace(
            out=done.stdout, err=done.stderr, error=errors[0] if errors else "", text=done.stdout.strip()
        )

    run.home = home
    return run


@pytest.fixture(scope="module")
def begun(tmp_path_factory, publisher):
    """A registry as it was left, and two homes: alice operates it and owns acme, where bob is a publisher."""
    folder = tmp_path_factory.mktemp("begun")
    alice, bob = (runner(folder / "homes" / name) for name in ("alice", "bob"))
    for run in (alice, bob):
        shutil.copytree(publisher.home / "keys", run.home / "keys")
    with background(closed_settings(folder)) as url:
        here = ("--registry", url)
        code = alice("registry", "operator", "--data", folder / "data").text
        alice("login", "--name", "alice", *here, stdin=f"{code}\n")
        alice("org", "make", "acme", *here)
        alice("org", "key", "add", "acme", "default", *here)
        code = alice("org", "invite", "acme", "--role", "publisher", *here).text
        bob("login", "--name", "bob", *here, stdin=code)
    return SimpleNamespace(folder=folder, url=url)


def closed_settings(folder):
    return Settings.load(data=folder / "data", open=False, collect_hours=0, webhook_networks=["127.0.0.0/8"])


@pytest.fixture
def closed(request, tmp_path, monkeypatch):
    """A registry which every command uses: as `begun` if the test asks for alice, else without accounts."""
    begun = request.getfixturevalue("begun") if "alice" in request.fixturenames else None
    if begun is not None:
        shutil.copytree(begun.folder, tmp_path, dirs_exist_ok=True)
    with background(closed_settings(tmp_path)) as url:
        monkeypatch.setenv("NEURAVERSE_REGISTRY", url)
        if begun is not None:
            for file in tmp_path.glob("homes/*/credentials.json"):
                file.write_text(file.read_text().replace(begun.url, url))

        def change(statement, *values):
            with sqlite3.connect(tmp_path / "data" / "registry.db", timeout=20) as db:
                assert db.execute(statement, values).rowcount

        yield SimpleNamespace(url=url, data=tmp_path / "data", change=change)


@pytest.fixture
def person(tmp_path, publisher):
    """A home of one's own, with the publisher's keys: ``person("carol")``; see `runner`."""

    def make(name):
        run = runner(tmp_path / "homes" / name)
        shutil.copytree(publisher.home / "keys", run.home / "keys")
        return run

    return make


@pytest.fixture
def alice(closed, tmp_path):
    """The operator, who owns acme."""
    return runner(tmp_path / "homes" / "alice")


@pytest.fixture
def bob(alice, tmp_path):
    """A publisher of acme."""
    return runner(tmp_path / "homes" / "bob")


def as_json(run, *words, **more):
    return json.loads(run(*words, "--json", "-", **more).out)


def test_roles_and_scopes_are_those_of_the_registry():
    assert {str(scope) for scope in Scope} == set(access.RIGHTS)
    assert {str(role) for role in Role} == set(access.ROLES) - {"robot"}
    assert tuple(map(str, Type)) == events.TYPES


def test_from_the_first_code_to_a_skill_that_others_see(closed, person, make_skill, tmp_path):
    skill = make_skill(tmp_path / "skill")
    alice, stranger = person("alice"), person("stranger")
    refused = alice("publish", skill.path, code=1).error
    assert "neuraverse login" in refused
    assert "nobody is signed in" in alice("whoami").out
    made = alice("registry", "operator", "--data", closed.data)
    assert re.fullmatch(r"nvi_\S{43}", made.text)
    said = alice("login", "--name", "alice", stdin=f"  {made.text}\r\n")
    assert f"signed in to {closed.url} as alice" in said.out
    kept = alice.home / "credentials.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert json.loads(kept.read_text())[closed.url]["account"] == "alice"
    assert "acme is there" in alice("org", "make", "acme").out
    assert "may now be signed by" in alice("org", "key", "add", "acme", "default").out
    assert "acme/weld-seam@1.0.0" in alice("publish", skill.path).out
    # New skills of an organisation are private until it says otherwise.
    assert "no skill" in stranger("show", "acme/weld-seam", code=2).error
    assert as_json(stranger, "search") == []
    assert [found["name"] for found in as_json(alice, "search")] == ["acme/weld-seam"]
    alice("org", "visibility", "acme/weld-seam", "public")
    assert [found["name"] for found in as_json(stranger, "search")] == ["acme/weld-seam"]
    other = make_skill(tmp_path / "other", name="grind")
    alice("publish", other.path, "--visibility", "network")
    assert len(as_json(alice, "search")) == 2
    assert len(as_json(stranger, "search")) == 1
    found = as_json(alice, "whoami")
    assert (found["account"], found["operator"]) == ("alice", True)
    assert found["orgs"] == [
        {"name": "acme", "role": "owner", "rights": ["admin", "curate", "fleet", "publish", "read"]}
    ]
    assert "acme      owner: admin, curate" in alice("whoami").out


def test_invitations_work_once(closed, alice, person):
    code = alice("org", "invite", "acme")
    assert re.fullmatch(r"nvi_\S{43}", code.text)
    assert closed.url in code.err
    dave, carol = person("dave"), person("carol")
    assert "a new account needs a name" in dave("login", stdin=code.text, code=1).error
    assert "as dave" in dave("login", "--name", "dave", stdin=code.text).out
    assert "the code was used at" in carol("login", "--name", "carol", stdin=code.text, code=1).error
    again = alice("org", "invite", "acme").text
    assert "'dave' is taken" in carol("login", "--name", "dave", stdin=again, code=1).error
    late = alice("org", "invite", "acme", "--days", "1").text
    closed.change("UPDATE invitations SET expires_at = '2026-01-01' WHERE hash = ?", access.digest(late))
    assert "has expired" in carol("login", "--name", "carol", stdin=late, code=1).error
    cut = alice("org", "invite", "acme").text[:-1]
    assert "none of this registry" in carol("login", "--name", "carol", stdin=cut, code=1).error
    unused = [each for each in as_json(alice, "org", "invitations", "acme") if not each["used_at"]]
    ours = unused[0]["id"]
    alice("org", "withdraw", "acme", ours)
    assert "no unused invitation" in alice("org", "withdraw", "acme", "0" * 16, code=1).error
    assert "by dave at" in alice("org", "invitations", "acme").out
    assert carol("whoami").text == f"nobody is signed in to {closed.url}"


def test_members_roles_and_the_last_owner(alice, bob, person):
    assert {each["name"]: each["role"] for each in as_json(alice, "org", "members", "acme")} == {
        "alice": "owner",
        "bob": "publisher",
    }
    assert "bob may not invite in acme" in bob("org", "invite", "acme", code=1).error
    assert "last owner of acme" in alice("org", "leave", "acme", code=1).error
    assert "last owner of acme" in alice("org", "role", "acme", "alice", "reader", code=1).error
    # Nobody loses a right by an invitation; else the last owner could give herself up by accident.
    alice("login", stdin=alice("org", "invite", "acme", "--role", "reader").text)
    assert as_json(alice, "whoami")["orgs"][0]["role"] == "owner"
    assert "bob is owner of acme" in alice("org", "role", "acme", "bob", "owner").out
    alice("org", "leave", "acme")
    assert as_json(alice, "whoami")["orgs"] == []
    assert "no organisation 'acme'" in alice("org", "members", "acme", code=1).error
    assert "alice is no member" in bob("org", "remove", "acme", "alice", code=1).error
    assert "login" in person("nobody")("org", "leave", "acme", code=2).error
    assert "org role" in bob("org", "role", "acme", "bob", "king", code=2).error
    assert "is no name of an organisation" in bob("org", "show", "../orgs/acme", code=2).error


def test_settings_of_an_organisation(alice, bob, make_skill, tmp_path):
    found = as_json(alice, "org", "set", "acme", "--visibility", "network", "--protected", "stable, prod")
    assert (found["visibility"], found["protected"]) == ("network", ["stable", "prod"])
    assert as_json(alice, "org", "set", "acme", "--protected", "")["protected"] == []
    quota = as_json(alice, "org", "set", "acme", "--bytes", "50GB", "--versions", "10")["quota"]
    assert quota == {"bytes": 50 * 10**9, "versions": 10, "requests": None, "events": None}
    assert "0 of 50,000,000,000" in alice("org", "show", "acme").out
    assert as_json(alice, "org", "set", "acme", "--bytes", "default")["quota"]["bytes"] is None
    assert "nothing is to be set" in alice("org", "set", "acme", code=2).error
    assert "is no quota" in alice("org", "set", "acme", "--versions", "10GB", code=2).error
    assert "is no quota" in alice("org", "set", "acme", "--bytes", "-1", code=2).error
    assert "may not change visibility" in bob("org", "set", "acme", "--visibility", "public", code=1).error
    alice("publish", make_skill(tmp_path / "one").path)
    alice("org", "set", "acme", "--versions", "1")
    two = make_skill(tmp_path / "two", version="1.1.0")
    assert "1 of 1 versions" in alice("publish", two.path, code=1).error


def test_keys_of_an_organisation(alice, make_skill, tmp_path, person):
    skill = make_skill(tmp_path / "skill")
    (key,) = as_json(alice, "org", "key", "list", "acme")
    assert "yes" in alice("org", "key", "list", "acme").out
    alice("org", "key", "remove", "acme", key["fingerprint"])
    assert "until 2" in alice("org", "key", "list", "acme").out
    assert alice("publish", skill.path, code=1).error
    keys = alice.home / "keys" / "default"
    alice("org", "key", "add", "acme", keys / "public.pem")
    alice("publish", skill.path)
    assert "this is a private key" in alice("org", "key", "add", "acme", keys / "private.pem", code=2).error
    assert "no key named 'mine'" in alice("org", "key", "add", "acme", "mine", code=2).error
    assert "there.pem" in alice("org", "key", "add", "acme", "not/there.pem", code=2).error
    assert "is no fingerprint" in alice("org", "key", "remove", "acme", "abc", code=2).error
    assert "acme has no key" in alice("org", "key", "remove", "acme", "0" * 64, code=1).error


def test_tokens_do_what_they_are_for_and_no_more(closed, alice, person, make_skill, tmp_path):
    skill = make_skill(tmp_path / "skill")
    ci = person("ci")
    made = alice("token", "make", "nightly", "--scope", "publish", "--scope", "read", "--org", "acme")
    assert re.fullmatch(r"nvt_\S{43}", made.text)
    ci("publish", skill.path, token=made.text)
    assert as_json(ci, "whoami", token=made.text)["orgs"][0]["rights"] == ["publish", "read"]
    assert "may not invite" in ci("org", "invite", "acme", token=made.text, code=1).error
    assert "is limited" in ci("token", "make", "more", token=made.text, code=1).error
    # Nor does an invitation get it a token that can do more than itself.
    code = alice("org", "invite", "acme").text
    assert "is limited" in ci("login", token=made.text, stdin=code, code=1).error
    read = alice("token", "make", "dashboard").text
    assert "may not" in ci("publish", make_skill(tmp_path / "b", name="b").path, token=read, code=1).error
    listed = {each["label"]: each for each in as_json(alice, "token", "list")}
    assert listed["dashboard"]["scopes"] == ["read"]
    assert listed["nightly"]["org"] == "acme"
    assert "nightly" in alice("token", "list").out
    assert "is limited" in ci("token", "revoke", listed["login"]["id"], token=read, code=1).error
    alice("token", "revoke", listed["nightly"]["id"])
    assert "the token was revoked at" in ci("whoami", token=made.text, code=1).error
    said = alice("token", "revoke", read, code=2).error
    assert "that is no id of a token" in said
    assert read not in said
    assert "you have no token" in alice("token", "revoke", "0" * 16, code=1).error


def test_tokens_that_do_not_count(closed, alice, bob, person):
    late = alice("token", "make", "late").text
    closed.change("UPDATE tokens SET expires_at = '2026-01-01' WHERE hash = ?", access.digest(late))
    run = person("somebody")
    for token, says in (
        (late, "the token has expired at 2026-01-01"),
        (alice("token", "make", "cut").text[:-1], "look whether it is whole"),
        (access.new_secret("nvt_"), "not one of this registry"),
        ("hf_abcdefgh", "a token begins with nvt_"),
        ("nvt_not ascii: ä", "characters that no token has"),
        ("nvt_" + "x" * 1000, "characters that no token has, or too many"),
    ):
        said = run("whoami", token=token, code=2 if "characters" in says else 1)
        assert says in said.error, token
        assert token not in said.error
        assert "Traceback" not in said.err
    assert "not one of this registry" in run("login", stdin=access.new_secret("nvt_"), code=1).error
    assert json.loads((run.home / "credentials.json").read_text()) == {}
    # A token that is held and counts no more is no hindrance to signing in.
    closed.change(
        "UPDATE tokens SET revoked_at = '2026-01-01' "
        "WHERE account_id = (SELECT id FROM accounts WHERE name = 'bob')"
    )
    alice("org", "members", "acme")
    alice("org", "role", "acme", "bob", "publisher")  # rights change, and so what is remembered is forgotten
    assert "was revoked" in bob("whoami", code=1).error
    again = bob("login", "--name", "rob", stdin=alice("org", "invite", "acme").text)
    assert "does not count any more" in again.err
    assert "as rob" in again.out


def test_robots(alice, person, make_skill, tmp_path):
    made = alice("robot", "add", "acme/arm-7")
    robot = person("robot")
    assert "as acme/arm-7" in robot("login", stdin=made.text).out
    assert as_json(robot, "whoami")["kind"] == "robot"
    skill = make_skill(tmp_path / "skill")
    refused = robot("publish", skill.path, code=1).error
    assert "acme/arm-7 may not" in refused
    alice("publish", skill.path)
    robot("keys", "trust", alice.home / "keys" / "default" / "public.pem", "--org", "acme")
    robot("verify", "acme/weld-seam")
    assert [each["robot"] for each in as_json(alice, "robot", "list", "acme")] == ["acme/arm-7"]
    assert "never" in alice("robot", "list", "acme").out
    assert "may not" in robot("token", "make", "more", code=1).error
    assert "may not" in robot("org", "invite", "acme", code=1).error
    code = alice("org", "invite", "acme", "--role", "owner").text
    assert "may not join an organisation" in robot("login", stdin=code, code=1).error
    new = alice("robot", "token", "acme/arm-7").text
    assert "was revoked" in robot("whoami", code=1).error
    assert as_json(robot, "whoami", token=new)["account"] == "acme/arm-7"
    assert "taken" in alice("robot", "add", "acme/arm-7", code=1).error
    alice("robot", "remove", "acme/arm-7", "--yes")
    assert "was revoked" in robot("whoami", token=new, code=1).error
    assert "there is no robot acme/arm-7" in alice("robot", "token", "acme/arm-7", code=1).error
    assert "write ORG/ROBOT" in alice("robot", "add", "arm-7", code=2).error


def test_the_audit_log(alice, bob):
    found = as_json(alice, "org", "audit", "acme")
    assert [(each["actor"], each["action"]) for each in found] == [
        ("bob", "login"),
        ("alice", "invite"),
        ("alice", "key.add"),
        ("alice", "org.make"),
    ]
    assert as_json(alice, "org", "audit", "acme", "--before", str(found[1]["id"])) == found[2:]
    assert "publisher" in alice("org", "audit", "acme").out
    assert [each["action"] for each in as_json(alice, "org", "audit")] == ["login", "invite", "invite"]
    assert "may not read the audit log" in bob("org", "audit", "acme", code=1).error
    assert "may not read the registry's audit log" in bob("org", "audit", code=1).error


def test_signing_out(closed, alice, monkeypatch):
    token = json.loads((alice.home / "credentials.json").read_text())[closed.url]["token"]
    assert "signed out" in alice("logout").out
    assert json.loads((alice.home / "credentials.json").read_text()) == {}
    assert "was revoked" in alice("whoami", token=token, code=1).error
    assert "no token is kept" in alice("logout").out
    assert "is still sent" in alice("logout", token=token).err


def test_signing_out_of_a_registry_that_is_gone(tmp_path, person):
    run = person("somebody")
    with background(Settings.load(data=tmp_path / "data", open=False, collect_hours=0)) as url:
        code = run("registry", "operator", "--data", tmp_path / "data").text
        run("login", "--name", "alice", "--registry", url, stdin=code)
    said = run("logout", "--registry", url, code=1).error
    assert "forgotten here, but cannot reach a registry" in said
    assert json.loads((run.home / "credentials.json").read_text()) == {}


def test_a_login_that_ends_is_renewed(closed, alice):
    kept = alice.home / "credentials.json"
    before = json.loads(kept.read_text())[closed.url]["token"]
    assert "as alice" in alice("login", "--renew").out
    after = json.loads(kept.read_text())[closed.url]["token"]
    assert after != before
    assert "was revoked" in alice("whoami", token=before, code=1).error
    assert as_json(alice, "whoami")["operator"] is True
    alice("token", "make", "as before")  # it may all that the old one could
    alice("logout")
    assert "no token is kept" in alice("login", "--renew", code=2).error


def test_who_lost_a_token_gets_in_again(closed, alice, bob, person):
    (bob.home / "credentials.json").unlink()
    code = alice("registry", "recover", "bob", "--data", closed.data).text
    assert "does not sign in carol" in person("carol")("login", "--name", "carol", stdin=code, code=1).error
    assert "as bob" in bob("login", "--name", "bob", stdin=code).out
    assert as_json(bob, "whoami")["orgs"][0]["role"] == "publisher"
    assert as_json(bob, "whoami")["operator"] is False
    assert "was used" in bob("login", stdin=code, code=1).error
    said = alice("registry", "recover", "bobb", "--data", closed.data, code=2).error
    assert "no account named 'bobb' - did you mean bob?" in said
    # The operator's codes end each other, and nobody else's.
    first = alice("registry", "operator", "--data", closed.data).text
    lost = alice("registry", "recover", "bob", "--data", closed.data).text
    second = alice("registry", "operator", "--data", closed.data).text
    assert "has expired" in bob("login", stdin=first, code=1).error
    bob("login", stdin=lost)
    bob("login", stdin=second)
    assert as_json(bob, "whoami")["operator"] is True


def test_a_code_is_not_spent_where_its_token_cannot_be_kept(closed, person):
    run = person("alice")
    code = run("registry", "operator", "--data", closed.data).text
    (run.home / "credentials.json").mkdir()
    said = run("login", "--name", "alice", stdin=code, code=2).error
    assert "holds no tokens of registries" in said
    (run.home / "credentials.json").rmdir()
    assert "as alice" in run("login", "--name", "alice", stdin=code).out


@pytest.mark.parametrize(
    ("stdin", "says"),
    [
        ("", "no code came from stdin"),
        ("\n", "no code came from stdin"),
        ("hunter2\n", "that is neither a code"),
        (f"{'x' * 5000}\n", "that is neither a code"),
    ],
)
def test_signing_in_without_a_terminal(person, stdin, says):
    said = person("somebody")("login", stdin=stdin, code=2).error  # before any registry is asked
    assert says in said
    assert "hunter2" not in said


def test_names_that_cannot_be(closed, alice, person):
    code = alice("org", "invite", "acme").text
    assert "is no name of an account" in person("x")("login", "--name", "A B", stdin=code, code=2).error
    said = alice("login", "--name", "bob", stdin=code, code=2).error
    assert "you are signed in as alice - `neuraverse logout` first" in said


def test_a_code_is_not_shown_on_a_terminal(closed, person, tmp_path):
    code = person("alice")("registry", "operator", "--data", closed.data).text
    ours, theirs = pty.openpty()
    program = "from neuraverse.cli import main; main()"
    env = os.environ | {"NEURAVERSE_HOME": str(tmp_path / "terminal")}
    child = subprocess.Popen(
        [sys.executable, "-c", program, "login"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=env,
        start_new_session=True,  # so that there is no other terminal than this one
    )
    os.close(theirs)
    shown = b""
    try:
        for question, answer in ((b"code: ", code), (b"name of the account: ", "alice")):
            while question not in shown:
                shown += os.read(ours, 1000)
            os.write(ours, answer.encode() + b"\n")
        while b"signed in" not in shown:
            shown += os.read(ours, 1000)
        assert child.wait(30) == 0
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    assert code.encode() not in shown
    assert b"alice" in shown


def test_json_with_a_secret_is_nobody_else_s(alice, tmp_path):
    made = alice("token", "make", "ci", "--json", tmp_path / "token.json").text
    assert json.loads((tmp_path / "token.json").read_text())["token"] == made
    assert stat.S_IMODE((tmp_path / "token.json").stat().st_mode) == 0o600
    assert json.loads(alice("token", "make", "ci", "--json", "-").out)["token"].startswith("nvt_")


def test_the_first_start_prints_a_code_until_somebody_used_it(process, person, tmp_path):
    def serve():
        ready = tmp_path / "ready.json"
        words = ("serve", "--closed", "--data", tmp_path / "data", "--port", "0", "--ready-file", ready)
        child = process(*words)
        servers.until(ready.exists, "the registry", lambda: child.poll() is None)
        return child, json.loads(ready.read_text())["url"]

    def end(child):
        child.send_signal(signal.SIGTERM)
        return child.communicate(timeout=30)

    def codes(text):
        return re.findall(r"nvi_[\w-]{43}", text)

    child, url = serve()
    said = [child.stdout.readline() for _ in range(3)]
    assert "has no operator yet" in said[0]
    assert "ready at" in said[2]
    (code,) = codes("".join(said))
    person("alice")("login", "--registry", url, "--name", "alice", stdin=code)
    out, log = end(child)
    assert "/v1/login" in log
    assert codes(out + log) == []
    # The next start, which prints what this gives:
    settings = closed_settings(tmp_path)
    assert _with(settings, lambda registry: registry.database.write(first_operator)) is None


def test_a_code_of_an_earlier_start_is_over(person, tmp_path):
    settings = Settings.load(data=tmp_path / "data", open=False, collect_hours=0)
    alice = person("alice")
    with background(settings):
        first = alice("registry", "operator", "--data", settings.data).text
    with background(settings) as url:
        said = alice("login", "--registry", url, "--name", "alice", stdin=first, code=1)
        assert "has expired" in said.error


class Recorder(httpx.BaseTransport):
    """Passes requests on and keeps every answer."""

    def __init__(self):
        self._inner = httpx.HTTPTransport()
        self.answers = []

    def handle_request(self, request):
        response = self._inner.handle_request(request)
        content = response.read()
        head = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
        self.answers.append(f"{head}\n\n{content.decode(errors='replace')}")
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=httpx.ByteStream(content),
            extensions=response.extensions,
        )

    def close(self):
        self._inner.close()


def test_secrets_are_in_the_one_answer_that_gives_them_out(
    closed, person, monkeypatch, caplog, make_skill, tmp_path
):
    """Fault 18: a token in logs, traces, errors, redirects → never."""
    caplog.set_level(logging.DEBUG)
    recorder = Recorder()
    monkeypatch.setattr(transport, "new_client", lambda *_: httpx.Client(transport=recorder))
    alice, bob = person("alice"), person("bob")
    operator = alice("registry", "operator", "--data", closed.data).text
    alice("login", "--name", "alice", stdin=operator)
    alice("org", "make", "acme")
    alice("org", "key", "add", "acme", "default")
    invitation = alice("org", "invite", "acme", "--role", "publisher").text
    bob("login", "--name", "bob", stdin=invitation)
    bob("login", "--name", "bob", stdin=invitation, code=1)
    token = alice("token", "make", "ci", "--scope", "publish").text
    robot = alice("robot", "add", "acme/arm-7").text
    robot_again = alice("robot", "token", "acme/arm-7").text
    alice("publish", make_skill(tmp_path / "skill").path)
    for given in (token, robot, robot_again, operator, invitation, token[:-1]):
        for words in (("whoami",), ("org", "show", "acme"), ("org", "audit", "acme"), ("token", "list")):
            bob(*words, token=given, code=None)
    for words in (
        ("org", "invitations", "acme"),
        ("org", "audit", "acme"),
        ("org", "audit"),
        ("org", "members", "acme"),
        ("token", "list"),
        ("whoami",),
        ("search",),
    ):
        alice(*words)
    logins = [
        json.loads((run.home / "credentials.json").read_text())[closed.url]["token"] for run in (alice, bob)
    ]
    alice("login", "--renew")
    bob("logout")
    records = "\n".join(f"{record.getMessage()} {record.__dict__}" for record in caplog.records)
    assert "/v1/login" in records
    answers = "\n".join(recorder.answers)
    assert operator not in answers  # it was given out on the server's machine
    for secret in (invitation, token, robot, robot_again, *logins):
        assert answers.count(secret) == 1
    for secret in (operator, invitation, token, robot, robot_again, *logins):
        assert secret not in records
        assert access.digest(secret) not in answers + records


NO_CONTENT = b"HTTP/1.1 204 No Content\r\n\r\n"


def test_webhooks(alice, bob, answering):
    good, bad = answering(NO_CONTENT), answering(b"HTTP/1.1 500 Oh\r\n\r\n")
    assert "may not add webhooks" in bob("org", "webhook", "add", "acme", good, code=1).error
    made = alice("org", "webhook", "add", "acme", good, "--of", "acme", "--type", "published")
    assert re.fullmatch(r"whsec_\S{44}", made.text)
    other = as_json(alice, "org", "webhook", "add", "acme", bad)
    first, second = as_json(alice, "org", "webhook", "list", "acme")
    assert first["filters"] == {"org": "acme", "skill": "", "interface": "", "types": ["published"]}
    assert (second["id"], first["id"] in made.err) == (other["id"], True)
    shown = alice("org", "webhook", "list", "acme").out
    assert "acme published" in shown
    assert "fine" in shown
    assert "whsec_" not in shown
    assert "taken" in alice("org", "webhook", "test", "acme", first["id"]).out
    said = alice("org", "webhook", "test", "acme", second["id"], code=1).error
    assert "the message was not taken: answered with status 500" in said
    assert as_json(alice, "org", "webhook", "dead", "acme", second["id"]) == []
    assert "0 events are sent again" in alice("org", "webhook", "retry", "acme", second["id"]).out
    alice("org", "webhook", "remove", "acme", second["id"])
    assert "no webhook" in alice("org", "webhook", "dead", "acme", second["id"], code=1).error
    for url in ("ftp://x", "http://169.254.169.254/latest"):
        assert alice("org", "webhook", "add", "acme", url, code=1).error
    assert "is no id of a webhook" in alice("org", "webhook", "remove", "acme", "x", code=2).error


def test_dead_letters(closed, alice, make_skill, tmp_path, answering):
    hook = as_json(alice, "org", "webhook", "add", "acme", answering(NO_CONTENT), "--skill", "acme/nothing")
    alice("publish", make_skill(tmp_path / "skill").path)
    closed.change(
        "INSERT INTO dead_letters SELECT ?, id, 8, 'no answer', '2026-01-01', 0 FROM events", hook["id"]
    )
    (letter,) = as_json(alice, "org", "webhook", "dead", "acme", hook["id"])
    assert (letter["event"]["type"], letter["attempts"], letter["error"]) == ("published", 8, "no answer")
    assert "acme/weld-seam@1.0.0" in alice("org", "webhook", "dead", "acme", hook["id"]).out
    assert "1 event is sent again" in alice("org", "webhook", "retry", "acme", hook["id"]).out
    servers.until(lambda: as_json(alice, "org", "webhook", "dead", "acme", hook["id"]) == [], "the webhook")
