"""The linear head that a layer feeds: the same numbers as an ``nn.Linear`` with its weights, whatever keeps them."""

from __future__ import annotations

import copy
import math
import random
import warnings
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.features.isolation import undisturbed
from geomonitor.features.layers import Layer
from geomonitor.features.linear_head import Head, head_of
from tests.zoo import plain as zoo

CLASSES, WIDTH = zoo.CLASSES, zoo.WIDTH
OF_THE_HEAD = ("nc3", "nc4", "coherence")


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """The same map as an ``nn.Linear``."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None).to(weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made


class Images(nn.Module):
    """Four places with the same ``head`` at each, and their mean."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.body, self.head = nn.Conv2d(1, WIDTH, 1), head

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.view(len(x), 1, 2, 4)).relu()).mean((2, 3))


class Lengths(nn.Module):
    """As ``Images``, with one dimension of space."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Conv1d(2, WIDTH, 1), nn.Conv1d(WIDTH, CLASSES, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x.view(len(x), 2, 4)).relu()).mean(2)


class OwnForward(nn.Linear):
    """Does not multiply with the weight that it holds."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, 2 * self.weight - 1, self.bias)


def conv1d() -> tuple[nn.Module, str, nn.Linear]:
    head = zoo.Conv1D()
    return zoo.Plain(head), "fc", linear(head.weight.T, head.bias)  # the bias is zero, and trained


def convolution() -> tuple[nn.Module, str, nn.Linear]:
    head = nn.Conv2d(WIDTH, CLASSES, 1)
    return Images(head), "head", linear(head.weight.flatten(1), head.bias)


def convolution_without_bias() -> tuple[nn.Module, str, nn.Linear]:
    head = nn.Conv2d(WIDTH, CLASSES, 1, bias=False)
    return Images(head), "head", linear(head.weight.flatten(1), None)


