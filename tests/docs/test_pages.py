"""Every block of Python and every command of the tutorial and the how-to pages runs, in the order of the page."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader, TensorDataset

import geomonitor as gm
from geomonitor.cli.app import run as command
from tests.docs.test_alerts import low_from_the_third, webhook
from tests.runs_on_disk import write_run
from tests.scan_targets import Net

DOCS = Path(__file__).parents[2] / "docs"
HOW_TO = sorted((DOCS / "howto").glob("*.md"))
BLOCK = re.compile(r"^```(python|console)\n(.*?)^```", re.DOTALL | re.MULTILINE)
EXIT_CODE = re.compile(r"# exit code (\d+)")


def dataset(seed: int) -> TensorDataset:
    return TensorDataset(torch.randn(180, 5, generator=torch.Generator().manual_seed(seed)), torch.arange(180) % 3)


def run_page(page: Path, names: dict[str, Any]) -> None:
    """Blocks of Python share their names; commands have the exit code that the page states, or 0."""
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, page.name, "exec"), names)
            continue
        for line in text.splitlines():
            stated = EXIT_CODE.search(line)
            arguments = shlex.split(line.removeprefix("$ "), comments=True)
            assert arguments.pop(0) == "geomonitor"
            assert command(arguments) == (int(stated[1]) if stated else 0), line


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    """A working directory with runs, and a module that makes models and probe sets."""
    for name in ("released", "new", "newer", "healthy0", "healthy1", "healthy2"):
        write_run(tmp_path / "runs" / name)
    write_run(tmp_path / "runs/collapsed", faulty=True)
    shutil.copy(Path(__file__).parents[1] / "scan_targets.py", tmp_path / "zoo.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WANDB_SILENT", "true")
    return tmp_path


@pytest.fixture
def posted() -> Iterator[tuple[str, list[bytes]]]:
    """The address of a local webhook, and what was posted to it."""
    with webhook() as hook:
        yield hook


def names_for(place: Path, address: str) -> dict[str, Any]:
    train, held_out = dataset(0), dataset(1)

    def trainer(**options: Any) -> L.Trainer:
        saves = any(isinstance(one, Checkpoint) for one in options["callbacks"])
        return L.Trainer(**{
            "max_epochs": 1, "accelerator": "cpu", "default_root_dir": place, "logger": False, "log_every_n_steps": 1,
            "enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": saves, **options,
        })  # fmt: skip

    return {
        "gm": gm, "torch": torch, "Trainer": trainer, "train_one_epoch": lambda model: None, "model": Net(),
        "train_dataset": train, "held_out_dataset": held_out, "new_class_dataset": dataset(2),
        "probe": gm.ProbeSet.from_dataset(held_out, per_class=20, train=train),
        "train_loader": DataLoader(train, batch_size=60), "val_loader": DataLoader(held_out, batch_size=60),
        "panel": gm.Panel(["dimension"], low_from_the_third), "WEBHOOK": address,
        "SENDER": "a@localhost", "RECEIVER": "b@localhost", "MAIL_HOST": "localhost", "MAIL_PORT": 25,
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore::geomonitor.GeometryDeclineWarning")
@pytest.mark.filterwarnings("ignore:a measurement takes")  # as the page on cost describes: training takes no time here
@pytest.mark.parametrize("page", HOW_TO, ids=lambda page: page.stem)
def test_a_how_to_page_runs(page, place, posted):
    torch.manual_seed(0)
    assert BLOCK.search(page.read_text(encoding="utf-8")), "a page that shows nothing to do"
    run_page(page, names_for(place, posted[0]))
    if page.stem == "alerts":
        (body,) = posted[1]  # once for each alarm
        assert b"geometry alarm" in body


def test_the_notebook_has_the_blocks_of_the_tutorial():
    script = runpy.run_path(str(DOCS / "tutorial_notebook.py"))
    page = (DOCS / "tutorial.md").read_text(encoding="utf-8")
    told = "run: python docs/tutorial_notebook.py"
    assert (DOCS / "tutorial.ipynb").read_text(encoding="utf-8") == script["as_text"](page), told
    cells = json.loads((DOCS / "tutorial.ipynb").read_text(encoding="utf-8"))["cells"]
    assert all(set(cell) >= {"cell_type", "id", "metadata", "source"} for cell in cells)
    code = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    assert code == [text.strip() for language, text in BLOCK.findall(page) if language == "python"]
    shown = "".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    assert "```python" not in shown


@pytest.mark.filterwarnings("ignore::geomonitor.GeometryDeclineWarning")
def test_each_line_of_the_gallery_draws(place, posted):
    """On a smaller run than that of the tutorial, from which the page goes on."""
    plt = pytest.importorskip("matplotlib.pyplot")
    names = names_for(place, posted[0])
    model = names["model"]
    run = gm.MonitoredRun(gm.GeometryMonitor(names["probe"], panel=names["panel"]))
    run.start(model)
    kept: dict[int, Any] = {}
    for epoch in range(9):
        torch.nn.init.normal_(model.body.weight, generator=torch.Generator().manual_seed(epoch))
        run.measure(model, step=10 * epoch, epoch=epoch)
        kept[epoch] = {name: value.clone() for name, value in model.state_dict().items()}
    names |= {"run": run, "kept": kept, "step": 90}
    names["held_out"] = [(x, y) for x, y in dataset(1)] * 2
    shown = re.findall(r"```\n\n!\[[^]]*\]\((gallery/[\w.]+)\)", (DOCS / "gallery.md").read_text(encoding="utf-8"))
    plt.close("all")  # those of other pages
    run_page(DOCS / "gallery.md", names)
    assert len(plt.get_fignums()) == len(shown) == 7
    plt.close("all")
    assert all((DOCS / picture).is_file() for picture in shown)


def test_the_search_from_disk_fetches_no_script():
    plugin = pytest.importorskip("material.plugins.offline.plugin").OfflinePlugin()
    plugin.load_config({})
    (script,) = re.findall(r"polyfills: \[([^]]+)\]", (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))
    config = SimpleNamespace(extra={"polyfills": [script]})
    plugin.on_config(config)
    assert config.extra["polyfills"] == [script]
    assert (DOCS / script).is_file()


def test_every_page_is_in_the_navigation():
    listed = set(re.findall(r"[\w/]+\.md", (DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8")))
    assert {str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md")} == listed
