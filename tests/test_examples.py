"""Each example runs, one after the other, as its readers would run them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from neuraverse.registry import background

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_every_example_is_run_here():
    assert {p.name for p in EXAMPLES.glob("*.py")} == {
        "researcher.py",
        "robot.py",
        "developer.py",
        "host.py",
    }


@pytest.mark.timeout(300)
def test_the_examples_run(tmp_path):
    env = {**os.environ, "NEURAVERSE_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def run(name: str, *args: str) -> str:
        argv = [sys.executable, str(EXAMPLES / name), *args]
        done = subprocess.run(argv, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{name}\n{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done.stdout

    with background(tmp_path / "registry") as url:
        env["NEURAVERSE_REGISTRY"] = url
        out = run("researcher.py", "--steps", "13000", "--episodes", "32", "validation.every=0")
        assert "published" in out
        out = run("robot.py", "lab/weld-seam", "--ticks", "20")
        assert "running lab/weld-seam@1.0.0" in out
        assert "ticks=20" in out
    out = run("host.py", "registry", "--seconds", "3")
    assert "published lab/weld-seam 1.0.0" in out
    out = run("developer.py")
    assert out.count("ok  ") == 9, out
