"""The Python blocks of the README and of the docs run as tests: `pytest README.md docs`.

In one process for each page, for the blocks of a page build on each other. What cannot run anywhere is marked with
`<!-- skip: next "why" -->`.
"""

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/*.md", "docs/families/*.md"],
).pytest()
