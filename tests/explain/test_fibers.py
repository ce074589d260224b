"""Fibers: known answers, the bias of Adam, equal parametrisations, no trace, determinism, bad input."""

from __future__ import annotations

import copy
import functools
import random

import numpy as np
import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.explain import DiffusionPrior, FlowPrior, compare_fibers, layer_features, sample_fibers, train_prior
from geomonitor.explain.fiber_markers import Ladder, bootstrapped, diversity_at, pair_distances, pair_scale

INFINITE = {"low": -float("inf"), "high": float("inf")}
MEMBERS = 1500


def gaussian(dim, **options):
    """The exact denoiser of N(0, I) on the flow's path: x0 = a x / (a^2 + s^2)."""
    return FlowPrior(
        lambda x, t: ((1 - t) / ((1 - t) ** 2 + t**2))[:, None] * x, (dim,), predicts="x0", **(INFINITE | options)
    )


ROTATION = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(3)))[0]
SEEN, UNSEEN = ROTATION[:3], ROTATION[3:]
POINT = torch.randn(1, 8, generator=torch.Generator().manual_seed(5))


@functools.cache
def drawn(strength, optimiser="normalised"):
    return sample_fibers(
        lambda x: x @ SEEN.T, gaussian(8), POINT, per_input=MEMBERS, strength=strength, optimiser=optimiser, scale=6.0,
        batch=MEMBERS,
    )  # fmt: skip


def null_space(fibers):
    """Largest mean in standard errors, and the variance, along what the layer does not see."""
    z = fibers.samples[0].double() @ UNSEEN.double().T
    return float((z.mean(0) / z.std(0) * MEMBERS**0.5).abs().max()), float(z.var(0).mean())


@pytest.mark.parametrize("strength", [3.0, 10.0, 30.0])
def test_the_normalised_step_leaves_the_null_space_of_a_rotated_layer_as_the_prior_has_it(strength):
    guided, free = drawn(strength), drawn(0.0)
    mean, variance = null_space(guided)
    assert mean < 3
    assert variance == pytest.approx(null_space(free)[1], rel=0.02)
    assert guided.relative_loss.median() < 1e-3
    assert free.relative_loss.median() > 0.1


def test_adam_is_biased_there():
    mean, variance = null_space(drawn(10.0, "adam"))
    assert mean > 10
    assert variance > 1.1 * null_space(drawn(0.0))[1]


def test_plain_gradient_guidance_comes_less_near():
    plain = min(float(drawn(g, "gradient").relative_loss.median()) for g in (0.1, 0.3, 1.0))
    assert drawn(10.0).relative_loss.median() < 0.5 * plain


@pytest.mark.parametrize("predicts", ["noise", "v", "velocity"])
def test_all_that_a_network_may_predict_gives_the_same_members(predicts):
    def network(x, t):
        a, s = (1 - t)[:, None], t[:, None]
        x0 = a * x / (a**2 + s**2)
        e = s * x / (a**2 + s**2)
        return {"noise": e, "v": a * e - s * x0, "velocity": e - x0}[predicts]

    points = torch.randn(2, 8)
    want = sample_fibers(lambda x: x @ SEEN.T, gaussian(8), points, per_input=3, steps=8, guided_below=0.8)
    got = sample_fibers(
        lambda x: x @ SEEN.T, FlowPrior(network, (8,), predicts=predicts, **INFINITE), points, per_input=3, steps=8,
        guided_below=0.8,
    )  # fmt: skip
    # At time 1 the noise alone cannot give the clean input: the first step of "noise" and "v" starts from 0.
    torch.testing.assert_close(got.samples, want.samples, atol=1e-5, rtol=1e-5)


def test_time_may_start_at_the_noise():
    ahead = FlowPrior(lambda x, t: t[:, None] * x, (8,), **INFINITE)
    turned = FlowPrior(lambda x, t: -(1 - t)[:, None] * x, (8,), zero="noise", **INFINITE)
    x = torch.randn(4, 8)
    assert torch.equal(ahead.x0(x, 0.25), turned.x0(x, 0.25))


def test_a_diffusion_model_and_its_three_predictions():
    table = torch.linspace(0.9999, 0.01, 100, dtype=torch.float64)

    def network(kind):
        def run(x, index):
            a = table[index].sqrt().float()[:, None]
            s = (1 - table[index]).sqrt().float()[:, None]
            return {"x0": a * x, "noise": s * x, "v": torch.zeros_like(x)}[kind]

        return run

    points = torch.randn(2, 8)
    found = [
        sample_fibers(
            lambda x: x @ SEEN.T, DiffusionPrior(network(kind), (8,), table, predicts=kind, **INFINITE), points,
            per_input=3, steps=10,
        ).samples
        for kind in ("x0", "noise", "v")
    ]  # fmt: skip
    torch.testing.assert_close(found[1], found[0], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found[2], found[0], atol=1e-4, rtol=1e-4)


