"""Checkpoints of every kind are read without running code, and fit the model wholly or not at all."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import nn

from geomonitor import InputError
from geomonitor.decide.checkpoints import load_checkpoint, load_weights


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))


@pytest.fixture
def weights():
    torch.manual_seed(0)
    return net().state_dict()


class Wrapped(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net, self.criterion = net(), nn.Linear(1, 1)


def saved(tmp_path, content, name="c.pt"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


@pytest.mark.parametrize("under", ["state_dict", "model_state_dict", "model"])
def test_weights_step_and_epoch_of_a_training_script(tmp_path, weights, under):
    found = load_checkpoint(saved(tmp_path, {under: weights, "optimizer": {"lr": 0.1}, "step": 30, "epoch": 2}))
    assert (found.step, found.epoch) == (30, 2)
    assert found.weights.keys() == weights.keys()


@pytest.mark.parametrize(
    ("name", "step", "epoch"),
    [
        ("epoch=3-step=96.ckpt", 96, 3),
        ("step_1000.pt", 1000, None),
        ("checkpoint-500/pytorch_model.bin", 500, None),
        ("model_ep7.pt", None, 7),
        ("resnet50.pt", None, None),
    ],
)
def test_step_and_epoch_in_names(tmp_path, weights, name, step, epoch):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    found = load_checkpoint(saved(tmp_path, weights, name))
    assert (found.step, found.epoch) == (step, epoch)


def test_safetensors(tmp_path, weights):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(weights, tmp_path / "m.safetensors", metadata={"step": "70"})
    found = load_checkpoint(tmp_path / "m.safetensors")
    assert found.step == 70
    assert all(torch.equal(found.weights[name], value) for name, value in weights.items())
    (tmp_path / "cut.safetensors").write_bytes((tmp_path / "m.safetensors").read_bytes()[:40])
    with pytest.raises(InputError, match="cut off"):
        load_checkpoint(tmp_path / "cut.safetensors")


@pytest.mark.parametrize(
    "rename",
    [
        lambda name: name,
        lambda name: f"module.{name}",
        lambda name: f"_orig_mod.{name}",
        lambda name: f"net.{name}",
        lambda name: f"model._orig_mod.net.{name}",
    ],
)
def test_weights_under_a_prefix_fit(tmp_path, weights, rename):
    content = {rename(name): value for name, value in weights.items()}
    if rename("x") != "x":
        content["criterion.weight"] = torch.ones(1)  # beside the model, not of it
    model = net()
    load_weights(model, load_checkpoint(saved(tmp_path, content)))
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: w.pop("0.bias"), "missing in the file: 0.bias"),
        (lambda w: w.update({"9.bias": torch.ones(1)}), "unknown to the model: 9.bias"),
        (lambda w: w.update({"0.bias": torch.ones(9)}), r"of another shape: 0.bias \(9,\) in the file, \(4,\)"),
    ],
)
def test_weights_that_do_not_fit_change_nothing(tmp_path, weights, change, told):
    content = dict(weights)
    change(content)
    model = net()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(InputError, match=told):
        load_weights(model, load_checkpoint(saved(tmp_path, content)))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


class Trap:
    def __reduce__(self):
        return (pytest.fail, ("code from a checkpoint ran",))


def test_a_checkpoint_cannot_run_code(tmp_path, weights):
    path = saved(tmp_path, {"state_dict": weights, "hyper_parameters": Trap()})
    with pytest.raises(InputError, match="loading that could run code: save the weights alone"):
        load_checkpoint(path)
    (tmp_path / "old.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    with pytest.raises(InputError, match=r"run code|cut off"):
        load_checkpoint(tmp_path / "old.pt")


def test_what_is_no_checkpoint_is_refused(tmp_path, weights):
    with pytest.raises(InputError, match="no checkpoint file"):
        load_checkpoint(tmp_path / "none.pt")
    for content in ([1, 2], {"step": 3}, {}):
        with pytest.raises(InputError, match="holds no weights"):
            load_checkpoint(saved(tmp_path, content))
    path = saved(tmp_path, weights)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError, match=r"damaged|cut off"):
        load_checkpoint(path)
    path.write_bytes(b"")
    with pytest.raises(InputError, match=r"damaged|cut off"):
        load_checkpoint(path)
