"""Forward passes that write to parameters in evaluation mode, as RWKV does, which divides its weights there."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm
from geomonitor.errors import GeomonitorWarning
from geomonitor.features.isolation import undisturbed
from geomonitor.features.watched import Written
from geomonitor.measure.network_coherence import network_coherence

WRITES: dict[str, Callable[[nn.Parameter, Tensor], object]] = {
    "in place": lambda weight, x: weight.div_(2),
    "through .data": lambda weight, x: weight.data.div_(2),
    "through a view": lambda weight, x: weight[1].view(-1)[2:].add_(1),
    "as out=": lambda weight, x: torch.add(weight, 1, out=weight),
    "by an index": lambda weight, x: weight.index_put_((torch.tensor([0]),), torch.tensor(7.0)),
    "of many": lambda weight, x: torch._foreach_mul_([weight], 3.0),
    "from what was computed": lambda weight, x: weight.copy_(x.sum() * weight),
    "after storage is assigned": lambda weight, x: (setattr(weight, "data", weight.data.clone()), weight.mul_(2)),
    "to what it was": lambda weight, x: weight.mul_(1),
}


class Writes(nn.Module):
    """Writes to a weight in evaluation mode, from a given call on."""

    def __init__(self, write: Callable[[nn.Parameter, Tensor], object], first: int = 0) -> None:
        super().__init__()
        self.body, self.fc = nn.Linear(4, 5), nn.Linear(5, 3)
        self.write, self.first, self.calls = write, first, [0]

    def forward(self, x: Tensor) -> Tensor:
        if not self.training and self.calls[0] >= self.first:
            with torch.no_grad():
                self.write(self.fc.weight, x)
        return self.fc(self.body(x).relu())


class Rescales(nn.Module):
    """Divides weights once when it goes to evaluation mode and multiplies them once when it goes back."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(3))
        self.head = nn.Linear(4, 3)
        self.rescaled = False

    def forward(self, x: Tensor) -> Tensor:
        if self.rescaled == self.training:
            for number, layer in enumerate(self.layers):
                with torch.no_grad():
                    (layer.weight.mul_ if self.training else layer.weight.div_)(2**number)
            self.rescaled = not self.training
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def state(model: nn.Module) -> dict[str, Tensor]:
    return copy.deepcopy(model.state_dict())


def same(model: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("how", WRITES)
def test_what_is_written_is_put_back_also_by_later_blocks(how):
    torch.manual_seed(0)
    model, written = Writes(WRITES[how]).train(), Written()
    before, place = state(model), model.fc.weight.data_ptr()
    for _ in range(3):
        with warnings.catch_warnings(record=True) as caught, undisturbed(model, written=written):
            warnings.simplefilter("always")
            model(torch.ones(2, 4))
            model(torch.ones(2, 4))
        assert not [each for each in caught if "cannot be undone" in str(each.message)]
        assert same(model, before)
        assert model.fc.weight.data_ptr() == place
    # No copy of the others, and none of a weight whose own storage is not written to.
    assert written.names == ({"fc.weight"} if how != "after storage is assigned" else set())


def test_an_exception_of_the_model_leaves_no_write():
    def fail(weight: nn.Parameter, x: Tensor) -> None:
        weight.div_(2)
        raise KeyError("of the model")

    model, written = Writes(fail), Written()
    before = state(model)
    for _ in range(2):
        with pytest.raises(KeyError), undisturbed(model, written=written):
            model(torch.ones(2, 4))
        assert same(model, before)


def test_a_write_that_begins_later_is_reported_once_and_then_put_back():
    model, written = Writes(WRITES["in place"], first=1), Written()
    for number in range(4):
        before = state(model)
        model.calls[0] = number
        with warnings.catch_warnings(record=True) as caught, undisturbed(model, written=written):
            warnings.simplefilter("always")
            model(torch.ones(2, 4))
        told = " ".join(str(each.message) for each in caught)
        assert ("cannot be undone: fc.weight" in told) == (number == 1)
        assert same(model, before) == (number != 1)


def test_a_model_that_writes_nothing_keeps_no_copy():
    model, written = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)), Written()
    with undisturbed(model, written=written):
        model(torch.ones(2, 4))
    assert written.looked
    assert not written.names


def test_measurements_leave_a_network_that_rescales_its_weights_as_it_was_and_are_right():
    """Truth, coherence and the way the head is read make passes of their own: each begins with weights as they were."""
    torch.manual_seed(0)
    x, labels = torch.randn(60, 4), torch.arange(60) % 3
    probe = gm.ProbeSet.from_dataset(torch.utils.data.TensorDataset(x, labels), per_class=20)
    new = gm.TransferProbe.from_dataset(torch.utils.data.TensorDataset(torch.randn(60, 4), labels + 3), per_class=20)
    model = Rescales().train()
    before, oracle = state(model), copy.deepcopy(model)
    monitor = gm.GeometryMonitor(
        probe, markers=["mean_norm", "accuracy"], truth=new, coherence_probe=probe, panel=None, batch_size=7
    )
    readings = []
    with pytest.warns(GeomonitorWarning, match=r"put back rescaled, layers\.1\.weight, layers\.2\.weight\. "):
        for step in range(3):
            readings.append({r.marker: r.value for r in monitor.measure(model, step=step)})
            assert same(model, before)
            assert model.training
            assert not model.rescaled
    names = ("mean_norm", "accuracy", "transfer_accuracy", "network_coherence")
    for name in names:
        assert readings[0][name] == readings[1][name] == readings[2][name]
    with torch.no_grad():
        right = (oracle.eval()(x).argmax(dim=1) == labels).float().mean()
    assert readings[0]["accuracy"] == pytest.approx(float(right), abs=1e-6)
    with pytest.warns(GeomonitorWarning, match="put back"):
        alone = network_coherence(model, probe)
    assert same(model, before)
    assert float(alone.value) == pytest.approx(readings[0]["network_coherence"], rel=1e-6)
