"""The last checkpoint from before a decline: kept, bounded, named, found again, loaded; nothing else is touched."""

from __future__ import annotations

import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.alarms.verdict import Verdict
from geomonitor.decide import kept_file
from geomonitor.decide.keeper import CheckpointKeeper, declining_since
from geomonitor.history.runs import load_run
from geomonitor.history.saved import SavedCheckpoint


def low_between(first: int, end: int = 10**9) -> Any:
    """A detector that finds a series low in an interval of steps; the first measurement of it is pending only."""

    def detector(series: gm.Series) -> gm.Verdict:
        low = [int(step) for step in series.steps if first <= step < end]
        now = bool(low) and series.steps[-1] < end
        since = low[0] if now else None
        checks = len(low) if now else 0
        return gm.Verdict(checks > 1, series.layer, series.marker, 1.0, 2.0, 0.1, since, None, checks, 2)

    return detector


class Loop:
    """A loop of one's own: measures each step, saves each step, keeps the newest ``most`` checkpoints."""

    def __init__(self, folder: Path, detector: Any, *, most: int = 1, measure_every: int = 1, **options: Any) -> None:
        torch.manual_seed(0)
        data = TensorDataset(torch.randn(60, 5), torch.arange(60) % 3)
        self.model = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3))
        monitor = gm.GeometryMonitor(
            gm.ProbeSet.from_dataset(data, per_class=5), markers=["participation_ratio"], on_error="raise",
            panel=gm.Panel(("participation_ratio",), detector),
        )  # fmt: skip
        self.run, self.keeper = gm.MonitoredRun(monitor), CheckpointKeeper(**options)
        self.folder, self.most, self.measure_every = folder, most, measure_every
        self.step = 0

    @property
    def monitor(self) -> gm.GeometryMonitor:
        return self.run.monitor

    def start(self, state: dict[str, Any] | None = None, step: int = 0) -> None:
        if state is not None:
            self.run.load_state_dict(state["run"])
            self.keeper.load_state_dict(state["keeper"])
        self.step = step
        self.run.start(self.model, self.folder, step=step)
        self.keeper.start(self.run)

    def state(self) -> dict[str, Any]:
        return {"run": self.run.state_dict(), "keeper": self.keeper.state_dict()}

    def train(self, steps: int) -> None:
        for _ in range(steps):
            self.step += 1
            with torch.no_grad():
                self.model[0].bias.fill_(self.step)
            if self.step % self.measure_every == 0:
                self.run.measure(self.model, step=self.step)
            path = self.folder / f"step_{self.step}.pt"
            torch.save({"step": self.step, "state_dict": self.model.state_dict()}, path)
            self.keeper.saved(path, step=self.step)
            for old in self.own()[: -self.most]:
                old.unlink()

    @property
    def bias(self) -> float:
        return float(self.model[0].bias.detach()[0])

    def own(self) -> list[Path]:
        return sorted(self.folder.glob("step_*.pt"), key=lambda p: int(p.stem.split("_")[1]))

    def kept(self) -> list[str]:
        return sorted(p.name for p in self.folder.glob("healthy*.pt"))


def alarms(function: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(w.message) for w in caught]


def test_the_last_one_from_before_the_decline_is_kept_however_long_it_lasts(tmp_path):
    loop = Loop(tmp_path, low_between(6))
    loop.start()
    told = alarms(lambda: loop.train(40))
    assert loop.kept() == ["healthy-step=5.pt"]
    assert [p.name for p in loop.own()] == ["step_40.pt"]
    assert loop.monitor.last_healthy == SavedCheckpoint(str(tmp_path / "healthy-step=5.pt"), 5)
    assert len(told) == 1
    assert f"Last healthy checkpoint: {tmp_path / 'healthy-step=5.pt'} (step 5)." in told[0]
    assert load_run(tmp_path).last_healthy == loop.monitor.last_healthy
    assert torch.load(tmp_path / "healthy-step=5.pt")["step"] == 5


@pytest.mark.parametrize("most", [1, 3])
def test_never_more_than_one_file_more(tmp_path, most):
    loop = Loop(tmp_path, low_between(9, 12), most=most)
    loop.start()
    for _ in range(20):
        alarms(lambda: loop.train(1))
        assert len(loop.kept()) == 1
        assert len(list(tmp_path.glob("healthy*.json"))) == 1
        identities = {p.stat().st_ino for p in tmp_path.glob("*.pt")}
        assert len(identities) <= most + 1
    assert loop.kept() == ["healthy-step=20.pt"]  # the decline is over: it moves on


