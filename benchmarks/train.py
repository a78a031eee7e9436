"""Learning: PPO steps per second, learning included, on HalfCheetah-v5; or wall time to a return of 3,000.

Same networks, rollout and epochs for all (see `peers`). Each learner runs with one torch thread and with one
per CPU, and its better one counts. With ``--to-return``, ours and stable-baselines3 learn from scratch with
three seeds each, until the mean return of 16 episodes of the *deterministic* policy is 3,000, for ten
minutes at most; the same environments, the same seeds and the same clock, which stands still while
a policy is scored, serve both.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from benchmarks.half_cheetah import HalfCheetah
from benchmarks.harness import Contender, Options, Report, alternate, say, torch_threads
from benchmarks.peers import Learner, Ours, RslRl, StableBaselines3, opened
from neuraverse.learn import evaluate
from neuraverse.sim.physics import available_cpus
from neuraverse.sim.vector_env import TaskVectorEnv

PEERS: dict[str, Callable[[int], Any]] = {
    "ours": Ours,
    "stable_baselines3": StableBaselines3,
    "rsl_rl": RslRl,
}
SECONDS = 6.0
RETURN, SEEDS, BOUND_S = 3000.0, (0, 1, 2), 600.0
EPISODES, EVALUATION_SEED = 16, 2_000_000_000

Run = Callable[[float], tuple[float, float]]


def measure(options: Options) -> Report:
    """Steps per second, or the wall times."""
    return _to_return(options) if options.extra.get("to_return") else _throughput(options)


def _throughput(options: Options) -> Report:
    report = Report()
    threads = sorted({1, available_cpus()})
    contenders = [
        Contender(name=f"{name}/{n}", open=partial(_running, kind, n), settings={"torch_threads": n})
        for name, kind in PEERS.items()
        for n in threads
    ]
    report.rows += alternate(contenders, options, seconds=SECONDS, unit="env-steps/s", warm_up_s=SECONDS / 2)
    best = {name: report.median(report.best([f"{name}/{n}" for n in threads])) for name in PEERS}
    report.ratio("ours_over_stable_baselines3", best["ours"], best["stable_baselines3"], at_least=7.0)
    report.ratio("ours_over_rsl_rl", best["ours"], best["rsl_rl"], at_least=2.5)
    report.notes.append(
        "a name ends with its torch threads; the ratios take each learner's better number of them"
    )
    return report


@contextlib.contextmanager
def _running(kind: Callable[[int], Any], threads: int) -> Iterator[Run]:
    with opened(kind, 0) as learner:

        def run(seconds: float) -> tuple[float, float]:
            first = learner.steps
            start = now = time.perf_counter()
            with torch_threads(threads):
                while now - start < seconds:
                    learner.iterate()
                    now = time.perf_counter()
            return learner.steps - first, now - start

        yield run


def _to_return(options: Options) -> Report:
    report = Report()
    seeds, bound_s = (SEEDS[:1], 3.0) if options.quick else (SEEDS, BOUND_S)
    for seed in seeds:
        for name in ("ours", "stable_baselines3"):
            report.rows.append(_race(name, seed, bound_s))
    ours, peer = report.median("ours"), report.median("stable_baselines3")
    # Faster is better: theirs over ours. A run that was cut counts with the bound, which flatters the peer.
    report.ratio("ours_over_stable_baselines3_to_return", peer, ours, at_least=8.0)
    for name in ("ours", "stable_baselines3"):
        rows = [row for row in report.rows if row["contender"] == name]
        report.figures[f"{name}_reached"] = sum(row["reached"] for row in rows) / len(rows)
    report.notes.append(
        f"a run that does not reach {RETURN:,.0f} within {bound_s:.0f} s counts as {bound_s:.0f} s"
    )
    return report


def _race(name: str, seed: int, bound_s: float) -> dict[str, Any]:
    """One row: seconds of learning until the return is reached, and the way there."""
    scale = TaskVectorEnv(HalfCheetah(), EPISODES, backend="torch")
    curve: list[dict[str, float]] = []
    clock_s, next_s, reached = 0.0, 0.0, False
    with opened(PEERS[name], seed) as learner, torch_threads(1):
        while clock_s < bound_s and not reached:
            start = time.perf_counter()
            learner.iterate()
            clock_s += time.perf_counter() - start
            if clock_s >= next_s:
                next_s = 1.03 * clock_s + 1.0  # how often one looks costs neither any time
                reached = _score(name, seed, clock_s, learner, scale, curve) >= RETURN
    scale.close()
    return {
        "contender": name,
        "seed": seed,
        "value": round(min(clock_s, bound_s), 3),
        "unit": "s",
        "reached": reached,
        "env_steps": learner.steps,
        "curve": curve,
    }


def _score(
    name: str,
    seed: int,
    clock_s: float,
    learner: Learner,
    scale: TaskVectorEnv,
    curve: list[dict[str, float]],
) -> float:
    found = evaluate(learner.policy(), scale, episodes=EPISODES, seed_first=EVALUATION_SEED).mean_return
    curve.append({"seconds": round(clock_s, 2), "env_steps": learner.steps, "return": round(found, 1)})
    say(f"{name}, seed {seed}: {clock_s:.0f} s, {learner.steps:,} steps, mean return {found:,.0f}")
    return found
