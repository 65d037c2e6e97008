"""Statistics of keys that are measured when they are first needed.

What was measured is kept in a folder, by default in the user's cache, under a hash of everything
that it depends on: the next process, and the next edit, read it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from tqdm import tqdm

from editing.closed_form.covariance import Covariances, described, measure
from editing.config import CovarianceConfig
from interp.models.loading import LanguageModel
from interp.results.cache import cache_dir

FOLDER = "statistics"
LOCK = "measuring.lock"


class Statistics:
    """Second moments of keys of one model, by block."""

    def __init__(
        self,
        model: LanguageModel,
        config: CovarianceConfig | None = None,
        folder: Path | None = None,
        *,
        progress: bool | None = None,
    ) -> None:
        """Nothing is measured yet.

        Args:
            model: The model, unedited whenever something has to be measured.
            config: Corpus and size.
            folder: Where they are kept; None: in the user's cache.
            progress: Show a progress bar while measuring; None: if somebody is at a terminal.
        """
        self.model = model
        self.config = config or CovarianceConfig()
        self.folder = folder or cache_dir() / FOLDER
        self.progress = progress
        self._measured: Covariances | None = None

    @property
    def origin(self) -> dict[str, Any]:
        """What they are measured on: the same for any choice of blocks; nothing is measured."""
        return described(self.model, self.config)

    def need(self, layers: Sequence[int]) -> Covariances:
        """The statistics of (at least) some blocks; what is not there is measured in one pass.

        Raises:
            As `editing.closed_form.covariance.measure`.
        """
        measured = self._measured
        missing = [layer for layer in layers if measured is None or layer not in measured.by_layer]
        if missing:
            more = self._measure(missing)
            self._measured = more if measured is None else measured.joined(more)
        assert self._measured is not None
        return self._measured

    def _measure(self, layers: Sequence[int]) -> Covariances:
        self.folder.mkdir(parents=True, exist_ok=True)
        bar = tqdm(
            total=self.config.tokens + self.config.output_tokens,
            desc="statistics of keys",
            unit="token",
            disable=None if self.progress is None else not self.progress,
            delay=0.5,  # none where everything is read
        )
        # One process at a time: the next one reads what this one measures.
        with FileLock(self.folder / LOCK), bar:
            return measure(self.model, layers, self.config, self.folder, advance=bar.update)
