"""Running jobs in workers: start them, pass on their progress, replace those that die, end them all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import ray
from ray.exceptions import ActorUnschedulableError, RayError, RayTaskError

from neuraverse.errors import ConfigError, TrainingError
from neuraverse.fleet.cluster import Resources, cause_of
from neuraverse.fleet.workers import News, Where, Worker

if TYPE_CHECKING:
    from neuraverse.learn.progress import Progress

log = logging.getLogger("neuraverse.fleet")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One call of one worker, which may be made again if the worker dies.

    Attributes:
        name: What it is called in progress and errors.
        method: Method of `Worker`.
        arguments: Its keyword arguments.
        resources: What the worker occupies.
    """

    name: str
    method: str
    arguments: Mapping[str, Any] = field(repr=False)
    resources: Resources = field(default_factory=Resources)


def run(
    jobs: Sequence[Job],
    *,
    on_progress: Callable[[str, Progress], object] | None = None,
    on_worker: Callable[[str, Where], object] | None = None,
    max_restarts: int = 3,
) -> list[Any]:
    """Run jobs side by side, each in a worker of its own, and wait for all.

    A worker that dies is replaced. A training run then goes on from its last checkpoint, so `on_progress` may
    see again what it saw before, with the same numbers. However this call ends, by Ctrl-C too, no worker of
    it is left; checkpoints are.

    Args:
        jobs: What to do; the names must differ.
        on_progress: Called with a job's name and its progress; ``False`` from it ends that job's training.
        on_worker: Called with a job's name and where its worker runs, once it does; again if it is replaced.
        max_restarts: How many workers of one job may die.

    Returns:
        What each job returned, in the order of `jobs`.

    Raises:
        ConfigError: No node has the resources that a job asks for.
        TrainingError: Workers of a job died more often than allowed.
        NeuraverseError: What a job raised.
    """
    if len({job.name for job in jobs}) < len(jobs):
        raise ConfigError(f"two jobs have the same name: {', '.join(job.name for job in jobs)}")
    for job in jobs:
        job.resources.check()
    runs: list[_Run] = []
    try:
        for job in jobs:
            runs.append(_Run(job, on_progress, on_worker, max_restarts))  # noqa: PERF401 - each is ended below
        waiting = list(runs)
        while waiting:
            refs = {ref: each for each in waiting for ref in each.refs}
            ready, _ = ray.wait(list(refs), num_returns=1)
            each = refs[ready[0]]
            if each.advance(ready[0]):
                waiting.remove(each)
                each.end()
        return [each.result for each in runs]
    finally:
        for each in runs:
            each.end()


class _Run:
    """A job and the worker that does it now."""

    def __init__(
        self,
        job: Job,
        on_progress: Callable[[str, Progress], object] | None,
        on_worker: Callable[[str, Where], object] | None,
        max_restarts: int,
    ) -> None:
        self.job = job
        self.result: Any = None
        self._on_progress = on_progress
        self._on_worker = on_worker
        self._restarts_left = max_restarts
        self._max_restarts = max_restarts
        self._start()

    @property
    def refs(self) -> tuple[Any, Any]:
        """What to wait for: news, and the result."""
        return self._news, self._result

    def _start(self) -> None:
        options = self.job.resources.options()
        actor = ray.remote(Worker).options(max_concurrency=4, max_restarts=0, **options)
        self._worker: Any = actor.remote(self.job.resources.threads)
        self._seen = 0
        self._greeted = False
        self._result = getattr(self._worker, self.job.method).remote(**self.job.arguments)
        self._news = self._worker.poll.remote(0)

    def advance(self, ref: Any) -> bool:
        """Take in what is ready at `ref`; whether the job is done."""
        try:
            if ref == self._news:
                self._tell(ray.get(ref))
                self._news = self._worker.poll.remote(self._seen)
                return False
            self.result = ray.get(ref)
            self._tell(ray.get(self._news))
        except RayTaskError as error:
            raise cause_of(error) from None
        except ActorUnschedulableError as error:
            raise ConfigError(f"{self.job.name} cannot be placed: {error}") from error
        except RayError as error:
            if ref == self._result and self.result is not None:
                return True  # it died after its work was done
            self._replace(error)
            return False
        return True

    def _tell(self, news: News) -> None:
        if not self._greeted:
            self._greeted = True
            log.info("%s runs on %s, process %d", self.job.name, news.where.host, news.where.pid)
            if self._on_worker is not None:
                self._on_worker(self.job.name, news.where)
        self._seen += len(news.progress)
        for progress in news.progress:
            if self._on_progress is not None and self._on_progress(self.job.name, progress) is False:
                self._worker.stop.remote()

    def _replace(self, error: RayError) -> None:
        self.end()  # one that is only out of reach must not go on beside its successor
        reason = str(error).strip().partition("\n")[0]
        if self._restarts_left == 0:
            raise TrainingError(
                f"the worker of {self.job.name} died {self._max_restarts + 1} times, at last: {reason}",
                remedy="its checkpoints are kept; look at memory and at Ray's logs, then run it again",
            ) from error
        self._restarts_left -= 1
        log.warning("the worker of %s died (%s); another goes on", self.job.name, reason)
        self._start()

    def end(self) -> None:
        """Kill the worker, whether it lives or not."""
        ray.kill(self._worker)
