"""What "penultimate" takes in models of plain torch, and where the accuracy comes from."""

from __future__ import annotations

import logging
import math
import warnings

import pytest
import torch
from torch import nn

import geomonitor as gm
from tests.zoo import plain as zoo

CLASSES = zoo.CLASSES


def probe(classes: int = CLASSES) -> gm.ProbeSet:
    data = torch.utils.data.TensorDataset(torch.randn(80, 8), torch.arange(80) % classes)
    return gm.ProbeSet.from_dataset(data, per_class=10)


def monitor(**options) -> gm.GeometryMonitor:
    options = {"markers": ["mean_norm", "accuracy"], "panel": None, **options}
    return gm.GeometryMonitor(options.pop("probe", None) or probe(), **options)


def taken(model: nn.Module, **options) -> tuple[str, dict[str, float]]:
    """Layer and values of a measurement; an encoder's missing logits are a warning, which is not of interest here."""
    watcher = monitor(**options)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="the model's output holds no logits")
        records = watcher.measure(model, step=0)
    return watcher.protocol.get("resolved", {}).get("penultimate", ""), {r.marker: r.value for r in records}


CLASSIFIERS = {
    "plain": (zoo.Plain, "fc:input"),
    "log_softmax": (lambda: zoo.Plain(last=lambda z: z.log_softmax(1)), "fc:input"),
    "temperature": (lambda: zoo.Plain(last=lambda z: z / 3 + 1), "fc:input"),
    "learned temperature": (zoo.Scaled, "fc:input"),
    "softmax module": (lambda: nn.Sequential(*zoo.body(), nn.Linear(16, 4), nn.LogSoftmax(dim=1)), "2:input"),
    "dropout after": (lambda: nn.Sequential(*zoo.body(), nn.Linear(16, 4), nn.Dropout()), "2:input"),
    "logistic regression": (lambda: nn.Linear(8, CLASSES), ":input"),
    "MLP head": (lambda: zoo.Plain(nn.Sequential(nn.Linear(16, 9), nn.ReLU(), nn.Linear(9, 4))), "fc.2:input"),
    "LoRA at its start": (lambda: zoo.Plain(zoo.LoRA(nn.Linear(16, 4), trained=False)), "fc:input"),
    "LoRA": (lambda: zoo.Plain(zoo.LoRA(nn.Linear(16, 4), trained=True)), "fc:input"),
    "LoRA by other names": (lambda: zoo.Plain(zoo.OtherLoRA()), "fc:input"),
    "Conv1D": (lambda: zoo.Plain(zoo.Conv1D()), "fc:input"),
    "cosine": (lambda: zoo.Plain(zoo.Cosine()), "fc:input"),
    "weight norm": (lambda: zoo.Plain(zoo.weight_norm()), "fc:input"),
    "spectral norm": (lambda: zoo.Plain(nn.utils.parametrizations.spectral_norm(nn.Linear(16, 4))), "fc:input"),
    "teacher registered last": (zoo.Teacher, "fc:input"),
    "one of several heads": (zoo.InAList, "heads.1:input"),
    "convolution as head": (zoo.Images, "head:input"),
    "convolution, then ReLU": (lambda: zoo.Images(relu=True), "head:input"),
    "LSTM": (zoo.Recurrent, "fc:input"),
    "compiled": (lambda: torch.compile(zoo.Plain(), backend="eager"), "fc:input"),
    "two heads": (lambda: zoo.TwoHeads(2), "digit:input"),
    "two heads, the other first": (lambda: zoo.TwoHeads(9, first=False), "digit:input"),
    "last token": (lambda: zoo.Tokens(lambda z: z[:, -1]), "score:input, last"),
    "first token": (lambda: zoo.Tokens(lambda z: z[:, 0]), "score:input, first"),
    "mean of tokens": (lambda: zoo.Tokens(lambda z: z.mean(1)), "score:input, mean"),
}


