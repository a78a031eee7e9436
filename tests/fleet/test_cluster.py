"""Ray started here, joined elsewhere, on several nodes."""

from __future__ import annotations

import time

import pytest
import ray
from ray.cluster_utils import Cluster

from neuraverse.errors import NetworkError, UsageError
from neuraverse.fleet import Resources, connect, train


def test_ray_is_started_and_ended_here():
    began = time.monotonic()
    with connect(num_cpus=1):
        assert ray.cluster_resources()["CPU"] == 1.0
        with connect():  # within another, it is used and left alone
            pass
        assert ray.is_initialized()
    assert not ray.is_initialized()
    assert time.monotonic() - began < 60.0


def test_a_cluster_that_is_not_there_is_named():
    with pytest.raises(NetworkError, match=r"no Ray cluster answers at 127\.0\.0\.1:1\b.*ray start"):
        connect("127.0.0.1:1").__enter__()


def test_without_a_cluster_the_way_to_one_is_told(weld, tmp_path):
    with pytest.raises(UsageError, match=r"no Ray cluster yet.*connect\(\)"):
        train(weld.recipe(), (0,), run_dir=tmp_path)
    assert not ray.is_initialized()


@pytest.fixture(scope="module")
def cluster():
    """Two nodes, each with processes of its own: a head, and a node that has a GPU by its own account."""
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=2, num_gpus=1, resources={"lab": 2})
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", cluster.address)
        yield cluster
    cluster.shutdown()


def test_workers_run_on_the_node_that_has_what_they_declare(cluster, weld, tmp_path):
    workers, progress = {}, []
    with connect():
        assert Resources.share(2) == Resources(gpus=0.5)
        assert Resources.share(3).gpus == 0.3333
        assert Resources.share(2, "cpu").gpus == 0.0
        results = train(
            weld.recipe(),
            (0, 1),
            run_dir=tmp_path,
            resources=Resources(gpus=0.5, custom={"lab": 1.0}),
            on_worker=workers.__setitem__,
            on_progress=lambda seed, _: progress.append((len(workers), seed)),
        )
        head = cluster.head_node.node_id
    assert [r.env_steps for r in results] == [weld.train(weld.recipe()).env_steps] * 2
    assert len(progress) == sum(len(r.curve) for r in results)
    assert {w.node for w in workers.values()} == {cluster.list_all_nodes()[1].node_id} != {head}
    for where in workers.values():
        assert {k: where.resources[k] for k in ("CPU", "GPU", "lab")} == {"CPU": 1.0, "GPU": 0.5, "lab": 1.0}
    assert not ray.is_initialized()
    with connect():  # the cluster that was joined goes on
        assert ray.cluster_resources()["lab"] == 2.0


@pytest.mark.slow
def test_a_run_outlives_the_node_that_it_runs_on(cluster, weld, tmp_path):
    added = [cluster.add_node(num_cpus=1, resources={"spare": 1}) for _ in range(2)]
    nodes = {node.node_id: node for node in added}
    lives, seen = [], []

    def on_progress(_, progress):
        seen.append((len(lives), progress.iteration))
        if len(lives) == 1 and progress.iteration == 8:
            cluster.remove_node(nodes[lives[0].node], allow_graceful=False)

    with connect():
        [result] = train(
            weld.recipe(),
            (0,),
            run_dir=tmp_path,
            resources=Resources(custom={"spare": 1.0}),
            on_worker=lambda _, where: lives.append(where),
            on_progress=on_progress,
        )
    assert {where.node for where in lives} == set(nodes)
    assert next(iteration for life, iteration in seen if life == 2) > 1
    assert weld.same(result, weld.train(weld.recipe()))
