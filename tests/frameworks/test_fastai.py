"""GeometryCallback in fits of fastai's Learner on digits; fastai is imported without its packages for images."""

from __future__ import annotations

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

framework("fastai.learner", "fastai")

pytestmark = [
    pytest.mark.filterwarnings("ignore:numpy.core is deprecated"),  # files that fastai pickles
    pytest.mark.filterwarnings("ignore:Manifold geometry. . of 10 directions did not converge"),
]

from fastai.callback.core import Callback  # noqa: E402
from fastai.callback.schedule import Learner as ScheduledLearner  # noqa: E402
from fastai.callback.tracker import EarlyStoppingCallback, SaveModelCallback  # noqa: E402
from fastai.data.core import DataLoaders  # noqa: E402
from fastai.data.load import DataLoader  # noqa: E402
from fastai.learner import Learner  # noqa: E402
from fastai.optimizer import SGD  # noqa: E402

from geomonitor_integrations.fastai import GeometryCallback  # noqa: E402


class Copies(Callback):
    order = 46

    def before_fit(self) -> None:
        self.weights = Weights()

    def after_validate(self) -> None:
        self.weights.keep(10 * (self.learn.epoch + 1), self.learn.model)


class Seeded(Callback):
    """Dropout by the number of the epoch, also of a run that was resumed."""

    def before_train(self) -> None:
        torch.manual_seed(self.learn.epoch)


def geometry(**options: Any) -> GeometryCallback:
    return GeometryCallback(digits_probe(), **{**OPTIONS, **options})


def learner(callbacks: list[Any], folder: Any = ".") -> Learner:
    train, held_out = digits()
    loaders = DataLoaders(
        DataLoader(train, bs=100, shuffle=False, num_workers=0),
        DataLoader(held_out, bs=200, num_workers=0),
        device="cpu",
    )
    made = Learner(
        loaders, digits_model(), loss_func=nn.CrossEntropyLoss(), opt_func=SGD, lr=0.1, path=folder,
        cbs=[Seeded(), *callbacks],
    )  # fmt: skip
    made.recorder.silent = True
    return made


def fit(made: Learner, epochs: int = 3, **options: Any) -> Learner:
    with made.no_bar(), made.no_logging():
        made.fit(epochs, **options)
    return made


def column(made: Learner, key: str = DIMENSION) -> list[float]:
    place = list(made.recorder.metric_names[1:]).index(key)
    return [row[place] for row in made.recorder.values]


def test_the_curve_is_that_of_a_plain_loop_and_in_the_file(tmp_path):
    callback, copies = geometry(directory=tmp_path), Copies()
    made = fit(learner([callback, copies]))
    require_curve_of_plain_loop(callback, copies.weights, made.model, [10, 20, 30])
    assert column(made) == series_of(callback).values.tolist()
    assert load_run(tmp_path).history.series("penultimate", "dimension").epochs.tolist() == [0, 1, 2]
    assert not len(made.metrics)


def test_weights_are_the_same_bits_with_and_without():
    require_same_weights(fit(learner([])).model, fit(learner([geometry(every_n_steps=3)])).model)


@pytest.mark.parametrize(
    ("cadence", "steps"), [({"every_n_epochs": 2}, [10, 30]), ({"every_n_steps": 7}, [7, 14, 21, 28])]
)
def test_cadence(cadence, steps):
    callback = geometry(**cadence)
    fit(learner([callback]))
    assert series_of(callback).steps.tolist() == steps


@pytest.mark.parametrize("first", [True, False])
def test_early_stopping_and_the_best_model_see_the_key_in_any_order(tmp_path, first):
    callback, copies = geometry(), Copies()
    others = [
        EarlyStoppingCallback(DIMENSION, comp=np.less, patience=3),
        SaveModelCallback(DIMENSION, comp=np.greater),
        copies,
    ]
    made = fit(learner([callback, *others] if first else [*others, callback], tmp_path), 8)
    values = series_of(callback).values.tolist()
    assert column(made) == values
    assert len(values) == min(8, int(np.argmin(values)) + 4)
    best = copies.weights.by_step[10 * (int(np.argmax(values)) + 1)]
    assert all(torch.equal(tensor, best[name]) for name, tensor in made.model.state_dict().items())


