"""Make docs/tutorial.ipynb from docs/tutorial.md: each block of Python is a cell.

python docs/tutorial_notebook.py
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent
PAGE, NOTEBOOK = DOCS / "tutorial.md", DOCS / "tutorial.ipynb"
BLOCK = re.compile(r"^```python\n(.*?)^```\n", re.DOTALL | re.MULTILINE)


def notebook(page: str) -> dict[str, Any]:
    """A page as a notebook (nbformat 4.5) without outputs."""
    cells = []
    for place, text in enumerate(BLOCK.split(page)):
        code = place % 2 == 1
        if not text.strip():
            continue
        cell: dict[str, Any] = {"cell_type": "code" if code else "markdown", "id": f"cell-{place}", "metadata": {}}
        cell |= {"execution_count": None, "outputs": []} if code else {}
        cells.append(cell | {"source": text.strip().splitlines(keepends=True)})
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    return {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}


def as_text(page: str) -> str:
    """The file."""
    return json.dumps(notebook(page), indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    NOTEBOOK.write_text(as_text(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
