"""The site: `make docs` builds it, and a warning is an error."""

import sys
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx

import transept

sys.path.insert(0, str(Path(__file__).parent))  # for model_tables and notebook_pages

project = "transept"
author = "the transept authors"
release = transept.__version__
html_title = "transept"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_js_files = ["sort.js"]
html_show_copyright = False
html_copy_source = False
exclude_patterns = ["_build"]

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_design",
    "model_tables",
    "notebook_pages",
]
myst_heading_anchors = 3
myst_enable_extensions = ["colon_fence"]
highlight_language = "none"  # indented blocks are mostly command lines; fenced ones name their language

default_role = "code"  # docstrings write code as Markdown does, in single backticks
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_preserve_defaults = True
napoleon_numpy_docstring = False
python_maximum_signature_line_length = 88

_sentences: dict[str, list[str]] = {}


def keep_sentences(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Napoleon takes the first line of a field's docstring for `type: text`; ours are sentences, some with a colon."""
    if what in ("attribute", "data"):
        _sentences[name] = list(lines)


def restore_sentences(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    lines[:] = _sentences.pop(name, lines)


def setup(app: Sphinx) -> None:
    app.connect("autodoc-process-docstring", keep_sentences, priority=400)  # Napoleon's own: 500
    app.connect("autodoc-process-docstring", restore_sentences, priority=600)
