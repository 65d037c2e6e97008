"""Tasks one after the other, in this process."""

from collections.abc import Iterator, Sequence

from interp.executors.tasks import Job, Outcome


class Serial:
    """The executor that needs nothing."""

    def run(self, job: Job, tasks: Sequence[str]) -> Iterator[Outcome]:
        """See `interp.executors.tasks.Executor`; errors are raised as they are."""
        work = job.open()
        for task in tasks:
            yield Outcome(task, work(task))
