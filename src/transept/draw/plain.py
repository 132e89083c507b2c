"""Names are drawn as they are written: a `$` in one begins no formula."""

from matplotlib import rc_context

plain_text = rc_context({"text.parse_math": False})
"""Decorates what draws names of classes and files."""
