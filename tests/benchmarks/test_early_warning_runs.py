"""The bench of runs: the cached trajectories are whole and say what they promise, and a run can be made again."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("mlxtend")
from benchmarks.early_warning.families import EPOCHS, FAILING, FAMILIES, HEALTHY, recipe
from benchmarks.early_warning.tasks import PADDING, TASKS, corrupt_bytes, load_task
from benchmarks.early_warning.training import CHECKED_MARKERS, MARKERS, leak, outside_share, run, run_finely
from benchmarks.early_warning.trajectories import CHECKS, FOLDER, RUNS, WITHIN, add_run, cached_runs, load_runs
from benchmarks.early_warning.truth import few_shot_accuracy, linear_probe_accuracy
from benchmarks.early_warning.within_epochs import load_fine

TRUTHS = (
    *("unseen_accuracy", "unseen_common_scale_accuracy", "unseen_few_shot_accuracy"),
    *("known_probe_accuracy", "noise_accuracy", "blur_accuracy", "val_accuracy", "train_accuracy"),
)


@pytest.fixture(scope="module")
def runs():
    return load_runs()


def test_every_family_has_its_runs_on_every_task(runs):
    counts = Counter((run.family, run.task) for run in runs)
    assert set(counts) == {(family, task) for family in FAMILIES for task in TASKS}
    assert min(counts.values()) >= 6
    assert min(Counter(run.family for run in runs).values()) >= 18
    assert sum(run.healthy for run in runs) >= 234
    assert all(run.healthy == (run.family in HEALTHY) for run in runs)


def test_runs_are_whole_and_their_truth_is_known(runs):
    names = set(runs[0].columns)
    assert {*MARKERS, *TRUTHS, "dimension_standard_error", "val_loss", "max_batch_loss", "lr"} <= names
    for of in runs:
        assert set(of.columns) == names
        np.testing.assert_array_equal(of.columns["epoch"], np.arange(EPOCHS))
        assert (np.diff(of.columns["step"]) > 0).all()
        for name in TRUTHS:
            assert ((of.columns[name] >= 0) & (of.columns[name] <= 1)).all(), (of.family, of.task, of.seed, name)


def test_measuring_more_often_changes_nothing_in_a_run():
    of_run = recipe("dropout", "digits", 0)  # draws from the generator that a measurement must not touch
    fine = list(run_finely(of_run, epochs=2))
    assert len(fine) == 2 * CHECKS
    assert [row["epoch"] for row, _ in fine[:5]] == [-0.75, -0.5, -0.25, 0, 0.25]
    assert [of_epoch for _, of_epoch in fine if of_epoch is not None] == list(run(of_run, epochs=2))


def test_runs_measured_several_times_an_epoch_are_those_of_the_bench():
    fine = load_fine()
    assert sum(of.run.healthy for of in fine) >= 100
    assert sum(not of.run.healthy for of in fine) >= 60
    for of in fine:
        often, ends = of.often.columns, of.often.columns["epoch"] % 1 == 0
        name_of_run = f"{of.run.family} {of.run.task} {of.run.seed}"
        assert {*CHECKED_MARKERS, "unseen_accuracy", "val_loss"} <= set(often)
        assert len(often["epoch"]) == CHECKS * EPOCHS
        for name in ("epoch", "step", "unseen_accuracy", "val_loss", "mean_norm"):
            np.testing.assert_array_equal(often[name][ends], of.run.columns[name], err_msg=f"{name} {name_of_run}")


def test_healthy_runs_have_no_onset_and_no_gap(runs):
    for of in runs:
        if of.healthy:
            assert of.onset is None
            for name in ("dimension", "utility", "participation_ratio", "rankme", "val_loss"):
                assert np.isfinite(of.columns[name]).all(), (of.family, of.task, of.seed, name)


def test_faults_begin_at_their_onset(runs):
    for of in runs:
        if not of.healthy:
            assert of.onset in (range(1, EPOCHS) if of.family == "neural_collapse" else range(7, 15))
        if of.family == "weight_decay":
            raised = of.columns["weight_decay"] > 0
            np.testing.assert_array_equal(raised, np.arange(EPOCHS) >= of.onset)
        if of.family == "lr_kill":
            assert np.argmax(of.columns["lr"] > of.columns["lr"][0]) == of.onset
        if of.family == "forgetting":
            assert of.columns["val_accuracy"][of.onset :].max() < of.columns["val_accuracy"][of.onset - 1]


def test_recipes_vary_by_seed_and_are_the_same_at_every_call():
    for family in FAILING:
        recipes = [recipe(family, "digits", seed) for seed in range(4)]
        assert recipes == [recipe(family, "digits", seed) for seed in range(4)]
        assert len({r.lr for r in recipes}) == len({r.stream for r in recipes}) == 4
    assert len({recipe("narrowing", "mnist", seed).onset for seed in range(8)}) > 2


def test_a_run_can_be_made_again(runs, tmp_path):
    of_run = recipe("weight_decay", "digits", 0)
    path = tmp_path / RUNS
    add_run(path, of_run, run(of_run, epochs=2))
    assert cached_runs(path) == {("weight_decay", "digits", 0)}
    (again,) = load_runs(path)
    (cached,) = [of for of in runs if (of.family, of.task, of.seed) == ("weight_decay", "digits", 0)]
    assert (again.onset, again.healthy) == (cached.onset, False)
    assert again.size == cached.size
    # The files hold five digits; other processors round otherwise, which the steps of two epochs multiply.
    for name in ("train_loss", "val_loss", "gradient_norm", "mean_norm"):
        np.testing.assert_allclose(again.columns[name], cached.columns[name][:2], rtol=1e-3, err_msg=name)
    # A few anchors may be other ones then: half of a standard error, which is about 5 % of the dimension.
    np.testing.assert_allclose(again.columns["dimension"], cached.columns["dimension"][:2], rtol=0.025)


def test_the_files_are_small_and_hold_each_run_once(runs):
    assert sum((FOLDER / name).stat().st_size for name in (RUNS, WITHIN)) < 8_000_000
    assert cached_runs(FOLDER / RUNS) == {(of.family, of.task, of.seed) for of in runs}
    assert len(cached_runs(FOLDER / RUNS)) == len(runs)
    assert len(cached_runs(FOLDER / WITHIN)) == len(load_runs(FOLDER / WITHIN))


def rows_of(run_index, epochs=3):
    return [{"epoch": epoch, "train_accuracy": 0.123456 + run_index, "nc1": math.nan} for epoch in range(epochs)]


def test_runs_are_added_and_read_in_order(tmp_path):
    path = tmp_path / RUNS
    assert cached_runs(path) == set()
    faulty, healthy = recipe("narrowing", "mnist", 11), recipe("constant", "digits", 2)
    add_run(path, faulty, rows_of(0))
    add_run(path, healthy, rows_of(1))
    first, second = load_runs(path)
    assert (first.family, first.task, first.seed, first.healthy, first.onset) == ("constant", "digits", 2, True, None)
    assert (second.family, second.onset, second.variant) == ("narrowing", faulty.onset, faulty.variant)
    assert second.size == float(f"{faulty.size:.5g}")
    assert math.isnan(first.size)
    assert first.columns["train_accuracy"].tolist() == [1.1235] * 3
    assert second.columns["train_accuracy"].tolist() == [0.12346] * 3
    assert np.isnan(first.columns["nc1"]).all()


def test_a_run_with_other_columns_or_another_length_is_refused(tmp_path):
    path, of_run = tmp_path / RUNS, recipe("constant", "digits", 2)
    add_run(path, of_run, rows_of(0))
    with pytest.raises(ValueError, match="other columns"):
        add_run(path, of_run, [{"epoch": 0, "nc1": 1.0}])
    with pytest.raises(ValueError, match="another number of rows"):
        add_run(path, of_run, rows_of(0, epochs=4))
    assert len(load_runs(path)) == 1


def test_a_kill_while_a_run_is_added_leaves_the_file(tmp_path, monkeypatch):
    path, of_run = tmp_path / RUNS, recipe("constant", "digits", 2)
    add_run(path, of_run, rows_of(0))
    before = path.read_bytes()

    def killed(file, **arrays):
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(np, "savez_compressed", killed)
        with pytest.raises(KeyboardInterrupt):
            add_run(path, recipe("constant", "digits", 3), rows_of(0))
    assert path.read_bytes() == before
    add_run(path, recipe("constant", "digits", 3), rows_of(0))
    assert [run.seed for run in load_runs(path)] == [2, 3]


def test_parts_of_a_task_are_disjoint_and_balanced():
    task = load_task("digits", 3)
    parts = [task.train.inputs, task.probe.tensors[0], task.validation.inputs, task.unseen.inputs]
    rows = torch.cat([part.flatten(1) for part in parts])
    assert len(torch.unique(rows, dim=0)) >= len(rows) - 2  # the data themselves hold a few equal images
    assert torch.bincount(task.train.labels).tolist() == [80] * 6
    assert torch.bincount(task.unseen.labels).tolist() == [120] * 4
    assert task.known != load_task("digits", 4).known


def test_linear_probe_separates_what_is_linear_and_no_more():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(400) % 4
    noise = torch.randn(400, 12, generator=generator, dtype=torch.float64)
    shifted = noise + 8 * torch.nn.functional.one_hot(labels, 12)
    for scaling in ("units", "common"):
        assert linear_probe_accuracy(shifted, labels, scaling) == 1
        assert linear_probe_accuracy(noise, labels, scaling) == pytest.approx(0.25, abs=0.08)  # chance, 4 deviations
    assert few_shot_accuracy(shifted, labels) == 1
    assert few_shot_accuracy(noise, labels) == pytest.approx(0.25, abs=0.08)


def test_a_shrunken_direction_is_lost_to_the_probe_with_one_scale_only():
    labels = torch.arange(400) % 2
    features = torch.randn(400, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features[:, 0] = 1e-4 * (features[:, 0] + 6 * labels)
    assert linear_probe_accuracy(features, labels, "units") > 0.98
    assert linear_probe_accuracy(features, labels, "common") < 0.7


def test_outside_share_is_the_share_of_the_variance():
    axes = torch.eye(4, dtype=torch.float64) * torch.tensor([4.0, 3.0, 2.0, 1.0])
    points = torch.cat([axes, -axes])  # variances 16, 9, 4, 1
    assert float(outside_share(points, 1)) == pytest.approx(14 / 30)
    assert float(outside_share(points, 4)) == pytest.approx(0, abs=1e-12)


def test_a_leak_writes_the_label_and_corruption_leaves_the_padding():
    labels, leaking = torch.tensor([2, 5]), torch.tensor([True, False])
    images = leak(torch.zeros(2, 1, 8, 8), labels, leaking)
    assert torch.nonzero(images).tolist() == [[0, 0, 0, 2]]
    texts = torch.full((2, 64), 65)
    assert leak(texts, labels, leaking)[:, 0].tolist() == [3, 65]
    texts[:, 32:] = PADDING
    corrupted = corrupt_bytes(texts, 0.5, torch.Generator().manual_seed(0))
    assert (corrupted[:, 32:] == PADDING).all()
    assert 0.3 < (corrupted[:, :32] != 65).double().mean() < 0.7
