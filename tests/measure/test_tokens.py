"""Tokens as points: the tokens, labels and logits of a measurement are those of the model, padded in any way."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.markers.tokens import token_entropy
from geomonitor.markers.unit_vectors import mean_cosine
from geomonitor.measure.tokens import MOST_SEQUENCES, TokenLength, common_length
from tests.processes import in_processes

WORDS, WIDTH, CLASSES, PAD = 30, 12, 3, 0


class Tagger(nn.Module):
    """A recurrent network: each token's features depend on those before it, not on padding after it."""

    def __init__(self, out: int = CLASSES) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.body = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, out)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embedding(input_ids)
        kept = torch.ones_like(x[..., :1]) if attention_mask is None else attention_mask[..., None].to(x)
        return self.head(torch.tanh(self.body((x * kept).cumsum(dim=1))))


def texts(items: int = 30, shortest: int = 5, longest: int = 12) -> list[dict[str, Any]]:
    """Ids and labels of unequal length, as lists; the first and the last token have no label."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for item in range(items):
        ids = torch.randint(1, WORDS, (shortest + item % (longest - shortest + 1),), generator=generator).tolist()
        found.append({"input_ids": ids, "labels": [-100, *(i % CLASSES for i in ids[1:-1]), -100]})
    return found


def padded(side: str) -> Any:
    """A collate function, as those of transformers are."""

    def collate(items: list[dict[str, Any]]) -> dict[str, Tensor]:
        longest = max(len(item["input_ids"]) for item in items)

        def filled(values: list[int], filling: int) -> list[int]:
            more = [filling] * (longest - len(values))
            return [*more, *values] if side == "left" else [*values, *more]

        columns = {"input_ids": PAD, "labels": -100, "attention_mask": 0}
        given = [{**item, "attention_mask": [1] * len(item["input_ids"])} for item in items]
        return {
            name: torch.tensor([filled(item[name], filling) for item in given]) for name, filling in columns.items()
        }

    return collate


def by_hand(probe: gm.TokenProbe, model: Tagger) -> tuple[Tensor, float]:
    """Features of the points, one sequence at a time, and the accuracy."""
    rows, right = [], []
    for item, place, label in zip(probe.indices.tolist(), probe.places.tolist(), probe.labels.tolist(), strict=True):
        ids = torch.tensor([texts()[item]["input_ids"]])
        with torch.no_grad():
            features = torch.tanh(model.body(model.embedding(ids).cumsum(dim=1)))[0, place]
        rows.append(features)
        right.append(int(model.head(features).argmax()) == label)
    return torch.stack(rows), sum(right) / len(right)


def latest(monitor: gm.GeometryMonitor, marker: str, layer: str = "penultimate") -> float:
    return float(monitor.history.series(layer, marker).values[-1])


def monitor_of(probe: gm.ProbeSet, *markers: str, **options: Any) -> gm.GeometryMonitor:
    return gm.GeometryMonitor(probe, markers=markers or ["mean_norm"], panel=None, on_error="raise", **options)


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batch_size", [3, 128])
def test_each_labelled_token_is_a_point_wherever_padding_is(side, batch_size):
    probe, model = gm.TokenProbe.from_dataset(texts(), per_class=15, collate_fn=padded(side)), Tagger()
    monitor = monitor_of(probe, "mean_norm", "accuracy", "nc1", "nc4", "mean_cosine", batch_size=batch_size)
    monitor.measure(model, step=0)
    rows, accuracy = by_hand(probe, model)
    assert monitor.protocol["resolved"] == {"penultimate": "head:input"}
    assert monitor.protocol["pool"] == "tokens"
    assert latest(monitor, "mean_norm") == pytest.approx(float(rows.norm(dim=1).mean()), rel=1e-6)
    assert latest(monitor, "accuracy") == pytest.approx(accuracy)
    assert latest(monitor, "nc1") == pytest.approx(float(gm.neural_collapse(rows, probe.labels).nc1), rel=1e-4)
    assert math.isfinite(latest(monitor, "nc4"))
    assert 0 < accuracy < 1


def test_no_point_is_padding_or_without_a_label():
    items = [{**item, "attention_mask": [0, 0, *[1] * (len(item["input_ids"]) - 2)]} for item in texts()]
    probe = gm.TokenProbe.from_dataset(items, per_class=10)
    for item, place, label in zip(probe.indices.tolist(), probe.places.tolist(), probe.labels.tolist(), strict=True):
        assert items[item]["labels"][place + 2] == label >= 0


def test_errors_over_points_are_clustered_by_sequence():
    """Of tokens that repeat within a sequence the naive error is too small by the square root of the repetitions."""
    alone = torch.randn(40, 1, WIDTH) + 0.3
    repeated = TensorDataset(alone.expand(40, 9, WIDTH).contiguous())
    monitor = monitor_of(gm.TokenProbe.from_unlabelled(repeated, samples=40), "mean_cosine", layers=":output")
    monitor.measure(nn.Identity(), step=0)
    error = float(monitor.history.series("model", "mean_cosine").standard_errors[-1])
    expected = float(mean_cosine(alone[:, 0]).standard_error)
    assert error == pytest.approx(expected, rel=0.1)
    naive = float(mean_cosine(alone.expand(40, 8, WIDTH).flatten(0, 1)).standard_error)
    assert error > 2 * naive


def test_the_classes_are_the_most_frequent_next_tokens():
    ids = torch.tensor([[9, 1, 2, 1, 2, 1, 3, 4, 1, 2]]).repeat(20, 1)
    probe = gm.TokenProbe.from_next_tokens(TensorDataset(ids), classes=2, per_class=12)
    assert probe.classes == (1, 2)
    assert torch.equal(ids[probe.indices, probe.places + 1], probe.labels)
    assert int(probe.places.min()) == 1
    again = gm.TokenProbe.from_next_tokens(TensorDataset(ids), classes=2, per_class=12)
    assert probe.fingerprint == again.fingerprint
    assert torch.equal(probe.places, again.places)
    model = Tagger(out=WORDS)
    monitor = monitor_of(probe, "accuracy", "nc3")
    monitor.measure(model, step=0)
    with torch.no_grad():
        predicted = model(ids).argmax(dim=2)[probe.indices, probe.places]
    assert latest(monitor, "accuracy") == pytest.approx(float((predicted == probe.labels).double().mean()))
    assert math.isfinite(latest(monitor, "nc3"))
    special = gm.TokenProbe.from_next_tokens(TensorDataset(ids), classes=2, per_class=9, special_tokens=[2])
    assert special.classes == (1, 3)


def test_without_labels_every_token_but_the_first_is_a_point():
    ids = torch.randint(1, WORDS, (20, 7))
    whole = gm.ProbeSet.from_unlabelled(TensorDataset(ids), samples=10)
    monitor = monitor_of(whole, "mean_norm", pool="tokens", layers="body:input")
    assert len(monitor.probe) == 10 * 6
    monitor.measure(Tagger(), step=0)
    x = Tagger().embedding(ids[whole.indices]).cumsum(dim=1)[:, 1:].detach()
    assert latest(monitor, "mean_norm", "body_input") == pytest.approx(float(x.norm(dim=2).mean()), rel=1e-6)
    many = gm.TokenProbe.from_unlabelled(TensorDataset(torch.ones(100, 60, dtype=torch.int64)), samples=100)
    assert len(many) == 4096


@pytest.mark.parametrize("as_tokens", [False, True])
def test_the_entropy_of_tokens_is_that_of_the_hidden_states(as_tokens):
    items, model = texts(90), Tagger()
    whole = gm.ProbeSet.from_unlabelled(items, samples=90, collate_fn=padded("left"))
    monitor = monitor_of(
        whole, "token_entropy", layers={"early": "body:input", "late": "head:input"}, batch_size=7,
        pool="tokens" if as_tokens else "auto",
    )  # fmt: skip
    monitor.measure(model, step=0)
    with torch.no_grad():
        own = [model.embedding(torch.tensor(item["input_ids"])).cumsum(dim=0) for item in items]
    length = 7  # of 90 texts of 5 to 12 tokens three quarters have as many
    found = token_entropy(own, length=length)
    error = float(monitor.history.series("early", "token_entropy").standard_errors[-1])
    # 64 of them are taken
    assert latest(monitor, "token_entropy", "early") == pytest.approx(float(found.value), abs=3 * error)
    assert 0 < error < 0.1
    assert latest(monitor, "token_entropy", "late") != latest(monitor, "token_entropy", "early")


def test_the_entropy_of_few_sequences_is_exact_and_the_same_in_any_batch():
    items, model = texts(20), Tagger()
    whole = gm.ProbeSet.from_unlabelled(items, samples=20, collate_fn=padded("right"))
    with torch.no_grad():
        own = [model.embedding(torch.tensor(item["input_ids"])).cumsum(dim=0) for item in items]
    expected = token_entropy(own, length=common_length(torch.tensor([len(x) for x in own])))
    for batch_size in (3, 20):
        monitor = monitor_of(whole, "token_entropy", layers="body:input", batch_size=batch_size)
        monitor.measure(model, step=0)
        series = monitor.history.series("body_input", "token_entropy")
        assert series.values[-1] == pytest.approx(float(expected.value), rel=1e-5)
        assert series.standard_errors[-1] == pytest.approx(float(expected.standard_error), rel=1e-5)


def test_the_common_length():
    assert common_length(torch.tensor([1, 1, 1, 1])) == 2
    assert common_length(torch.tensor([10, 20, 30, 40])) == 20
    assert common_length(torch.tensor([7])) == 7
    probe = gm.ProbeSet.from_unlabelled(texts(), samples=10, collate_fn=padded("left"))
    seen = []
    length = TokenLength()
    for _ in range(2):
        length.find(probe, lambda inputs: seen.append(inputs) or inputs["attention_mask"])
    assert len(seen) == 1  # the probe set is read once
    assert MOST_SEQUENCES == 64


def test_a_layer_without_tokens_has_no_entropy_and_the_other_markers_stay():
    probe = gm.ProbeSet.from_unlabelled(TensorDataset(torch.randn(30, 5)), samples=20)
    monitor = monitor_of(probe, "token_entropy", "mean_norm", layers="0")
    with pytest.warns(gm.GeomonitorWarning, match=r"gives no tokens.*token_entropy is NaN"):
        monitor.measure(nn.Sequential(nn.Linear(5, 4)), step=0)
    assert math.isnan(latest(monitor, "token_entropy", "0"))
    assert latest(monitor, "mean_norm", "0") > 0


def test_the_model_in_half_precision_is_measured():
    probe = gm.TokenProbe.from_dataset(texts(), per_class=15, collate_fn=padded("left"))
    exact, half = (monitor_of(probe, "mean_norm", "accuracy", "token_entropy") for _ in range(2))
    exact.measure(Tagger(), step=0)
    half.measure(Tagger().bfloat16(), step=0)
    assert half.protocol["dtypes"] == {"penultimate": "bfloat16"}
    for marker in ("mean_norm", "token_entropy"):
        assert latest(half, marker) == pytest.approx(latest(exact, marker), rel=0.02)


def test_last_and_mean_of_several_layers_come_from_one_forward_pass():
    passes = []

    def forward(model: nn.Module, inputs: Any) -> Any:
        passes.append(1)
        return model(**inputs)

    items, model = texts(20), Tagger()
    whole = gm.ProbeSet.from_unlabelled(items, samples=20, collate_fn=padded("left"))
    names = ["body:input:last", "body:input:mean", "body:first", "head:input"]
    monitor = monitor_of(whole, "mean_norm", layers=names, forward=forward)
    monitor.measure(model, step=0)
    passes.clear()
    monitor.measure(model, step=1)
    assert len(passes) == 1
    with torch.no_grad():
        x = [model.embedding(torch.tensor(item["input_ids"])).cumsum(dim=0) for item in items]
        last = torch.stack([each[-1] for each in x]).norm(dim=1).mean()
        mean = torch.stack([each.mean(dim=0) for each in x]).norm(dim=1).mean()
        first = torch.stack([model.body(each[0]) for each in x]).norm(dim=1).mean()
    for alias, expected in (("body_input_last", last), ("body_input_mean", mean), ("body_first", first)):
        assert latest(monitor, "mean_norm", alias) == pytest.approx(float(expected), rel=1e-5)


def test_a_lightning_callback_measures_tokens(tmp_path):
    lightning = pytest.importorskip("lightning")
    from geomonitor_integrations.lightning import GeometryCallback

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = Tagger()

        def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            return self.model(input_ids, attention_mask)

        def training_step(self, batch: dict[str, Tensor], index: int) -> Tensor:
            logits = self(batch["input_ids"], batch["attention_mask"])
            return nn.functional.cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.Adam(self.parameters(), lr=0.03)

    loader = torch.utils.data.DataLoader(texts(), batch_size=10, collate_fn=padded("right"))
    callback = GeometryCallback(
        gm.TokenProbe.from_dataset(loader, per_class=15), markers=["dimension", "accuracy", "token_entropy"],
        panel=None, geometry={"directions": 10}, pool="tokens",
    )  # fmt: skip
    trainer = lightning.Trainer(
        max_epochs=8, callbacks=[callback], accelerator="cpu", logger=False, enable_checkpointing=False,
        default_root_dir=tmp_path, enable_progress_bar=False, enable_model_summary=False, log_every_n_steps=1,
    )  # fmt: skip
    trainer.fit(Module(), loader)
    accuracy = callback.monitor.history.series("penultimate", "accuracy").values
    assert accuracy[-1] > max(0.6, accuracy[0])
    assert all(math.isfinite(value) for value in callback.monitor.history.series("penultimate", "token_entropy").values)


def measured(rank: int, batch_size: int = 5) -> dict[tuple[str, str], tuple[float, float]]:
    probe = gm.TokenProbe.from_dataset(texts(), per_class=15, collate_fn=padded("left"))
    monitor = monitor_of(
        probe, "dimension", "accuracy", "mean_cosine", "token_entropy", batch_size=batch_size,
        layers=["penultimate", "body:input"], geometry={"directions": 10},
    )  # fmt: skip
    monitor.measure(Tagger().double(), step=0)
    return {(r.layer, r.marker): (r.value, r.standard_error) for r in monitor.history if r.layer}


def test_two_processes_measure_what_one_does():
    one, other = in_processes(measured)
    alone = measured(0)
    assert str(one) == str(other)
    for key, values in alone.items():
        np.testing.assert_allclose(one[key], values, rtol=1e-8, err_msg=str(key))
    assert math.isfinite(alone["penultimate", "token_entropy"][1])


LABELLED = TensorDataset(torch.randint(1, WORDS, (40, 6)), torch.arange(40) % 4)
TEXTS = TensorDataset(torch.randint(1, WORDS, (40, 6)))


def cut(items: list[Any]) -> Any:
    return torch.stack([item[0][:3] for item in items]) if len(items) > 1 else items[0][0][None]


@pytest.mark.parametrize(
    ("words", "make"),
    {
        "expected one integer label for each token": lambda: gm.TokenProbe.from_dataset(LABELLED),
        "this probe set has one label for each item": lambda: monitor_of(
            gm.ProbeSet.from_dataset(LABELLED, per_class=5), pool="tokens"
        ),
        "this probe set has views": lambda: monitor_of(
            gm.ProbeSet.from_unlabelled(TEXTS, samples=5, views=lambda x: x), pool="tokens"
        ),
        "pool is 'tokens' or left out": lambda: monitor_of(
            gm.TokenProbe.from_unlabelled(TEXTS, samples=5), pool="mean"
        ),
        "got a ValidationProbe": lambda: monitor_of(gm.ValidationProbe(classes=3), pool="tokens"),
        "points are tokens, which are not pooled": lambda: monitor_of(
            gm.TokenProbe.from_unlabelled(TEXTS, samples=5), layers="body:last"
        ),
        "truth has one label for each item": lambda: monitor_of(
            gm.TokenProbe.from_unlabelled(TEXTS, samples=5),
            truth=gm.TransferProbe.from_dataset(LABELLED, per_class=10),
        ),
        "token_entropy needs every token": lambda: gm.GeometryMonitor(
            gm.ValidationProbe(classes=3), markers=["token_entropy"], panel=None
        ),
        "needs sequences": lambda: gm.TokenProbe.from_dataset([("a text", 1)] * 9),
        "the next token is known of token ids": lambda: gm.TokenProbe.from_next_tokens(
            TensorDataset(torch.randn(9, 5, 2))
        ),
        "some classes have fewer points": lambda: gm.TokenProbe.from_dataset(texts(3)),
        "special_tokens is a list": lambda: gm.TokenProbe.from_next_tokens(TEXTS, special_tokens="<s>"),
        "fewer than two tokens that count": lambda: gm.TokenProbe.from_unlabelled(
            TensorDataset(torch.ones(9, 1, dtype=torch.int64)), samples=3
        ),
        "let collate_fn cut no sequence": lambda: monitor_of(
            gm.TokenProbe.from_unlabelled(TEXTS, samples=5, collate_fn=cut),
            layers="body",
        ).measure(Tagger(), step=0),
        "let collate_fn and the model keep all sequences": lambda: monitor_of(
            gm.TokenProbe.from_unlabelled(TEXTS, samples=5), layers="body", forward=lambda m, inputs: m(inputs[:1])
        ).measure(Tagger(), step=0),
        "there are no tokens": lambda: monitor_of(
            gm.TokenProbe.from_unlabelled(TEXTS, samples=5), layers="1"
        ).measure(nn.Sequential(nn.Embedding(WORDS, 2), nn.Flatten()), step=0),
    }.items(),
    ids=lambda value: re.sub(r"\W", "-", value)[:25] if isinstance(value, str) else "",
)  # fmt: skip
def test_what_does_not_go_together_is_one_sentence(words, make):
    with pytest.raises(gm.GeomonitorError, match=re.escape(words)):
        make()
