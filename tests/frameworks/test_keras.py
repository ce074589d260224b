"""GeometryCallback in ``fit`` of Keras 3 on torch, on digits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.history.runs import load_run
from tests.frameworks.common import (
    DIMENSION,
    MARKERS,
    OPTIONS,
    REQUIRED,
    OfRank,
    declining,
    digits,
    digits_probe,
    framework,
    of_rank,
    parallel_options,
    records_of,
    series_of,
)

keras = framework("keras", "keras")
if keras.backend.backend() != "torch" and not REQUIRED:
    pytest.skip("Keras was imported with another backend than torch", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation")  # Keras 3.15 with NumPy 2

from geomonitor_integrations._keras_layers import KerasLayers  # noqa: E402
from geomonitor_integrations.keras import GeometryCallback  # noqa: E402


@pytest.fixture(autouse=True)
def same_names_and_numbers() -> None:
    keras.backend.clear_session()
    keras.utils.set_random_seed(0)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.drop, self.head = (
            keras.layers.Dense(32, "relu"),
            keras.layers.Dropout(0.1),
            keras.layers.Dense(10),
        )

    def call(self, x: Any, training: bool = False) -> Any:
        return self.head(self.drop(self.body(x), training=training))


def model(kind: str = "sequential") -> Any:
    layers = keras.layers
    if kind == "subclassed":
        made: Any = Subclassed()
    elif kind == "functional":
        inputs = layers.Input((64,))
        hidden = layers.Dropout(0.1)(layers.BatchNormalization()(layers.Dense(32, "relu", name="body")(inputs)))
        made = keras.Model(inputs, layers.Dense(10, name="head")(hidden))
    elif kind == "nested":
        inner = keras.Sequential(
            [layers.Input((64,)), layers.Dense(48, "relu"), layers.Dense(32, "relu")], name="inner"
        )
        made = keras.Sequential([layers.Input((64,)), inner, layers.Dense(10, name="head")])
    elif kind == "not built":
        made = keras.Sequential([layers.Dense(32, "relu"), layers.Dropout(0.1), layers.Dense(10, name="head")])
    else:
        made = keras.Sequential(
            [layers.Input((64,)), layers.Dense(32, "relu"), layers.BatchNormalization(), layers.Dropout(0.1),
             layers.Dense(10, name="head")]
        )  # fmt: skip
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    made.compile(keras.optimizers.SGD(0.05, momentum=0.9), loss, metrics=["accuracy"])
    return made


def geometry(**options: Any) -> GeometryCallback:
    return GeometryCallback(digits_probe(), **{**OPTIONS, **options})


def fit(model: Any, callbacks: list[Any], epochs: int = 3, **options: Any) -> Any:
    train, held_out = (tuple(t.numpy() for t in part.tensors) for part in digits())
    own = {"validation_data": held_out, "batch_size": 100, "verbose": 0, "shuffle": False}
    return model.fit(*train, epochs=epochs, callbacks=callbacks, **own | options)


class Copies(keras.callbacks.Callback):
    def __init__(self) -> None:
        super().__init__()
        self.by_step: dict[int, list[Any]] = {}

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.by_step[int(self.model.optimizer.iterations)] = self.model.get_weights()


@pytest.mark.parametrize("kind", ["sequential", "functional", "subclassed", "nested", "not built"])
def test_the_curve_is_that_of_a_plain_loop_and_in_the_file(tmp_path, kind):
    callback, copies, trained = geometry(directory=tmp_path), Copies(), model(kind)
    history = fit(trained, [callback, copies]).history
    monitor = gm.GeometryMonitor(callback.monitor.probe, forward=lambda wrapped, x: wrapped(x), **OPTIONS)
    for step, weights in copies.by_step.items():
        trained.set_weights(weights)
        features = penultimate(trained, kind)

        class Plain(nn.Module):  # features of the layer before the head, computed by Keras
            def __init__(self) -> None:
                super().__init__()
                self.head = nn.Linear(32, 10)

            def forward(self, x: torch.Tensor, features: Any = features) -> torch.Tensor:
                return self.head(features(x))

        monitor.measure(Plain(), step=step)
    assert series_of(callback).steps.tolist() == [10, 20, 30]
    for marker in MARKERS:
        plain, own = monitor.history.series("penultimate", marker), series_of(callback, marker)
        np.testing.assert_allclose(own.values, plain.values, rtol=1e-6)
    assert history[DIMENSION] == series_of(callback).values.tolist()
    assert load_run(tmp_path).history.series("penultimate", "dimension").epochs.tolist() == [0, 1, 2]


def penultimate(model: Any, kind: str) -> Any:
    layers = [model.body, model.drop] if kind == "subclassed" else model.layers[:-1]

    def features(x: torch.Tensor) -> torch.Tensor:
        for layer in layers:
            if isinstance(layer, (keras.layers.Dropout, keras.layers.BatchNormalization, keras.Sequential)):
                x = layer(x, training=False)
            elif not isinstance(layer, keras.layers.InputLayer):
                x = layer(x)
        return x.detach()

    return features


@pytest.mark.parametrize("kind", ["sequential", "subclassed"])
def test_weights_are_the_same_bits_with_and_without(kind):
    ends = []
    for callbacks in ([], [geometry(every_n_steps=3)]):
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        trained = model(kind)
        fit(trained, callbacks)
        ends.append([*trained.get_weights(), *(v.numpy() for v in trained.optimizer.variables)])
    assert len(ends[0]) == len(ends[1])
    assert all(np.array_equal(one, other) for one, other in zip(*ends, strict=True))


@pytest.mark.parametrize(
    ("cadence", "steps"), [({"every_n_epochs": 2}, [10, 30]), ({"every_n_steps": 7}, [7, 14, 21, 28])]
)
def test_cadence(cadence, steps):
    callback = geometry(**cadence)
    history = fit(model(), [callback]).history
    assert series_of(callback).steps.tolist() == steps
    assert len(history[DIMENSION]) == 3


@pytest.mark.parametrize("first", [True, False])
def test_early_stopping_and_the_best_model_see_the_key_in_any_order(tmp_path, first):
    callback, trained, copies = geometry(), model(), Copies()
    others = [
        keras.callbacks.EarlyStopping(DIMENSION, patience=3, mode="min"),
        keras.callbacks.ModelCheckpoint(
            tmp_path / "best.weights.h5", DIMENSION, mode="max", save_best_only=True, save_weights_only=True
        ),
        keras.callbacks.CSVLogger(tmp_path / "log.csv"),
        copies,
    ]
    fit(trained, [callback, *others] if first else [*others, callback], 8)
    values = series_of(callback).values.tolist()
    assert len(values) == min(8, int(np.argmin(values)) + 4)
    trained.load_weights(tmp_path / "best.weights.h5")
    best = copies.by_step[10 * (int(np.argmax(values)) + 1)]
    assert all(np.array_equal(one, other) for one, other in zip(trained.get_weights(), best, strict=True))
    assert DIMENSION in (tmp_path / "log.csv").read_text().splitlines()[0]


@pytest.mark.parametrize("first", [True, False])
def test_cut_and_resumed_equals_unbroken(tmp_path, first):
    def run(part: str, epochs: int, cut: bool = False) -> tuple[GeometryCallback, Any]:
        keras.backend.clear_session()
        keras.utils.set_random_seed(0)
        made = keras.Sequential([keras.layers.Input((64,)), keras.layers.Dense(32, "relu"), keras.layers.Dense(10)])
        made.compile(
            keras.optimizers.SGD(0.05, momentum=0.9), keras.losses.SparseCategoricalCrossentropy(from_logits=True)
        )
        callback = geometry(panel=declining(25), directory=tmp_path / part)
        backup = keras.callbacks.BackupAndRestore(tmp_path / part / "backup", delete_checkpoint=False)
        power_cut = keras.callbacks.LambdaCallback(
            on_epoch_begin=lambda epoch, logs: 1 / 0 if cut and epoch == 2 else 0
        )
        callbacks = [callback, backup] if first else [backup, callback]
        try:
            fit(made, [*callbacks, power_cut], epochs)
        except ZeroDivisionError:
            assert cut
        return callback, made

    with pytest.warns(gm.GeometryDeclineWarning):
        unbroken, whole = run("whole", 4)
    run("cut", 4, cut=True)
    with pytest.warns(gm.GeometryDeclineWarning):
        resumed, trained = run("cut", 4)
    assert records_of(resumed) == records_of(unbroken)
    assert all(np.array_equal(a, b) for a, b in zip(whole.get_weights(), trained.get_weights(), strict=True))


def test_it_stops_on_a_decline_and_alarms_are_sent(capsys):
    texts: list[str] = []
    callback = geometry(panel=declining(15), stop_on_decline=True, on_alarm=lambda verdict, text: texts.append(text))
    with pytest.warns(gm.GeometryDeclineWarning):
        history = fit(model(), [callback], 5).history
    assert len(history["loss"]) == 2
    assert len(texts) == 1
    reason = texts[0].splitlines()[0].replace("geometry alarm", "geometry early stopping")
    assert capsys.readouterr().err.count(reason) == 1


def test_a_second_fit_of_a_new_model_is_a_new_series_and_one_of_the_same_goes_on():
    callback = geometry()
    first = model()
    fit(first, [callback], 2)
    fit(first, [callback], 3, initial_epoch=2)
    assert series_of(callback).steps.tolist() == [10, 20, 30]
    fit(model(), [callback], 1)
    assert series_of(callback).steps.tolist() == [10]


def test_mixed_precision_is_measured_in_its_own_dtype():
    keras.mixed_precision.set_dtype_policy("mixed_bfloat16")
    try:
        callback = geometry()
        fit(model(), [callback], 1)
    finally:
        keras.mixed_precision.set_dtype_policy("float32")
    assert np.isfinite(series_of(callback).values).all()


def test_layers_have_the_names_of_get_layer():
    callback, trained = geometry(layers={"penultimate": "head:input", "body": "body"}), model("functional")
    fit(trained, [callback], 1)
    assert set(callback.monitor.history.layers) == {"penultimate", "body"}
    assert {layer.name for layer in trained.layers} <= set(dict(KerasLayers(trained).named_children()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [geometry(layers="heads")], "the model has no layer 'heads'. Did you mean 'head'"),
        (lambda: [geometry(), geometry()], "two geometry callbacks have the name ''"),
    ],
)
def test_wrong_use_is_refused_before_training(make, message):
    trained = model()
    before = trained.get_weights()
    with pytest.raises(gm.InputError, match=message):
        fit(trained, make())
    assert all(np.array_equal(one, other) for one, other in zip(trained.get_weights(), before, strict=True))


def test_another_backend_is_refused_with_the_way_out():
    code = (
        "import sys, types; keras = types.ModuleType('keras')\n"
        "keras.backend = types.SimpleNamespace(backend=lambda: 'jax')\n"
        "inner = types.ModuleType('keras.src.callbacks.callback_list'); inner.CallbackList = object\n"
        "for name in ('keras.src', 'keras.src.callbacks'): sys.modules[name] = types.ModuleType(name)\n"
        "sys.modules |= {'keras': keras, inner.__name__: inner}\n"
        "import geomonitor_integrations.keras"
    )
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root), str(root / "integrations")])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Keras runs on jax" in done.stderr
    assert "set KERAS_BACKEND=torch" in done.stderr


def parallel_model() -> Any:
    layers = keras.layers
    made = keras.Sequential(
        [layers.Input((64,)), layers.Dense(32, "relu"), layers.Dropout(0.1), layers.Dense(10, name="head")]
    )
    made.compile(keras.optimizers.SGD(0.05))
    return made


def in_two_processes(folder: str) -> OfRank:
    """A run of test_processes.py: the loop of Keras' guide to DDP, with a CallbackList."""
    keras.utils.set_random_seed(0)
    trained, texts = parallel_model(), []
    wrapped = nn.parallel.DistributedDataParallel(trained)
    callback = GeometryCallback(digits_probe(), **parallel_options(folder, texts))
    callbacks = keras.callbacks.CallbackList([callback], model=wrapped, epochs=4, steps=5)
    rank, (x, y) = torch.distributed.get_rank(), digits()[0].tensors
    callbacks.on_train_begin()
    for epoch in range(4):
        callbacks.on_epoch_begin(epoch)
        for step in range(5):
            own = slice(200 * step + 100 * rank, 200 * step + 100 * rank + 100)
            trained.zero_grad()
            nn.functional.cross_entropy(wrapped(x[own]), y[own]).backward()
            variables = trained.trainable_weights
            with torch.no_grad():
                trained.optimizer.apply([variable.value.grad for variable in variables], variables)
            callbacks.on_train_batch_end(step, {})
        callbacks.on_epoch_end(epoch, {})
        if trained.stop_training:
            break
    callbacks.on_train_end()
    assert epoch == 1
    return of_rank(callback.monitor, trained.state_dict(), texts)


def test_keras_distributes_no_fit_on_torch():
    """If this fails, Keras has learnt to: the table in docs/frameworks.md says that it has not."""
    from keras.src.backend import distribution_lib

    assert distribution_lib is None
