"""Where the pictures lie that an annotation file names, in the words of the machine where it was written."""

import os
from collections import defaultdict
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path, PurePosixPath, PureWindowsPath

from transept.errors import warn
from transept.files import files_below, is_file

LOOKED_AT = 5000
"""Of more files links are looked for among so many."""
WINDOWS, TAILS = "paths with Windows separators", "paths of another place, found by their end"
"""What names are counted as."""


class PictureFolder:
    """A folder of pictures and the annotation file that names them.

    Nothing outside the data folder is opened: that is the file's own folder or the one above it, where the pictures
    are below it, and else the pictures' folder. Links are followed, wherever they lead.
    """

    def __init__(self, folder: Path, file: Path) -> None:
        self.folder = folder
        around = (file, file.parent) if file.is_dir() else file.parents[:2]
        self._top = next((up for up in around if up.name and is_inside(folder, up)), folder)

    def path(self, name: str) -> tuple[Path, str | None]:
        """The file behind a name, and what to count it as where the name had to be read in another way.

        A path with no file behind it is found by its end: what is left of it without the first folders, the longest
        such; and for a path of another machine a file of the same name anywhere in the folder, if there is one only.
        """
        plain = self.folder / name
        # A backslash may be part of a name on other systems, but then the file is there.
        if not set("/\\:").intersection(name) or (not self.is_outside(plain) and is_file(plain)):
            return plain, None
        pure = (PureWindowsPath if "\\" in name or name[1:3] == ":/" else PurePosixPath)(name)
        if not pure.anchor:
            found = self.folder.joinpath(*pure.parts)
            if not self.is_outside(found) and is_file(found):
                return found, WINDOWS
        parts = [part for part in pure.parts if part != pure.anchor]
        parts = parts[len(parts) - [*reversed(parts), ".."].index("..") :]
        for start in range(len(parts)):
            found = self.folder.joinpath(*parts[start:])
            if is_file(found):
                return found, TAILS
        same = self._by_name.get(parts[-1], []) if pure.anchor and parts else []
        return (same[0], TAILS) if len(same) == 1 else (plain, None)

    def is_outside(self, path: Path) -> bool:
        return path.parent != self.folder and not is_inside(path, self._top)

    @cached_property
    def _by_name(self) -> dict[str, list[Path]]:
        files = defaultdict(list)
        for file in files_below(self.folder):
            files[file.name].append(file)
        return files


def say_links(paths: Iterable[Path], data: Path) -> None:
    """A notice where files of a data folder (or of the folder of a data file) lie elsewhere, behind links: they are
    read, for those who made the links meant it.
    """
    top = os.path.realpath(data if data.is_dir() else data.parent)
    folders: dict[Path, str] = {}
    found: list[tuple[Path, str]] = []
    for path in paths:
        if path.parent not in folders:
            folders[path.parent] = os.path.realpath(path.parent)
        place = os.path.realpath(path) if path.is_symlink() else f"{folders[path.parent]}/{path.name}"
        if not Path(place).is_relative_to(top):
            found.append((path, place))
    if found:
        verb = "1 file lies" if len(found) == 1 else f"{len(found)} files lie"
        path, place = found[0]
        warn(f"{verb} outside of the data folder {str(data)!r}, behind links, e.g. {str(path)!r} at {place!r}")


def is_inside(path: Path, folder: Path) -> bool:
    """As the names say, not where links lead: those who made the links meant it."""
    path, folder = (Path(os.path.normpath(Path.cwd() / each)) for each in (path, folder))
    return path.is_relative_to(folder)
