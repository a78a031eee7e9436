"""Clients that load a registry: ours and MLflow's, and the skills that they publish and pull.

A worker is a process of its own, so that no interpreter lock is shared with the server or among all clients.
It is ``python -m benchmarks.registry_peers KIND TASK URL THREADS FOLDER …``: it does the first folder of each
thread, says so, waits for a line on its standard input, does the others, and prints when it began, when it
ended and the seconds that each took.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.registry_servers import QUIET

ORG = "bench"
KINDS = ("ours", "mlflow")


def make_skills(folder: Path, names: Sequence[str], hidden: int = 300, more: int = 0) -> None:
    """Unsigned skills, all different, of no registry's: ``folder/<name>``; a name is ``<skill>-<number>``.

    Args:
        folder: Where to.
        names: Of the skills.
        hidden: Units in both layers of actor and critic; 300 make 1.2 MB.
        more: Numbers in a tensor besides, which only the weights have.
    """
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
    fresh = torch.Generator()
    fresh.seed()
    ballast = {"more": torch.randn(more, generator=fresh)} if more else {}
    for name in names:
        policy.normaliser_mean.normal_(generator=fresh)  # each has weights and graph of its own
        weights = {key: value.numpy() for key, value in (policy.tensors() | ballast).items()}
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


def load(
    kind: str, task: str, url: str, folders: Sequence[Path], *, processes: int, threads: int
) -> tuple[list[float], float]:
    """Let clients work through folders, each its share.

    Args:
        kind: Whose clients.
        task: ``publish`` or ``pull``.
        url: Address of the server.
        folders: One skill each; the first of each thread warms it up and is not measured.
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
            _answer(worker, kind)
        for worker in workers:
            assert worker.stdin is not None
            worker.stdin.write("go\n")
            worker.stdin.flush()
        found = [_answer(worker, kind) for worker in workers]
        for worker in workers:
            if worker.wait(60):
                raise RuntimeError(f"a client of {kind} failed")
        begun, ended = min(each["begun"] for each in found), max(each["ended"] for each in found)
        return [seconds for each in found for seconds in each["taken"]], ended - begun
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()


def _answer(worker: subprocess.Popen[str], kind: str) -> dict[str, Any]:
    """What a worker says next."""
    assert worker.stdout is not None
    line = worker.stdout.readline()
    if not line.startswith("{"):
        raise RuntimeError(f"a client of {kind} failed")
    return dict(json.loads(line))


def _work(kind: str, task: str, url: str, threads: int, folders: Sequence[Path]) -> None:
    """What a worker does. Its clock is the system's, the same for all processes."""
    scratch = Path(tempfile.mkdtemp(dir=folders[0].parents[1]))  # removed with all else, at the end
    do = (_ours_client if kind == "ours" else _mlflow_client)(task, url, folders, scratch)

    def timed(folder: Path) -> float:
        begun = time.monotonic()
        do(folder)
        return time.monotonic() - begun

    with ThreadPoolExecutor(threads) as pool:
        together = threading.Barrier(threads)  # so that each thread takes one
        list(pool.map(lambda folder: (together.wait(60), do(folder)), folders[:threads]))
        print(json.dumps({}), flush=True)
        sys.stdin.readline()
        begun = time.monotonic()
        taken = list(pool.map(timed, folders[threads:]))
        ended = time.monotonic()
    print(json.dumps({"begun": begun, "ended": ended, "taken": taken}), flush=True)


def _ours_client(task: str, url: str, folders: Sequence[Path], scratch: Path) -> Callable[[Path], object]:
    from neuraverse.client import Client
    from neuraverse.keys import KeyStore

    keys = KeyStore(Path(os.environ["NEURAVERSE_HOME"]))
    local = threading.local()

    def client() -> Client:
        """One for each thread, with a connection and a home that last; what is pulled is in no cache yet."""
        if not hasattr(local, "client"):
            home = keys.home if task == "publish" else Path(tempfile.mkdtemp(dir=scratch))
            if task == "pull":
                KeyStore(home).trust(keys.public_key().pem, ORG)
            local.client = Client(url, home=home)
        return local.client

    def publish(folder: Path) -> None:
        client().publish(folder)

    def pull(folder: Path) -> None:
        name, _, number = folder.name.rpartition("-")
        client().pull(f"{ORG}/{name}@1.0.{number}")

    return publish if task == "publish" else pull


def _mlflow_client(task: str, url: str, folders: Sequence[Path], scratch: Path) -> Callable[[Path], object]:
    from mlflow import MlflowClient
    from mlflow.artifacts import download_artifacts

    os.environ["MLFLOW_TRACKING_URI"] = url
    client = MlflowClient(url, url)

    def publish(folder: Path) -> None:
        name, _, _ = folder.name.rpartition("-")
        client.log_artifacts(run.run_id, str(folder), folder.name)
        source = f"{run.artifact_uri}/{folder.name}"
        client.create_model_version(name, source, run.run_id, await_creation_for=0)

    def pull(folder: Path) -> None:
        name, _, number = folder.name.rpartition("-")
        version = client.get_model_version_by_alias(name, f"a{number}")
        download_artifacts(artifact_uri=version.source, dst_path=str(scratch / folder.name), tracking_uri=url)

    if task == "publish":
        run = client.create_run("0").info  # a version's source must belong to one
        return publish
    wanted = {folder.name for folder in folders}
    name = folders[0].name.rpartition("-")[0]
    for version in client.search_model_versions(f"name='{name}'", max_results=10_000):
        folder_name = str(version.source).rpartition("/")[2]
        if folder_name in wanted:
            client.set_registered_model_alias(name, f"a{folder_name.rpartition('-')[2]}", version.version)
    return pull


def register(kind: str, url: str, name: str) -> None:
    """Make a name for models, where a registry wants that apart."""
    if kind == "mlflow":
        from mlflow import MlflowClient

        MlflowClient(url, url).create_registered_model(name)


if __name__ == "__main__":
    given_kind, given_task, given_url, given_threads, *rest = sys.argv[1:]
    _work(given_kind, given_task, given_url, int(given_threads), [Path(p) for p in rest])
