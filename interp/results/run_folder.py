"""A run folder: what was computed, with which configuration.

``run.yaml`` (settings, versions) · ``rules.json`` · ``traces/`` · ``effects.nc`` · ``profile.nc`` ·
``selection.json`` · ``covariance/`` · ``deltas/<editor>/`` · ``scores.nc`` · ``answers.csv`` ·
``figures/`` · ``tables/``. Each step reads what earlier steps left and says which command makes a
missing file.

``run.yaml`` says what made the results beside it: a step's settings are kept in it when the step
has ended well. While a first step works they stand there too, so that a stopped one goes on with
them.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from interp.errors import DamagedError, DmleError
from interp.results.checksums import read_marked, write_marked
from interp.results.files import partial_path, sweep, write_bytes
from interp.results.paths import check_links
from interp.results.printing import command as command_line
from interp.settings.plain_yaml import YamlError, load_yaml

RESULTS = (
    "effects.nc",
    "faithfulness.nc",
    "profile.nc",
    "evidence.nc",
    "sweep.nc",
    "scores.nc",
    "sequence.nc",
    "tuning.nc",
)
"""What no step leaves without settings beside it."""
_MEND = (
    "if somebody changed it by hand, delete its first line; else put back a copy, or delete it and"
    " give --overwrite and the settings by --config and --set"
)


class RunError(DmleError):
    """A run folder cannot be used, or lacks what a step needs."""


class RunLock:
    """A lock that a process holds while it writes results of a run; one that has died holds none.

    The process may enter it again. Whoever finds it taken waits.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = FileLock(path)
        self.tell: Callable[[str], object] = lambda line: None
        """Called with what to say before waiting."""

    def __enter__(self) -> "RunLock":
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(blocking=False)
        except Timeout:
            self.tell(
                f"waiting for another process that works in {self._path.parent.parent}; Ctrl-C"
                " stops waiting"
            )
            self._lock.acquire()
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run."""

    path: Path

    def create(self) -> None:
        """Make the folder and see that it can be written, and that nothing in it leads out of it.

        Raises:
            RunError: It cannot, or a link in it leads what is written there to another place.
        """
        try:
            check_links(self.path)
        except DmleError as error:
            raise RunError(str(error)) from error
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = partial_path(self.path / "write-test")  # swept up if this process is killed
            probe.touch(exist_ok=False)
            sweep(self.path, probe)
            probe.unlink()
        except OSError as error:
            raise RunError(
                f"cannot write to the run folder {self.path}: {error.strerror or error}; give"
                " another with --run"
            ) from error

    def need(self, name: str, command: str, *options: str) -> Path:
        """Path of a file that an earlier step writes; `options` are those of its command.

        Raises:
            RunError: It is not there; names the command that makes it.
        """
        path = self.path / name
        if not path.exists():
            raise RunError(
                f"{path} is missing; run"
                f" `{command_line('dmle', command, '--run', self.path, *options)}` first"
            )
        return path

    def lock(self) -> RunLock:
        """The lock of the run's results."""
        return RunLock(self.path / "locks" / "run.lock")

    @property
    def known(self) -> bool:
        """Whether it is known what made the results that are there; also if there are none."""
        return bool(self._content()) or not any((self.path / name).is_file() for name in RESULTS)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run so far, by section; empty for a new run.

        Raises:
            RunError: The file is damaged, or results are there without it.
        """
        path = self.path / "run.yaml"
        content = self._content()
        if not self.known:
            results = [name for name in RESULTS if (self.path / name).is_file()]
            gone = "is empty" if path.is_file() else "is missing"
            raise RunError(
                f"{path} {gone}, so that nobody knows the settings of this run"
                f" ({', '.join(results)} are there); put it back, or go on with --overwrite and the"
                " settings of this command"
            )
        settings = content.get("settings") or {}
        if not isinstance(settings, dict):
            raise RunError(f"{path} is damaged (a mapping of settings is needed); {_MEND}")
        return settings

    @contextmanager
    def making(
        self,
        step: str,
        settled: Collection[str],
        settings: Mapping[str, Any],
        resolved: Mapping[str, Any],
        provenance: Mapping[str, Any],
        lock: RunLock,
    ) -> Iterator[None]:
        """Keep `run.yaml` true to the results beside it while a step works in the `with` block.

        Sections that no result was made with are written at once, so that a stopped step goes on
        with them, those of `settled` when the block has ended well. An error in the block leaves
        the file as it was.

        Args:
            step: The step.
            settled: Sections that its results are made with.
            settings: Settings that were given, by section.
            resolved: All settings in force, by section, with their defaults.
            provenance: What runs them.
            lock: The run's lock; held while the file is read and written.
        """
        path = self.path / "run.yaml"
        with lock:
            before = path.read_bytes() if path.is_file() else None
            content = self._content()
            known = _names(content, "settled")
            new, newly_given = set(resolved) - known, set(settings) - known
            written = self._update(content, newly_given, new, settings, resolved, provenance)
        try:
            yield
        except Exception:
            with lock:
                # Another process may have ended its step since.
                if path.is_file() and path.read_bytes() == written:
                    _restore(path, before)
            raise
        with lock:
            content = self._content()  # another process may have settled more
            known |= _names(content, "settled")
            content["settled"] = sorted(known | set(settled))
            content["steps"] = sorted(_names(content, "steps") | {step})
            new = set(settled) | (set(resolved) - known)
            self._update(content, new, new, settings, resolved, provenance)

    def _update(
        self,
        content: dict[str, Any],
        given: Collection[str],
        names: Collection[str],
        settings: Mapping[str, Any],
        resolved: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> bytes:
        """Write the file; its content as it is now on the disk."""
        kept = _renewed(content.get("settings"), settings, given)
        whole = _renewed(content.get("resolved"), resolved, names)
        # In one order, however often steps were stopped and begun again.
        order = [*resolved, *sorted({*kept, *whole} - set(resolved))]
        parts = {
            "settings": {name: kept[name] for name in order if name in kept},
            "resolved": {name: whole[name] for name in order if name in whole},
            "settled": sorted(_names(content, "settled")),
            "steps": sorted(_names(content, "steps")),
            "provenance": dict(provenance),
        }
        text = yaml.safe_dump(parts, sort_keys=False, allow_unicode=True)
        write_marked(self.path / "run.yaml", text)
        return (self.path / "run.yaml").read_bytes()

    def _content(self) -> dict[str, Any]:
        path = self.path / "run.yaml"
        # An empty file says nothing of the results beside it, as one that is missing.
        if not path.exists() or (path.is_file() and not path.stat().st_size):
            return {}
        try:
            content = load_yaml(read_marked(path, "record of settings", _MEND)) or {}
        except DamagedError as error:
            raise RunError(str(error)) from error
        except (OSError, YamlError) as error:
            raise RunError(f"{path} is damaged ({error}); {_MEND}") from error
        if not isinstance(content, dict):
            raise RunError(f"{path} is damaged (a mapping of settings is needed); {_MEND}")
        return content


def _renewed(
    old: Mapping[str, Any] | None, new: Mapping[str, Any], names: Collection[str]
) -> dict[str, Any]:
    """Sections as they were, those of some names as they are now."""
    kept = {name: values for name, values in (old or {}).items() if name not in names}
    return kept | {name: new[name] for name in new if name in names}


def _restore(path: Path, before: bytes | None) -> None:
    if before is None:
        path.unlink(missing_ok=True)
    else:
        write_bytes(path, before)


def _names(content: Mapping[str, Any], key: str) -> set[str]:
    """A list of names in `run.yaml`, whatever somebody has made of it."""
    names = content.get(key)
    return {str(name) for name in names} if isinstance(names, list) else set()
