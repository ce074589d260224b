"""Heads whose weights do not give the logits: other weights in the forward pass, writes in place, another pooling."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm
from geomonitor.features.linear_head import Head
from geomonitor.measure.head_check import HeadCheck
from tests.zoo.test_reading import (
    CLASSES,
    IMAGES,
    ITEMS,
    LABELS,
    ROWS,
    TOKENS,
    WIDTH,
    OfTexts,
    Texts,
    measured,
    norm_of,
    on_rows,
)


def written(columns: Any, value: Any) -> Any:
    def run(head: nn.Module, z: Tensor) -> Tensor:
        logits = head(z)
        logits[:, columns] = value(z, logits[:, columns])
        return logits

    return run


def in_place(logits: Tensor) -> Tensor:
    logits[:, 2] += 3
    return logits


OTHER_WEIGHTS = {
    "functional call": lambda h, z: torch.func.functional_call(h, {"weight": h.weight + h.weight.flip(0)}, (z,)),
    "a bias in place": lambda h, z: in_place(h(z)),
    "a column in place": written(0, lambda z, old: 0.0),
    "bounded in place": written(1, lambda z, old: old.clamp(max=0)),
}


@pytest.mark.parametrize("name", OTHER_WEIGHTS)
def test_weights_that_do_not_give_the_logits_are_no_head(name: str) -> None:
    torch.manual_seed(0)
    found, values, told = measured(on_rows(OTHER_WEIGHTS[name]), ROWS)
    assert found == "head:input"
    assert math.isfinite(values["accuracy"])
    assert math.isnan(values["nc3"])
    assert math.isnan(values["nc4"])
    assert ["not through a linear head" in text for text in told] == [True]


@pytest.mark.parametrize("asked", [["nc3"], ["nc3", "accuracy"]])
def test_the_pooling_of_the_user_may_not_give_the_logits(asked: list[str]) -> None:
    model = on_rows(lambda h, z: h(z)[:, 0])
    torch.manual_seed(0)
    data = torch.utils.data.TensorDataset(TOKENS, LABELS)
    probe = gm.ProbeSet.from_dataset(data, per_class=ITEMS // CLASSES)
    for pool, given in (("first", True), (lambda tensor, mask: tensor[:, 0], True), ("mean", False)):
        monitor = gm.GeometryMonitor(probe, markers=asked, panel=None, on_error="raise", pool=pool)
        if given:
            records = monitor.measure(model, step=0)
        else:
            with pytest.warns(gm.GeomonitorWarning, match="pooled otherwise than in the model"):
                records = monitor.measure(model, step=0)
        assert [math.isfinite(r.value) for r in records if r.marker == "nc3"] == [given]


@pytest.mark.parametrize("last", [lambda z: z, lambda z: z.log_softmax(1), lambda z: z.softmax(1), lambda z: z / 3 + 1])
def test_a_head_that_begins_at_zero_is_a_head(last: Any) -> None:
    model = on_rows(lambda h, z: last(h(z)))
    nn.init.zeros_(model.head.weight)
    data = torch.utils.data.TensorDataset(ROWS, LABELS)
    probe = gm.ProbeSet.from_dataset(data, per_class=ITEMS // CLASSES)
    monitor = gm.GeometryMonitor(probe, markers=["nc4"], panel=None, on_error="raise")
    assert all(math.isfinite(r.value) for r in monitor.measure(model, step=0) if r.marker == "nc4")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1e-25, 1.0, 100.0])
def test_logits_of_a_trained_network_are_checked(dtype: torch.dtype, size: float) -> None:
    stream = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(40, 9, generator=stream), size * torch.randn(4, 9, generator=stream)
    for changed in (False, True):
        logits = rows.to(dtype) @ (weight.flip(0) if changed else weight).to(dtype).T + (7 if size >= 1 else 0)
        for output in (logits, logits.softmax(1), {"logits": logits.log_softmax(1)})[: 3 if size >= 1 else 1]:
            check = HeadCheck(range(4), None, torch.device("cpu"))
            ids = torch.arange(40)
            check.add(output, ids % 4, ids)
            heads = {"fc": Head(weight)}
            points = {"fc": rows.double()[check._scores.gather().ids]}
            name = str(dtype).removeprefix("torch.")
            found = check.of(heads, points, {"fc": name}, torch.device("cpu"))["fc"]
            assert (found.weight is None) == changed


def test_logits_that_look_like_probabilities_by_chance() -> None:
    stream = torch.Generator().manual_seed(0)
    rows, ids = torch.rand(40, 2, generator=stream), torch.arange(40)
    rows[::2, 1] = 1 - rows[::2, 0]
    check = HeadCheck(range(2), None, torch.device("cpu"))
    for item in range(40):  # in batches of one
        check.add(rows[item : item + 1], ids[item : item + 1] % 2, ids[item : item + 1])
    points = {"fc": rows[check._scores.gather().ids]}
    assert check.of({"fc": Head(torch.eye(2))}, points, {}, torch.device("cpu"))["fc"].weight is not None


class OverOther(nn.Module):
    """Logits of two layers, one of which adds in place to columns of the other's."""

    def __init__(self, start: str) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU()), nn.Linear(WIDTH, CLASSES)
        self.old, self.new, self.start = nn.Linear(WIDTH, 2), nn.Linear(8, 2), start

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        if self.start == "of a layer":
            logits = self.fc(z)
            logits[:, 2:] += self.new(x)
            return logits
        logits = z.new_zeros(len(z), CLASSES) if self.start == "of zeros like the features" else torch.zeros(len(z), 4)
        logits[:, :2], logits[:, 2:] = self.old(z), self.new(x)
        return logits


