"""Simulation: steps per second of HalfCheetah-v5 and of WeldSeam, against peers and against bare physics.

HalfCheetah-v5 runs on random actions, observation, reward and reset included, against gymnasium's
AsyncVectorEnv, EnvPool, `mujoco.rollout` and one thread per CPU of bare ``mj_step``. WeldSeam runs on its
expert's recorded actions (and on random ones), inverse kinematics, sensors, scoring and resets included,
against bare ``mj_step`` of the same model in the same number of substeps.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle

import mujoco
import mujoco.rollout
import numpy as np
import torch

from benchmarks.half_cheetah import HalfCheetah
from benchmarks.harness import Contender, Options, Report, alternate, timed, torch_threads
from neuraverse.sim.physics import available_cpus
from neuraverse.sim.vector_env import TaskVectorEnv
from neuraverse_envs.weld_seam import WeldSeam

SIZES = (64, 256, 1024)
GYMNASIUM_ENVS = 16
WELD_SIZES = (256, 1024)
SECONDS = 2.0
_SCRIPTS = 50  # different batches of random actions that are taken in turn

Run = Callable[[float], tuple[float, float]]


def measure(options: Options) -> Report:
    """Both environments; the ratios are of medians, a peer's sizes by its best one."""
    report = Report()
    sizes = SIZES[:1] if options.quick else SIZES
    cpus = available_cpus()
    unit = "env-steps/s"
    contenders = [
        *(Contender(name=f"ours/{n}", open=partial(_ours, n), settings={"num_envs": n}) for n in sizes),
        *(Contender(name=f"envpool/{n}", open=partial(_envpool, n), settings={"num_envs": n}) for n in sizes),
        Contender(name="gymnasium", open=_gymnasium, settings={"num_envs": GYMNASIUM_ENVS}),
        Contender(name="rollout", open=_rollout, settings={"num_envs": 256, "threads": cpus}),
        Contender(name="bare", open=partial(_bare, HalfCheetah), settings={"threads": cpus}),
    ]
    welds = WELD_SIZES[:1] if options.quick else WELD_SIZES
    weld = [
        *(
            Contender(name=f"weld_seam/{name}/{n}", open=partial(kind, n), settings={"num_envs": n})
            for name, kind in (("expert", _weld_expert), ("random", _weld_random))
            for n in welds
        ),
        Contender(name="weld_seam/bare", open=partial(_bare, WeldSeam), settings={"threads": cpus}),
    ]
    report.rows += alternate(contenders, options, seconds=SECONDS, unit=unit)
    report.rows += alternate(weld, options, seconds=SECONDS, unit=unit)
    ours = report.median(report.best([f"ours/{n}" for n in sizes]))
    peer = report.median(report.best([f"envpool/{n}" for n in sizes]))
    report.ratio("ours_over_envpool", ours, peer, at_least=1.3)
    report.ratio("ours_over_gymnasium", ours, report.median("gymnasium"), at_least=10.0)
    report.ratio("ours_over_bare", ours, report.median("bare"), at_least=0.95)
    report.ratio("ours_over_rollout", ours, report.median("rollout"))
    bare = report.median("weld_seam/bare")
    for name in ("expert", "random"):
        for n in welds:
            report.ratio(f"weld_seam_{name}_{n}_over_bare", report.median(f"weld_seam/{name}/{n}"), bare)
    # The bar is for the size that the recipe trains with; the larger one stands beside it.
    trained = report.median(f"weld_seam/expert/{WELD_SIZES[0]}")
    report.ratio("weld_seam_share_of_bare", trained, bare, at_least=0.6)
    report.notes += [
        "ours runs its simulations on all CPUs and torch on one thread",
        "bare is one Python thread per CPU with its own MjData and new controls before every step",
    ]
    return report


@contextlib.contextmanager
def _ours(num_envs: int) -> Iterator[Run]:
    env = TaskVectorEnv(HalfCheetah(), num_envs, backend="torch")
    env.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    actions = cycle([2.0 * torch.rand(num_envs, 6, generator=generator) - 1.0 for _ in range(_SCRIPTS)])

    def run(seconds: float) -> tuple[float, float]:
        with torch_threads(1):
            return timed(lambda: env.step(next(actions)), num_envs, seconds)

    yield run
    env.close()


@contextlib.contextmanager
def _envpool(num_envs: int) -> Iterator[Run]:
    import envpool

    env = envpool.make("HalfCheetah-v5", env_type="gymnasium", num_envs=num_envs, seed=0)
    env.reset()
    rng = np.random.default_rng(0)
    actions = cycle([rng.uniform(-1.0, 1.0, (num_envs, 6)) for _ in range(_SCRIPTS)])
    yield lambda seconds: timed(lambda: env.step(next(actions)), num_envs, seconds)
    env.close()