@pytest.mark.parametrize("name", CLASSIFIERS)
def test_the_layer_is_what_feeds_the_logits(name: str) -> None:
    make, expected = CLASSIFIERS[name]
    found, values = taken(make())
    assert found == expected
    assert math.isfinite(values["accuracy"])


BENT = ("log_softmax", "learned temperature", "softmax module", "temperature", "convolution, then ReLU")
"""models in which something follows the logits or the head"""


@pytest.mark.parametrize("name", [name for name in CLASSIFIERS if name not in BENT])
def test_the_head_of_the_features_is_the_logits(name: str) -> None:
    make, expected = CLASSIFIERS[name]
    model, x = make().eval(), torch.randn(6, 8)
    path, _, pool = expected.partition(":input")
    head = getattr(model, "_orig_mod", model).get_submodule(path)
    with gm.captured(model, {"z": f"{path}:input"}, pool=pool.strip(", ") or "auto") as features, torch.no_grad():
        output = model(x)
    output = next(z for z in output if z.shape[1] == CLASSES) if isinstance(output, tuple) else output
    rows = features["z"][:, :, None, None] if isinstance(head, nn.Conv2d) else features["z"]
    torch.testing.assert_close(head(rows).flatten(1), output)


def test_a_quantised_head_is_found() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves quantisation to another package
        model = zoo.quantised()
    assert taken(model)[0] == "fc:input"


