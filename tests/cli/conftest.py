"""The command line in this process and in one of its own, a registry, and a skill that was really trained."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import socket
import subprocess
import sys
import threading
from types import SimpleNamespace

import pytest
import typer.testing
from typer.testing import CliRunner

from neuraverse.registry import background

TINY = [
    *("ppo.num_envs=4", "ppo.steps=8", "ppo.total_steps=64", "ppo.minibatches=1"),
    *("validation.episodes=2", "validation.every=1", "eval.episodes=2"),
]


@pytest.fixture(scope="session", autouse=True)
def _commands_are_made_once():
    """Of the tree of commands, which takes 40 ms to make and is the same each time."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(typer.testing, "_get_command", functools.cache(typer.testing._get_command))
        yield


@pytest.fixture
def home(publisher, monkeypatch):
    """The home of a publisher who has a key, for every command."""
    monkeypatch.setenv("NEURAVERSE_HOME", str(publisher.home))
    return publisher.home


@pytest.fixture
def fresh_home(tmp_path, monkeypatch):
    """The home of someone who begins."""
    monkeypatch.setenv("NEURAVERSE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def neuraverse():
    """Run a command in this process: ``neuraverse("keys", "list", code=0)``; what it said."""
    from neuraverse.cli.app import app

    def run(*words, code=0):
        done = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
        assert done.exit_code == code, done.output
        assert "Traceback" not in done.output
        errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        if code in (1, 2):
            assert len(errors) == 1, done.stderr
        return SimpleNamespace(stdout=done.stdout, stderr=done.stderr, error=errors[0] if errors else "")

    return run


@pytest.fixture
def as_json(neuraverse):
    """Run a command with ``--json -`` and read its stdout."""

    def run(*words, code=0):
        return json.loads(neuraverse(*words, "--json", "-", code=code).stdout)

    return run


PROGRAM = """
import sys
{before}
from neuraverse.cli import main
sys.argv = ["neuraverse", *{words!r}]
main()
"""


@pytest.fixture
def process(tmp_path):
    """Start a command in a process of its own: ``process("version", before="...")``; a `Popen`."""
    started = []

    def start(*words, before="", **kwargs):
        program = PROGRAM.format(before=before, words=[str(word) for word in words])
        kwargs = {
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "text": True,
            "cwd": tmp_path,
        } | kwargs
        # As most people run it: with a buffer, which may fail to be written when the command is over.
        env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
        env["OMP_NUM_THREADS"] = "1"
        started.append(subprocess.Popen([sys.executable, "-c", program], env=env, **kwargs))
        return started[-1]

    yield start
    for child in started:
        if child.poll() is None:
            child.kill()
        child.communicate()


@pytest.fixture
def url(tmp_path, monkeypatch):
    """A registry, which every command uses."""
    with background(tmp_path / "data") as address:
        monkeypatch.setenv("NEURAVERSE_REGISTRY", address)
        yield address


@pytest.fixture(scope="session")
def trained(tmp_path_factory, publisher):
    """What ``train weld-seam`` says of a run too short to learn anything, and the folder of its skill."""
    from neuraverse.cli.app import app

    folder = tmp_path_factory.mktemp("trained")
    words = ["train", "weld-seam", *TINY, "--run-dir", str(folder / "run"), "--json", "-"]
    done = CliRunner(env={"NEURAVERSE_HOME": str(publisher.home)}).invoke(app, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout)
    return SimpleNamespace(said=said, folder=folder / "run" / "skill", words=words[:-2], stderr=done.stderr)


@pytest.fixture
def answering():
    """A server that sends fixed bytes to whoever connects: ``answering(data, hold=False)`` gives its URL."""
    with contextlib.ExitStack() as stack:

        def make(data, hold=False):
            server = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            done = threading.Event()

            def serve():
                with contextlib.suppress(OSError):
                    while True:
                        connection, _ = server.accept()
                        with connection:
                            connection.settimeout(5)
                            connection.recv(65536)
                            connection.sendall(data)
                            if hold:
                                done.wait(30)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()

            def close():
                done.set()
                with contextlib.suppress(OSError):
                    server.shutdown(socket.SHUT_RDWR)
                thread.join()

            stack.callback(close)
            return f"http://127.0.0.1:{server.getsockname()[1]}"

        yield make
