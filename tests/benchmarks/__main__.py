"""`make bench`: see `tests/benchmarks/tracing.py`."""

from tests.benchmarks.tracing import main

if __name__ == "__main__":  # child processes import this module again
    main()
