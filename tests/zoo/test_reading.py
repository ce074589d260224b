"""How models read logits from what their heads give, and which features those are: places, tokens, masks, order."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm
from geomonitor.features.layers import Layer
from geomonitor.measure.masks import mask_of

CLASSES, WIDTH, ITEMS = 4, 16, 40
STREAM = torch.Generator().manual_seed(0)
ROWS = torch.randn(ITEMS, 8, generator=STREAM)
TOKENS = torch.randn(ITEMS, 6, 8, generator=STREAM)
IMAGES = torch.randn(ITEMS, 3, 8, 8, generator=STREAM)
LABELS = torch.arange(ITEMS) % CLASSES


class Made(nn.Module):
    """Modules, and a function of them and of the input."""

    def __init__(self, run: Callable[..., Any], head: nn.Module, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head, self.run = body, head, run

    def forward(self, x: Tensor) -> Any:
        return self.run(self.head, self.body(x))


def on_rows(run: Callable[..., Any], head: nn.Module | None = None) -> Made:
    return Made(run, head or nn.Linear(WIDTH, CLASSES), nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU()))


def on_places(run: Callable[..., Any], head: nn.Module) -> Made:
    return Made(run, head, nn.Sequential(nn.Conv2d(3, WIDTH, 3), nn.ReLU()))


def convolution() -> nn.Conv2d:
    return nn.Conv2d(WIDTH, CLASSES, 1)


def zeros() -> nn.Linear:
    head = nn.Linear(WIDTH, CLASSES)
    nn.init.zeros_(head.weight)
    return head


def measured(model: nn.Module, x: Tensor, **options: Any) -> tuple[str, dict[str, float], list[str]]:
    """What is taken, the values, and the warnings; the probe set is all items, in their order."""
    items = torch.utils.data.TensorDataset(x, LABELS)
    probe = gm.ProbeSet.from_dataset(items, per_class=ITEMS // CLASSES)
    markers = ["mean_norm", "accuracy", "nc3", "nc4"]
    monitor = gm.GeometryMonitor(probe, markers=markers, panel=None, on_error="raise", **options)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        values = {record.marker: record.value for record in monitor.measure(model, step=0)}
    return monitor.protocol.get("resolved", {}).get("penultimate", ""), values, [str(w.message) for w in told]


def norm_of(rows: Tensor) -> Any:
    return pytest.approx(float(rows.double().norm(dim=1).mean()), rel=1e-5)


READ = {
    "mean of tokens, head at zero": (lambda: on_rows(lambda h, z: h(z).mean(1), zeros()), TOKENS, "mean"),
    "first token, head at zero": (lambda: on_rows(lambda h, z: h(z)[:, 0], zeros()), TOKENS, "first"),
    "sum of tokens": (lambda: on_rows(lambda h, z: h(z).sum(1)), TOKENS, "mean"),
    "log-softmax of the last token": (lambda: on_rows(lambda h, z: h(z)[:, -1].log_softmax(1)), TOKENS, "last"),
    "softmax of the mean": (lambda: on_rows(lambda h, z: h(z).mean(1).softmax(1)), TOKENS, "mean"),
    "places, channels last": (
        lambda: on_places(lambda h, z: h(z.permute(0, 2, 3, 1)).mean((1, 2)), nn.Linear(WIDTH, CLASSES)),
        IMAGES,
        "places",
    ),
    "segmentation, channels last": (
        lambda: on_places(lambda h, z: h(z.permute(0, 2, 3, 1)), nn.Linear(WIDTH, CLASSES)),
        IMAGES,
        "places",
    ),
    "length last": (
        lambda: on_rows(lambda h, z: h(z.transpose(1, 2)).mean(2), nn.Conv1d(WIDTH, CLASSES, 1)),
        TOKENS,
        "length",
    ),
}


@pytest.mark.parametrize("name", READ)
def test_the_features_are_those_that_the_model_reads(name: str) -> None:
    make, x, rule = READ[name]
    torch.manual_seed(0)
    model = make().eval()
    found, values, _ = measured(model, x)
    assert found == ("head:input" if rule in ("places", "length") else f"head:input, {rule}")
    with torch.no_grad():
        z = model.body(x)
    rows = {
        "mean": lambda: z.mean(1), "first": lambda: z[:, 0], "last": lambda: z[:, -1],
        "places": lambda: z.flatten(2).mean(2), "length": lambda: z.mean(1),
    }[rule]()  # fmt: skip
    assert values["mean_norm"] == norm_of(rows)
    with torch.no_grad():
        logits = model(x)
    if logits.ndim == 2:
        assert values["accuracy"] == pytest.approx(float((logits.argmax(1) == LABELS).double().mean()))


REFUSED = {
    "largest over places": (lambda h, z: h(z).amax((2, 3)), IMAGES),
    "a place in the middle": (lambda h, z: h(z)[:, :, 2, 2], IMAGES),
    "log-sum-exp over places": (lambda h, z: h(z).flatten(2).logsumexp(2), IMAGES),
    "largest over tokens": (lambda h, z: h(z).amax(1), TOKENS),
    "second token": (lambda h, z: h(z)[:, 1], TOKENS),
}


@pytest.mark.parametrize("name", REFUSED)
def test_another_rule_is_an_error_and_a_function_of_the_user_replaces_it(name: str) -> None:
    run, x = REFUSED[name]
    model = on_places(run, convolution()) if x is IMAGES else on_rows(run)
    with pytest.raises(gm.InputError, match=r"a rule that is .* pool= a function.*of the input of 'head'"):
        measured(model, x)
    own: Any = (lambda tensor, mask: tensor[:, :, 2, 2]) if x is IMAGES else (lambda tensor, mask: tensor[:, 1])
    found, values, _ = measured(model, x, pool=own)
    assert found == "head:input"
    with torch.no_grad():
        assert values["mean_norm"] == norm_of(own(model.body(x), None))


STRAIGHT = {
    "temperature": lambda h, z: h(z) / 3 + 1,
    "log-softmax": lambda h, z: h(z).log_softmax(1),
    "softmax": lambda h, z: h(z).softmax(1),
}
MOVED = {
    "normalised": lambda h, z: nn.functional.layer_norm(h(z), (CLASSES,)),
    "through a sigmoid": lambda h, z: h(z).sigmoid(),
    "negated": lambda h, z: -h(z),
    "reordered": lambda h, z: h(z)[:, [3, 1, 0, 2]],
    "with a bias that the head does not have": lambda h, z: h(z) + torch.tensor([3.0, 0, 0, 0]),
}


@pytest.mark.parametrize("name", [*STRAIGHT, *MOVED])
def test_weights_of_a_head_count_if_the_logits_are_what_it_gives(name: str) -> None:
    found, values, told = measured(on_rows({**STRAIGHT, **MOVED}[name]), ROWS)
    assert found == "head:input"
    assert math.isfinite(values["accuracy"])
    assert math.isfinite(values["nc3"]) == math.isfinite(values["nc4"]) == (name in STRAIGHT)
    assert ["not through a linear head" in text for text in told] == [True] * (name in MOVED)


def test_a_hidden_linear_layer_is_no_head() -> None:
    model = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 9), nn.ReLU(), nn.Linear(9, CLASSES))
    _, values, told = measured(model, ROWS, layers="2:input")
    assert math.isnan(values["nc3"])
    assert math.isfinite(values["mean_norm"])
    assert math.isfinite(values["accuracy"])
    assert not told


def test_an_embedding_in_a_mapping_has_no_head() -> None:
    found, values, told = measured(on_rows(lambda h, z: {"vector": h(z)}, nn.Linear(WIDTH, 20)), ROWS)
    assert found == "head:input"
    assert all(math.isnan(values[name]) for name in ("accuracy", "nc3", "nc4"))
    assert ["no logits" in text for text in told] == [True]


def of_shuffled(after: bool) -> Made:
    def run(head: nn.Module, z: Tensor) -> Tensor:
        order = torch.randperm(len(z), generator=torch.Generator().manual_seed(1))
        back = order.argsort()
        return head(z[order][back]) if after else head(z[order])[back]

    return on_rows(run)


def test_points_in_another_order_are_an_error() -> None:
    torch.manual_seed(0)
    with pytest.raises(gm.GeomonitorError, match="'penultimate' gives its rows in another order"):
        measured(of_shuffled(after=False), ROWS)
    assert math.isfinite(measured(of_shuffled(after=True), ROWS)[1]["nc3"])
    statistics_of_the_batch = nn.BatchNorm1d(8, track_running_stats=False)
    measured(nn.Sequential(statistics_of_the_batch, nn.Linear(8, CLASSES)), ROWS)


@pytest.mark.parametrize("name", ["out", "class_scores"])
def test_logits_in_a_mapping_under_another_name_have_an_accuracy(name: str) -> None:
    model = on_rows(lambda h, z: {"features": z, name: h(z)}).eval()
    found, values, told = measured(model, ROWS)
    with torch.no_grad():
        expected = float((model(ROWS)[name].argmax(1) == LABELS).double().mean())
    assert (found, told) == ("head:input", [])
    assert values["accuracy"] == pytest.approx(expected)


class OfTexts(nn.Module):
    """Reads logits at the last word that is not 0, whatever the mask is."""

    def __init__(self, one_row: bool = False) -> None:
        super().__init__()
        self.embed, self.score, self.one_row = nn.Embedding(9, WIDTH), nn.Linear(WIDTH, CLASSES), one_row

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        last = ((input_ids != 0) * torch.arange(input_ids.shape[1])).argmax(1)
        z, items = self.embed(input_ids), torch.arange(len(input_ids))
        if self.one_row:
            return self.score(z[items, last][:, None])[:, 0]
        return self.score(z)[items, last]


class Texts(torch.utils.data.Dataset):
    def __init__(self, ends: tuple[int, ...] = ()) -> None:
        stream = torch.Generator().manual_seed(0)
        lengths = 3 + torch.arange(ITEMS) % 4
        self.mask = (torch.arange(6) < lengths[:, None]).long()
        self.ids = torch.randint(1, 9, (ITEMS, 6), generator=stream) * self.mask
        for item in ends:  # a word with the id of the padding
            self.ids[item, lengths[item] - 1] = 0

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {"input_ids": self.ids[index], "attention_mask": self.mask[index], "labels": LABELS[index]}


def of_texts(model: nn.Module, **options: Any) -> gm.GeometryMonitor:
    data = Texts(options.pop("ends", ()))
    probe = gm.ProbeSet.from_dataset(data, per_class=ITEMS // CLASSES)
    monitor = gm.GeometryMonitor(probe, markers=["mean_norm"], panel=None, on_error="raise", batch_size=8, **options)
    monitor.measure(model, step=0)
    return monitor


def test_a_rule_that_does_not_hold_for_every_text_is_an_error() -> None:
    torch.manual_seed(0)
    assert of_texts(OfTexts()).protocol["resolved"] == {"penultimate": "score:input, last"}
    with pytest.raises(gm.GeomonitorError, match=r"for 1 of 8 points .*pad_token_id"):
        of_texts(OfTexts(), ends=(9,))
    of_texts(OfTexts(), ends=(9,), pool="mean")  # the rule of the user is not that of the model
    with pytest.raises(gm.InputError, match=r"none of last, first, mean .*pad_token_id"):
        of_texts(OfTexts(), ends=tuple(range(ITEMS)))


def test_one_row_of_a_text_needs_no_mask() -> None:
    torch.manual_seed(0)
    model, data = OfTexts(one_row=True), Texts()
    monitor = of_texts(model)
    last = data.mask.sum(1) - 1
    with torch.no_grad():
        rows = model.embed(data.ids)[torch.arange(ITEMS), last]
    assert float(monitor.history.series("penultimate", "mean_norm").values[-1]) == norm_of(rows)


def test_masks_of_an_encoder_a_decoder_and_choices() -> None:
    mask, own = torch.tensor([[1, 1, 0]]), torch.tensor([[1, 0, 0]])
    inputs: dict[str, Any] = {"input_ids": mask, "attention_mask": mask, "decoder_input_ids": own}
    encoder, decoder = Layer("encoder.block.0", "output"), Layer("decoder.bert.encoder.layer.0", "output")
    model = nn.Identity()
    assert mask_of(model, inputs, [encoder]) is mask
    assert mask_of(model, inputs, [decoder]) is None  # it reads all of its tokens
    inputs["decoder_attention_mask"] = own
    assert mask_of(model, inputs, [decoder]) is own
    assert mask_of(model, inputs, [Layer("lm_head", "input")]) is own
    with pytest.raises(gm.InputError, match="two monitors"):
        mask_of(model, inputs, [encoder, decoder])
    choices = {"input_ids": torch.ones(2, 4, 3), "attention_mask": torch.ones(2, 4, 3)}
    assert mask_of(model, choices).shape == (8, 3)


def test_a_batch_of_one_point_is_read_by_exact_rules_alone() -> None:
    found, _, _ = measured(on_rows(lambda h, z: h(z).mean(1)), TOKENS, batch_size=1)
    assert found == "head:input, mean"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_rules_are_found_in_half_precision(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    model = on_rows(lambda h, z: h(z).mean(1).log_softmax(1)).to(dtype)
    assert measured(model, TOKENS)[0] == "head:input, mean"