@contextlib.contextmanager
def _gymnasium() -> Iterator[Run]:
    import gymnasium

    env = gymnasium.make_vec("HalfCheetah-v5", num_envs=GYMNASIUM_ENVS, vectorization_mode="async")
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    actions = cycle([rng.uniform(-1.0, 1.0, (GYMNASIUM_ENVS, 6)).astype(np.float32) for _ in range(_SCRIPTS)])
    yield lambda seconds: timed(lambda: env.step(next(actions)), GYMNASIUM_ENVS, seconds)
    env.close()


@contextlib.contextmanager
def _rollout() -> Iterator[Run]:
    """Physics alone: 256 simulations, open loop, ten control steps a call."""
    task = HalfCheetah()
    task.attach(1)
    model, sims, steps = task.physics.model, 256, 10
    datas = [mujoco.MjData(model) for _ in range(available_cpus())]
    kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
    state = np.zeros((sims, mujoco.mj_stateSize(model, kind)))
    mujoco.mj_getState(model, datas[0], state[0], kind)
    state[:] = state[0]
    rng = np.random.default_rng(0)
    scripts = cycle(
        [
            np.repeat(rng.uniform(-1.0, 1.0, (sims, steps, model.nu)), task.substeps, axis=1)
            for _ in range(_SCRIPTS)
        ]
    )
    out = np.zeros((sims, steps * task.substeps, state.shape[1]))
    with mujoco.rollout.Rollout(nthread=len(datas)) as rollout:

        def step() -> None:
            rollout.rollout(model, datas, state, next(scripts), skip_checks=False, state=out)
            state[:] = out[:, -1]

        yield lambda seconds: timed(step, sims * steps, seconds)


@contextlib.contextmanager
def _bare(kind: type[HalfCheetah] | type[WeldSeam]) -> Iterator[Run]:
    """One Python thread per CPU; ``mj_step`` releases the interpreter's lock."""
    task = kind()
    task.attach(1)
    env = task.physics
    env.reset(torch.arange(1))
    task.reset(torch.arange(1))
    model, qpos, hold = env.model, env.qpos[0].numpy().copy(), env.ctrl[0].numpy().copy()
    spread = 1.0 if kind is HalfCheetah else 0.02
    substeps, max_steps = task.substeps, task.max_steps

    def work(seed: int, until: float, done: list[int]) -> None:
        data = mujoco.MjData(model)
        controls = hold + spread * np.random.default_rng(seed).uniform(-1.0, 1.0, (997, model.nu))
        count = 0
        while time.perf_counter() < until:
            if count % max_steps == 0:
                mujoco.mj_resetData(model, data)
                data.qpos[:] = qpos
            data.ctrl[:] = controls[count % 997]
            mujoco.mj_step(model, data, nstep=substeps)
            count += 1
        done.append(count)

    def run(seconds: float) -> tuple[float, float]:
        done: list[int] = []
        start = time.perf_counter()
        threads = [
            threading.Thread(target=work, args=(k, start + seconds, done)) for k in range(available_cpus())
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return sum(done), time.perf_counter() - start

    yield run


@contextlib.contextmanager
def _weld_expert(n: int) -> Iterator[Run]:
    """The expert's actions are recorded beforehand and replayed from the same state: they cost nothing."""
    env = TaskVectorEnv(WeldSeam(), n, backend="torch")
    scale = torch.from_numpy(env.action_scale)
    with torch_threads(1):
        env.reset(seed=0)
        start = env.get_state()
        actions = []
        for _ in range(2 * env.task.max_steps):
            actions.append(env.task.expert() / scale)
            env.step(actions[-1])

    def run(seconds: float) -> tuple[float, float]:
        work = took = 0.0
        with torch_threads(1):
            while took < seconds:
                env.set_state(start)
                more = _replay(env, actions, seconds - took)
                work, took = work + more[0] * n, took + more[1]
        return work, took

    yield run
    env.close()


def _replay(env: TaskVectorEnv, script: list[torch.Tensor], seconds: float) -> tuple[int, float]:
    """Step until the script or the time is at its end; steps and seconds."""
    count = 0
    start = now = time.perf_counter()
    for action in script:
        env.step(action)
        count += 1
        now = time.perf_counter()
        if now - start >= seconds:
            break
    return count, now - start


@contextlib.contextmanager
def _weld_random(n: int) -> Iterator[Run]:
    env = TaskVectorEnv(WeldSeam(), n, backend="torch")
    env.reset(seed=0)
    generator = torch.Generator().manual_seed(0)
    actions = cycle([2.0 * torch.rand(n, 6, generator=generator) - 1.0 for _ in range(_SCRIPTS)])

    def run(seconds: float) -> tuple[float, float]:
        with torch_threads(1):
            return timed(lambda: env.step(next(actions)), n, seconds)

    yield run
    env.close()
