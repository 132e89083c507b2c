"""The site: `make docs` builds it, and a warning is an error."""

import sys
from pathlib import Path

import transept

sys.path.insert(0, str(Path(__file__).parent))  # for model_tables and notebook_pages

project = "transept"
author = "the transept authors"
release = transept.__version__
html_title = "transept"
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_copyright = False
html_copy_source = False
exclude_patterns = ["_build"]

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "model_tables", "notebook_pages"]
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
