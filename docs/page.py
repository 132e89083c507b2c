"""Takes docs/images/serve-digits.png, the page of `transept serve`, with Chromium: `uv run python docs/page.py DIGITS`.

DIGITS is a run of `transept train digits`. An example is chosen, and the picture is taken once its attention is drawn.
"""

import argparse
import json
import shutil
import signal
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path

from PIL import Image, ImageOps

# The tests' browser: no package of its own is needed to drive Chromium.
sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.serve.browser import Browser

FILE = Path(__file__).parent / "images" / "serve-digits.png"
WIDTH = 900
"""At which picture and answer stand side by side, and letters can still be read in the column of the site."""
MARGIN = 8
EXAMPLE = 5
"""Of the eight."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("digits", type=Path)
    args = parser.parse_args()
    chromium = shutil.which("chromium")
    if not chromium:
        parser.error("needs chromium on the PATH")
    command = [sys.executable, "-m", "transept", "serve", str(args.digits), "--json"]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as page:
        assert page.stdout is not None
        try:
            with closing(Browser(chromium, Path(folder) / "profile", WIDTH)) as browser:
                browser.open(json.loads(page.stdout.readline())["url"])
                examples = "document.querySelectorAll('.gallery button, .gallery-item')"
                browser.wait(f"{examples}.length === 8")
                browser.run(f"{examples}[{EXAMPLE}].click()")
                browser.wait("document.querySelector('#attention img')?.naturalWidth > 500")
                browser.screenshot(Path(folder) / "page.png")
        finally:
            page.send_signal(signal.SIGTERM)
        with Image.open(Path(folder) / "page.png") as picture:
            shown = picture.convert("RGB")
            left, top, right, bottom = ImageOps.invert(shown.convert("L")).getbbox() or (0, 0, *shown.size)
            shown = shown.crop((left - MARGIN, max(0, top - MARGIN), right + MARGIN, bottom + MARGIN))
            shown.convert("P", palette=Image.Palette.ADAPTIVE, colors=192).save(FILE, optimize=True)


if __name__ == "__main__":
    main()
