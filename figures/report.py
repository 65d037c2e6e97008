"""One self-contained HTML page of a run: what was traced, selected, edited and scored, to be
explored in a browser.

`figures.report_inputs` reads the run folder. The page asks for nothing from the network: styles,
Plotly and data stand in the file, and its content security policy lets no other script run than the
two it brings, named by their hashes. Text from data is escaped three times over: in HTML by Jinja2,
in the JSON by Jinja2's `tojson`, and in the labels of Plotly, which reads tags, by the script.

Arrays are packed as 16-bit integers (`figures.report_numbers.pack`) and unpacked only when a map is
shown. A file has at most `LIMIT` bytes: answers get `ANSWERS_SHARE`, maps what is then left, in the
order of the rules, and what did not fit is named.
"""

import base64
import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.colors import to_hex
from plotly.offline import get_plotlyjs

from figures import style
from figures.report_data import answer_data, faithfulness_data, profile_data, score_data
from figures.report_inputs import RunResults, read
from figures.report_maps import map_data
from figures.report_words import words
from interp.results.files import write_text

LIMIT = 14_900_000
"""Largest size of a page, bytes."""
ANSWERS_SHARE = 2_500_000
"""Largest size of the answers within it, bytes."""
COLOURS = 33
"""Stops of the diverging scale."""
_HERE = Path(__file__).parent


def write_report(run: Path, without: Collection[str] = ()) -> Path:
    """Write ``report.html`` of a run folder.

    Args:
        run: The run folder.
        without: Files that are taken for absent.

    Returns:
        Its path.

    Raises:
        ValueError: The folder holds none of the inputs, or one is damaged.
    """
    path = run / "report.html"
    write_text(path, page(read(run, without)))
    return path


def page(results: RunResults) -> str:
    """The whole page as text."""
    scripts = (get_plotlyjs(), _text("report.js"))
    data: dict[str, Any] = {
        "colours": _colours(results),
        "profile": (
            None if results.profile is None else profile_data(results.profile, results.selection)
        ),
        "scores": None if results.scores is None else score_data(results.scores),
        "faithfulness": (
            None if results.faithfulness is None else faithfulness_data(results.faithfulness)
        ),
        "names": dict(results.rule_names),
        "answers": None,
        "maps": None,
    }
    left_out: list[str] = []
    if results.answers is not None:
        data["answers"], skipped = answer_data(results.answers, ANSWERS_SHARE)
        left_out += _left_out("answers", skipped, "answers.csv")
    context = {
        "title": results.name,
        "policy": _policy(scripts),
        "css": Markup(_text("report.css")),
        "scripts": [Markup(script) for script in scripts],
        **words(results),
    }
    if results.effects is not None:
        rest = _render({**context, "data": data, "left_out": left_out})
        # Every rule that does not fit adds its name to the page.
        reserve = 4000 + sum(len(str(rule)) + 8 for rule in results.effects["rule"].values)
        data["maps"], skipped = map_data(results.effects, LIMIT - len(rest.encode()) - reserve)
        left_out += _left_out("effect maps", skipped, "effects.nc")
    return _render({**context, "data": data, "left_out": left_out})


def _text(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _left_out(what: str, rules: Sequence[str], file: str) -> list[str]:
    if not rules:
        return []
    return [
        f"To keep this page below {LIMIT / 1e6:.0f} MB, the {what} of {len(rules)} rules are not in"
        f" it (all are in {file}): {', '.join(rules)}."
    ]


def _colours(results: RunResults) -> dict[str, Any]:
    scale = mpl.colormaps[style.DIVERGING]
    with_forms = (results.effects, results.profile)
    forms = [str(f) for data in with_forms if data is not None for f in data["form"].values]
    editors = [] if results.scores is None else list(map(str, results.scores["editor"].values))
    return {
        "diverging": [[float(x), to_hex(scale(float(x)))] for x in np.linspace(0, 1, COLOURS)],
        "untraced": to_hex(style.UNTRACED_COLOUR),
        "forms": {form: to_hex(colour) for form, colour in style.form_colours(forms).items()},
        "editors": {
            editor: to_hex(colour) for editor, colour in style.editor_colours(editors).items()
        },
    }


def _policy(scripts: Iterable[str]) -> str:
    """Content security policy: nothing from outside, and no script but these."""
    hashes = (
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts
    )
    allowed = " ".join(f"'sha256-{digest}'" for digest in hashes)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data: blob:;"
        " base-uri 'none'; form-action 'none'"
    )


def _render(context: Mapping[str, Any]) -> str:
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    return environment.get_template("report.html.j2").render(context)
