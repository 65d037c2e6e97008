"""Tasks in worker processes of this machine (`interp.executors.worker`).

A thread of this process waits for each worker. When a worker dies, its task goes to another one, a
new worker takes its place, and no other task is touched.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from queue import Queue
from tempfile import TemporaryFile
from threading import Lock, Thread
from typing import Any

from interp.executors.tasks import ATTEMPTS, Job, Outcome, result_of
from interp.executors.threads import environment, threads_each

LAST_WORDS = 2000
"""Bytes of a dead worker's standard error that are told."""


class WorkerDiedError(Exception):
    """A worker process ended while it was at something."""


class Processes:
    """Worker processes of this machine."""

    def __init__(self, workers: int) -> None:
        """Nothing is started yet.

        Args:
            workers: How many (see `interp.executors.threads.room`).
        """
        self.workers = workers

    def run(self, job: Job, tasks: Sequence[str]) -> Iterator[Outcome]:
        """See `interp.executors.tasks.Executor`. The workers end with the last task, with an
        error, and with Ctrl-C.
        """
        pool = _Pool(job, tasks, self.workers)
        try:
            yield from pool.outcomes()
        finally:
            pool.stop()


class _Worker:
    """One worker process."""

    def __init__(self, job: Job, threads: int) -> None:
        self.errors = TemporaryFile()  # noqa: SIM115 (open as long as the worker is)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "interp.executors.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            env=environment(threads),
            # Ctrl-C is for this process, which ends its workers.
            start_new_session=True,
            text=True,
            encoding="utf-8",
        )
        self.job, self.is_ready = job, False

    def ask(self, task: str) -> Any:
        """The result of a task; the worker gets ready before the first.

        Raises:
            WorkerDiedError: The process ended.
            DmleError, TaskError: See `result_of`.
        """
        if not self.is_ready:
            result_of(self._exchange(asdict(self.job)))
            self.is_ready = True
        return result_of(self._exchange(task))

    def _exchange(self, line: Any) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(line) + "\n")
            self.process.stdin.flush()
            told = self.process.stdout.readline()
        except BrokenPipeError:
            told = ""
        if not told.endswith("\n"):
            raise WorkerDiedError(self._last_words())
        return json.loads(told)

    def _last_words(self) -> str:
        code = self.process.wait()
        self.errors.seek(0, 2)
        self.errors.seek(max(0, self.errors.tell() - LAST_WORDS))
        lines = self.errors.read().decode(errors="replace").strip().splitlines()
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        return f"{how}: {lines[-1]}" if lines else how

    def stop(self) -> None:
        """End the process, whatever it is at."""
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                # What was written last is of no use to anybody.
                with suppress(BrokenPipeError):
                    stream.close()


class _Pool:
    """Tasks that wait, and what became of those that are done."""

    def __init__(self, job: Job, tasks: Sequence[str], workers: int) -> None:
        self.job, self.workers, self.n_tasks = job, workers, len(tasks)
        self.waiting: Queue[str | None] = Queue()
        self.done: Queue[Outcome | BaseException] = Queue()
        self.deaths: Counter[str] = Counter()
        self.alive: set[_Worker] = set()
        self.turn, self.is_over = Lock(), False
        for task in tasks:
            self.waiting.put(task)

    def outcomes(self) -> Iterator[Outcome]:
        """Start workers, and give every outcome as it comes."""
        for _ in range(self.workers):
            Thread(target=self._serve, daemon=True).start()
        for _ in range(self.n_tasks):
            outcome = self.done.get()
            if isinstance(outcome, BaseException):
                raise outcome
            yield outcome

    def stop(self) -> None:
        """End all workers."""
        with self.turn:
            self.is_over = True
            for worker in self.alive:
                worker.process.kill()
        for _ in range(self.workers):
            self.waiting.put(None)

    def _serve(self) -> None:
        """Hand tasks to one worker after the other until there are none."""
        worker: _Worker | None = None
        try:
            while (task := self.waiting.get()) is not None and not self.is_over:
                worker = worker or self._started()
                try:
                    self.done.put(Outcome(task, worker.ask(task)))
                except WorkerDiedError as death:
                    self._ended(worker)
                    worker = None
                    self._again(task, str(death))
        except BaseException as error:  # raised where the outcomes are read
            self.done.put(error)
        finally:
            if worker is not None:
                self._ended(worker)

    def _again(self, task: str, death: str) -> None:
        self.deaths[task] += 1
        if self.deaths[task] < ATTEMPTS:
            self.waiting.put(task)
        else:
            failure = f"{ATTEMPTS} workers died at it; the last one: {death}"
            self.done.put(Outcome(task, failure=failure))

    def _started(self) -> _Worker:
        with self.turn:
            worker = _Worker(self.job, threads_each(self.workers))
            self.alive.add(worker)
        return worker

    def _ended(self, worker: _Worker) -> None:
        with self.turn:
            self.alive.discard(worker)
        worker.stop()