def convolution_in_groups() -> tuple[nn.Module, str, nn.Linear]:
    head, weight = nn.Conv2d(WIDTH, CLASSES, 1, groups=2), torch.zeros(CLASSES, WIDTH)
    weight[:2, : WIDTH // 2], weight[2:, WIDTH // 2 :] = head.weight[:2, :, 0, 0], head.weight[2:, :, 0, 0]
    return Images(head), "head", linear(weight, head.bias)


def convolution_of_lengths() -> tuple[nn.Module, str, nn.Linear]:
    model = Lengths()
    return model, "head", linear(model.head.weight.flatten(1), model.head.bias)


def lora() -> tuple[nn.Module, str, nn.Linear]:
    base = nn.Linear(WIDTH, CLASSES)
    head = zoo.LoRA(base, trained=True)
    return zoo.Plain(head), "fc", linear(base.weight + 0.5 * head.lora_B.weight @ head.lora_A.weight, base.bias)


def other_lora() -> tuple[nn.Module, str, nn.Linear]:
    head = zoo.OtherLoRA()
    bias = head.linear.bias + head.up.weight @ head.down.bias + head.up.bias
    return zoo.Plain(head), "fc", linear(head.linear.weight + head.up.weight @ head.down.weight, bias)


def quantised() -> tuple[nn.Module, str, nn.Linear]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch moves quantisation to another package
        model = zoo.quantised()
    return model, "fc", linear(model.fc.weight().dequantize(), model.fc.bias())


def old_weight_norm() -> tuple[nn.Module, str, nn.Linear]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecated, and in use
        head = nn.utils.weight_norm(nn.Linear(WIDTH, CLASSES))
    with torch.no_grad():
        head.weight_g *= torch.tensor([[1.0], [3.0], [0.1], [2.0]])  # as a step does: ``weight`` is that of before
    weight = head.weight_v / head.weight_v.norm(dim=1, keepdim=True) * head.weight_g
    return zoo.Plain(head), "fc", linear(weight, head.bias)


def own_forward() -> tuple[nn.Module, str, nn.Linear]:
    head = OwnForward(WIDTH, CLASSES)
    return zoo.Plain(head), "fc", linear(2 * head.weight - 1, head.bias)


KINDS = (
    conv1d, convolution, convolution_without_bias, convolution_in_groups, convolution_of_lengths, lora, other_lora,
    quantised, old_weight_norm, own_forward,
)  # fmt: skip


def probe() -> gm.ProbeSet:
    stream = torch.Generator().manual_seed(0)
    labels = torch.arange(120) % CLASSES
    centers = torch.randn(CLASSES, 8, generator=stream)
    points = centers[labels] + torch.randn(120, 8, generator=stream)
    return gm.ProbeSet.from_dataset(TensorDataset(points, labels), per_class=20)


def measured(model: nn.Module, layer: str = "penultimate", **options) -> dict[str, float]:
    monitor = gm.GeometryMonitor(
        probe(), markers=OF_THE_HEAD, panel=None, layers={"z": layer}, on_error="raise", **options
    )
    return {r.marker: r.value for r in monitor.measure(model, step=0) if r.marker in OF_THE_HEAD}


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("make", KINDS)
def test_a_monitor_measures_what_it_would_of_an_nn_linear(
    make: Callable[[], tuple[nn.Module, str, nn.Linear]], named: bool
) -> None:
    torch.manual_seed(3)
    model, path, same = make()
    found = measured(model, f"{path}:input" if named or make is convolution_of_lengths else "penultimate")
    assert all(math.isfinite(value) for value in found.values())

    class Same(nn.Module):
        """The model up to its head, the pooling of its features, and the same head as an ``nn.Linear``."""

        def __init__(self) -> None:
            super().__init__()
            self.body, self.fc, self.images = copy.deepcopy(model.body), same, isinstance(model, (Images, Lengths))
            self.shape = (1, 2, 4) if isinstance(model, Images) else (2, 4)

        def forward(self, x: Tensor) -> Tensor:
            if not self.images:
                return self.fc(self.body(x))
            return self.fc(self.body(x.view(len(x), *self.shape)).relu().flatten(2).mean(2))

    expected = measured(Same())
    if make is quantised:  # its inputs are rounded to eight bits, and so are the logits
        assert found.pop("coherence") == pytest.approx(expected.pop("coherence"), abs=0.01)
    assert found == pytest.approx(expected, abs=1e-6)
    assert measured(zoo.Plain()) != pytest.approx(expected, abs=1e-3)


def test_an_nn_linear_has_a_row_for_each_label():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    head = head_of(model, Layer("2", "input"), [1, 3])
    assert torch.equal(head.weight, model[2].weight[[1, 3]])
    assert torch.equal(head.bias, model[2].bias[[1, 3]])
    assert not head.weight.requires_grad
    assert head_of(nn.Sequential(nn.Linear(5, 4, bias=False)), Layer("0", "input"), [0]).bias is None


@pytest.mark.parametrize(
    ("layer", "labels"), [(Layer("2", "output"), [0, 1]), (Layer("1", "input"), [0, 1]), (Layer("2", "input"), [0, 4])]
)
def test_other_layers_have_no_head(layer, labels):
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4))
    assert head_of(model, layer, labels) == Head()
    assert head_of(model, Layer("2", "input"), [0, 1], width=6) == Head()  # rows of another width


def run_alone(head: nn.Module, labels=(0, 2), width: int = 5) -> Head:
    with undisturbed(head):
        return head_of(head, Layer("", "input"), labels, width=width, gives_logits=True)