def test_cut_and_resumed_equals_unbroken(tmp_path):
    def made(part: str) -> tuple[Learner, GeometryCallback]:
        callback = geometry(panel=declining(25), directory=tmp_path / part)
        return learner([callback], tmp_path / part), callback

    whole, unbroken = made("whole")
    with pytest.warns(gm.GeometryDeclineWarning):
        fit(whole, 4)
    first, _ = made("cut")
    fit(first, 2)
    first.save("cut")
    second, resumed = made("cut")
    second.load("cut", with_opt=True)
    with pytest.warns(gm.GeometryDeclineWarning):
        fit(second, 4, start_epoch=2)
    assert records_of(resumed) == records_of(unbroken)
    require_same_weights(whole.model, second.model)


def test_a_second_fit_is_a_new_series_and_a_validation_measures_nothing():
    callback = geometry()
    made = learner([callback])
    for _ in range(2):
        fit(made, 2)
        with made.no_bar(), made.no_logging():
            made.validate()
        assert series_of(callback).steps.tolist() == [10, 20]


def test_a_search_for_a_learning_rate_leaves_the_series_alone(tmp_path):
    callback = geometry()
    made = fit(learner([callback], tmp_path), 2)
    before = series_of(callback).values.tolist()
    with made.no_bar(), made.no_logging():
        ScheduledLearner.lr_find(made, num_it=5, show_plot=False)
    assert series_of(callback).values.tolist() == before
    fit(made, 1)
    assert series_of(callback).steps.tolist() == [10]


def test_it_stops_on_a_decline_and_alarms_are_sent(capsys):
    texts: list[str] = []
    callback = geometry(panel=declining(15), stop_on_decline=True, on_alarm=lambda verdict, text: texts.append(text))
    with pytest.warns(gm.GeometryDeclineWarning):
        made = fit(learner([callback]), 5)
    assert len(column(made)) == 2
    assert len(texts) == 1
    reason = texts[0].splitlines()[0].replace("geometry alarm", "geometry early stopping")
    assert capsys.readouterr().err.count(reason) == 1


class Autocast(Callback):
    """As fastai's MixedPrecision, which needs a GPU."""

    def before_batch(self) -> None:
        self.bf16 = torch.autocast("cpu", torch.bfloat16)
        self.bf16.__enter__()

    def after_loss(self) -> None:
        self.bf16.__exit__(None, None, None)


def test_mixed_precision_is_measured_in_the_dtype_of_the_weights():
    callback, copies = geometry(), Copies()
    made = fit(learner([callback, copies, Autocast()]), 2)
    require_curve_of_plain_loop(callback, copies.weights, made.model, [10, 20])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: [geometry(layers="head")], "the model has no layer 'head'"),
        (lambda: [geometry(), geometry()], "two geometry callbacks have the name ''"),
    ],
)
def test_wrong_use_is_refused_before_training(make, message):
    made = learner(make())
    with pytest.raises(gm.InputError, match=message):
        fit(made)
    require_same_weights(made.model, digits_model())


def in_two_processes(folder: str) -> OfRank:
    """A run of test_processes.py, by fastai's own context, whose loader gives indices to all ranks on a GPU only."""
    from fastai.distributed import DistributedDL

    def broadcast(_: Any, indices: list[int], rank: int) -> list[int]:
        shared = torch.tensor(indices)
        torch.distributed.broadcast(shared, rank)
        return shared.tolist()

    texts: list[str] = []
    callback = GeometryCallback(digits_probe(), **parallel_options(folder, texts))
    made = learner([callback], folder)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(DistributedDL, "_broadcast", broadcast)
        with made.distrib_ctx(sync_bn=False, cpu=True):  # SyncBatchNorm has no CPU either
            fit(made, 4)
    assert len(column(made)) == 2
    return of_rank(callback.monitor, made.model.state_dict(), texts)
