"""The recipe for a prior: its loss, its average of the weights, its seed, when it stops."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.explain import prior_training, train_prior
from geomonitor.explain.prior_training import AVERAGING, SMALLEST_TIME, SmallUNet, small_prior

IMAGE = torch.arange(16.0).view(1, 1, 4, 4) / 16


class Plain(nn.Module):
    """Gives one weight for each pixel, and keeps what it was asked."""

    def __init__(self, channels, width):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(4, 4))
        self.asked = []

    def forward(self, x, t):
        self.asked.append((x, t))
        return self.weight.expand_as(x)


@pytest.fixture
def plain(monkeypatch):
    made = []

    def make(channels, width):
        made.append(Plain(channels, width))
        return made[-1]

    monkeypatch.setattr(prior_training, "SmallUNet", make)
    return made


def test_the_loss_is_that_of_the_velocity_on_the_straight_path(plain):
    """The velocity ``e - x0 = (x - x0) / t`` of an estimate is off by its own error over t."""
    losses, weights = [], []

    def note(step, loss):
        losses.append(loss)
        weights.append(plain[0].weight.detach().clone())

    prior = train_prior(IMAGE, steps=3, batch=4000, progress=note)
    used = [torch.zeros(4, 4), *weights]
    for loss, weight, (x, t) in zip(losses, used, plain[0].asked, strict=False):
        assert loss == pytest.approx(
            float(((weight - IMAGE) / t.clamp_min(SMALLEST_TIME)[:, None, None, None]).square().mean()), rel=1e-4
        )
        e = (x - (1 - t)[:, None, None, None] * IMAGE) / t[:, None, None, None]
        kept = e[t > 0.05]
        assert abs(float(kept.mean())) < 0.02  # 60,000 numbers: a standard error of .004
        assert float(kept.std()) == pytest.approx(1, abs=0.02)
        assert float(t.min()) < 0.01
        assert float(t.max()) > 0.99
        assert float(t.mean()) == pytest.approx(0.5, abs=0.02)  # a standard error of .005
    average = weights[0]
    for weight in weights[1:]:
        average = AVERAGING * average + (1 - AVERAGING) * weight
    torch.testing.assert_close(prior.network.weight.detach(), average)
    assert not torch.equal(average, weights[-1])
    assert not prior.network.training


def test_images_are_drawn_from_all(plain):
    images = torch.stack([torch.full((1, 4, 4), value) for value in (0.0, 1.0, 5.0)])
    train_prior(images, steps=1, batch=600, high=5.0)
    x, t = plain[0].asked[0]
    level = (x.mean(dim=(1, 2, 3)) / (1 - t))[t < 0.05]  # the mean of 16 pixels: noise below .01
    assert {round(float(each)) for each in level} == {0, 1, 5}


def test_equal_seeds_give_equal_weights():
    images = torch.rand(8, 1, 4, 4, generator=torch.Generator().manual_seed(0))

    def trained(seed):
        return train_prior(images, steps=2, batch=4, width=8, seed=seed).network.state_dict()

    one, again, other = trained(3), trained(3), trained(4)
    assert all(torch.equal(one[name], again[name]) for name in one)
    assert not torch.equal(one["leave.weight"], other["leave.weight"])


def test_it_stops_at_the_time_that_it_may_take(plain, monkeypatch):
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: 10.0 * next(clock))
    steps = []
    train_prior(IMAGE, steps=50, batch=2, max_seconds=25.0, progress=lambda step, loss: steps.append(step))
    assert steps == [0, 1, 2]


def test_the_prior_has_the_shape_and_the_range_of_the_images(plain):
    prior = train_prior(IMAGE, steps=1, batch=2, low=-2.0, high=3.0)
    assert (prior.shape, prior.low, prior.high, prior.predicts) == ((1, 4, 4), -2.0, 3.0, "x0")


def test_a_saved_prior_is_that_which_was_trained():
    prior = train_prior(torch.rand(4, 3, 4, 4), steps=1, batch=2, width=8)
    network = SmallUNet(3, 8)
    network.load_state_dict(prior.network.state_dict())
    again = small_prior(network.eval(), (3, 4, 4), low=0.0, high=1.0)
    x = torch.rand(2, 3, 4, 4)
    assert torch.equal(again.x0(x, 0.3), prior.x0(x, 0.3))


def test_the_estimate_depends_on_the_time():
    torch.manual_seed(0)
    network, x = SmallUNet(1, 8), torch.rand(1, 1, 4, 4).expand(2, 1, 4, 4)
    found = network(x, torch.tensor([0.1, 0.9]))
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_training_works_where_gradients_are_off():
    with torch.no_grad():
        prior = train_prior(IMAGE, steps=1, batch=2, width=8)
    assert torch.isfinite(prior.x0(IMAGE, 0.5)).all()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"images": "text"}, "images"),
        ({"images": torch.zeros(4, 16)}, r"even H and W; got torch.float32 \(4, 16\)"),
        ({"images": torch.zeros(4, 1, 5, 4)}, "even H and W"),
        ({"images": torch.zeros(4, 1, 4, 4, dtype=torch.uint8)}, "even H and W; got torch.uint8"),
        ({"images": torch.zeros(0, 1, 4, 4)}, "one or more"),
        ({"images": torch.full((4, 1, 4, 4), torch.nan)}, "finite"),
        ({"images": 255 * IMAGE}, r"in \[low, high\] = \[0, 1\]; got 0 to 239"),
        ({"images": IMAGE - 0.1}, "got -0.1 to 0.837"),
        ({"steps": 0}, "steps"),
        ({"batch": 0}, "batch"),
        ({"width": 0}, "width"),
        ({"width": 12}, "width"),
        ({"seed": -1}, "seed"),
        ({"max_seconds": 0}, "max_seconds"),
        ({"low": 1.0, "high": 0.0}, "low"),
    ],
)
def test_bad_input_is_one_sentence(change, words):
    with pytest.raises(gm.InputError, match=words):
        train_prior(**{"images": IMAGE, "steps": 1} | change)
