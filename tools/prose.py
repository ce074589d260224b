"""Finds words that the project does not use, and names the ones to write instead: part of `make check`.

python tools/prose.py                     # the documents, and the code in FOLDERS
python tools/prose.py geomonitor/glue     # these files and folders

Of Markdown the text outside of code is read; of Python the comments, docstrings and strings.
"""

from __future__ import annotations

import io
import re
import sys
import tokenize
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCUMENTS = ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "docs", "examples", "tools", ".github")
FOLDERS = ("geomonitor", "integrations")
"""Folders of code that are read."""

RULES = (
    (r",\s+too\b", "*also* before the verb"),
    (r"\b(told|tells?|telling)\b(?!\s+apart)", "*warn*, *log*, *report*, *show*"),
    (r"\b(says?|said|saying)\b", "*report*, *state*, *log*; of a message: its text"),
    (r"\b(goes?|went|going)\s+with\b", "*is associated with*, *correlates with*, *is passed with*"),
    (r"\b(nobody|no\s+one|somebody|someone|anybody)\b", "the passive, or *the user*, *the caller*, *another process*"),
    (r"\bwanted\b", "*requested*, *needed*"),
    (r"\bwhere\s+(it|there|this|that|an?|the|each|any|all|none?|nothing|several|you|one)\b", "*if*, *in which*"),
    (r"\b(that|those)\s+of\s+(that|those|what|the\s+one)\b", "the noun again"),
    (r"\b(is|are|was|were)\s+(that|those)\s+of\b", "the noun again, or *equals the ... of*"),
    (r"\boccasions?\b", "*measurement*"),
    (r"\b(an?|the|one|each|every|this|that|last|first|next|two|three|of)\s+readings?\b", "*measurement*"),
    (r"(?<!second )(?<!first )\bmoments?\b", "*measurement*, *step*, *time*"),
    (r"\bcr(y|ies|ied|ying)\s+wolf\b", "*raise a false alarm*"),
    (r"\bin\s+decline\b", "*declining*"),
    (r"\bepisodes?\b", "*alarm*"),
    (r"\bkinds?\s+of\s+markers?\b|\bkinds?\s+(that\s+)?agrees?\b", "*family of markers*"),
    (r"\bso\s+many\b", "the number, or its name: *n points*"),
    (r"\bwarned\s+of\s+once\b", "*logged, with one warning*"),
    (r"\b(an?|each|per)\s+samples?\b(?!\s+size)", "*point* (of the probe set), *direction* (sampled t)"),
)  # fmt: skip
ALLOWED = ("ends where it was",)
"""Phrases in which a rule is mistaken."""
GENERATED = ("docs/markers.md",)
"""Pages made from strings in the code, in which they are read."""
_CODE = re.compile(r"```.*?```|``[^`]*``|`[^`\n]*`|https?://\S+|>>> [^\n]*|(?m:^ +\w+:)", re.DOTALL)
"""Code, and the name of an argument before its description."""
_FIELD = re.compile(r"\{[^{}]*\}")
"""A value in an f-string, which is part of the string before Python 3.12."""


def findings(text: str) -> Iterator[tuple[int, str, str]]:
    """Line from 0, what was found, what to write: of a text without code."""
    plain = _CODE.sub(_blank, text)
    for phrase in ALLOWED:
        plain = plain.replace(phrase, " " * len(phrase))
    for pattern, instead in RULES:
        for found in re.finditer(pattern, plain, flags=re.IGNORECASE):
            yield plain.count("\n", 0, found.start()), " ".join(found[0].split()), instead


def _blank(found: re.Match[str]) -> str:
    return re.sub(r"[^\n]", " ", found[0])


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """First line and text of each piece of prose in a file."""
    source = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield 1, source
        return
    comments: list[tuple[int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        line = token.start[0]
        if token.type == tokenize.COMMENT:
            if comments and comments[-1][0] + comments[-1][1].count("\n") + 1 == line:  # a sentence over two lines
                comments[-1] = comments[-1][0], comments[-1][1] + "\n" + token.string.lstrip("#")
            else:
                comments.append((line, token.string.lstrip("#")))
        elif tokenize.tok_name[token.type] in ("STRING", "FSTRING_MIDDLE") and " " in token.string:
            yield line, _FIELD.sub(_blank, token.string) if token.string[0] in "fF" else token.string
    yield from comments


def files(places: tuple[str, ...]) -> Iterator[Path]:
    """The files with prose in files and folders."""
    for place in places:
        path = ROOT / place
        found = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.suffix in (".md", ".py", ".yml"))
        yield from (f for f in found if f != Path(__file__) and str(f.relative_to(ROOT)) not in GENERATED)


def main(places: tuple[str, ...]) -> int:
    """Prints what was found; 1 if there is anything."""
    counts: Counter[str] = Counter()
    for file in files(places or DOCUMENTS + FOLDERS):
        name = file.relative_to(ROOT)
        for first, text in prose(file):
            for line, found, instead in findings(text):
                print(f'{name}:{first + line}: "{found}": write {instead}')
                counts[str(name.parent)] += 1
    for folder, count in sorted(counts.items()):
        print(f"{count:5} {folder}/")
    return int(bool(counts))


if __name__ == "__main__":
    sys.exit(main(tuple(sys.argv[1:])))