@pytest.mark.parametrize(("every", "kept"), [(2, 4), (4, 4), (3, 3)])
def test_a_checkpoint_is_healthy_only_by_a_measurement_at_its_step_or_after_it(tmp_path, every, kept):
    loop = Loop(tmp_path, low_between(5), most=5, measure_every=every)
    loop.start()
    alarms(lambda: loop.train(20))
    assert loop.monitor.last_healthy is not None
    assert loop.monitor.last_healthy.step == kept


def test_a_failed_measurement_confirms_nothing(tmp_path):
    loop = Loop(tmp_path, low_between(50))
    loop.monitor.on_error = "warn"
    loop.start()
    loop.train(2)
    forward, loop.monitor.forward = loop.monitor.forward, lambda *_: 1 / 0
    alarms(lambda: loop.train(1))
    assert loop.kept() == ["healthy-step=2.pt"]
    loop.monitor.forward = forward
    alarms(lambda: loop.train(1))
    assert loop.kept() == ["healthy-step=4.pt"]


@pytest.mark.parametrize("steps", [12, 8])
def test_restored_if_the_run_ends_declining(tmp_path, steps):
    loop = Loop(tmp_path, low_between(6), restore=True)
    loop.start()
    alarms(lambda: loop.train(steps))
    loop.keeper.finish(loop.model)
    assert loop.bias == 5
    assert loop.keeper.restored == loop.monitor.last_healthy


@pytest.mark.parametrize(("first", "end", "restore"), [(6, 8, True), (12, 10**9, True), (6, 10**9, False)])
def test_not_restored_if_it_is_not_declining_or_not_asked_for(tmp_path, first, end, restore):
    loop = Loop(tmp_path, low_between(first, end), restore=restore)
    loop.start()
    alarms(lambda: loop.train(12))
    loop.keeper.finish(loop.model)
    assert loop.bias == 12
    assert loop.keeper.restored is None


def problem(loop: Loop) -> str:
    before = {name: value.clone() for name, value in loop.model.state_dict().items()}
    with pytest.warns(gm.GeomonitorWarning) as caught:
        loop.keeper.finish(loop.model)
    assert all(torch.equal(value, before[name]) for name, value in loop.model.state_dict().items())
    assert len(caught) == 1
    return str(caught[0].message)


def test_no_checkpoint_from_before_the_decline(tmp_path):
    loop = Loop(tmp_path, low_between(1), restore=True)
    loop.start()
    told = alarms(lambda: loop.train(5))
    assert "no checkpoint was saved before the decline began, at step 1" in told[1]
    assert len(told) == 2
    assert "no checkpoint was saved before" in problem(loop)
    assert loop.monitor.last_healthy is None


def test_the_kept_file_is_gone(tmp_path):
    loop = Loop(tmp_path, low_between(6), restore=True)
    loop.start()
    alarms(lambda: loop.train(10))
    (tmp_path / "healthy-step=5.pt").unlink()
    assert "was deleted or moved" in problem(loop)


def test_a_kept_file_that_is_gone_while_all_is_well_is_made_again(tmp_path):
    loop = Loop(tmp_path, low_between(60))
    loop.start()
    loop.train(3)
    (tmp_path / "healthy-step=3.pt").unlink()
    loop.train(1)
    assert loop.kept() == ["healthy-step=4.pt"]


def test_the_checkpoint_of_another_model(tmp_path):
    loop = Loop(tmp_path, low_between(6), restore=True)
    loop.start()
    alarms(lambda: loop.train(10))
    path = tmp_path / "healthy-step=5.pt"
    torch.save(nn.Linear(2, 2).state_dict(), path)
    assert "does not fit the model" in problem(loop)
    path.write_bytes(b"no checkpoint")
    assert "cannot be" in problem(loop) or "damaged" in problem(loop)


@pytest.mark.parametrize("function", ["hardlink_to", "mark"])
def test_a_full_disk_is_one_warning_and_the_older_one_stays(tmp_path, monkeypatch, function):
    loop = Loop(tmp_path, low_between(50), most=10)
    loop.start()
    loop.train(3)

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    if function == "mark":
        monkeypatch.setattr(Path, "write_text", full)
    else:
        monkeypatch.setattr(Path, "hardlink_to", full)
        monkeypatch.setattr(kept_file.shutil, "copy2", full)
    told = alarms(lambda: loop.train(3))
    assert len(told) == 1
    assert "No space left on device" in told[0]
    assert "healthy-step=3.pt (step 3) stays" in told[0]
    assert loop.kept() == ["healthy-step=3.pt"]
    assert len(loop.own()) == 6


