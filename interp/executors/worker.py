"""A worker process: reads tasks from its standard input, and tells results on its standard output.

One JSON object a line. The first is the job; the answer says that the worker is ready. What
libraries print goes to the standard error.
"""

import json
import os
import sys
from typing import IO, Any

from interp.executors.tasks import Job, Work, answer


def main() -> None:
    """Serve until the input ends."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin, channel)


def serve(tasks: IO[str], results: IO[str]) -> None:
    """Get ready for the job of the first line, and run the task of each further one."""

    def tell(told: dict[str, Any]) -> None:
        results.write(json.dumps(told) + "\n")
        results.flush()

    job = Job(**json.loads(tasks.readline()))
    opened: list[Work] = []
    ready = answer(lambda: opened.append(job.open()))
    tell(ready)
    if not opened:
        return
    (work,) = opened
    for line in tasks:
        tell(answer(lambda line=line: work(json.loads(line))))


if __name__ == "__main__":
    main()
