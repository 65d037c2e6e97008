"""One tree of errors: what is wrong outside this code, told in one line, with the way to mend it.

Only these become a line of a command or a counted skip. Any other exception is a fault of the code.
They are `ValueError`s, as Python calls a wrong input.
"""


class DmleError(ValueError):
    """Something that the user gave, or that lies on the disk, cannot be used; says what and how
    to mend it.
    """


class InputError(DmleError):
    """An argument, a setting or a dataset is not what is needed; the message says what was got."""


class NotTraceableError(DmleError):
    """A prompt has nothing to corrupt, nothing to score, or no counterfactual prompt that aligns
    with it.
    """


class ModelError(DmleError):
    """A model cannot be loaded or used; the message says what was found and how to mend it."""


class TooLongError(DmleError):
    """A text takes more tokens than the model has positions."""


class StaleError(DmleError):
    """A file was made with other settings, rules, model or version than the ones in force now."""


class DamagedError(DmleError):
    """A file does not hold what was written: cut short, changed, or of another kind."""


class NotFiniteError(DmleError):
    """A number that should be finite is NaN or infinite; names the likely cause."""


class MissingFileError(DmleError, FileNotFoundError):
    """A file is not there; says which command makes it."""


class WriteError(DmleError, OSError):
    """A file cannot be written; names it, the cause (a full disk, permissions, a folder in the
    way) and what to do.
    """
