"""Help tells the story, costs little, and the page of reference is what the commands say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from neuraverse.cli import reference

ROOT = Path(__file__).parents[2]
COMMANDS = dict(reference.commands())
LEAVES = {name: command for name, command in COMMANDS.items() if not hasattr(command, "commands")}


@pytest.mark.parametrize("words", [["--help"], []])
def test_help_tells_the_story_in_order(neuraverse, words):
    said = neuraverse(*words).stdout
    panels = [said.index(f"─ {panel} ") for panel in ("Learn", "Publish", "Receive", "Use")]
    assert panels == sorted(panels)
    story = [
        "train",
        "fine-tune",
        "eval",
        "keys",
        "publish",
        "serve",
        "watch",
        "pull",
        "verify",
        "run",
        "robots",
    ]
    places = [said.index(f"│ {name} ") for name in story]
    assert places == sorted(places)


def test_every_command_has_help_and_a_working_example():
    assert {"train", "fine-tune", "eval", "publish", "pull", "watch", "run", "verify", "serve", "show"} <= {
        name.removeprefix("neuraverse ") for name in LEAVES
    }
    for name, command in LEAVES.items():
        assert command.help, name
        assert reference.examples(command), f"{name} has no example"
        for line in reference.examples(command):
            assert line.startswith(name), line
            for word in line.split():
                if word.startswith("--"):
                    assert word in {o for p in command.params for o in p.opts}, f"{line}: no option {word}"


def test_every_parameter_has_help():
    missing = [
        f"{name} {p.name}" for name, c in COMMANDS.items() for p in reference.parameters(c) if not p.help
    ]
    assert missing == []


def test_the_reference_page_is_up_to_date():
    page = (ROOT / "docs" / "cli.md").read_text()
    for name, command in COMMANDS.items():
        assert f"## `{name}`\n" in page, f"docs/cli.md lacks {name}"
        for parameter in reference.parameters(command):
            if parameter.param_type_name == "option":
                section = page.partition(f"## `{name}`\n")[2].partition("\n## ")[0]
                assert parameter.opts[0] in section, f"docs/cli.md lacks {name} {parameter.opts[0]}"
    assert page == reference.reference(), "run: python -m neuraverse.cli.reference > docs/cli.md"


def test_help_is_light():
    """Loaded modules, unlike seconds, are as many on every machine: 420 when this was written."""
    program = """
import contextlib, io, json, sys
sys.argv = ["neuraverse", "--help"]
from neuraverse.cli import main
with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.suppress(SystemExit):
    main()
print(json.dumps([sorted(sys.modules), said.getvalue()]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    loaded, said = json.loads(done.stdout)
    assert "teach each other" in said
    assert "neuraverse.cli.app" in loaded
    heavy = {"torch", "mujoco", "mjbatch", "gymnasium", "ray", "fastapi", "onnxruntime", "model_signing"}
    assert not (heavy | {"httpx", "numpy"}) & set(loaded)
    assert len(loaded) < 550


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tran"], "No such command 'tran'. Did you mean 'train'? - see `neuraverse --help`"),
        (["keys"], "Missing command - see `neuraverse keys --help`"),
        (["keys", "ne"], "see `neuraverse keys --help`"),
        (["pull"], "see `neuraverse pull --help`"),
        (["train", "weld-seam", "--sed", "1"], "--seed"),
        (["train", "weld-seam", "--seed", "many"], "--seed"),
        (["train", "weld-seam", "--seeds", "0"], "--seeds"),
        (["eval", "acme/x", "--episodes", "-1"], "--episodes"),
        (["keys", "trust", "a.pem"], "--org"),
    ],
)
def test_wrong_usage_is_one_line_and_exit_2(neuraverse, words, said):
    assert said in neuraverse(*words, code=2).error


def test_version_names_what_decides_the_numbers(as_json):
    found = as_json("version")
    assert {"neuraverse", "python", "numpy", "torch", "mujoco"} <= found.keys()
    assert all(found.values())
