"""Tasks on a Ray cluster: one that is there, or one of this machine alone.

An actor is a worker: it gets ready once, and runs one task after the other. When an actor dies, or
the node it is on, its task goes to another one. Files go to the run folder, so that a cluster of
several machines needs one that all of them see.
"""

import logging
import socket
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

from interp.errors import InputError
from interp.executors.tasks import ATTEMPTS, Job, Outcome, Work, answer, result_of
from interp.executors.threads import environment, threads_each

REACH_SECONDS = 10
INSTALL = "the executor ray needs the package ray: pip install 'dmle[ray]'"


class RayCluster:
    """Actors on a Ray cluster."""

    def __init__(self, workers: int, address: str | None = None) -> None:
        """Nothing is started yet.

        Args:
            workers: How many actors.
            address: Of a cluster that runs, such as "auto" or "10.0.0.1:6379". None: one of this
                machine is started, and ended with the last task.

        Raises:
            InputError: Ray is not installed.
        """
        try:
            import ray
        except ImportError as error:
            raise InputError(INSTALL) from error
        self.ray, self.workers, self.address = ray, workers, address
        self.threads = threads_each(workers) if address is None else 1

    def run(self, job: Job, tasks: Sequence[str]) -> Iterator[Outcome]:
        """See `interp.executors.tasks.Executor`.

        Raises:
            InputError: There is no cluster at the address.
        """
        self._connect()
        try:
            yield from _Actors(self.ray, job, self.workers, self.threads).outcomes(tasks)
        finally:
            self.ray.shutdown()

    def _connect(self) -> None:
        options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if self.address is None:
            options |= {"num_cpus": self.workers * self.threads, "include_dashboard": False}
        try:
            if self.address is not None:
                _reach(self.address)
            self.ray.init(address=self.address, **options)
        except (OSError, ValueError, RuntimeError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise InputError(
                f"no Ray cluster can be used at {self.address or 'this machine'}: {reason}. Start"
                " one with `ray start --head`, and give its address with --ray-address"
            ) from error


def _reach(address: str) -> None:
    """See that something listens at an address host:port: Ray would wait for it for minutes.

    Raises:
        OSError: Nothing does.
    """
    host, _, port = address.rpartition(":")
    if host and port.isdigit() and "/" not in host:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()


class _Actors:
    """Actors, each at one task."""

    def __init__(self, ray: Any, job: Job, workers: int, threads: int) -> None:
        variables = {
            name: value for name, value in environment(threads).items() if name.endswith("THREADS")
        }
        # A task whose actor died is given to another one here; Ray itself repeats nothing.
        self.kind = ray.remote(_Actor).options(
            num_cpus=threads, max_restarts=0, runtime_env={"env_vars": variables}
        )
        self.ray, self.job, self.workers = ray, asdict(job), workers
        self.deaths: Counter[str] = Counter()

    def outcomes(self, tasks: Sequence[str]) -> Iterator[Outcome]:
        """Give every outcome as it comes."""
        waiting, running = list(reversed(tasks)), dict[Any, tuple[Any, str]]()
        idle: list[Any] = []
        while waiting or running:
            while waiting and len(running) < self.workers:
                actor = idle.pop() if idle else self.kind.remote(self.job)
                task = waiting.pop()
                running[actor.run.remote(task)] = actor, task
            (first,), _ = self.ray.wait(list(running))
            actor, task = running.pop(first)
            try:
                told = self.ray.get(first)
            except self.ray.exceptions.RayActorError as death:
                outcome = self._again(task, death, waiting)
                if outcome is not None:
                    yield outcome
                continue
            if waiting:
                idle.append(actor)
            else:
                # Where nodes have left, another actor may wait for its place.
                self.ray.kill(actor)
            yield Outcome(task, result_of(told))

    def _again(self, task: str, death: Exception, waiting: list[str]) -> Outcome | None:
        """Let the task wait for another actor; its outcome, if too many have died at it."""
        self.deaths[task] += 1
        if self.deaths[task] < ATTEMPTS:
            waiting.insert(0, task)
            return None
        reason = (str(death).splitlines() or [type(death).__name__])[0]
        return Outcome(task, failure=f"{ATTEMPTS} workers died at it; the last one: {reason}")


class _Actor:
    """What runs on a node."""

    def __init__(self, job: dict[str, Any]) -> None:
        self.opened: list[Work] = []
        self.ready = answer(lambda: self.opened.append(Job(**job).open()))

    def run(self, task: str) -> dict[str, Any]:
        """The result of a task, or the error, as JSON."""
        if not self.opened:
            return self.ready
        return answer(lambda: self.opened[0](task))