def blobs():
    """Grey images 6 x 6: a bright 2 x 2 square anywhere, in one of two shades."""
    images = []
    for shade in (0.5, 1.0):
        for row in range(5):
            for column in range(5):
                image = torch.zeros(1, 6, 6)
                image[:, row : row + 2, column : column + 2] = shade
                images.append(image)
    return torch.stack(images)


class Images(nn.Module):
    """The exact denoiser of a set of images: their mean, weighted by the likelihood of the noisy one."""

    def __init__(self, images):
        super().__init__()
        self.images = images

    def forward(self, x, t):
        a, s = 1 - t[0], t[0].clamp_min(0.02)
        apart = (x.flatten(1)[:, None] - a * self.images.flatten(1)[None]).square().sum(dim=2)
        return (torch.softmax(-apart / (2 * s**2), dim=1) @ self.images.flatten(1)).view_as(x)


def position(x):
    """Place of the brightness: blind to the shade."""
    total = x.sum(dim=(1, 2, 3)) + 1e-3
    where = torch.arange(6.0)
    return torch.stack([(x.sum(dim=(1, 2)) @ where) / total, (x.sum(dim=(1, 3)) @ where) / total], dim=1)


def shade(x):
    """Total brightness: blind to translation."""
    return x.sum(dim=(1, 2, 3))[:, None]


def test_the_fiber_of_a_blind_layer_holds_the_transformed_inputs_and_that_of_another_does_not():
    images = blobs()
    prior, points = FlowPrior(Images(images), (1, 6, 6), predicts="x0"), images[[6, 12, 31]]
    blind = sample_fibers(shade, prior, points, per_input=16, strength=10, scale=pair_scale(shade(images)))
    seeing = sample_fibers(position, prior, points, per_input=16, strength=10, scale=pair_scale(position(images)))
    places = torch.stack([position(fiber) for fiber in blind.samples])
    assert (places.std(dim=1) > 0.8).all()  # free: 1.4; anywhere in the image
    brightness = shade(blind.samples.flatten(0, 1)).view(3, 16)
    assert (brightness - shade(points)).abs().median() < 0.1
    kept = torch.stack([position(fiber) for fiber in seeing.samples]) - position(points)[:, None]
    assert kept.norm(dim=2).median() < 0.15


def test_an_identity_layer_leaves_no_diversity():
    images = blobs()
    prior, points = FlowPrior(Images(images), (1, 6, 6), predicts="x0"), images[[6, 12, 31]]
    tight = sample_fibers(lambda x: x.flatten(1), prior, points, per_input=6, strength=30)
    free = sample_fibers(lambda x: x.flatten(1), prior, points, per_input=6, strength=0)
    assert pair_distances(tight.samples).mean() < 0.1 * pair_distances(free.samples).mean()


def network():
    torch.manual_seed(1)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 12), nn.ReLU(),
        nn.Linear(12, 3),
    )  # fmt: skip
    return model.train()


def test_no_trace_is_left_and_the_same_seed_gives_the_same_bits():
    model, images = network(), blobs()
    model(images).sum().backward()
    model[0].bias.requires_grad_(False)
    prior = FlowPrior(Images(images).train(), (1, 6, 6), predicts="x0")
    state = copy.deepcopy(model.state_dict())
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [p.requires_grad for p in model.parameters()]
    other = {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in state.items()}
    streams = (random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state())
    found = []
    for _ in range(2):
        with layer_features(model, weights=other) as features:
            found.append(sample_fibers(features, prior, images[:2], per_input=2, steps=5))
    with layer_features(model) as features:
        own = sample_fibers(features, prior, images[:2], per_input=2, steps=5)
    assert torch.equal(found[0].samples, found[1].samples)
    assert not torch.equal(found[0].samples, own.samples)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert flags == [p.requires_grad for p in model.parameters()]
    assert all(
        (a is None and p.grad is None) or torch.equal(a, p.grad) for a, p in zip(grads, model.parameters(), strict=True)
    )
    assert all(module.training for module in model.modules())
    assert prior.network.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert streams[0] == random.getstate()
    assert streams[1] == np.random.get_state()[1].tolist()
    assert torch.equal(streams[2], torch.get_rng_state())


def test_another_batch_changes_no_more_than_rounding():
    model, images = network(), blobs()
    prior = FlowPrior(Images(images), (1, 6, 6), predicts="x0")
    with layer_features(model) as features:
        one, other = (sample_fibers(features, prior, images[:6], per_input=3, steps=5, batch=b) for b in (7, 48))
    torch.testing.assert_close(one.samples, other.samples, atol=1e-4, rtol=0)


def test_before_and_after():
    images = blobs()
    prior = FlowPrior(Images(images), (1, 6, 6), predicts="x0")

    def both(x):
        return torch.cat([position(x), shade(x) / 2], dim=1)

    found = compare_fibers(both, shade, prior, images, torch.arange(0, 50, 2), per_input=4, steps=25)
    change = found.markers["fiber_diversity_change"]
    assert change.value > 5 * change.standard_error
    assert found.markers["fiber_forgotten"].value > 10
    assert "blind to more" in found.sentence
    same = compare_fibers(both, both, prior, images, torch.arange(0, 50, 2), per_input=4, steps=25)
    assert same.markers["fiber_diversity_change"].value == 0
    assert same.markers["fiber_forgotten"].value == pytest.approx(1, rel=1e-3)
    assert "no change" in same.sentence


