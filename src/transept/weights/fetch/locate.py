"""From an entry of the catalogue to its file on this machine."""

from pathlib import Path

from transept.errors import TranseptError
from transept.weights.catalogue.records import Checkpoint, Page
from transept.weights.fetch.download import fetch
from transept.weights.fetch.keeping import cached


def locate(checkpoint: Checkpoint) -> Path:
    """The file, fetched if it can be and is not there.

    Raises:
        TranseptError: it is of a kind that is not read here, cannot be fetched, or lies behind a share page and was not
            yet saved by hand.
    """
    if checkpoint.unreadable:
        raise TranseptError(f"{checkpoint.name} {checkpoint.unreadable}")
    path = cached(checkpoint.file)
    if not checkpoint.url:
        if path.is_file():
            return path
        raise TranseptError(
            f"{checkpoint.name} lies behind a share page that only a browser gets it from: open {_pages(checkpoint)}, "
            f"save it and give weights=FILE, or save it as {str(path)!r}, where it is found by name"
        )
    try:
        return fetch(checkpoint.url, sha256=checkpoint.sha256 or None)
    except TranseptError as error:
        if not checkpoint.pages:
            raise
        raise TranseptError(f"{error}; its release page is {_pages(checkpoint)}") from error


def how_to_get(checkpoint: Checkpoint) -> list[str]:
    """Lines for a person: the address, or the pages and where to save the file."""
    if checkpoint.url:
        return [checkpoint.url]
    pages = [f"{page.url} ({_site(page)})" for page in checkpoint.pages]
    return [*pages, f"save it as {str(cached(checkpoint.file))!r}, or anywhere and give weights=FILE"]


def _pages(checkpoint: Checkpoint) -> str:
    return " or ".join(f"{page.url} ({_site(page)})" for page in checkpoint.pages)


def _site(page: Page) -> str:
    return f"{page.site}, access code {page.code}" if page.code else page.site