OTHERS = {
    "contrastive": (zoo.SimCLR, "g:input"),
    "contrastive, normalised": (lambda: zoo.SimCLR(normalised=True), "g:input"),
    "projector in the place of fc": (
        lambda: zoo.Plain(nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 12))),
        "fc:input",
    ),
    "normalised, of one layer": (lambda: zoo.Plain(nn.Linear(16, 12), nn.functional.normalize), "fc:input"),
    "BYOL": (lambda: zoo.BYOL(both=False), "projector:input"),
    "encoder": (zoo.Residual, ":output"),
    "encoder as wide as there are half the classes": (lambda: zoo.Residual(width=2), ":output"),
    "convolutional encoder": (
        lambda: nn.Sequential(nn.Unflatten(1, (1, 8)), nn.Conv1d(1, 9, 3), nn.ReLU(), nn.Flatten()),
        ":output",
    ),
    "LSTM": (lambda: zoo.Recurrent(head=False), ":output"),
    "regression": (lambda: zoo.Plain(nn.Linear(16, 1)), "fc:input"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_without_logits_of_the_classes_the_choice_is_the_representation_and_there_is_no_accuracy(name: str) -> None:
    make, expected = OTHERS[name]
    found, values = taken(make())
    assert found == expected
    assert math.isnan(values["accuracy"])
    assert math.isfinite(values["mean_norm"])


QUESTIONS = {
    "functional head": (zoo.Functional, "functional form"),
    "bilinear head": (zoo.Bilinear, r"takes 2 inputs.*left.*right"),
    "mean of two heads": (lambda: zoo.MeanOfHeads(CLASSES), r"digit:input.*other:input"),
    "head with a skip": (zoo.SkipHead, r"from several layers.*fc:input.*skip:input"),
    "input past the head": (zoo.InputPastHead, r"values of the model's input to what 'fc' gives.*fc:input"),
    "temperature of an item": (lambda: zoo.Scaled(of_item=True), r"from several layers.*fc:input.*log_scale:input"),
    "prototypes": (lambda: zoo.Plain(zoo.Prototypes()), r"after 'body.0' without a product.*: fc:input"),
    "two heads alike": (lambda: zoo.TwoHeads(CLASSES), r"several outputs.*digit:input.*other:input"),
    "teacher and student": (lambda: zoo.Teacher(both=True), r"several outputs.*fc:input.*teacher.1:input"),
    "two towers": (zoo.Towers, r"left_embeds.*right_embeds.*left:input.*right:input"),
    "BYOL with its target": (lambda: zoo.BYOL(both=True), "several outputs"),
    "residual as wide as there are classes": (lambda: zoo.Residual(width=CLASSES), "no single layer gives them"),
}


@pytest.mark.parametrize("on_error", ["warn", "raise"])
@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_not_clear_is_an_error_that_lists_candidates(name: str, on_error: str) -> None:
    make, message = QUESTIONS[name]
    with pytest.raises(gm.InputError, match=message):
        monitor(on_error=on_error).measure(make(), step=0)
    with pytest.raises(gm.InputError, match=message):
        gm.MonitoredRun(monitor(on_error=on_error)).start(make())


def test_the_accuracy_is_that_of_the_head_that_the_layer_feeds() -> None:
    model = zoo.TwoHeads(CLASSES)
    with torch.no_grad():
        model.digit.weight.zero_(), model.digit.bias.copy_(torch.tensor([1.0, 0, 0, 0]))  # always class 0
    assert taken(model, layers="digit:input")[1]["accuracy"] == 0.25
    x = probe()
    inputs, labels = next(iter(x.loader(80)))[:2]
    expected = (model.other(model.body(inputs)).argmax(1) == labels).double().mean().item()
    assert taken(model, layers="other:input", probe=x)[1]["accuracy"] == pytest.approx(expected)


def test_more_columns_than_classes_are_still_logits_of_a_classifier() -> None:
    found, values = taken(zoo.Plain(nn.Linear(16, 100)))
    assert (found, math.isfinite(values["accuracy"])) == ("fc:input", True)


def test_of_two_outputs_the_one_with_enough_columns_is_the_logits() -> None:
    model = zoo.TwoHeads(1)
    model.digit = nn.Linear(16, 9)
    found, values = taken(model)
    assert (found, math.isfinite(values["accuracy"])) == ("digit:input", True)


def test_ids_that_choose_among_the_logits_are_no_skip_connection() -> None:
    class OfIds(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.fc = nn.Embedding(9, 16), nn.Linear(16, CLASSES)

        def forward(self, ids):
            logits = self.fc(self.embed(ids).mean(1))
            return logits.masked_fill(ids[:, :1] == 9, 0.0)

    stream = torch.Generator().manual_seed(0)
    data = torch.utils.data.TensorDataset(torch.randint(9, (80, 5), generator=stream), torch.arange(80) % CLASSES)
    assert taken(OfIds(), probe=gm.ProbeSet.from_dataset(data, per_class=10))[0] == "fc:input"


def test_what_was_found_is_logged_once_and_stands_in_the_protocol(caplog, tmp_path) -> None:
    watcher, model = monitor(), zoo.Plain()
    with caplog.at_level(logging.INFO, "geomonitor"):
        run = gm.MonitoredRun(watcher)
        run.start(model, tmp_path)
        for step in range(3):
            run.measure(model, step=step)
    lines = [record.message for record in caplog.records if "penultimate" in record.message]
    assert lines == ["layer 'penultimate' is fc:input: what feeds the logits, shape (B, 4)"]
    assert watcher.state_dict()["protocol"]["resolved"] == {"penultimate": "fc:input"}
    assert '"resolved"' in "".join(path.read_text() for path in tmp_path.glob("*.json"))


def test_a_resumed_run_whose_head_has_changed_warns() -> None:
    first = monitor()
    first.measure(zoo.Plain(), step=0)
    resumed = monitor(probe=first.probe)
    resumed.load_state_dict(first.state_dict())
    with pytest.warns(gm.GeomonitorWarning, match=r"fc:input.*before.*fc.2:input.*now"):
        resumed.measure(CLASSIFIERS["MLP head"][0](), step=1)


@pytest.mark.parametrize(("layers", "expected"), [("output", "output"), ("pooled", "pooled")])
def test_output_and_pooled_are_names(layers: str, expected: str) -> None:
    class Pooled(zoo.Plain):
        def __init__(self) -> None:
            super().__init__()
            self.pooler = nn.Tanh()

        def forward(self, x):
            return self.fc(self.pooler(self.body(x)))

    records = monitor(layers=layers).measure(Pooled(), step=0)
    assert records[0].layer == expected
