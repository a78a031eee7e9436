"""`neuraverse watch --apply` as a robot runs it, against a registry that is closed."""

from __future__ import annotations

import dataclasses
import json
import os
import signal

import pytest

from neuraverse.client import Client, Measured
from neuraverse.skill import Skill
from neuraverse.trust import KeyStore
from tests.cli.test_accounts import alice, as_json, begun, closed  # noqa: F401
from tests.servers import until

NAME, STABLE, ARM = "acme/weld-seam", "acme/weld-seam@stable", "acme/arm-7"


@pytest.fixture
def release(alice, closed, make_skill, tmp_path):  # noqa: F811
    """Publish a version: ``release("1.0.0")``; ``stable`` means it then, unless told otherwise."""

    def publish(version, stable=True):
        skill = make_skill(tmp_path / f"made-{version}", version=version, seed=int(version[2]))
        alice("publish", skill.path)
        if stable:
            alice("alias", "set", NAME, "stable", version)
        return skill

    return publish


@pytest.fixture
def watch(alice, closed, publisher, tmp_path, monkeypatch, process):  # noqa: F811
    """Start the robot's process: ``watch("--health", …)``; ``read()`` gives its next change."""
    home = tmp_path / "arm-home"
    KeyStore(home).trust(publisher.public_key().pem, "acme")
    token = alice("robot", "add", ARM).text

    def start(*words, follow=STABLE):
        env = {"NEURAVERSE_HOME": str(home), "NEURAVERSE_TOKEN": token}
        with monkeypatch.context() as patch:
            for name, value in env.items():
                patch.setenv(name, value)
            child = process("watch", follow, "--apply", "--into", tmp_path / "skills", "--json", *words)

        def read():
            line = json.loads(child.stdout.readline())
            assert line["follows"] == follow
            return line["state"], line["version"]

        child.read = read
        return child

    start.link, start.home, start.token = tmp_path / "skills" / NAME, home, token
    return start


def linked(link):
    return Skill.open(os.readlink(link)).version


def test_a_robot_is_kept_up_to_date(alice, closed, watch, release, tmp_path, offer):  # noqa: F811
    """Running, rolled back, pinned, freed, left; and the operator sees each."""

    def seen():
        (robot,) = as_json(alice, "fleet", "status", "acme")["robots"]
        (each,) = robot["follows"]
        return each["state"], (each["runs"] or {}).get("version"), each["failed"]

    health = tmp_path / "health"
    health.write_text("#!/bin/sh\ngrep -q '1\\.1\\.0' \"$1/manifest.json\" || exit 0\necho too hot; exit 1\n")
    health.chmod(0o755)
    skill = release("1.0.0")
    child = watch("--health", str(health))
    assert child.read() == ("running", "1.0.0")
    assert linked(watch.link) == "1.0.0"
    release("1.1.0")
    assert child.read() == ("rolled-back", "1.1.0")
    assert linked(watch.link) == "1.0.0"
    until(lambda: seen() == ("rolled-back", "1.0.0", "1.1.0"))
    release("1.2.0", stable=False)
    alice("fleet", "pin", ARM, f"{NAME}@1.2.0", "--reason", "wears less")
    assert child.read() == ("running", "1.2.0")
    until(lambda: seen() == ("running", "1.2.0", None))
    alice("alias", "set", NAME, "stable", "1.0.0")
    alice("fleet", "free", ARM, NAME)
    assert child.read() == ("running", "1.0.0")
    until(lambda: seen()[1] == "1.0.0")
    with Client(closed.url, home=watch.home, token=watch.token) as client:
        errors = {"lateral": Measured(unit="m", n=20, mean=0.0003, max=0.002)}
        client.report(skill, offer, episodes=20, successes=19, aborts=1, errors=errors)
        client.report(skill, dataclasses.replace(offer, reach_m=1.0), episodes=20, successes=19)
    assert as_json(alice, "show", f"{NAME}@1.0.0")["field"]["n"] == 40
    alice("revoke", f"{NAME}@1.0.0", "--reason", "burns", "--yes")
    changes = [child.read() for _ in range(3)]
    assert changes == [("left", "1.0.0"), ("refused", ""), ("running", "1.2.0")]
    assert linked(watch.link) == "1.2.0"
    until(lambda: seen() == ("running", "1.2.0", None))
    child.send_signal(signal.SIGINT)
    assert child.read() == ("stopped", "1.2.0")
    out, said = child.communicate(timeout=30)
    assert (child.returncode, out) == (130, "")
    assert "Traceback" not in said
    assert said.endswith("interrupted; run the same command again to go on\n")
    assert linked(watch.link) == "1.2.0"
    assert seen()[:2] == ("stopped", "1.2.0")


