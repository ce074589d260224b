"""The pages' templates, which escape every name and value that comes from a run. Needs the extra ``report``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from geomonitor.errors import InputError
from geomonitor.history.printable import printable

PAGE = Path(__file__).parent


def rendered(template: str, **values: Any) -> str:
    """A page as HTML.

    Args:
        template: name of the file; it gets ``style``, the style sheet of all pages.
        **values: what it shows. A ``markupsafe.Markup`` is written as it is, all other text is escaped.

    Raises:
        ImportError: jinja2 is missing.
    """
    try:
        import jinja2
        from markupsafe import Markup
    except ImportError as error:
        raise ImportError(f'reports need jinja2 ({error}): pip install "geomonitor[report]"') from error
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(PAGE), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True,
        finalize=lambda value: _shown(value) if isinstance(value, str) and not isinstance(value, Markup) else value,
    )  # fmt: skip
    style = Markup((PAGE / "page.css").read_text(encoding="utf-8"))
    return environment.get_template(template).render(style=style, **values)


def _shown(text: str) -> str:
    """Printable and escaped; no line ends between a number and its "%"."""
    from markupsafe import Markup, escape

    return Markup(str(escape(printable(text))).replace(" %", "&nbsp;%"))


def checked_path(path: str | os.PathLike[str], example: str) -> Path:
    """The path of a page.

    Raises:
        InputError: the path is a directory.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path} is a directory: name a file, such as {path / example}")
    return path


def write_page(path: Path, page: str) -> Path:
    """Write a page, and the directories above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8", errors="backslashreplace")
    return path
