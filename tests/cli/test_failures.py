"""Whatever goes wrong ends in one line and an exit code."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest
import typer

from neuraverse import errors
from neuraverse.cli.app import Cli
from neuraverse.cli.failures import EXTRA_OF, printable, told
from neuraverse.client import Client

BLOCK = """
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {blocked!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Blocker())
"""
HEAVY = sorted(EXTRA_OF)


@pytest.mark.parametrize(
    ("words", "blocked", "package", "extra"),
    [
        (["serve", "--data", "d"], ["fastapi"], "fastapi", "registry"),
        (["serve", "--data", "d"], HEAVY, None, "registry"),
        (["train", "weld-seam"], HEAVY, None, "train"),
        (["train", "weld-seam"], ["mujoco"], "mujoco", None),
        (["fine-tune", "./skill"], HEAVY, None, "train"),
        (["robots", "list"], ["mujoco"], "mujoco", "sim"),
        (["robots", "check", "panda"], ["mjbatch"], "mjbatch", "sim"),
    ],
)
def test_a_command_whose_extra_is_missing_says_which(process, home, words, blocked, package, extra):
    out, said = process(*words, before=BLOCK.format(blocked=set(blocked))).communicate(timeout=60)
    assert out == ""
    assert len(said.splitlines()) == 1, said
    assert said.startswith("error: ")
    assert f"needs the package {package!r}" in said if package else "needs the package" in said
    assert f"pip install 'neuraverse[{extra}]'" in said if extra else "pip install 'neuraverse[" in said


def test_the_base_install_has_what_a_robot_needs(process, home, tiny_skill):
    blocker = BLOCK.format(blocked=set(HEAVY))
    for words in (
        ["verify", str(tiny_skill.path)],
        ["show", str(tiny_skill.path)],
        ["run", str(tiny_skill.path), "--dry", "--steps", "2"],
    ):
        child = process(*words, before=blocker)
        _, said = child.communicate(timeout=60)
        assert (child.returncode, said) == (0, ""), said


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "x.bin"),
            errors.StorageError,
            "x.bin: No space left",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "x"),
            errors.StorageError,
            "x: Permission denied",
        ),
        (
            ModuleNotFoundError("No module", name="ray.train"),
            errors.MissingExtraError,
            "'neuraverse\\[train\\]'",
        ),
        (ImportError("libX.so is missing", name="mujoco"), errors.MissingExtraError, "'mujoco'"),
        (ModuleNotFoundError("No module", name="rich"), errors.NeuraverseError, "'rich'"),
        (ZeroDivisionError("division by zero"), errors.NeuraverseError, "ZeroDivisionError.*--debug"),
        (errors.NetworkError("the net is down"), errors.NetworkError, "the net is down"),
    ],
)
def test_every_error_becomes_one_of_ours(error, kind, says):
    with pytest.raises(kind, match=says):
        raise told(error, "neuraverse train")


@pytest.fixture
def failing():
    """A program whose one command raises what is given: ``failing(error)`` runs it with more words."""

    def make(error):
        app = typer.Typer(cls=Cli, add_completion=False, pretty_exceptions_enable=False)

        @app.callback()
        def _group():
            pass

        @app.command("boom")
        def _boom():
            print("so far")
            raise error

        return lambda *words: app(["boom", *words])

    return make


def test_a_fault_of_ours_has_no_traceback_unless_asked(failing, capsys):
    run = failing(ZeroDivisionError("division by zero"))
    with pytest.raises(SystemExit) as left:
        run()
    assert left.value.code == 1
    said = capsys.readouterr()
    assert said.out == "so far\n"
    assert said.err.startswith("error: neuraverse boom failed unexpectedly: ZeroDivisionError")
    assert "Traceback" not in said.err
    with pytest.raises(ZeroDivisionError):
        run("--debug")


def test_ctrl_c_is_one_line_and_exit_130(failing, capsys):
    with pytest.raises(SystemExit) as left:
        failing(KeyboardInterrupt())()
    assert left.value.code == 130
    assert capsys.readouterr().err == "interrupted; run the same command again to go on\n"


def test_what_a_stranger_sends_cannot_steer_the_terminal(failing, capsys):
    with pytest.raises(SystemExit):
        failing(errors.RegistryError("no\x1b[2J\nerror: all is well\x07"))()
    said = capsys.readouterr().err
    assert "\x1b" not in said
    assert len(said.splitlines()) == 1
    assert printable("a\tb\x9b") == "a b "


def test_a_full_stdout_is_told_and_a_closed_one_is_not(process):
    with open("/dev/full", "w") as full:
        child = process("version", stdout=full)
        _, said = child.communicate(timeout=60)
    assert child.returncode == 1
    assert said.startswith("error: ")
    assert "No space left on device" in said
    assert "Traceback" not in said
    reading, writing = os.pipe()
    os.close(reading)
    child = process("version", stdout=writing)
    os.close(writing)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (1, "")


def test_ctrl_c_before_anything_began(process):
    child = process("version", before="import os, signal, rich; os.kill(os.getpid(), signal.SIGINT)")
    _, said = child.communicate(timeout=60)
    assert child.returncode != 0  # the interpreter itself says so, not we
    late = "import typer, signal, os\ntyper.Typer.__call__ = lambda self: os.kill(os.getpid(), signal.SIGINT)"
    child = process("version", before=late)
    _, said = child.communicate(timeout=60)
    assert (child.returncode, said) == (130, "")


@pytest.mark.parametrize(
    "words", [["search"], ["pull", "acme/weld-seam"], ["show", "acme/weld-seam"], ["watch"]]
)
def test_a_registry_that_is_down(neuraverse, home, words):
    error = neuraverse(*words, "--registry", "http://127.0.0.1:9", code=1).error
    assert "cannot reach a registry at http://127.0.0.1:9" in error
    assert "is `neuraverse serve` running there?" in error


def test_a_registry_that_answers_html(neuraverse, home, answering):
    page = b"<html><body>Welcome to nginx!</body></html>"
    head = [b"HTTP/1.1 200 OK", b"Content-Type: text/html", b"Content-Length: %d" % len(page), b"", b""]
    address = answering(b"\r\n".join(head) + page)
    assert (
        f"{address} does not answer as a neuraverse registry"
        in neuraverse("search", "--registry", address, code=1).error
    )


def test_a_registry_that_is_silent(neuraverse, home, answering, monkeypatch):
    limits = Client.search.__globals__["Transport"].stream.__wrapped__.__kwdefaults__
    monkeypatch.setitem(limits, "read_s", 0.2)
    address = answering(b"", hold=True)
    assert "was silent for 0.2 s" in neuraverse("search", "--registry", address, code=1).error


def test_an_address_that_is_none(neuraverse, home):
    assert "is no address of a registry" in neuraverse("search", "--registry", "ftp:/x", code=2).error


def test_a_port_in_use(neuraverse, tmp_path, answering):
    port = answering(b"").rpartition(":")[2]
    error = neuraverse("serve", "--data", tmp_path / "data", "--port", port, code=2).error
    assert "the port is in use" in error
    assert "--port" in error


def test_a_data_folder_in_use(neuraverse, tmp_path, url):
    assert "another server" in neuraverse("serve", "--data", tmp_path / "data", "--port", "0", code=1).error


def test_serve_runs_until_ctrl_c(process, tmp_path):
    ready = tmp_path / "ready.json"
    child = process("serve", "--data", tmp_path / "own", "--port", "0", "--ready-file", ready)
    assert child.stdout.readline().startswith("neuraverse registry ready at http://127.0.0.1:")
    assert ready.exists()
    asked = subprocess.run(
        [sys.executable, "-m", "neuraverse.cli", "search", "--json", "-", "--registry", _address(ready)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout == "[]\n"
    child.send_signal(signal.SIGINT)
    _, said = child.communicate(timeout=30)
    assert child.returncode == 0
    assert "Traceback" not in said
    assert not ready.exists()


def _address(ready):
    import json

    return json.loads(ready.read_text())["url"]


def test_json_goes_whole_into_a_file_or_not_at_all(neuraverse, tmp_path, monkeypatch):
    neuraverse("version", "--json", tmp_path / "v.json")
    before = (tmp_path / "v.json").read_text()
    assert '"neuraverse"' in before
    assert "no such folder" in neuraverse("version", "--json", tmp_path / "no" / "v.json", code=2).error

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert "No space left" in neuraverse("version", "--json", tmp_path / "v.json", code=1).error
    assert [p.name for p in tmp_path.iterdir()] == ["v.json"]
    assert (tmp_path / "v.json").read_text() == before