class Transposed(nn.Module):
    """``(N, C)`` weights, as of GPT-2."""

    def __init__(self, width: int = 5, columns: int = 4, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(width, columns).to(dtype))
        self.shift = nn.Parameter(torch.randn(columns).to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.kernel + self.shift


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_a_head_that_is_run_has_the_digits_of_its_weights(dtype):
    head = Transposed(dtype=dtype)
    found = run_alone(head)
    assert torch.equal(found.weight, head.kernel.T[[0, 2]])
    assert torch.equal(found.bias, head.shift[[0, 2]])


def test_a_block_of_a_dropout_and_a_constant():
    linear = nn.Linear(5, 4, bias=False)

    class Block(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return 3 * super().forward(x) + 0.25

    found = run_alone(Block(nn.Dropout(), linear))
    torch.testing.assert_close(found.weight, 3 * linear.weight.detach()[[0, 2]])
    assert torch.equal(found.bias, torch.full((2,), 0.25))
    assert run_alone(nn.Sequential(nn.Dropout(), linear)).bias is None


def test_labels_keep_their_order():
    head = Transposed()
    assert torch.equal(run_alone(head, labels=(3, 0, 1)).weight, head.kernel.T[[3, 0, 1]])


def test_a_large_vocabulary_is_run_in_parts_of_the_labels_only():
    labels, rows = list(range(0, 50_000, 250)), []

    class Counted(Transposed):
        def forward(self, x: Tensor) -> Tensor:
            rows.append(len(x))
            return super().forward(x)

    head = Counted(3, 50_000)
    found = run_alone(head, labels, width=3)
    assert torch.equal(found.weight, head.kernel.T[labels])
    assert max(rows) <= 2**22 // 50_000
    assert sum(rows) == 1 + len(labels) + 4  # zero, the labels, and what is compared


class Function(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(5, 4), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def only_ones(x: Tensor) -> Tensor:
    raise ValueError("points of the data only")


NOT_LINEAR = {
    "tanh": (lambda: Function(torch.tanh), "no affine function"),
    "relu": (lambda: Function(torch.relu), "no affine function"),
    "cap far above small logits": (lambda: Function(lambda z: 1000 * torch.tanh(z / 1000)), "no affine function"),
    "norm": (lambda: nn.Sequential(nn.LayerNorm(5), nn.Linear(5, 4)), "no affine function"),
    "weights not finite": (lambda: Function(lambda z: z * math.nan), "no affine function"),
    "mixes rows": (lambda: Function(lambda z: z - z.mean(0)), "no affine function"),
    "convolution of several places": (lambda: nn.Conv2d(5, 4, 3, padding=1), "Conv2d in it looks at more than one"),
    "strides": (lambda: nn.Conv2d(5, 4, 1, stride=2), "more than one place"),
    "padding": (lambda: nn.Conv1d(5, 4, 1, padding=1), "more than one place"),
    "padding on one side": (lambda: nn.Conv2d(5, 4, 1, padding=(1, 0)), "more than one place"),
    "largest place": (lambda: nn.Sequential(nn.Conv2d(5, 4, 1), nn.AdaptiveMaxPool2d(1)), "AdaptiveMaxPool2d in it"),
    "three dimensions": (lambda: Function(lambda z: z[None]), "one row of logits"),
    "several rows": (lambda: Function(lambda z: torch.cat([z, z])), "one row of logits"),
    "few columns": (lambda: Function(lambda z: z[:, :2]), "one row of logits"),
    "a tuple": (lambda: Function(lambda z: (z, z)), "one row of logits"),
    "an error": (lambda: Function(only_ones), "cannot be run alone: ValueError: points of the data only"),
    "no weights here": (lambda: Function(torch.relu).to("meta"), "offloaded"),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_a_head_that_is_not_linear_has_a_reason(name: str) -> None:
    make, reason = NOT_LINEAR[name]
    torch.manual_seed(0)
    head = head_of(make(), Layer("", "input"), [0, 2], width=5, gives_logits=True)
    assert (head.weight, head.bias) == (None, None)
    assert reason in head.reason


def test_what_is_not_known_to_give_the_logits_is_not_run():
    assert head_of(Function(only_ones), Layer("", "input"), [0, 2], width=5) == Head()


def test_a_monitor_warns_once_of_a_head_that_is_not_linear():
    monitor = gm.GeometryMonitor(probe(), markers=["nc4", "nc3", "mean_norm"], panel=None, on_error="raise")
    model = zoo.Plain(zoo.Cosine())
    with pytest.warns(
        gm.GeomonitorWarning, match="'penultimate'.*no affine function.*nc3, nc4 of it are NaN"
    ) as caught:
        monitor.measure(model, step=0)
    assert len(caught) == 1
    found = {r.marker: r.value for r in monitor.measure(model, step=1)}  # a second warning would be an error
    assert (math.isnan(found["nc3"]), math.isnan(found["nc4"]), math.isfinite(found["mean_norm"])) == (True,) * 3


def test_a_linear_head_before_an_activation_does_not_give_the_logits():
    with pytest.warns(gm.GeomonitorWarning, match="an activation or a normalisation comes after it"):
        assert all(map(math.isnan, measured(zoo.Images(relu=True)).values()))


def test_without_markers_of_the_head_it_does_not_run():
    calls: list[int] = []

    class Counted(zoo.Conv1D):
        def forward(self, x: Tensor) -> Tensor:
            calls.append(len(x))
            return super().forward(x)

    model = zoo.Plain(Counted())
    for markers, zeros in ((["mean_norm"], False), (["nc3"], True)):
        calls.clear()
        gm.GeometryMonitor(probe(), markers=markers, panel=None, on_error="raise").measure(model, step=0)
        assert (1 in calls) == zeros


def test_nothing_is_left_in_the_run():
    heard: list[str] = []
    head = zoo.LoRA(nn.Linear(WIDTH, CLASSES), trained=True)
    model = nn.Sequential(zoo.body(), nn.Dropout(), head).train()
    head.lora_A.eval()
    head.base_layer.weight.requires_grad_(False)
    model(torch.ones(2, 8)).sum().backward()
    for each in (head, head.lora_B):
        each.register_forward_hook(lambda m, args, out: heard.append(f"forward of {len(args[0])}"))
        each.register_forward_pre_hook(lambda m, args: heard.append("before"))
        each.register_full_backward_hook(lambda m, given, taken: heard.append("backward"))
    head.base_layer.bias.register_hook(lambda g: heard.append("gradient"))
    hooks = [dict(vars(m)["_forward_hooks"]) for m in model.modules()]
    before, gradients = copy.deepcopy(model.state_dict()), [copy.deepcopy(p.grad) for p in model.parameters()]
    modes, versions = [m.training for m in model.modules()], [p._version for p in model.parameters()]
    streams = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    assert all(map(math.isfinite, measured(model, batch_size=80).values()))
    assert set(heard) == {
        "before",
        "forward of 80",
        "forward of 8",
        "forward of 2",
    }  # points of the probe, and no zeros
    assert hooks == [dict(vars(m)["_forward_hooks"]) for m in model.modules()]
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for old, parameter in zip(gradients, model.parameters(), strict=True):
        assert (old is None) == (parameter.grad is None)
        assert old is None or torch.equal(old, parameter.grad)
    assert ([m.training for m in model.modules()], [p._version for p in model.parameters()]) == (modes, versions)
    assert torch.equal(torch.get_rng_state(), streams[0])
    assert (np.random.get_state()[1] == streams[1]).all()
    assert random.getstate() == streams[2]


def test_points_of_a_validation_loop_have_a_linear_head_also():
    held = probe()
    base = nn.Linear(WIDTH, CLASSES)
    model = zoo.Plain(zoo.LoRA(base, trained=True)).eval()
    monitor = gm.GeometryMonitor(
        gm.ValidationProbe(classes=CLASSES, per_class=20), markers=["nc3", "nc4"], panel=None, on_error="raise"
    )
    validation = monitor.validation_pass(model)
    for batch in held.loader(80):
        with validation.batch((batch.inputs, batch.labels)), torch.no_grad():
            model(batch.inputs)
    found = {r.marker: r.value for r in monitor.measure(model, step=0, validation=validation)}
    same = zoo.Plain(linear(base.weight + 0.5 * model.fc.lora_B.weight @ model.fc.lora_A.weight, base.bias))
    same.body = model.body
    expected = measured(same)
    assert (found["nc3"], found["nc4"]) == pytest.approx((expected["nc3"], expected["nc4"]), abs=1e-6)
