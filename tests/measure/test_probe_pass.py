"""The probe pass in a plain loop: no trace of it on layers that compute their weights; dtypes; threads."""

from __future__ import annotations

import multiprocessing
import os
import random
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn.utils import parametrizations, parametrize
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor._random import preserved_rng
from geomonitor.measure import take
from geomonitor.measure.probe_pass import dtype_of, to_dtype

pytestmark = pytest.mark.filterwarnings("ignore:in evaluation mode:geomonitor.GeomonitorWarning")


def data(inputs: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(48) % 3
    return TensorDataset((torch.randn(48, 6, generator=generator) + 3 * torch.eye(6)[labels]).to(inputs), labels)


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def monitor(inputs: torch.dtype = torch.float32, **options: Any) -> gm.GeometryMonitor:
    few = {"markers": ("dimension", "participation_ratio", "nc1", "accuracy"), "geometry": {"directions": 10}}
    probe = gm.ProbeSet.from_dataset(data(inputs), per_class=10)
    return gm.GeometryMonitor(probe, panel=None, **{"on_error": "raise", **few, **options})


class Counting(nn.Module):
    """A parametrisation that counts its calls and draws random numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.register_buffer("total", torch.zeros(()))

    def forward(self, weight: Tensor) -> Tensor:
        self.calls += 1
        self.total += 1
        return weight * (1 + 0.01 * torch.rand(()) + 0.01 * self.calls)


def counting(layer: nn.Linear) -> nn.Module:
    parametrize.register_parametrization(layer, "weight", Counting())
    return layer


def quantised(layer: nn.Linear) -> nn.Module:
    holder = nn.Sequential(layer).train()
    holder.qconfig = quantization.get_default_qat_qconfig("fbgemm")
    return quantization.prepare_qat(holder, inplace=True)


LAYERS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "spectral norm": parametrizations.spectral_norm,
    "spectral norm, by a hook": nn.utils.spectral_norm,
    "weight norm": parametrizations.weight_norm,
    "weight norm, by a hook": nn.utils.weight_norm,
    "orthogonal": parametrizations.orthogonal,
    "own parametrisation": counting,
    "fake quantisation": quantised,
}


def left_by(change: Callable[[nn.Linear], nn.Module], *, measured: bool, everywhere: bool) -> dict[str, Any]:
    """All that twelve steps of training leave behind."""
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(0)
    first = nn.Linear(6, 8)
    model = nn.Sequential(change(first) if everywhere else first, nn.ReLU(), nn.Dropout(0.2), change(nn.Linear(8, 3)))
    watcher = monitor(layers="3:input" if isinstance(model[3], nn.Sequential) else "penultimate")
    optimizer, losses = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), []
    x, y = data().tensors
    for step in range(12):
        if measured and step % 3 == 0:  # before the first batch also
            watcher.measure(model, step=step)
        batch = torch.randperm(len(x))[:16]
        loss = nn.functional.cross_entropy(model(x[batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    momenta = optimizer.state_dict()["state"]
    return {
        "losses": losses,
        "calls": [module.calls for module in model.modules() if isinstance(module, Counting)],
        "streams": streams(),
        **model.state_dict(),
        **{f"momentum {index}": state["momentum_buffer"] for index, state in momenta.items()},
    }


@pytest.mark.filterwarnings(
    "ignore:.*weight_norm:FutureWarning", "ignore::DeprecationWarning", "ignore:.*reduce_range:UserWarning"
)
@pytest.mark.parametrize("everywhere", [False, True], ids=["head", "all layers"])
@pytest.mark.parametrize("name", LAYERS)
def test_layers_that_compute_their_weights_train_bit_identically(name: str, everywhere: bool) -> None:
    without = left_by(LAYERS[name], measured=False, everywhere=everywhere)
    monitored = left_by(LAYERS[name], measured=True, everywhere=everywhere)
    assert list(without) == list(monitored)
    for key, value in without.items():
        same = torch.equal(value, monitored[key]) if isinstance(value, Tensor) else value == monitored[key]
        assert same, key


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[take.Taken]:
    """What each measurement gives."""
    found: list[take.Taken] = []

    def kept(*args: Any, **options: Any) -> take.Taken:
        found.append(take.take_measurement(*args, **options))
        return found[-1]

    monkeypatch.setattr("geomonitor.measure.series.take_measurement", kept)
    return found


class TestDtypes:
    @pytest.mark.parametrize("weights", ["float64", "bfloat16", "float32"])
    @pytest.mark.parametrize("inputs", ["float32", "float64", "float16"])
    def test_inputs_take_the_dtype_of_the_weights(self, weights: str, inputs: str) -> None:
        model = network().to(getattr(torch, weights))
        records = monitor(getattr(torch, inputs), shifts={"same": lambda x: x}).measure(model, step=0)
        values = {record.marker: record.value for record in records}
        assert np.isfinite(values["participation_ratio"])
        assert values["accuracy_under_same"] == values["accuracy"]

    def test_only_floating_inputs_are_cast(self) -> None:
        batch = {"ids": torch.arange(3), "mask": torch.ones(3).bool(), "pair": (torch.ones(2), "text")}
        cast = to_dtype(batch, torch.bfloat16)
        assert cast["ids"] is batch["ids"]
        assert cast["mask"] is batch["mask"]
        assert (cast["pair"][0].dtype, cast["pair"][1]) == (torch.bfloat16, "text")
        assert to_dtype(batch, None)["pair"][0].dtype == torch.float32

    def test_the_first_floating_parameter_decides(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.LayerNorm(2)).to(torch.bfloat16)
        model[1].float()
        assert dtype_of(model) == torch.bfloat16
        assert dtype_of(nn.ReLU()) is None
        model[0].weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.int8), requires_grad=False)
        assert dtype_of(model) == torch.bfloat16  # of the bias: the weight is quantised

    @pytest.mark.parametrize("weights", ["float32", "bfloat16"])
    def test_the_dtype_of_a_layer_is_known_and_autocast_is_off(self, weights: str, taken: list[take.Taken]) -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            monitor(layers=["0", "penultimate"]).measure(network().to(getattr(torch, weights)), step=0)
        assert taken[0].identity.dtypes == {"0": weights, "penultimate": weights}

    def test_autocast_does_not_move_the_markers(self) -> None:
        model = network()
        plain = [record.value for record in monitor().measure(model, step=0)][:5]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert [record.value for record in monitor().measure(model, step=0)][:5] == plain

    def test_a_validation_loop_has_its_own_dtype(self, taken: list[take.Taken]) -> None:
        model = network().eval()
        watcher = gm.GeometryMonitor(gm.ValidationProbe(classes=3, per_class=8), panel=None, markers=["nc1"])
        validation = watcher.validation_pass(model)
        with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad(), validation.batch(data().tensors):
            nn.Sequential(*model[:2], nn.Identity(), model[2])(data().tensors[0].bfloat16())
        watcher.measure(model, step=0, validation=validation)
        assert taken[0].identity.dtypes == {"penultimate": "bfloat16"}


def streams() -> list[str]:
    """The state of all three streams of the process."""
    return [repr(random.getstate()), repr(np.random.get_state()[1].tolist()), repr(torch.get_rng_state().tolist())]


def draw() -> None:
    random.random(), np.random.rand(), torch.rand(5)


class TestThreads:
    """Two trials in threads of one process (Optuna, joblib)."""

    def test_one_measurement_at_a_time_and_the_streams_continue(self) -> None:
        inside: list[int] = []
        overlaps: list[bool] = []

        def forward(model: nn.Module, inputs: Tensor) -> Tensor:
            inside.append(1)
            overlaps.append(len(inside) > 1)
            time.sleep(0.05)  # lets another one in, if it can come in
            draw()
            inside.pop()
            return model(inputs)

        pairs = [(monitor(forward=forward), network()) for _ in range(3)]
        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(123)
        fastpath, before = torch.backends.mha.get_fastpath_enabled(), streams()
        trials = [threading.Thread(target=w.measure, args=(m,), kwargs={"step": 0}) for w, m in pairs]
        for thread in trials:
            thread.start()
        for thread in trials:
            thread.join(60)
        assert overlaps == [False] * 9  # eight points to find the layer, the pass, and two points again
        assert torch.backends.mha.get_fastpath_enabled() == fastpath
        assert streams() == before

    def test_the_second_to_leave_restores_what_was_before_both(self) -> None:
        first_in, second_asks = threading.Event(), threading.Event()

        def first() -> None:
            with preserved_rng():
                first_in.set()
                second_asks.wait(5)
                time.sleep(0.05)
                draw()

        def second() -> None:
            first_in.wait(5)
            second_asks.set()
            with preserved_rng():
                draw()
                time.sleep(0.1)

        for seed in (random.seed, np.random.seed, torch.manual_seed):
            seed(123)
        before = streams()
        threads = [threading.Thread(target=target) for target in (first, second)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert streams() == before

    @pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
    @pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
    def test_a_process_forked_while_another_thread_measures_can_measure(self) -> None:
        held, release = threading.Event(), threading.Event()

        def measure() -> None:
            with preserved_rng():
                held.set()
                release.wait(5)

        thread = threading.Thread(target=measure)
        thread.start()
        held.wait(5)
        threading.Timer(0.2, release.set).start()
        child = multiprocessing.get_context("fork").Process(target=_enter)
        child.start()  # waits until the measurement is over, so that the child's lock is free
        child.join(10)
        thread.join(5)
        child.kill()
        assert child.exitcode == 0


def _enter() -> None:
    with preserved_rng():
        pass
