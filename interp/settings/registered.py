"""Settings that name an entry of a registry: a strategy, a metric.

The registry is asked when a setting is read, not when the configuration is defined, so that a new
entry is a new file or function and nothing else, and so that a registry whose entries need PyTorch
is not imported for a command that names none of them.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from pydantic import GetCoreSchemaHandler
from pydantic_core import CoreSchema, core_schema

from interp.errors import InputError
from interp.settings.section import nearest


@dataclass(frozen=True)
class Registered:
    """What is between the brackets of ``Annotated[str, Registered(...)]``."""

    kind: str
    """What an entry is, such as "strategy"."""
    meanings: Callable[[], Mapping[str, str]]
    """By name, what each entry is, in a few words."""
    default: str
    """A name that is known without asking."""

    def check(self, name: str) -> str:
        """The name, if the registry has it.

        Raises:
            InputError: It has not.
        """
        if name != self.default and name not in (known := self.meanings()):
            raise InputError(f"no such {self.kind}; {nearest(name, list(known))}")
        return name

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> CoreSchema:
        """The check, behind that of the type."""
        return core_schema.no_info_after_validator_function(self.check, handler(source))


def registries(annotation: Any, metadata: list[Any]) -> list[Registered]:
    """The registries that a setting asks, of its annotation and what stands beside it."""
    parts = [*metadata, *get_args(annotation)]
    own = [part for part in parts if isinstance(part, Registered)]
    for part in get_args(annotation):
        own += registries(part, [])
    return own
