"""The generated pages of the documentation: the command line and the settings, from the code.

Nothing generated is a file: `docs/conf.py` puts the text where a page has the marker
``<!-- generated: NAME -->``.
"""

import ast
import inspect
import re
import textwrap

from pydantic_core import PydanticUndefined

from interp.app import commands as cli
from interp.app.steps import COMMON, load_steps
from interp.config import Section
from interp.settings.registered import Registered, registries

MARKER = "<!-- generated: {} -->"


UNTITLED = {"rulebook-stats": "What the embedded model knows of the rules"}
"""Pages that a command writes without a title."""


def fill(page: str, source: str) -> str:
    """A page's text with its markers replaced and a title."""
    if page in UNTITLED:
        source = f"# {UNTITLED[page]}\n\n{source}"
    for name, make in {"cli": cli_reference, "configuration": configuration_reference}.items():
        marker = MARKER.format(name)
        if marker in source:
            source = source.replace(marker, make())
    return source


def cli_reference() -> str:
    """Every command with its options, from the same application that `dmle` runs."""
    text = cli._app().generate_docs("markdown", heading_level=1)
    return text[text.index("## dmle ") :]


def sections() -> dict[str, type[Section]]:
    """All sections of a configuration file by name."""
    return {
        **COMMON,
        **{name: cls for step in load_steps().values() for name, cls in step.sections.items()},
    }


def configuration_reference() -> str:
    """Every section with the name, type, default and meaning of its settings."""
    return "\n\n".join(_section(name, cls) for name, cls in sections().items())


def _section(name: str, section: type[Section]) -> str:
    meanings = field_docs(section)
    lines = [
        f"## {name}",
        "",
        inspect.getdoc(section) or "",
        "",
        "| setting | type | default | |",
        "|---|---|---|---|",
    ]
    for key, field in section.model_fields.items():
        asked = registries(field.annotation, field.metadata)
        limits = ", ".join(
            str(each) for each in field.metadata if not callable(each) and each not in asked
        )
        kind = _kind(field.annotation)
        default = field.get_default(call_default_factory=True)
        given = "needed" if default is PydanticUndefined else f"`{default!r}`"
        cells = (
            f"`{key}`",
            f"`{kind}`",
            given,
            " ".join(
                [meanings.get(key, ""), *([f"({limits})"] if limits else []), *map(_names, asked)]
            ),
        )
        lines.append(
            "| "
            + " | ".join(cell.strip().replace("|", "\\|").replace("\n", " ") for cell in cells)
            + " |"
        )
    return "\n".join(lines)


def _kind(annotation: object) -> str:
    """The type of a setting; one that names entries of a registry is text."""
    written = inspect.formatannotation(annotation).replace("typing.", "")
    return re.sub(r"Annotated\[str, Registered\(.*?\)\]", "str", written)


def _names(registry: Registered) -> str:
    """What a registry has, each with what it is."""
    entries = (f"`{name}`: {meaning}" for name, meaning in registry.meanings().items())
    return f"{'; '.join(entries)}."


def field_docs(section: type[Section]) -> dict[str, str]:
    """The text under each setting in the source of a section and of what it inherits from."""
    found: dict[str, str] = {}
    for cls in reversed(section.__mro__):
        if not (issubclass(cls, Section) and cls is not Section):
            continue
        (tree,) = ast.parse(textwrap.dedent(inspect.getsource(cls))).body
        assert isinstance(tree, ast.ClassDef)
        for field, text in zip(tree.body, tree.body[1:], strict=False):
            named = isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)
            said = isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant)
            if named and said and isinstance(text.value.value, str):
                found[field.target.id] = " ".join(inspect.cleandoc(text.value.value).split())
    return found