@pytest.mark.parametrize("start", ["of a layer", "of zeros like the features", "of zeros"])
def test_layers_that_write_into_columns_of_the_logits_are_several(start: str) -> None:
    with pytest.raises(gm.InputError, match=r"from several layers.*new:input"):
        measured(OverOther(start), ROWS)


def test_a_head_that_writes_all_of_the_logits_is_one() -> None:
    def run(head: nn.Module, z: Tensor) -> Tensor:
        logits = torch.zeros(len(z), CLASSES)
        logits[:] = head(z)
        return logits

    found, values, told = measured(on_rows(run), ROWS)
    assert (found, math.isfinite(values["nc3"]), told) == ("head:input", True, [])


def of_images(head: nn.Module) -> nn.Sequential:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(nn.Conv2d(3, 5, 2, 2), nn.ReLU(), head, *pooled)


def test_a_convolution_over_all_places_takes_all_of_them() -> None:
    torch.manual_seed(0)
    model = of_images(nn.Conv2d(5, CLASSES, 4))
    found, values, told = measured(model, IMAGES)
    assert found == "2:input, flatten"
    with torch.no_grad():
        assert values["mean_norm"] == norm_of(model[:2](IMAGES).flatten(1))
    assert ["more than one place" in text for text in told] == [True]


@pytest.mark.parametrize("head", [nn.Conv2d(5, CLASSES, 3, padding="same"), nn.Conv2d(5, CLASSES, 1, stride=2)])
def test_a_convolution_over_several_places_is_a_question(head: nn.Module) -> None:
    with pytest.raises(gm.InputError, match=r"'2' looks at several places.*pool='mean'"):
        measured(of_images(head), IMAGES)
    assert measured(of_images(head), IMAGES, pool="mean")[0] == "2:input"
    assert measured(of_images(nn.Conv2d(5, CLASSES, 1, padding="same")), IMAGES)[0] == "2:input"


def test_a_projector_whose_layers_are_called_one_by_one() -> None:
    class Looped(nn.Module):
        def __init__(self, layers: Any) -> None:
            super().__init__()
            self.encoder = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU())
            self.projector = layers([nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 12)])

        def forward(self, x: Tensor) -> Tensor:
            z = self.encoder(x)
            for layer in self.projector:
                z = layer(z)
            return z

    for layers in (nn.ModuleList, lambda each: nn.Sequential(*each)):
        probe = gm.ProbeSet.from_unlabelled(torch.utils.data.TensorDataset(ROWS), samples=20)
        monitor = gm.GeometryMonitor(probe, markers=["mean_norm"], panel=None, on_error="raise")
        monitor.measure(Looped(layers), step=0)
        assert monitor.protocol["resolved"] == {"penultimate": "projector.0:input"}


def test_a_head_inside_vmap_is_an_error_that_names_the_way_out() -> None:
    model = on_rows(lambda h, z: torch.vmap(h)(z))
    with pytest.raises(gm.GeomonitorError, match=r"transform of torch\.func.*give forward="):
        measured(model, ROWS)
    found, values, _ = measured(model, ROWS, forward=lambda model, x: model.head(model.body(x)))
    assert (found, math.isfinite(values["nc3"])) == ("head:input", True)


