"""GeometryHandler in runs of Ignite's Engine on digits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

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

framework("ignite", "ignite")

import ignite.distributed as idist  # noqa: E402
from ignite.engine import Engine, Events  # noqa: E402
from ignite.handlers import Checkpoint, DiskSaver, EarlyStopping  # noqa: E402

from geomonitor_integrations.ignite import GeometryHandler  # noqa: E402

STEPS = 10
"""iterations of an epoch"""


def geometry(**options: Any) -> GeometryHandler:
    return GeometryHandler(digits_probe(), **{**OPTIONS, **options})


def engine(model: nn.Module) -> tuple[Engine, torch.optim.Optimizer]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def step(engine: Engine, batch: Any) -> float:
        model.train()
        optimizer.zero_grad()
        torch.manual_seed(engine.state.iteration)  # dropout, also of a run that was resumed
        loss = nn.functional.cross_entropy(model(batch[0]), batch[1])
        loss.backward()
        optimizer.step()
        return loss.item()

    return Engine(step), optimizer


def loader() -> DataLoader:
    return DataLoader(digits()[0], batch_size=100)


def train(handler: GeometryHandler | None, epochs: int = 3, weights: Weights | None = None) -> tuple[Engine, nn.Module]:
    model = digits_model()
    trainer, optimizer = engine(model)
    if handler is not None:
        handler.attach(trainer, model, [optimizer])
    if weights is not None:
        trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: weights.keep(trainer.state.iteration, model))
    trainer.run(loader(), max_epochs=epochs)
    return trainer, model


def test_the_curve_is_that_of_a_plain_loop_and_in_the_file(tmp_path):
    handler, weights = geometry(directory=tmp_path), Weights()
    trainer, model = train(handler, weights=weights)
    require_curve_of_plain_loop(handler, weights, model, [10, 20, 30])
    assert trainer.state.metrics[DIMENSION] == series_of(handler).values[-1]
    saved = load_run(tmp_path).history.series("penultimate", "dimension")
    assert saved.values.tolist() == series_of(handler).values.tolist()
    assert saved.epochs.tolist() == [0, 1, 2]


def test_weights_are_the_same_bits_with_and_without():
    require_same_weights(train(None)[1], train(geometry(every_n_steps=3))[1])


@pytest.mark.parametrize(
    ("cadence", "steps"), [({"every_n_epochs": 2}, [10, 30]), ({"every_n_steps": 7}, [7, 14, 21, 28])]
)
def test_cadence(cadence, steps):
    handler = geometry(**cadence)
    train(handler)
    assert series_of(handler).steps.tolist() == steps


@pytest.mark.parametrize("first", [True, False])
def test_early_stopping_and_the_best_model_see_the_key_in_any_order(tmp_path, first):
    model, handler = digits_model(), geometry()
    trainer, _ = engine(model)
    seen: list[float] = []

    def score(engine: Engine) -> float:
        seen.append(engine.state.metrics[DIMENSION])
        return -seen[-1]

    if first:
        handler.attach(trainer, model)
    best = Checkpoint(
        {"model": model}, DiskSaver(tmp_path), n_saved=1, score_function=Checkpoint.get_default_score_fn(DIMENSION),
        score_name="dimension", global_step_transform=lambda *_: trainer.state.epoch,
    )  # fmt: skip
    trainer.add_event_handler(Events.EPOCH_COMPLETED, EarlyStopping(2, score, trainer))
    trainer.add_event_handler(Events.EPOCH_COMPLETED, best)
    if not first:
        handler.attach(trainer, model)
    trainer.run(loader(), max_epochs=8)
    values = series_of(handler).values.tolist()
    assert seen == values
    assert f"model_{values.index(max(values)) + 1}_dimension={max(values):.4f}" in str(best.last_checkpoint)
    waited = [
        epoch for epoch in range(2, len(values)) if min(values[: epoch - 1]) <= min(values[epoch - 1 : epoch + 1])
    ]
    assert len(values) == (waited[0] + 1 if waited else 8)


def test_cut_and_resumed_equals_unbroken(tmp_path):
    def run(folder: Path, epochs: int, resume: str | None = None) -> tuple[GeometryHandler, nn.Module, Any]:
        model, handler = digits_model(), geometry(panel=declining(25), directory=folder)
        trainer, optimizer = engine(model)
        handler.attach(trainer, model, [optimizer])
        objects = {"model": model, "optimizer": optimizer, "trainer": trainer, "geometry": handler}
        saver = Checkpoint(objects, DiskSaver(folder, require_empty=False), n_saved=None)
        trainer.add_event_handler(Events.EPOCH_COMPLETED, saver)
        if resume is not None:
            Checkpoint.load_objects(objects, Path(folder, resume))
        trainer.run(loader(), max_epochs=epochs)
        return handler, model, saver

    with pytest.warns(gm.GeometryDeclineWarning):
        unbroken, whole, _ = run(tmp_path / "whole", 4)
    last = run(tmp_path / "cut", 2)[2].last_checkpoint
    with pytest.warns(gm.GeometryDeclineWarning):
        resumed, model, _ = run(tmp_path / "cut", 4, Path(last).name)
    assert records_of(resumed) == records_of(unbroken)
    require_same_weights(model, whole)


def test_it_stops_on_a_decline_and_alarms_are_sent(capsys):
    texts: list[str] = []
    handler = geometry(panel=declining(15), stop_on_decline=True, on_alarm=lambda verdict, text: texts.append(text))
    with pytest.warns(gm.GeometryDeclineWarning):
        trainer, _ = train(handler, 5)
    assert trainer.state.epoch == 2
    assert len(texts) == 1
    reason = texts[0].splitlines()[0].replace("geometry alarm", "geometry early stopping")
    assert capsys.readouterr().err.count(reason) == 1


def test_a_second_run_is_a_new_series():
    model, handler = digits_model(), geometry()
    trainer, _ = engine(model)
    handler.attach(trainer, model)
    for _ in range(2):
        trainer.run(loader(), max_epochs=2)
        assert series_of(handler).steps.tolist() == [10, 20]


def test_bf16_is_measured_in_the_dtype_of_the_weights():
    model, handler, weights = digits_model(), geometry(), Weights()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step(engine: Engine, batch: Any) -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            nn.functional.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()

    trainer = Engine(step)
    handler.attach(trainer, model)
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda: weights.keep(trainer.state.iteration, model))
    trainer.run(loader(), max_epochs=2)
    require_curve_of_plain_loop(handler, weights, model, [10, 20])


def test_wrong_use_is_refused_when_it_is_attached():
    model, handler = digits_model(), geometry()
    trainer, _ = engine(model)
    with pytest.raises(gm.InputError, match="the model has no layer 'head'"):
        geometry(layers="head").attach(trainer, model)
    handler.attach(trainer, model)
    for again in (handler, geometry()):
        with pytest.raises(gm.InputError, match="two geometry callbacks have the name ''"):
            again.attach(trainer, model)
    geometry(name="other").attach(trainer, model)


def in_two_processes(folder: str) -> OfRank:
    """A run of test_processes.py, by Ignite's own means of several processes."""
    texts: list[str] = []
    handler = GeometryHandler(digits_probe(), **parallel_options(folder, texts))
    model = idist.auto_model(digits_model())
    trainer, optimizer = engine(model)
    handler.attach(trainer, model, [optimizer])
    trainer.run(idist.auto_dataloader(digits()[0], batch_size=200), max_epochs=4)
    assert isinstance(model, nn.parallel.DistributedDataParallel)
    assert trainer.state.epoch == 2
    return of_rank(handler.monitor, model.module.state_dict(), texts)