def test_the_diversity_is_interpolated_in_the_logarithm_of_the_loss():
    ladder = Ladder(torch.tensor([[1e-4] * 3, [1e-2] * 3]).double(), torch.tensor([[1.0] * 3, [3.0] * 3]).double())
    assert ladder.at(1e-3) == pytest.approx(2.0)


def test_the_bootstrap_of_a_mean_is_its_standard_error():
    values = torch.randn(60, generator=torch.Generator().manual_seed(2)).double()
    error = bootstrapped(lambda chosen: float(values[chosen].mean()), 60).standard_error
    assert error == pytest.approx(float(values.std()) / 60**0.5, rel=0.12)


def test_a_loss_that_is_not_reached_is_nan_with_the_reason():
    found = diversity_at([drawn(10.0)], 0.5)
    assert np.isnan(found.value)
    assert "not 0.5" in found.reason


def test_a_prior_is_trained_without_a_trace_on_the_random_streams():
    images, before = blobs(), torch.get_rng_state()
    losses = []
    prior = train_prior(images, steps=60, width=8, batch=32, progress=lambda step, loss: losses.append(loss))
    assert torch.equal(before, torch.get_rng_state())
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    assert sample_fibers(shade, prior, images[[0, 30]], per_input=1, steps=3).samples.shape == (2, 1, 1, 6, 6)


IMAGES = blobs()
GOOD = FlowPrior(Images(IMAGES), (1, 6, 6), predicts="x0")


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"inputs": torch.rand(2, 1, 5, 5)}, gm.InputError, "prior's shape"),
        ({"inputs": torch.ones(2, 1, 6, 6, dtype=torch.int64)}, gm.InputError, "tokens"),
        ({"inputs": "some text"}, gm.InputError, "texts"),
        ({"inputs": torch.full((2, 1, 6, 6), torch.nan)}, gm.InputError, "finite"),
        ({"features": lambda x: x.flatten(1) / 0}, gm.MeasurementError, "not finite"),
        ({"features": lambda x: x.detach().flatten(1)}, gm.MeasurementError, "no gradient"),
        ({"features": lambda x: x.flatten(1).round() + 0 * x.flatten(1)}, gm.MeasurementError, "zero at every step"),
        ({"features": lambda x: 0 * x.flatten(1) + 1}, gm.MeasurementError, "one fiber"),
        ({"features": lambda x: x}, gm.InputError, "one row"),
        ({"prior": FlowPrior(lambda x, t: x[:, :, :3], (1, 6, 6))}, gm.InputError, "shape"),
        ({"prior": FlowPrior(lambda x, t: x * torch.nan, (1, 6, 6))}, gm.InputError, "NaN"),
        ({"prior": nn.Linear(2, 2)}, gm.InputError, "prior"),
        ({"optimiser": "sgd"}, gm.InputError, "optimiser"),
        ({"steps": 0}, gm.InputError, "steps"),
        ({"ids": torch.arange(3)}, gm.InputError, "ids"),
    ],
)
def test_bad_input_is_one_sentence(change, error, words):
    with pytest.raises(error, match=words):
        sample_fibers(
            **{"features": lambda x: x.flatten(1), "prior": GOOD, "inputs": IMAGES[[0, 30]], "steps": 4} | change
        )


def test_a_layer_that_does_not_run():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(36, 4), nn.Linear(36, 4)

        def forward(self, x):
            return self.used(x.flatten(1))

    with pytest.raises(gm.MeasurementError, match="idle"), layer_features(Model(), "idle") as features:
        sample_fibers(features, GOOD, IMAGES[:2], steps=2)


def test_the_picture_of_a_comparison():
    from geomonitor.plots.drawing import pixels
    from geomonitor.plots.fibers import plot_fibers

    found = compare_fibers(
        lambda x: torch.cat([position(x), shade(x)], dim=1), shade, GOOD, IMAGES, torch.tensor([3, 30]), per_input=2,
        steps=4, strengths=(3.0,),
    )  # fmt: skip
    assert pixels(plot_fibers(found)).std() > 10


def test_a_copy_of_the_weights_of_a_model_with_tied_weights_is_taken():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.head = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 2)
            self.second.weight = self.first.weight

        def forward(self, x):
            return self.head(self.second(self.first(x)))

    model, x = Tied(), torch.rand(2, 6)
    weights = {name: 2 * value for name, value in model.state_dict().items()}
    with layer_features(model, weights=weights) as features:
        found = features(x)
    model.load_state_dict(weights)
    with layer_features(model) as features:
        torch.testing.assert_close(found, features(x))


def test_weights_that_lack_a_parameter_are_refused():
    with (
        pytest.raises(gm.InputError, match=r"'0\.bias' is missing"),
        layer_features(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), "0", weights={"0.weight": torch.ones(2, 2)}),
    ):
        pass
