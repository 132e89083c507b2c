"""Where the pictures lie that an annotation file names, in the words of the machine where it was written."""

import os
from collections import defaultdict
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from transept.files import files_below

WINDOWS, TAILS = "paths with Windows separators", "paths of another place, found by their end"
"""What names are counted as."""


class PictureFolder:
    """A folder of pictures and the annotation file that names them.

    Nothing outside the data folder is opened: that is the file's own folder or the one above it, where the pictures
    are below it, and else the pictures' folder. Links are followed, wherever they lead.
    """

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder = folder
        self._top = next((up for up in file.parents[:2] if up.name and _inside(folder, up)), folder)

    def path(self, name: str) -> tuple[Path, str | None]:
        """The file behind a name, and what to count it as where the name had to be read in another way.

        A path with no file behind it is found by its end: what is left of it without the first folders, the longest
        such; and for a path of another machine a file of the same name anywhere in the folder, if there is one only.
        """
        plain = self.folder / name
        # A backslash may be part of a name on other systems, but then the file is there.
        if not set("/\\:").intersection(name) or (not self.is_outside(plain) and plain.is_file()):
            return plain, None
        pure = (PureWindowsPath if "\\" in name or name[1:3] == ":/" else PurePosixPath)(name)
        if not pure.anchor:
            found = self.folder.joinpath(*pure.parts)
            if not self.is_outside(found) and found.is_file():
                return found, WINDOWS
        parts = [part for part in pure.parts if part != pure.anchor]
        parts = parts[len(parts) - [*reversed(parts), ".."].index("..") :]
        for start in range(len(parts)):
            found = self.folder.joinpath(*parts[start:])
            if found.is_file():
                return found, TAILS
        same = self._by_name.get(parts[-1], []) if pure.anchor and parts else []
        return (same[0], TAILS) if len(same) == 1 else (plain, None)

    def is_outside(self, path: Path) -> bool:
        return path.parent != self.folder and not _inside(path, self._top)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        files = defaultdict(list)
        for file in files_below(self.folder):
            files[file.name].append(file)
        return files


def _inside(path: Path, folder: Path) -> bool:
    """As the names say, not where links lead: those who made the links meant it."""
    path, folder = (Path(os.path.normpath(Path.cwd() / each)) for each in (path, folder))
    return path.is_relative_to(folder)
