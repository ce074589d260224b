"""GeometryCallback in nets of skorch on digits."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.history.runs import load_run
from tests.frameworks.common import (
    DIMENSION,
    OPTIONS,
    OfRank,
    Weights,
    declining,
    digits,
    digits_model,
    digits_probe,
    framework,
    of_rank,
    parallel_options,
    records_of,
    require_curve_of_plain_loop,
    require_same_weights,
    series_of,
)

skorch = framework("skorch", "skorch")

from skorch.callbacks import Callback, Checkpoint, EarlyStopping, LoadInitState, TrainEndCheckpoint  # noqa: E402
from skorch.helper import predefined_split  # noqa: E402

from geomonitor_integrations.skorch import GeometryCallback  # noqa: E402


class Copies(Callback):
    def __init__(self) -> None:
        self.weights_ = Weights()

    def on_epoch_end(self, net: Any, **_: Any) -> None:
        self.weights_.keep(10 * len(net.history), net.module_)


def geometry(**options: Any) -> GeometryCallback:
    return GeometryCallback(digits_probe(), **{**OPTIONS, **options})


def net(callbacks: list[Any], epochs: int = 3, **options: Any) -> Any:
    defaults = {
        "module": digits_model,
        "train_split": predefined_split(digits()[1]),
        "lr": 0.1,
        "batch_size": 100,
        "verbose": 0,
    }
    named = [(f"own{place}", callback) for place, callback in enumerate(callbacks)]
    return skorch.NeuralNetClassifier(
        criterion=nn.CrossEntropyLoss, max_epochs=epochs, callbacks=named, **defaults | options
    )


def fit(net: Any) -> Any:
    torch.manual_seed(1)
    return net.fit(digits()[0], None)


def test_the_curve_is_that_of_a_plain_loop_and_in_the_file(tmp_path):
    callback, copies = geometry(directory=tmp_path), Copies()
    trained = fit(net([callback, copies]))
    require_curve_of_plain_loop(callback.adapter_, copies.weights_, trained.module_, [10, 20, 30])
    assert trained.history[:, DIMENSION] == series_of(callback.adapter_).values.tolist()
    assert load_run(tmp_path).history.series("penultimate", "dimension").epochs.tolist() == [0, 1, 2]


def test_weights_are_the_same_bits_with_and_without():
    require_same_weights(fit(net([])).module_, fit(net([geometry(every_n_steps=3)])).module_)


@pytest.mark.parametrize(
    ("cadence", "steps"), [({"every_n_epochs": 2}, [10, 30]), ({"every_n_steps": 7}, [7, 14, 21, 28])]
)
def test_cadence(cadence, steps):
    callback = geometry(**cadence)
    fit(net([callback]))
    assert series_of(callback.adapter_).steps.tolist() == steps


def test_columns_are_those_of_the_default_markers():
    callback = GeometryCallback(digits_probe(), markers="all", geometry={"directions": 5}, shifts=())
    trained = fit(net([callback], 1))
    columns = {key for key in trained.history[-1] if key.startswith("geometry/")}
    names = {key.rpartition("/")[2] for key in columns}
    assert names == {*gm.GeometryMonitor(digits_probe()).markers, "alarm"}
    assert len(callback.adapter_.monitor.markers) > len(names)


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("split", [True, False])
def test_early_stopping_and_the_best_model_see_the_key_in_any_order(tmp_path, first, split):
    callback = geometry()
    stopping = EarlyStopping(DIMENSION, patience=3, lower_is_better=True, threshold=0, threshold_mode="abs")

    def best(net: Any) -> bool:
        return bool(net.history[-1, DIMENSION] == max(net.history[:, DIMENSION]))

    others = [stopping, Checkpoint(monitor=best, dirname=str(tmp_path), load_best=True), copies := Copies()]
    callbacks = [callback, *others] if first else [*others, callback]
    trained = fit(net(callbacks, 8, **({} if split else {"train_split": None})))
    values = series_of(callback.adapter_).values.tolist()
    best_epoch = values.index(max(values)) + 1
    best_step = 10 * best_epoch
    assert trained.history[:, DIMENSION] == values[:best_epoch]  # skorch loads the history of the best epoch
    for name, tensor in copies.weights_.by_step[best_step].items():
        assert torch.equal(trained.module_.state_dict()[name], tensor)
    lowest = int(np.argmin(values))
    assert len(values) == min(8, lowest + 4)


def test_cut_and_resumed_equals_unbroken(tmp_path):
    # Without dropout: skorch does not save the random streams.
    def seeded(part: str, epochs: int) -> tuple[Any, Any]:
        callback = geometry(panel=declining(25), directory=tmp_path / part)
        own = TrainEndCheckpoint(dirname=str(tmp_path / part))
        made = net([callback, own, LoadInitState(own)], epochs, module=model_without_dropout)
        return fit(made), callback

    with pytest.warns(gm.GeometryDeclineWarning):
        whole, unbroken = seeded("whole", 4)
    seeded("cut", 2)
    with pytest.warns(gm.GeometryDeclineWarning):
        resumed, callback = seeded("cut", 2)
    assert records_of(callback.adapter_) == records_of(unbroken.adapter_)
    require_same_weights(whole.module_, resumed.module_)
    assert load_run(tmp_path / "cut").history.series("penultimate", "dimension").steps.tolist() == [10, 20, 30, 40]


def model_without_dropout() -> nn.Module:
    model = digits_model()
    model[3] = nn.Identity()
    return model


def test_refit_clone_partial_fit_and_pickle():
    from sklearn.base import clone

    callback = geometry()
    trained = fit(net([callback], 2))
    first = series_of(callback.adapter_).values.tolist()
    fit(trained)
    assert series_of(callback.adapter_).values.tolist() == first  # a new series
    trained.partial_fit(digits()[0], None)
    assert series_of(callback.adapter_).steps.tolist() == [10, 20, 30, 40]
    copied = clone(trained)
    fit(copied)
    other = dict(copied.callbacks_)["own0"]
    assert other is not callback
    assert series_of(other.adapter_).values.tolist() == first
    assert callback.set_params(every_n_epochs=2).adapter_.monitored.every_n_epochs == 2
    pickle.loads(pickle.dumps(copied))


def test_it_stops_on_a_decline_and_alarms_are_sent(capsys):
    texts: list[str] = []
    callback = geometry(panel=declining(15), stop_on_decline=True, on_alarm=lambda verdict, text: texts.append(text))
    with pytest.warns(gm.GeometryDeclineWarning):
        trained = fit(net([callback, copies := Copies()], 5))
    assert len(trained.history) == 2
    assert list(copies.weights_.by_step) == [10, 20]  # the others saw the epoch to its end
    assert len(texts) == 1
    reason = texts[0].splitlines()[0].replace("geometry alarm", "geometry early stopping")
    assert capsys.readouterr().err.count(reason) == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [geometry(layers="head")], "the model has no layer 'head'"),
        (lambda: [geometry(), geometry()], "two geometry callbacks have the name ''"),
    ],
)
def test_wrong_use_is_refused_before_training(make, message):
    made = net(make())
    with pytest.raises(gm.InputError, match=message):
        fit(made)
    assert not any("train_loss" in row for row in made.history)


def in_two_processes(folder: str) -> OfRank:
    """A run of test_processes.py, by skorch's mixin for Accelerate."""
    from accelerate import Accelerator
    from skorch.hf import AccelerateMixin

    class Net(AccelerateMixin, skorch.NeuralNet):
        pass

    texts: list[str] = []
    callback = GeometryCallback(digits_probe(), **parallel_options(folder, texts))
    made = Net(
        # Accelerate puts each module into DDP, and on a CPU also a criterion, which DDP refuses without parameters.
        digits_model, criterion=lambda: nn.functional.cross_entropy, accelerator=Accelerator(cpu=True),
        max_epochs=4, lr=0.1, batch_size=100, train_split=None, callbacks=[("geometry", callback)],
        callbacks__print_log__sink=lambda *_: None,
    )  # fmt: skip
    made.fit(digits()[0], None)
    assert len(made.history) == 2
    return of_rank(callback.adapter_.monitor, made.module_.state_dict(), texts)
