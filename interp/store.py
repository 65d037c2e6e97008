"""A run folder: what was computed, with which configuration.

``run.yaml`` (settings, versions) · ``rules.json`` · ``traces/`` · ``effects.nc`` · ``profile.nc`` ·
``selection.json`` · ``covariance/`` · ``deltas/<editor>/`` · ``scores.nc`` · ``answers.csv`` · ``figures/`` ·
``tables/``. Each step reads what earlier steps left and says which command makes a missing file.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from interp.errors import DmleError
from interp.files import write_text
from interp.plain_yaml import YamlError, read_yaml_file
from interp.printing import command as command_line


class RunError(DmleError):
    """A run folder cannot be used, or lacks what a step needs."""


@dataclass(frozen=True)
class RunFolder:
    """Paths inside one run."""

    path: Path

    def create(self) -> None:
        """Make the folder and see that it can be written.

        Raises:
            RunError: It cannot.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe = self.path / f".write-test-{os.getpid()}"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise RunError(
                f"cannot write to the run folder {self.path}: {error.strerror or error}; give another with --run"
            ) from error

    def need(self, name: str, command: str) -> Path:
        """Path of a file that an earlier step writes.

        Raises:
            RunError: It is not there; names the command that makes it.
        """
        path = self.path / name
        if not path.exists():
            raise RunError(f"{path} is missing; run `{command_line('dmle', command, '--run', self.path)}` first")
        return path

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of the run so far, by section; empty for a new run.

        Raises:
            RunError: The file is damaged.
        """
        path = self.path / "run.yaml"
        if not path.is_file():
            return {}
        try:
            content = read_yaml_file(path) or {}
        except (OSError, YamlError) as error:
            raise RunError(f"{path} is damaged ({error}); mend or delete it") from error
        settings = content.get("settings", {}) if isinstance(content, dict) else content
        if not isinstance(settings, dict):
            raise RunError(f"{path} is damaged (a mapping of settings is needed); mend or delete it")
        return settings

    def write_settings(self, settings: dict[str, Any], resolved: dict[str, Any], provenance: dict[str, Any]) -> None:
        """Record the settings that were given, all settings in force with their defaults, and what ran them."""
        parts = {"settings": settings, "resolved": resolved, "provenance": provenance}
        content = yaml.safe_dump(parts, sort_keys=False, allow_unicode=True)
        write_text(self.path / "run.yaml", content)
