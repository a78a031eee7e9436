"""The registry's benchmark: its skills, its small client, and a short run of all of it."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from benchmarks import registry, registry_blobs
from benchmarks.harness import Report
from benchmarks.registry_fetch import fetch
from benchmarks.registry_peers import make_skills
from neuraverse.skill import Skill

DATA = os.urandom(3_000_000)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.send_response(200 if self.path == "/blob" else 404)
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()
        self.wfile.write(DATA)

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    with HTTPServer(("127.0.0.1", 0), _Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield listening.server_port
        listening.shutdown()
        thread.join()


def test_every_skill_is_valid_and_has_bytes_of_its_own(tmp_path):
    names = ["skill-0", "skill-1"]
    make_skills(tmp_path, names)
    first, second = (Skill.open(tmp_path / name) for name in names)
    assert (first.ref, second.ref) == ("bench/skill@1.0.0", "bench/skill@1.0.1")
    assert 1_000_000 < sum(entry.size for entry in first.manifest.files.values()) < 1_500_000
    for name in ("model.safetensors", "policy.onnx"):
        assert first.manifest.files[name].sha256 != second.manifest.files[name].sha256


def test_the_small_client_counts_what_came_over_each_connection(server):
    got, seconds = fetch("127.0.0.1", server, "/blob", 2)
    assert 2 * len(DATA) < got < 2 * len(DATA) + 2000  # with the heads
    assert seconds > 0.0


def test_the_small_client_does_not_count_a_refusal(server):
    with pytest.raises(SystemExit, match="404"):
        fetch("127.0.0.1", server, "/nothing", 1)


def test_the_memory_of_a_process_is_what_it_alone_has():
    before = registry_blobs.memory_mb(os.getpid())
    held = bytearray(b"x") * 64_000_000
    assert registry_blobs.memory_mb(os.getpid()) - before > 50.0
    del held


def test_less_time_and_more_skills_per_second_are_better():
    report = Report()
    for task, ours, theirs in (("publish", 10.0, 40.0), ("pull", 5.0, 30.0)):
        for kind, p50_ms, rate in (("ours", ours, 600.0), ("mlflow", theirs, 100.0)):
            report.figures[f"{kind}_{task}_1_p50_ms"] = p50_ms
            report.rows.append({"contender": f"{kind}_{task}_16", "value": rate})
    registry._compare(report)
    assert report.ratios == {
        "publish_over_mlflow": 4.0,
        "pull_over_mlflow": 6.0,
        "publish_throughput_16_over_mlflow": 6.0,
        "pull_throughput_16_over_mlflow": 6.0,
    }
    assert report.bars.keys() == report.ratios.keys()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(importlib.util.find_spec("mlflow") is None, reason="MLflow is not installed")
def test_registry_runs_and_writes(tmp_path):
    file = tmp_path / "registry.json"
    command = [sys.executable, "-m", "benchmarks", "registry", "--quick", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True)  # MLflow warns when it is imported
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(file.read_text())
    assert found["ratios"].keys() >= {
        "publish_over_mlflow",
        "pull_over_mlflow",
        "publish_throughput_16_over_mlflow",
        "pull_throughput_16_over_mlflow",
    }
    for kind in ("ours", "mlflow"):
        assert found["figures"][f"{kind}_pull_16_p99_ms"] > 0.0
    assert found["figures"]["verify_250mb_share_of_sha256"] > 0.0
    assert found["figures"]["bare_memory_growth_mb"] < 32.0
