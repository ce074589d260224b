"""Sharded models on two ranks: a folder of shards is refused or loaded by torch, one file is restored."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict, set_model_state_dict
from torch.utils.data import TensorDataset

import geomonitor as gm
from geomonitor.decide.checkpoints import load_checkpoint
from geomonitor.decide.keeper import CheckpointKeeper
from tests.decide.test_keeper import low_between
from tests.processes import in_processes

pytestmark = pytest.mark.skipif(
    not hasattr(torch.cpu.Stream, "record_event"), reason="FSDP2 of this torch does not run on a CPU"
)


def saved_whole(model: nn.Module, path: Path, rank: int) -> None:
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if rank == 0:
        torch.save(state, path)
    torch.distributed.barrier()


def saved_in_shards(model: nn.Module, path: Path, rank: int) -> None:
    dcp.save({"model": get_model_state_dict(model)}, checkpoint_id=path)


def by_torch(model: nn.Module, path: Path) -> None:
    state = get_model_state_dict(model)
    dcp.load({"model": state}, checkpoint_id=path)
    set_model_state_dict(model, state)


def trained(rank: int, folder: str, kind: str) -> tuple[list[float], list[str], bool]:
    """Biases, the buffer, the warnings and whether something was restored, of a run that declines from step 3 on."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    data = TensorDataset(torch.randn(60, 5), torch.arange(60) % 3)
    model = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    monitor = gm.GeometryMonitor(
        gm.ProbeSet.from_dataset(data, per_class=5), markers=["participation_ratio"], on_error="raise",
        panel=gm.Panel(("participation_ratio",), low_between(3)),
    )  # fmt: skip
    run, keeper = gm.MonitoredRun(monitor), CheckpointKeeper(restore=True)
    run.start(model, folder, step=0)
    keeper.start(run)
    save, ending = (saved_whole, ".pt") if kind == "whole" else (saved_in_shards, "")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for step in range(1, 6):
            model.reshard()  # a forward pass leaves the root whole, and what is written there is lost
            with torch.no_grad():
                model[0].bias.fill_(step)
                model[1].running_mean.fill_(step)
            path = Path(folder, f"step_{step}{ending}")
            save(model, path, rank)
            run.measure(model, step=step)
            keeper.saved(path, step=step)
        if kind == "damaged":
            torch.distributed.barrier()
            if rank == 0:
                shutil.rmtree(Path(folder, "healthy-step=2"))
                Path(folder, "healthy-step=2").mkdir()
            torch.distributed.barrier()
        load: Callable[[Path], Any] | None = None
        if kind in ("by torch", "damaged"):
            load = lambda path: by_torch(model, path)  # noqa: E731
        keeper.finish(model, load)
    state = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))
    values = [*state["0.bias"].tolist(), *state["1.running_mean"].tolist()] if state else []
    texts = [str(w.message) for w in caught if "no checkpoint is restored" in str(w.message)]
    return values, texts, keeper.restored is not None


KINDS = ("whole", "shards", "by torch", "damaged")


def all_kinds(rank: int, folder: str) -> dict[str, tuple[list[float], list[str], bool]]:
    found = {}
    for kind in KINDS:
        Path(folder, kind).mkdir(exist_ok=True)
        found[kind] = trained(rank, str(Path(folder, kind)), kind)
    return found


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return in_processes(all_kinds, str(tmp_path_factory.mktemp("shards")))


@pytest.mark.parametrize("kind", ["whole", "by torch"])
def test_a_sharded_model_is_restored_in_both_processes(ranks, kind):
    for rank in ranks:
        values, told, restored = rank[kind]
        assert restored
        assert told == []
        assert set(values) == {2.0}


@pytest.mark.parametrize(
    ("kind", "sentence"), [("shards", "is a folder, as FSDP, DeepSpeed and torch.distributed.checkpoint save shards"),
                           ("damaged", "no checkpoint is restored")]
)  # fmt: skip
def test_what_cannot_be_restored_is_one_sentence_on_rank_0_and_the_weights_stay(ranks, kind, sentence):
    (first, told, restored), (second, other, also) = (rank[kind] for rank in ranks)
    assert set(first) == set(second) == {5.0}
    assert (restored, also) == (False, False)
    assert (len(told), other) == (1, [])
    assert sentence in told[0]


def test_a_folder_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(gm.InputError, match="Save one file"):
        load_checkpoint(tmp_path)
