"""Processes that differ, fail, come late or do not come: all raise the same error, and none waits for long.

Each function runs in real processes, several scenarios in one start of them.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor._distributed import Processes
from geomonitor.decide.keeper import CheckpointKeeper
from geomonitor.measure import meeting
from geomonitor.measure.meeting import AbsentError, Meeting
from tests.options import grouped
from tests.processes import in_processes

WAIT = 2.0


def data(*, seed: int = 0, factor: float = 1.0) -> TensorDataset:
    generator = torch.Generator().manual_seed(seed)
    return TensorDataset(factor * torch.randn(80, 6, generator=generator), torch.arange(80) % 4)


def network(*, width: int = 16, seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, 4))


def monitor(dataset: Any = None, probe: dict[str, Any] | None = None, **options: Any) -> gm.GeometryMonitor:
    found = gm.ProbeSet.from_dataset(data() if dataset is None else dataset, **{"per_class": 8, **(probe or {})})
    return gm.GeometryMonitor(found, **grouped(**{"directions": 10, **options}))


# By name: makes the monitor of a rank, and its model; they differ on rank 1.
DIFFERENT: dict[str, Callable[[int], gm.GeometryMonitor]] = {
    "content (other data under the same indices): on rank 0": lambda rank: monitor(data(seed=rank)),
    "content (other data under the same indices): on": lambda rank: monitor(data(factor=1 + rank)),
    "probe: on rank 0": lambda rank: monitor(probe={"seed": rank}),
    "classes: on rank 0: [0, 1]; on rank 1: [2, 3]": lambda rank: monitor(probe={"classes": [[0, 1], [2, 3]][rank]}),
    "classes: on rank 0: [0, 1]; on rank 1: [1, 2, 3]": lambda rank: monitor(
        probe={"classes": [[0, 1], [1, 2, 3]][rank]}
    ),
    "per_class: on rank 0: 8; on rank 1: 9": lambda rank: monitor(probe={"per_class": 8 + rank}),
    'layers: on rank 0: "penultimate"; on rank 1: ["0", "2"]': lambda rank: monitor(
        layers=["0", "2"] if rank else "penultimate"
    ),
    "markers: on": lambda rank: monitor(markers="all" if rank else "default"),
    "directions: on rank 0: 10; on rank 1: 20": lambda rank: monitor(directions=10 * (rank + 1)),
    "seed: on rank 0: 0; on rank 1: 1": lambda rank: monitor(seed=rank),
    "batch size: on rank 0: 128; on rank 1: 4": lambda rank: monitor(batch_size=4 if rank else 128),
    "panel: on": lambda rank: monitor(detector=None) if rank else monitor(),
    "max_overhead: on rank 0: 0.05; on rank 1: 0.1": lambda rank: monitor(max_overhead=0.1 if rank else 0.05),
    "on rank 1: InputError: the model has no layer": lambda rank: monitor(layers="nowhere" if rank else "penultimate"),
    "on rank 0: InputError: the model has no layer": lambda rank: monitor(layers="penultimate" if rank else "nowhere"),
}
MODELS: dict[str, Callable[[int], nn.Module]] = {
    "parameters: on": lambda rank: network().double() if rank else network(),
    "parameters: on rank 0": lambda rank: nn.Sequential(network(), nn.Identity()) if rank else network(),
    "model: on": lambda rank: nn.ModuleList([nn.Linear(6, 4)]) if rank else network(),
}


def raised(function: Callable[[], object]) -> tuple[str, str, float]:
    started = time.monotonic()
    try:
        function()
    except Exception as error:  # noqa: BLE001 - which one is what is tested
        return type(error).__name__, str(error), time.monotonic() - started
    return "nothing", "", time.monotonic() - started


def refused(rank: int) -> dict[str, tuple[str, str, float]]:
    found = {name: raised(lambda make=make: make(rank).measure(network(), step=1)) for name, make in DIFFERENT.items()}
    for name, make in MODELS.items():
        found["model: " + name] = raised(lambda make=make: monitor().measure(make(rank), step=1))
    found["step: on rank 0: 0; on rank 1: 1"] = raised(lambda: Meeting(Processes()).meet("begin", {"step": rank}))
    found["at the start: probe: on rank 0"] = raised(
        lambda: gm.MonitoredRun(monitor(probe={"seed": rank})).start(network())
    )
    return found


def test_whatever_differs_all_ranks_raise_the_same_error_at_once():
    ranks = in_processes(refused)
    for name, (kind, message, seconds) in ranks[0].items():
        assert ranks[1][name][:2] == (kind, message), name
        assert kind == ("DifferenceError" if name.startswith("step") else "InputError"), (name, message)
        assert name.removeprefix("model: ").removeprefix("at the start: ") in message
        assert max(seconds, ranks[1][name][2]) < 20


def warned(function: Callable[[], object]) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        function()
    return [str(warning.message) for warning in caught if issubclass(warning.category, gm.GeomonitorWarning)]


def changed_in_the_run(rank: int) -> dict[str, list[Any]]:
    """One rank differs from the second measurement on; the third one is as the first."""
    found = {}
    inputs = data().tensors[0].clone()
    before = inputs.clone()

    def change(what: str, watcher: gm.GeometryMonitor, step: int) -> None:
        back = step == 2
        if rank != 1 or step == 0:
            return
        if what == "data":
            inputs.copy_(before if back else before + 1)
        else:
            watcher.batch_size = 128 if back else 5

    datasets = {"data": TensorDataset(inputs, data().tensors[1]), "options": data()}
    for what, dataset in datasets.items():
        watcher, steps = monitor(dataset), []
        for step in range(3):
            change(what, watcher, step)
            steps.append(warned(lambda step=step, watcher=watcher: watcher.measure(network(), step=step)))
        found[what] = [steps, watcher.history.series("penultimate", "dimension").values.tolist()]
    return found


def test_what_changes_on_one_rank_is_named_on_all_and_the_run_goes_on():
    ranks = in_processes(changed_in_the_run)
    texts = {
        "data": "on rank 1: MeasurementError: the data of the probe set have changed",
        "options": "batch size: on rank 0: 128; on rank 1: 5",
    }
    for what, text in texts.items():
        for rank, found in enumerate(ranks):
            steps, values = found[what]
            assert steps[0] == steps[2] == []
            assert text in (steps[1] or ranks[0][what][0][1])[0], (rank, steps)
            assert [math.isnan(value) for value in values] == [False, True, False]


def other_weights(rank: int) -> list[list[str]]:
    trained = network(seed=rank)
    wrapped = nn.parallel.DistributedDataParallel(network(seed=rank))  # sends those of rank 0 to all
    return [warned(lambda m=m: monitor().measure(m, step=0)) for m in (trained, wrapped)]


def test_other_weights_on_some_ranks_are_named_once():
    ranks = in_processes(other_weights)
    assert "the weights of the model are other ones on some ranks (rank 0 / rank 1)" in ranks[0][0][0]
    assert ranks[0][1] == ranks[1][0] == ranks[1][1] == []


def absent(rank: int) -> dict[str, Any]:
    meeting.LONGEST_WAIT = WAIT
    alone, other, late, run = monitor(), monitor(on_error="raise"), monitor(), gm.MonitoredRun(monitor())
    found: dict[str, Any] = {}
    started = time.monotonic()
    if rank == 0:  # the commonest slip
        found["alone"] = [warned(lambda step=step: alone.measure(network(), step=step)) for step in range(3)]
        found["alone, seconds"] = time.monotonic() - started
    dist.barrier()
    # They measure together from now on, and nothing of the calls in vain is in the way.
    found["together"] = [r.value for r in alone.measure(network(), step=10) if r.marker == "dimension"]
    if rank == 1:
        found["other"] = raised(lambda: other.measure(network(), step=20))
        found["start"] = warned(lambda: run.start(network()))
    dist.barrier()
    time.sleep(2 * WAIT if rank == 1 else 0)
    found["late"] = [warned(lambda: late.measure(network(), step=30))]
    dist.barrier()
    time.sleep(2 * WAIT if rank == 0 else 0)  # as late again: by now the others wait for longer
    found["late"].append(warned(lambda: late.measure(network(), step=31)))
    found["values"] = late.history.series("penultimate", "dimension").values.tolist()
    return found


def test_ranks_that_do_not_come_are_named_within_seconds():
    zero, one = in_processes(absent)
    assert "rank 0 called measure(step=0), and rank 1 did not within" in zero["alone"][0][0]
    assert "if rank == 0" in zero["alone"][0][0]
    assert zero["alone, seconds"] < 3 * WAIT + 8
    assert zero["together"] == one["together"]
    assert math.isfinite(one["together"][0])
    assert one["other"][0] == "AbsentError"
    assert "rank 1 called measure(step=20), and rank 0 did not" in one["other"][1]
    assert "rank 1 called start(step=0), and rank 0 did not" in one["start"][0]
    for found in (zero, one):
        assert "rank 0 called measure(step=30), and rank 1 did not" in found["late"][0][0]
        assert found["late"][1] == []
        assert math.isnan(found["values"][0])
        assert math.isfinite(found["values"][1])


def in_groups(rank: int) -> dict[str, Any]:
    """Ranks 0 and 2 train one model, rank 1 another one."""
    groups = [dist.new_group([0, 2]), dist.new_group([1])]
    mine = groups[rank % 2]
    model, dataset = network(seed=rank % 2), data(seed=rank % 2)
    found: dict[str, Any] = {}
    for name, group in (("group", mine), ("function", lambda: mine)):
        watcher = monitor(dataset, markers="all", process_group=group, on_error="raise")
        found[name] = {r.key: r.value for r in watcher.measure(model, step=rank % 2) if r.layer}
    if rank != 1:  # rank 1 is not there
        new = gm.TransferProbe.from_dataset(TensorDataset(dataset.tensors[0] + 1, dataset.tensors[1] + 4), per_class=10)
        run = gm.MonitoredRun(monitor(dataset, process_group=mine, on_error="raise", truth=new))
        keeper = CheckpointKeeper()
        run.start(model)
        keeper.start(run)
        found["transfer"] = run.measure(model, step=1)["geometry/penultimate/transfer_accuracy"]
    passive = gm.GeometryMonitor(
        gm.ValidationProbe(classes=4, per_class=5), process_group=mine, on_error="raise", markers=["dimension"]
    )
    validation = passive.validation_pass(model.eval())
    inputs, labels = dataset.tensors
    part = slice(rank // 2, None, 2) if rank % 2 == 0 else slice(None)
    with validation.batch((inputs[part], labels[part].contiguous())), torch.no_grad():
        model(inputs[part])
    found["passive"] = {r.key: r.value for r in passive.measure(model, step=1, validation=validation) if r.layer}
    other = groups[1 - rank % 2]
    found["not a member"] = raised(lambda: monitor(dataset, process_group=other).begin(model, step=1))
    return found


def test_the_processes_of_a_group_measure_and_the_others_are_not_needed():
    zero, one, two = in_processes(in_groups, world_size=3)
    assert one["not a member"][0] == "InputError"
    assert "that this process is in" in one["not a member"][1]
    assert zero["function"] == pytest.approx(zero["group"], rel=0, nan_ok=True)
    for rank, found in ((0, zero), (1, one), (2, two)):
        alone = {
            r.key: r.value
            for r in monitor(data(seed=rank % 2), markers="all").measure(network(seed=rank % 2), step=1)
            if r.layer
        }
        assert found["group"] == pytest.approx(alone, rel=1e-4, nan_ok=True)  # float32, batches of other shapes
        assert found["passive"].keys() < alone.keys() | {"geometry/penultimate/dimension"}
        assert math.isfinite(found["passive"]["geometry/penultimate/dimension"])
    assert zero["passive"] == two["passive"]
    assert math.isfinite(zero["transfer"])
    assert zero["transfer"] == two["transfer"]


def test_one_process_has_nobody_to_wait_for():
    meet = Meeting(Processes()).meet
    assert meet("measure(step=1)", {}) == ("", True)
    with pytest.raises(ZeroDivisionError):
        meet("measure(step=1)", {}, ZeroDivisionError())
    assert issubclass(AbsentError, gm.MeasurementError)


@pytest.mark.parametrize("group", [3, "gloo", lambda: None])
def test_what_is_no_process_group(group):
    with pytest.raises(gm.InputError, match="process_group"):
        _ = Processes(group).group
