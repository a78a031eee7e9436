"""Registries behind one small face, and the clients that load them: ours and MLflow's.

A worker is a process of its own, so that no interpreter lock is shared with the server or among all clients.
It is ``python -m benchmarks.registry_peers KIND TASK URL THREADS FOLDER …``: it does the first of the folders,
says so, waits for a line on its standard input, does the others, and prints the seconds that each took.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import httpx
import numpy as np

ORG = "bench"
KINDS = ("ours", "mlflow")
_START_S = 90.0
QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true", "GIT_PYTHON_REFRESH": "quiet"}


def make_skills(folder: Path, names: Sequence[str], hidden: int = 300) -> None:
    """Unsigned skills of about 1 MB, all different: ``folder/<name>``; a name is ``<skill>-<number>``."""
    import torch
    from safetensors.numpy import save

    from neuraverse.learn import ActorCritic
    from neuraverse.learn.export import to_onnx
    from neuraverse.manifest import Body, Evaluation, Network, SkillManifest, TaskInfo, Training, wilson_lower
    from neuraverse.skill import Skill
    from neuraverse_envs.weld_seam import WeldSeam

    interface = WeldSeam().interface
    scale = np.concatenate([np.asarray(signal.high, np.float32) for signal in interface.action])
    policy = ActorCritic(
        interface.observation_size,
        interface.action_size,
        hidden=(hidden, hidden),
        generator=torch.Generator().manual_seed(0),
    )
    for name in names:
        policy.normaliser_mean.normal_()  # each has weights and graph of its own
        weights = {key: value.numpy() for key, value in policy.tensors().items()}
        skill, _, number = name.rpartition("-")
        manifest = SkillManifest.build(
            name=f"{ORG}/{skill}",
            version=f"1.0.{number}",
            title="A skill to measure with",
            license="Apache-2.0",
            created=datetime.now(UTC),
            interface=interface,
            body=Body(robot="panda", dof=7, servo_hz=5.0, latency_s=0.0, tool_mass_kg=1.0),
            task=TaskInfo(env_id="neuraverse_envs:neuraverse/WeldSeam-v0", success="the seam is welded"),
            network=Network(
                hidden=(hidden, hidden),
                activation="elu",
                parameters=sum(value.size for value in weights.values()),
                opset=18,
            ),
            evaluation=Evaluation(
                episodes=100,
                successes=95,
                rate=0.95,
                lower=wilson_lower(95, 100),
                seed_first=2_000_000_000,
                seed_count=100,
            ),
            training=Training(algorithm="ppo", seeds=(0,), env_steps=1, wall_s=1.0, cpu_s=1.0, device="cpu"),
            files={},
        )
        files = {
            "model.safetensors": save(weights),
            "policy.onnx": to_onnx(policy, interface, scale),
            "evaluation.json": json.dumps({"successes": [True] * 95, "skill": name}).encode(),
            "curve.json": b"[]",
            "README.md": f"# {name}\n".encode(),
        }
        Skill.write(folder / name, manifest, files)


@contextlib.contextmanager
def served(kind: str, folder: Path, **settings: str) -> Iterator[tuple[str, int]]:
    """A server in a process of its own; its address and process id."""
    run = _ours if kind == "ours" else _mlflow
    with run(folder, settings) as (url, process):
        try:
            yield url, process.pid
        finally:
            process.terminate()
            process.wait(30)


@contextlib.contextmanager
def _ours(folder: Path, settings: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    ready = folder / "ready.json"
    code = "from neuraverse.cli import main; main()"
    words = ["serve", "--data", str(folder / "data"), "--port", "0", "--ready-file", str(ready)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *words], env=os.environ | settings, stdout=log, stderr=log
        )
    _until(ready.exists, process, folder / "log")
    yield json.loads(ready.read_text())["url"], process


@contextlib.contextmanager
def _mlflow(folder: Path, settings: dict[str, str]) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port)),
        *("--backend-store-uri", f"sqlite:///{folder / 'mlflow.db'}", "--serve-artifacts", "--workers", "1"),
        *("--artifacts-destination", str(folder / "artifacts")),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | QUIET | settings, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"

    def answers() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{url}/health", timeout=2).status_code == 200
        return False

    _until(answers, process, folder / "log")
    yield url, process


def _until(ready: Callable[[], bool], process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while not ready():
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server did not start: {log.read_text()[-2000:]}")
        time.sleep(0.05)


def load(
    kind: str, task: str, url: str, folders: Sequence[Path], *, processes: int, threads: int
) -> tuple[list[float], float]:
    """Let clients work through folders, each its share.

    Args:
        kind: Whose clients.
        task: ``publish`` or ``pull``.
        url: Address of the server.
        folders: One skill each; the first of each worker is not measured.
        processes: Worker processes.
        threads: Clients in each.

    Returns:
        The seconds that each task took, and those that all took together.
    """
    shares = [folders[i::processes] for i in range(processes)]
    command = [sys.executable, "-m", "benchmarks.registry_peers", kind, task, url, str(threads)]
    workers = [
        subprocess.Popen(
            [*command, *map(str, share)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | QUIET,
        )
        for share in shares
    ]
    try:
        for worker in workers:
            assert worker.stdout is not None
            if worker.stdout.readline() != "ready\n":
                raise RuntimeError(f"a client of {kind} did not start")
        begun = time.perf_counter()
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        taken: list[float] = []
        for worker in workers:
            assert worker.stdout is not None
            taken += json.loads(worker.stdout.readline())
        seconds = time.perf_counter() - begun
        for worker in workers:
            if worker.wait(60):
                raise RuntimeError(f"a client of {kind} failed")
        return taken, seconds
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _work(kind: str, task: str, url: str, threads: int, folders: Sequence[Path]) -> list[float]:
    """What a worker does once it may."""
    do = (_ours_client if kind == "ours" else _mlflow_client)(task, url)

    def timed(folder: Path) -> float:
        begun = time.perf_counter()
        do(folder)
        return time.perf_counter() - begun

    do(folders[0])  # loads what is loaded late, and connects
    print("ready", flush=True)
    sys.stdin.readline()
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(timed, folders[1:]))


def _ours_client(task: str, url: str) -> Callable[[Path], object]:
    import threading

    from neuraverse import trust
    from neuraverse.client import Client
    from neuraverse.keys import KeyStore

    trust.warm_up()
    keys = KeyStore(Path(os.environ["NEURAVERSE_HOME"]))
    local = threading.local()

    def publish(folder: Path) -> None:
        if not hasattr(local, "client"):
            local.client = Client(url, home=keys.home)
        local.client.publish(folder)

    homes = Path(tempfile.mkdtemp(prefix="neuraverse-bench-"))
    pem = keys.public_key().pem

    def pull(folder: Path) -> None:
        """Into a home that is new, but for the key that it trusts."""
        home = homes / f"{folder.name}-{time.monotonic_ns()}"
        KeyStore(home).trust(pem, ORG)
        name, _, number = folder.name.rpartition("-")
        with Client(url, home=home) as client:
            client.pull(f"{ORG}/{name}@1.0.{number}")

    return publish if task == "publish" else pull


def _mlflow_client(task: str, url: str) -> Callable[[Path], object]:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    os.environ["MLFLOW_TRACKING_URI"] = url
    client = MlflowClient(url, url)
    homes = Path(tempfile.mkdtemp(prefix="neuraverse-bench-"))
    run = client.create_run("0").info  # a version's source must belong to one; made once, outside the clock

    def publish(folder: Path) -> None:
        name, _, number = folder.name.rpartition("-")
        client.log_artifacts(run.run_id, str(folder), folder.name)
        version = client.create_model_version(name, f"{run.artifact_uri}/{folder.name}", run.run_id)
        client.set_registered_model_alias(name, f"a{number}", version.version)

    def pull(folder: Path) -> None:
        name, _, number = folder.name.rpartition("-")
        version = client.get_model_version_by_alias(name, f"a{number}")
        target = tempfile.mkdtemp(dir=homes)
        download_artifacts(artifact_uri=version.source, dst_path=target, tracking_uri=url)

    return publish if task == "publish" else pull


def register(kind: str, url: str, name: str) -> None:
    """Make a name for models, where a registry wants that apart."""
    if kind == "mlflow":
        from mlflow import MlflowClient

        MlflowClient(url, url).create_registered_model(name)


if __name__ == "__main__":
    given_kind, given_task, given_url, given_threads, *rest = sys.argv[1:]
    print(json.dumps(_work(given_kind, given_task, given_url, int(given_threads), [Path(p) for p in rest])))