def test_killed_and_started_again(alice, watch, release):  # noqa: F811
    release("1.0.0")
    child = watch()
    assert child.read() == ("running", "1.0.0")
    release("1.1.0")
    child.kill()
    assert linked(watch.link) in ("1.0.0", "1.1.0")
    first = child.wait()
    assert first == -signal.SIGKILL
    again = watch()
    states = [again.read()]
    if states[0] != ("running", "1.1.0"):
        states.append(again.read())
    assert states[-1] == ("running", "1.1.0")
    assert linked(watch.link) == "1.1.0"


def test_nothing_is_told_if_it_shall_not_be(alice, watch, release):  # noqa: F811
    release("1.0.0")
    child = watch("--no-report")
    assert child.read() == ("running", "1.0.0")
    child.send_signal(signal.SIGINT)
    child.communicate(timeout=30)
    (robot,) = as_json(alice, "fleet", "status", "acme")["robots"]
    assert robot["follows"] == []


def test_a_robot_by_name_refuses_what_its_cells_do_not_measure(watch, release):
    release("1.0.0")  # wants a signal "seam" of another shape
    child = watch("--robot", "ur5e")
    assert child.read() == ("refused", "1.0.0")


def test_a_robot_refuses_what_it_cannot_run(watch, release, offer, tmp_path):
    release("1.0.0")
    weak = dataclasses.replace(offer, reach_m=0.1)
    (tmp_path / "arm.json").write_text(json.dumps(dataclasses.asdict(weak)))
    child = watch("--robot", tmp_path / "arm.json")
    assert child.read() == ("refused", "1.0.0")
    assert not os.path.lexists(watch.link)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--apply", NAME], "needs at least one REF, and --into DIR"),
        (["--apply", "--into", "x"], "needs at least one REF, and --into DIR"),
        (["--apply", "--into", "x", NAME, STABLE], "named twice"),
        (["--apply", "--into", "x", "weld seam"], "names no skill"),
        (["--apply", "--into", "x", "sha256:" + "0" * 64], "never changes"),
        (["--apply", "--into", "x", NAME, "--after", "0"], "--after is for a watch with no --apply"),
        (["--apply", "--into", "x", NAME, "--tool", "hand"], "name it with --robot"),
        (["--apply", "--into", "x", NAME, "--health", "nowhere --now"], "no such program"),
        (["--apply", "--into", "x", NAME, "--probe", "sh -c 'x"], "No closing quotation"),
        (["--apply", "--into", "x", NAME, "--health-timeout", "0"], "--health-timeout"),
        ([NAME, "--into", "x"], "--into is for a watch with --apply"),
        ([NAME, "--no-report"], "--report is for a watch with --apply"),
        ([NAME, "acme/other"], "one skill can be watched"),
    ],
)
def test_wrong_usage(neuraverse, fresh_home, tmp_path, monkeypatch, words, said):
    monkeypatch.chdir(tmp_path)
    assert said in neuraverse("watch", *words, code=2).error


def test_an_offer_that_is_none(neuraverse, fresh_home, tmp_path):
    path = tmp_path / "arm.json"
    path.write_text('{"robot": "arm"}')
    words = ("watch", NAME, "--apply", "--into", tmp_path, "--robot", path)
    assert "no offer of a robot: max_rate_hz: Field required" in neuraverse(*words, code=2).error
    path.unlink()
    assert "arm.json is missing" in neuraverse(*words, code=1).error