class WideAndDeep(nn.Module):
    def __init__(self, bag: bool) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU()), nn.Linear(WIDTH, CLASSES)
        self.wide = nn.EmbeddingBag(9, CLASSES) if bag else nn.Embedding(9, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        wide = self.wide((x[:, :3] > 0).long())
        return self.fc(self.body(x)) + (wide if wide.ndim == 2 else wide.sum(1))


@pytest.mark.parametrize("bag", [False, True])
def test_logits_of_a_head_and_of_an_embedding_are_of_several_layers(bag: bool) -> None:
    with pytest.raises(gm.InputError, match=r"add rows of an embedding to what 'fc' gives.*fc:input"):
        measured(WideAndDeep(bag), ROWS)


LAST_PLACE = {
    "logits": lambda z: z,
    "log-softmax": lambda z: z.log_softmax(1),
    "softmax": lambda z: z.softmax(1),
    "temperature": lambda z: z / 3 + 1,
}


class LastPlace(OfTexts):
    """Reads logits at the last place, padding or not."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.last = LAST_PLACE[name]

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.last(self.score(self.embed(input_ids))[:, -1])


@pytest.mark.parametrize("name", LAST_PLACE)
def test_a_rule_that_holds_for_the_first_points_alone_is_an_error(name: str) -> None:
    torch.manual_seed(0)
    data, model = Texts(), LastPlace(name)
    data.mask[:] = 1

    def monitor() -> gm.GeometryMonitor:
        probe = gm.ProbeSet.from_dataset(data, per_class=ITEMS // CLASSES)
        return gm.GeometryMonitor(probe, markers=["mean_norm"], panel=None, on_error="raise")

    (whole := monitor()).measure(model, step=0)
    data.mask[whole.probe.indices[3], 3:] = 0  # one of the points that are not traced
    with pytest.raises(gm.GeomonitorError, match=r"for 1 of 40 points .* than the 'last' one of the mask"):
        monitor().measure(model, step=0)


class OfNumPy(nn.Module):
    def __init__(self, functional: bool) -> None:
        super().__init__()
        self.body, self.fc = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU()), nn.Linear(WIDTH, CLASSES)
        self.functional = functional

    def forward(self, x: Tensor) -> Tensor:
        z = self.body(x)
        logits = z.numpy() @ self.fc.weight.numpy().T if self.functional else 2 * self.fc(z).numpy()
        return torch.from_numpy(logits)


def test_logits_that_no_operation_of_torch_made() -> None:
    found, values, told = measured(OfNumPy(functional=False), ROWS, layers="penultimate")
    assert (found, math.isfinite(values["nc3"]), told) == ("", True, [])
    with pytest.raises(gm.InputError, match=r"does not show which layer gives the logits.*'fc', does not.*fc"):
        measured(OfNumPy(functional=True), ROWS)


AS_MANY_UNITS = {
    "differences": lambda h, z: -(z[:, None] - h.weight).square().sum(-1),
    "cosines": lambda h, z: nn.functional.cosine_similarity(z[:, None], h.weight, dim=-1),
    "products": lambda h, z: (z[:, None] * h.weight).sum(-1),
}


@pytest.mark.parametrize("name", AS_MANY_UNITS)
def test_a_head_by_sums_after_a_layer_with_as_many_units_as_classes(name: str) -> None:
    model = on_rows(AS_MANY_UNITS[name], nn.Linear(CLASSES, CLASSES))
    model.body = nn.Sequential(nn.Linear(8, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    with pytest.raises(gm.InputError, match=r"after 'body.2' without a product with weights.*body.2:output"):
        measured(model, ROWS)
    found, values, _ = measured(on_rows(lambda h, z: torch.stack([h(z), h(z)]).mean(0)), ROWS)
    assert (found, math.isfinite(values["nc3"])) == ("head:input", True)


def test_a_model_that_runs_its_points_one_by_one_is_an_error() -> None:
    with pytest.raises(gm.GeomonitorError, match=r"shape \(16,\)"):
        measured(on_rows(lambda h, z: torch.stack([h(row) for row in z])), ROWS)


def test_candidates_are_modules_that_ran() -> None:
    model = on_rows(lambda h, z: h.forward(z))
    with pytest.raises(gm.InputError, match=r"functional form.*Candidates: body:output$"):
        measured(model, ROWS)


def test_rows_of_several_parts_of_a_point_are_pooled_by_the_user() -> None:
    model = on_rows(lambda h, z: h(z.flatten(0, 1)).view(len(z), -1, CLASSES).mean(1))
    with pytest.raises(gm.GeomonitorError, match=r"gave 240 rows for 40 points.*or forward= a function"):
        measured(model, TOKENS)
    found, values, told = measured(model, TOKENS, pool=lambda tensor, mask: tensor.view(-1, 6, WIDTH).mean(1))
    assert (found, math.isfinite(values["nc3"]), told) == ("head:input", True, [])
