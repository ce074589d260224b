"""Shows the doctests of docstrings as code: a Griffe extension, which ``mkdocs.yml`` names."""

from __future__ import annotations

import re
from typing import Any

import griffe

# From a line that starts with >>> to the next blank line.
_DOCTEST = re.compile(r"^(?P<indent> *)>>> .*(?:\n *\S.*)*", re.MULTILINE)


class FencedDoctests(griffe.Extension):
    """Puts a fence around every doctest, so that Markdown leaves it alone."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Called for every object that has been read."""
        if obj.docstring:
            obj.docstring.value = _DOCTEST.sub(_fenced, obj.docstring.value)


def _fenced(found: re.Match[str]) -> str:
    indent = found["indent"]
    return f"\n{indent}```pycon\n{found[0]}\n{indent}```"