def test_a_disk_without_links_gets_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "hardlink_to", lambda *_: (_ for _ in ()).throw(OSError(95, "not supported")))
    loop = Loop(tmp_path, low_between(6))
    loop.start()
    alarms(lambda: loop.train(10))
    assert loop.kept() == ["healthy-step=5.pt"]


def test_nothing_of_the_users_is_replaced_or_deleted(tmp_path):
    for name in ("healthy-step=3.pt", "healthy-step=4.pt.json", "healthy.pt"):
        (tmp_path / name).write_text("mine")
    loop = Loop(tmp_path, low_between(50))
    loop.start()
    loop.train(3)
    assert loop.monitor.last_healthy is not None
    assert loop.monitor.last_healthy.path == str(tmp_path / "healthy-step=3-v1.pt")
    (tmp_path / "healthy-step=3-v1.pt").unlink()
    (tmp_path / "healthy-step=3-v1.pt").write_text("mine, made in the place of the kept one")
    loop.train(3)
    assert (tmp_path / "healthy-step=3-v1.pt").read_text().startswith("mine")
    for name in ("healthy-step=3.pt", "healthy-step=4.pt.json", "healthy.pt"):
        assert (tmp_path / name).read_text() == "mine"


@pytest.mark.parametrize("cut", [4, 9])
def test_a_resumed_run_keeps_the_same_one(tmp_path, cut):
    loop = Loop(tmp_path, low_between(6), restore=True)
    loop.start()
    alarms(lambda: loop.train(cut))
    state = loop.state()
    alarms(lambda: loop.train(2))  # lost with the process, but not the files
    again = Loop(tmp_path, low_between(6), restore=True)
    again.start(state, step=cut)
    again.keeper.saved(tmp_path / f"step_{cut}.pt", step=cut)
    alarms(lambda: again.train(12))
    assert len(again.kept()) == 1
    assert len(list(tmp_path.glob("healthy*.json"))) == 1
    assert again.monitor.last_healthy is not None
    assert again.monitor.last_healthy.step == 5
    again.keeper.finish(again.model)
    assert again.bias == 5


def test_a_new_run_in_the_same_folder_leaves_what_the_first_one_kept(tmp_path):
    first = Loop(tmp_path, low_between(6))
    first.start()
    alarms(lambda: first.train(9))
    second = Loop(tmp_path, low_between(50))
    second.start()
    second.train(2)
    assert second.kept() == ["healthy-step=2.pt", "healthy-step=5.pt"]


def test_folders_are_kept_like_files(tmp_path):
    loop = Loop(tmp_path, low_between(3))
    loop.start()
    for step in (1, 2, 3, 4):
        folder = tmp_path / f"checkpoint-{step}"
        (folder / "deep").mkdir(parents=True)
        (folder / "deep" / "weights").write_text(str(step))
        alarms(lambda step=step: loop.run.measure(loop.model, step=step))
        loop.keeper.saved(folder, step=step)
        if step > 1:
            shutil.rmtree(tmp_path / f"checkpoint-{step - 1}")
    assert sorted(os.listdir(tmp_path / "healthy-step=2")) == ["deep"]
    assert (tmp_path / "healthy-step=2" / "deep" / "weights").read_text() == "2"
    assert len(list(tmp_path.glob("healthy*"))) == 2
    restored = []
    loop.keeper.restore = True
    loop.keeper.finish(load=restored.append)
    assert restored == [tmp_path / "healthy-step=2"]


def test_a_monitor_that_judges_nothing_is_refused():
    data = TensorDataset(torch.randn(60, 5), torch.arange(60) % 3)
    monitor = gm.GeometryMonitor(gm.ProbeSet.from_dataset(data, per_class=5), panel=None)
    with pytest.raises(gm.InputError, match="panel=None"):
        CheckpointKeeper().start(gm.MonitoredRun(monitor))


def test_of_several_layers_the_decline_that_began_first_counts():
    low = Verdict(True, "a", "dimension", since_step=8, checks=2)
    assert declining_since([low, low._replace(layer="b", since_step=6)], 9, pending=False) == 6


def test_a_checkpoint_of_the_first_measurement_of_a_decline_is_not_from_before_it(tmp_path):
    (tmp_path / "step_6.pt").touch()
    keeper = CheckpointKeeper(restore=True)
    keeper._last = SavedCheckpoint(str(tmp_path / "step_6.pt"), 6)
    assert keeper._problem(7) is None
    assert "before the decline began, at step 6" in keeper._problem(6)
