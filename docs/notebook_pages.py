"""Notebooks as pages: their cells become Markdown, with the outputs that are stored in the file."""

import json
from typing import Any

from docutils import nodes
from myst_parser.parsers.sphinx_ import MystParser
from sphinx.application import Sphinx


class NotebookParser(MystParser):
    supported = ("notebook",)

    def parse(self, inputstring: str, document: nodes.document) -> None:
        notebook = json.loads(inputstring)
        parts = [part for cell in notebook["cells"] for part in _parts(cell)]
        name = document.settings.env.docname.rpartition("/")[2]
        run = notebook["metadata"]["transept"]
        versions = ", ".join(f"{package} {version}" for package, version in run["versions"].items())
        parts.insert(1, f"{{download}}`{name}.ipynb`, run on {run['date']} with {versions}.\n")  # behind the title
        super().parse("\n".join(parts), document)


def _parts(cell: dict[str, Any]) -> list[str]:
    source = "".join(cell["source"])
    if cell["cell_type"] == "markdown":
        title, _, rest = source.partition("\n")
        return [title, rest] if title.startswith("# ") else [source + "\n"]
    parts = [f"```python\n{source}\n```\n"]
    for output in cell["outputs"]:
        data = output.get("data", {})
        if "image/png" in data:
            parts.append(f"![what the cell shows](data:image/png;base64,{data['image/png']})\n")
        else:
            text = "".join(output.get("text", data.get("text/plain", []))).rstrip("\n")
            parts.append(f":::{{code-block}} text\n:class: output\n{text}\n:::\n")
    return parts


def setup(app: Sphinx) -> dict[str, bool]:
    app.add_source_suffix(".ipynb", "notebook")
    app.add_source_parser(NotebookParser)
    return {"parallel_read_safe": True}
