"""Hush the Hugging Face loaders' progress bars and notices; what matters is raised."""

import logging

from transformers import logging as transformers_logging


class quiet:
    """A `with` block without them; the levels of before come back on leaving it."""

    def __enter__(self) -> None:
        self.level, self.bar = (
            transformers_logging.get_verbosity(),
            transformers_logging.is_progress_bar_enabled(),
        )
        # Above errors: some notices of that level are a whole configuration.
        transformers_logging.set_verbosity(logging.CRITICAL)
        transformers_logging.disable_progress_bar()

    def __exit__(self, *exception: object) -> None:
        transformers_logging.set_verbosity(self.level)
        if self.bar:
            transformers_logging.enable_progress_bar()
