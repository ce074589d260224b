"""The notebook of the tutorial runs in a kernel of its own; then the commands of the page, on the run that it left."""

from __future__ import annotations

import html
import math
import re
import shlex
import statistics
from pathlib import Path
from typing import Any

import pytest

from geomonitor.cli.app import run as command
from tests.docs.test_pages import BLOCK, DOCS, EXIT_CODE

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("mlxtend")


@pytest.fixture
def ran(tmp_path, monkeypatch) -> list[Any]:
    """The cells of code with their outputs; the working directory holds what they wrote."""
    for folder in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(folder, str(tmp_path / folder))  # not the settings of the user
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("PYTHONPATH", str(DOCS.parent))
    monkeypatch.chdir(tmp_path)
    notebook = nbformat.read(DOCS / "tutorial.ipynb", as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cells: list[Any], stream: str) -> str:
    return "".join(o.text for cell in cells for o in cell.outputs if o.output_type == "stream" and o.name == stream)


def words(text: str) -> str:
    return " ".join(text.split())


def test_the_notebook_prints_what_the_tutorial_promises(ran, capsys):
    status, accuracies, decision = re.split(r"^\[|\]$", printed(ran, "stdout"), flags=re.MULTILINE)
    assert re.match(r"geometry alarm: .* has lost \d+ % of its dimension since epoch 8 \(step 225\)\.", status)
    assert "Changed just before: weight_decay 0 -> 0.02 between steps 200 and 225." in status
    warned = printed(ran, "stderr")
    assert re.findall(r"\w+Warning(?=:)", warned) == ["GeometryDeclineWarning"]
    assert status in warned  # the text is the same in a warning
    known = [float(number) for number in accuracies.split()]
    error = (known[7] * (1 - known[7]) / 300) ** 0.5
    before, since = statistics.fmean(known[4:8]), statistics.fmean(known[8:])
    assert since > before - 2 * error  # on average; single epochs differ by more, from one processor to the next also
    gone_on, error_on, gone_back, error_back = (float(number) for number in re.findall(r"0\.\d+", decision))
    assert gone_back - gone_on > 2 * math.hypot(error_on, error_back)
    for kind, text in BLOCK.findall((DOCS / "tutorial.md").read_text(encoding="utf-8")):
        for line in text.splitlines() if kind == "console" else ():
            stated = EXIT_CODE.search(line)
            arguments = shlex.split(line.removeprefix("$ geomonitor "), comments=True)
            assert command(arguments) == (int(stated[1]) if stated else 0), line
    assert words(status) in words(capsys.readouterr().out)  # of `geomonitor status`
    report = words(html.unescape(Path("runs/tutorial/geometry.html").read_text(encoding="utf-8")))
    assert words(status.splitlines()[0].partition(": ")[2]) in report
