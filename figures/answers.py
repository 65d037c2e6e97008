"""Raw answers of models before and after edits, read as text."""

from pathlib import Path

import pandas as pd

from interp.results.records import load_records
from interp.results.scores import ANSWER_COLUMNS, ANSWER_NUMBERS


def read_answers(path: Path) -> pd.DataFrame:
    """Every answer as text, numbers too: what does not apply is empty.

    Raises:
        DamagedError: The file does not hold what `dmle evaluate` wrote.
    """
    rows = load_records(path, "table of answers", ANSWER_COLUMNS, ANSWER_NUMBERS)
    # A model's answer may end within a character; tables of pandas hold whole ones.
    texts = [
        {_whole(name): "" if value is None else _whole(str(value)) for name, value in row.items()}
        for row in rows
    ]
    return pd.DataFrame(texts, columns=None if texts else list(ANSWER_COLUMNS))


def _whole(text: str) -> str:
    """A text without halves of character pairs."""
    return text.encode(errors="replace").decode()
