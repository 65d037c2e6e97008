"""Sphinx settings: `make docs` builds build/docs, with warnings as errors."""

import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parent))

from reference import fill

project = "DMLE"
copyright = "the DMLE authors"
extensions = ["myst_parser", "sphinx.ext.mathjax"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
exclude_patterns = ["images"]
html_theme = "alabaster"
html_show_copyright = False
nitpicky = True


def setup(app: Sphinx) -> None:
    """Put generated text into the pages that ask for it."""
    app.connect(
        "source-read", lambda app, page, source: source.__setitem__(0, fill(page, source[0]))
    )
