"""The README's blocks run, in order, as a newcomer would type them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

ROOT = Path(__file__).parents[1]
BLOCK = re.compile(r"^```(sh|python)( background)?\n(.*?)^```$", re.MULTILINE | re.DOTALL)
URL = "http://127.0.0.1:8420"


def blocks() -> list[tuple[str, bool, str]]:
    """Language, whether it goes on in the background, and text of each block."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    return [(m[1], bool(m[2]), m[3]) for m in BLOCK.finditer(text)]


def test_the_two_commands_are_makes_own():
    named = [text.strip() for language, _, text in blocks() if language == "sh" and text.startswith("make ")]
    assert named == ["make demo", "make test"]
    for command, does in (("demo", "neuraverse demo"), ("test", "-m pytest")):
        shown = subprocess.run(["make", "-n", command], cwd=ROOT, capture_output=True, text=True, check=True)
        assert does in shown.stdout


def test_a_set_up_that_failed_is_begun_anew(tmp_path):
    """Debian's venv without ensurepip leaves bin/python behind, which must not pass for a whole one."""
    fake = tmp_path / "python3"
    fake.write_text(
        '#!/bin/sh\n[ "$2" = venv ] || exit 0\nmkdir -p "$3/bin" && touch "$3/bin/python"\nexit 1\n'
    )
    fake.chmod(0o755)
    made = tmp_path / "venv" / "bin" / "python"
    argv = ["make", f"PYTHON={fake}", f"VENV={tmp_path / 'venv'}", str(made)]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "apt-get install python3-venv" in done.stdout
    assert made.parent.is_dir()
    assert not made.exists()


@pytest.mark.timeout(900)
def test_every_block_runs(tmp_path):
    """The first block is the demo itself: this test is also that of the whole story."""
    env = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "NEURAVERSE_HOME": str(tmp_path / "home"),
    }
    env.pop("NEURAVERSE_REGISTRY", None)
    python: list[str] = []
    servers: list[subprocess.Popen[bytes]] = []

    def run(argv: list[str]) -> None:
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{argv}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"

    try:
        for language, background, text in blocks():
            if text.strip() == "make test":
                continue  # this is it
            if text.strip() == "make demo":
                run(["bash", "-euc", "neuraverse demo --json demo.json"])
                story_holds(json.loads((tmp_path / "demo.json").read_text()))
            elif background:
                servers.append(subprocess.Popen(text.split(), cwd=tmp_path, env=env))
                wait_for(servers[-1])
            elif language == "sh":
                run(["bash", "-euc", text])
            else:
                python.append(text)
        run([sys.executable, "-c", "\n".join(python)])
    finally:
        for server in servers:
            server.terminate()
            server.wait(20)


def wait_for(server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        assert server.poll() is None, "the server ended"
        try:
            if httpx.get(f"{URL}/health/ready").json()["status"] == "ok":
                return
        except httpx.TransportError:
            time.sleep(0.2)
    raise AssertionError("the server did not answer")


def story_holds(told: dict) -> None:
    """The bars of the story, but for its seconds."""
    trained = told["trained"]
    assert trained["success"]["n"] == 1000
    assert trained["success"]["lower"] >= 0.90
    robots = {entry["robot"]: entry for entry in told["robots"]}
    assert list(robots) == ["ur5e", "iiwa14", "ur5e-slow"]
    assert all(entry["verified"] for entry in robots.values())
    for name in ("ur5e", "iiwa14"):
        assert robots[name]["decision"] == "use"
        assert robots[name]["zero_shot"]["rate"] >= trained["success"]["rate"] - 0.05
    slow = robots["ur5e-slow"]
    assert slow["decision"] == "fine-tune"
    assert len(slow["outside"]) == 3
    assert slow["zero_shot"]["rate"] < 0.5
    assert slow["after"]["rate"] >= 0.85
    assert slow["published"] == "ur5e-slow-cell/weld-seam@1.0.0"
    assert slow["scratch_steps"] is None or slow["scratch_steps"] >= 2 * slow["steps"]
