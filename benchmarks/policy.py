"""Acting: one observation to one action of a WeldSeam policy in onnxruntime, against torch.

Both take named arrays and give named arrays in SI units; ours checks names, shapes and finiteness besides.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Options, Report, say, torch_threads
from neuraverse.learn import ActorCritic
from neuraverse.learn.export import to_onnx
from neuraverse.policy import Policy
from neuraverse_envs.weld_seam import WeldSeam

CALLS = 5000
HIDDEN = (64, 64)

Act = Callable[[Mapping[str, np.ndarray]], Mapping[str, np.ndarray]]


def measure(options: Options) -> Report:
    """Median and 99th percentile of the latency [µs], by round; the figures are medians over rounds."""
    report = Report()
    calls = 200 if options.quick else CALLS
    contenders, observations = _contenders()
    with torch_threads(1):
        for k in range(options.rounds):
            for name in list(contenders)[:: -1 if k % 2 else 1]:
                report.rows.append(_row(name, contenders[name], observations, calls, k))
                say(f"{name}: p50 {report.rows[-1]['p50_us']:.0f} µs, p99 {report.rows[-1]['p99_us']:.0f} µs")
    for name in contenders:
        for column in ("p50_us", "p99_us"):
            values = [row[column] for row in report.rows if row["contender"] == name]
            report.figures[f"{name}_{column}"] = round(statistics.median(values), 2)
    for column in ("p50", "p99"):
        # Less is better: theirs over ours.
        theirs, ours = (report.figures[f"{name}_{column}_us"] for name in ("torch", "onnx"))
        report.ratio(f"ours_over_torch_{column}", theirs, ours)
    report.bars["onnx_p99_us"] = {"at_most": 200.0}
    return report


def _contenders() -> tuple[dict[str, Act], list[dict[str, np.ndarray]]]:
    interface = WeldSeam().interface
    scale = np.concatenate([np.asarray(signal.high, np.float32) for signal in interface.action])
    policy = ActorCritic(
        interface.observation_size,
        interface.action_size,
        hidden=HIDDEN,
        generator=torch.Generator().manual_seed(0),
    )
    rng = np.random.default_rng(0)
    observations = [
        {s.name: rng.normal(0.0, 0.1, s.shape).astype(np.float32) for s in interface.observation}
        for _ in range(100)
    ]
    flat = [np.concatenate([values.ravel() for values in o.values()]) for o in observations]
    policy.freeze_normaliser(torch.from_numpy(np.stack(flat)))
    factor = torch.from_numpy(scale)

    @torch.no_grad()
    def in_torch(observation: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        row = np.concatenate([observation[s.name].ravel() for s in interface.observation])
        action = policy(torch.from_numpy(row)[None])[0] * factor
        parts = torch.split(action, [s.size for s in interface.action])
        return {
            s.name: part.numpy().reshape(s.shape) for s, part in zip(interface.action, parts, strict=True)
        }

    onnx = Policy.load(to_onnx(policy, interface, scale), interface)
    return {"onnx": onnx, "torch": in_torch}, observations


def _row(
    name: str, act: Act, observations: list[dict[str, np.ndarray]], calls: int, k: int
) -> dict[str, Any]:
    for i in range(calls // 10):
        act(observations[i % len(observations)])
    taken = np.empty(calls)
    for i in range(calls):
        start = time.perf_counter_ns()
        act(observations[i % len(observations)])
        taken[i] = (time.perf_counter_ns() - start) / 1e3
    p50, p99 = (round(float(v), 2) for v in np.percentile(taken, (50, 99)))
    return {"contender": name, "round": k, "value": p99, "unit": "µs (p99)", "p50_us": p50, "p99_us": p99}
