"""Text that comes from a file, made safe to print: a name must not move the cursor or colour a terminal."""

from __future__ import annotations

LONGEST = 2000
"""Characters of a text that are shown; the rest is replaced by "..."."""


def printable(text: object, *, lines: bool = False, longest: int = LONGEST) -> str:
    r"""A text without control characters, marks of direction, surrogates; these are written as escapes.

    Args:
        text: whatever is to be shown.
        lines: whether line ends may stay.
        longest: characters after which the text is cut off.

    >>> printable("\x1b[31mred\x1b[0m"), printable("a\nb"), printable("a\nb", lines=True), printable("é \ud800")
    ('\\x1b[31mred\\x1b[0m', 'a\\nb', 'a\nb', 'é \\ud800')
    """
    whole = str(text)
    cut = whole if len(whole) <= longest else f"{whole[:longest]}..."
    if cut.isprintable():
        return cut
    return "".join(c if c.isprintable() or (lines and c == "\n") else _escape(c) for c in cut)


def _escape(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")
