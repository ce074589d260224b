"""The code in the README runs, word for word, in the order in which it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint
from torch.utils.data import DataLoader, TensorDataset

from tests.scan_targets import Net

ROOT = Path(__file__).parent.parent
CODE = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)


def dataset(seed: int) -> TensorDataset:
    return TensorDataset(torch.randn(180, 5, generator=torch.Generator().manual_seed(seed)), torch.arange(180) % 3)


def test_the_code_of_the_readme_runs(tmp_path):
    assert len(CODE) >= 3
    train, held_out = dataset(0), dataset(1)
    names = {
        "held_out_dataset": held_out,
        "train_dataset": train,
        "new_class_dataset": dataset(2),
        "train_loader": DataLoader(train, batch_size=60),
        "val_loader": DataLoader(held_out, batch_size=60),
        "model": Net(),
        "Trainer": lambda callbacks: L.Trainer(
            max_epochs=1, accelerator="cpu", default_root_dir=tmp_path, enable_progress_bar=False, logger=False,
            enable_checkpointing=any(isinstance(c, Checkpoint) for c in callbacks), log_every_n_steps=1,
            callbacks=callbacks,
        ),
        "epochs": 2,
        "optimizer_steps": 10,
        "train_one_epoch": lambda model: None,
        "features": torch.randn(60, 20, generator=torch.Generator().manual_seed(2)),
        "labels": torch.arange(60) % 3,
    }  # fmt: skip
    for block in CODE:
        exec(compile(block, "README.md", "exec"), names)
    assert names["g"].dimension > 0
    assert len(names["monitor"].history) > 0
    assert (tmp_path / "geometry.csv").exists()
    assert Path(names["checkpoint"].last_healthy.path).exists()


@pytest.mark.parametrize(
    "target", re.findall(r"\]\((?!http)([^)#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
)
def test_what_the_readme_points_to_exists(target):
    assert (ROOT / target).exists()
