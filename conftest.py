"""The Python blocks of the README and of docs/interop.md run as tests: `pytest README.md docs/interop.md`.

Each page runs in one process, for its blocks build on each other.
"""

from importlib.util import find_spec

from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/interop.md"],
    setup=lambda names: names.update(find_spec=find_spec),  # for the conditions of skipped blocks
).pytest()
