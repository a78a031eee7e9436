"""A fleet: watchers of one registry, robots that take a new version over, a swap beside a control loop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from benchmarks.fleet_agents import STEPS
from benchmarks.fleet_swap import figures, measure_swap
from benchmarks.harness import Options, Report, say
from benchmarks.machine import other_load
from benchmarks.registry_peers import ORG as AUTHOR
from benchmarks.registry_peers import make_skills
from benchmarks.registry_servers import served
from neuraverse.client import Client
from neuraverse.keys import KeyStore
from neuraverse.registry import Settings
from neuraverse.registry.service import opened
from neuraverse.registry.tenants import accounts, orgs, robots
from neuraverse.registry.tenants.access import Access

ORGS = 50
WATCHERS = 2000
PUBLISHES = 30
ROBOTS, AGENT_PROCESSES, ROLLS = 200, 4, 5


def measure(options: Options) -> Report:
    """All parts, in one run."""
    report = Report()
    watchers = 200 if options.quick else WATCHERS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, watchers + 500)), hard))
    with tempfile.TemporaryDirectory(prefix="neuraverse-fleet-") as name:
        folder = Path(name)
        keys = KeyStore(folder / "author")
        keys.new()
        tokens, owner = asyncio.run(_tenants(folder / "ours" / "data", watchers))
        say(f"{ORGS} organisations with {watchers} robots are made")
        with served("ours", folder / "ours", NEURAVERSE_REGISTRY_OPEN="false") as (url, pid):
            author = Client(url, home=keys.home, token=owner)
            _watchers(report, options, folder, url, pid, tokens, author)
            (folder / "public.pem").write_bytes(keys.public_key().pem)
            some = tokens[: 8 if options.quick else ROBOTS]
            for kind in ("stream", "poll"):
                _agents(report, options, folder, url, some, author, kind)
    rows = measure_swap(options.quick)
    report.rows += rows
    report.figures |= figures(rows)
    return report


async def _tenants(data: Path, count: int) -> tuple[list[str], str]:
    """Organisations and robots in a registry that is not served yet; the robots' tokens and an owner's."""
    data.mkdir(parents=True)
    async with opened(Settings.load(data=data), migrate=True) as registry:
        access = Access(registry.database, is_open=False)
        write = registry.database.write
        code = await write(accounts.first_operator)
        assert code is not None
        token = (await write(accounts.log_in, access.anonymous, code, "root"))["token"]

        def make(db: Any, caller: Any, org: int) -> list[str]:
            made = (
                robots.add_robot(db, caller, f"org-{org}", f"r{i}", ["read", "report"], 24.0)
                for i in range(org, count, ORGS)
            )
            return [each["token"] for each in made]

        found: list[str] = []
        await write(orgs.make_org, await access.caller(f"Bearer {token}"), AUTHOR, "public")
        for org in range(ORGS):
            await write(orgs.make_org, await access.caller(f"Bearer {token}"), f"org-{org}", "public")
            access.forget()
            found += await write(make, await access.caller(f"Bearer {token}"), org)
        return found, token


@contextlib.contextmanager
def _process(module: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process of clients, from the moment in which all have their place."""
    command = [sys.executable, "-m", module, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if process.stdout.readline() != "ready\n":
            raise RuntimeError(f"{module} could not begin")
        yield process
    finally:
        process.kill()
        process.wait()


def _last_word(process: subprocess.Popen[str]) -> str:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.close()
    return process.stdout.readline()


def _watchers(
    report: Report, options: Options, folder: Path, url: str, pid: int, tokens: list[str], author: Client
) -> None:
    """From a publish, as its author sends it, to the moment in which each watcher has its event."""
    count = 3 if options.quick else PUBLISHES
    names = [f"v-{i}" for i in range(count + 1)]
    make_skills(folder / "skills", names)
    author.publish(folder / "skills" / names[0])  # imports what a first publish imports
    file = folder / "tokens"
    file.write_text("\n".join(tokens))
    before = _rss(pid)
    parts = urlsplit(url)
    place = (str(parts.hostname), str(parts.port), str(file))
    with _process("benchmarks.fleet_watchers", *place) as process:
        time.sleep(2.0)
        report.figures["kb_per_watcher"] = round((_rss(pid) - before) / 1e3 / len(tokens), 1)
        sent: dict[str, tuple[float, float]] = {}
        used = _cpu_s(pid)
        with other_load() as busy:
            for name in names[1:]:
                begun = time.monotonic()
                author.publish(folder / "skills" / name)
                done = time.monotonic()
                time.sleep(0.5 if options.quick else 1.0)
                cursor = author.cursor()
                sent[cursor] = (begun, done)
        used = _cpu_s(pid) - used
        told = json.loads(_last_word(process))
    latencies, after_commit = [], []
    for cursor, (begun, done) in sent.items():
        if len(told.get(cursor, ())) != len(tokens):
            raise RuntimeError(f"{len(told.get(cursor, ()))} of {len(tokens)} watchers were told of {cursor}")
        latencies += [at - begun for at in told[cursor]]
        after_commit += [at - done for at in told[cursor]]
        report.rows.append(
            {
                "contender": "notified",
                "value": round(1e3 * float(np.percentile([at - begun for at in told[cursor]], 99)), 2),
                "unit": "ms (p99)",
                "publish_ms": round(1e3 * (done - begun), 2),
                "last_ms": round(1e3 * (max(told[cursor]) - begun), 2),
                "other_load": round(busy(), 2),
            }
        )
    report.figures["watchers"] = len(tokens)
    report.figures["cpu_us_per_notification"] = round(1e6 * used / count / len(tokens), 1)
    for share in (50, 99):
        report.figures[f"notified_p{share}_ms"] = round(1e3 * float(np.percentile(latencies, share)), 2)
        value = round(1e3 * float(np.percentile(after_commit, share)), 2)
        report.figures[f"notified_after_answer_p{share}_ms"] = value
    report.bars["notified_p99_ms"] = {"at_most": 200.0}
    report.bars["kb_per_watcher"] = {"at_most": 64.0}


def _agents(
    report: Report, options: Options, folder: Path, url: str, tokens: list[str], author: Client, kind: str
) -> None:
    """From a publish, as its author sends it, to the moment in which each robot runs the new version."""
    names = [f"{kind}-{i}" for i in range(2 if options.quick else ROLLS + 1)]
    make_skills(folder / "skills", names)
    author.publish(folder / "skills" / names[0])
    sent: dict[str, float] = {}
    with contextlib.ExitStack() as stack:
        processes = []
        for part in range(AGENT_PROCESSES):
            file = folder / f"tokens-{kind}-{part}"
            file.write_text("\n".join(tokens[part::AGENT_PROCESSES]))
            arguments = [url, str(folder), str(file), f"{AUTHOR}/{kind}", kind]
            processes.append(stack.enter_context(_process("benchmarks.fleet_agents", *arguments)))
        for name in names[1:]:
            time.sleep(2.0)  # all is quiet again
            begun = time.monotonic()
            sent[author.publish(folder / "skills" / name).digest] = begun
            time.sleep(6.0 if options.quick else 12.0)
        seen = [robot for process in processes for robot in json.loads(_last_word(process))]
    for digest, begun in sent.items():
        times = [robot[digest] for robot in seen if digest in robot]
        if len(times) < len(tokens):
            raise RuntimeError(f"{len(times)} of {len(tokens)} robots run {digest}")
        before = "sent"
        row: dict[str, Any] = {"contender": f"running_{kind}", "unit": "ms (p99)"}
        for step in STEPS:
            since = [each[step] - (begun if before == "sent" else each[before]) for each in times]
            row[f"{step}_p50_ms"], row[f"{step}_p99_ms"] = (
                round(1e3 * float(v), 1) for v in np.percentile(since, (50, 99))
            )
            before = step
        whole = [each["running"] - begun for each in times]
        row["value"] = round(1e3 * float(np.percentile(whole, 99)), 1)
        row["p50_ms"] = round(1e3 * float(np.percentile(whole, 50)), 1)
        report.rows.append(row)
    rows = [row for row in report.rows if row["contender"] == f"running_{kind}"]
    report.figures[f"robots_{kind}"] = len(tokens)
    report.figures[f"running_{kind}_p99_ms"] = max(row["value"] for row in rows)
    for step in STEPS:
        for share in ("p50", "p99"):
            column = f"{step}_{share}_ms"
            report.figures[f"{kind}_{column}"] = float(np.median([row[column] for row in rows]))
    if kind == "stream":
        report.bars["running_stream_p99_ms"] = {"at_most": 5000.0}


def _cpu_s(pid: int) -> float:
    """Seconds of a processor that a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _rss(pid: int) -> int:
    """Bytes of memory that a process holds."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
