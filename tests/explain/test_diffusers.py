"""A real UNet of ``diffusers`` and its schedulers as a prior; skipped if diffusers is missing."""

from __future__ import annotations

import os

import pytest
import torch

from geomonitor import InputError
from geomonitor.explain import DiffusersPrior, DiffusionPrior, FlowPrior, compare_fibers, layer_features, sample_fibers

if os.environ.get("GEOMONITOR_FRAMEWORKS"):
    import diffusers
else:
    diffusers = pytest.importorskip("diffusers")

TRAINING = 60


def unet(channels=1):
    torch.manual_seed(0)
    return diffusers.UNet2DModel(
        sample_size=8, in_channels=1, out_channels=channels, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"), norm_num_groups=4,
    ).eval()  # fmt: skip


def noised(kind):
    return diffusers.DDPMScheduler(num_train_timesteps=100, prediction_type=kind)


def bars(count):
    """Images 8 x 8 of one bright column, from -1 to 1."""
    images = -torch.ones(count, 1, 8, 8)
    images[torch.arange(count), :, :, torch.arange(count) % 8] = 1.0
    return images


def column(x):
    """Place of the brightness along the rows, which is what the layer sees."""
    share = (x.mean(dim=(1, 2)) + 1).clamp_min(1e-3)
    return (share @ torch.arange(8.0) / share.sum(dim=1))[:, None]


def drawn(prior, **options):
    settings = {"per_input": 2, "steps": 6, "inner": 2} | options
    return sample_fibers(column, prior, bars(8)[[1, 5]], **settings).samples


@pytest.mark.parametrize(("kind", "predicts"), [("epsilon", "noise"), ("v_prediction", "v"), ("sample", "x0")])
def test_a_scheduler_and_its_table_give_equal_members(kind, predicts):
    network, scheduler = unet(), noised(kind)
    plain = DiffusionPrior(network, (1, 8, 8), scheduler.alphas_cumprod, predicts=predicts)
    assert torch.equal(drawn(DiffusersPrior(network, scheduler)), drawn(plain))


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
def test_the_estimate_is_that_of_the_scheduler_itself(kind):
    network, scheduler = unet(), noised(kind)
    scheduler.config.clip_sample = False
    prior = DiffusersPrior(network, scheduler)
    x, index = torch.randn(3, 1, 8, 8), 40
    with torch.no_grad():
        prediction = network(x, torch.full((3,), index)).sample
        want = scheduler.step(prediction, index, x).pred_original_sample
        found = prior.x0(x, index / 99)
    torch.testing.assert_close(found, want, rtol=1e-4, atol=1e-4)


def test_the_noise_is_that_of_the_scheduler_itself():
    scheduler, clean, noise = noised("epsilon"), torch.rand(2, 1, 8, 8), torch.randn(2, 1, 8, 8)
    prior = DiffusersPrior(unet(), scheduler)
    for index in (1, 50, 99):
        want = scheduler.add_noise(clean, noise, torch.full((2,), index))
        torch.testing.assert_close(prior.alpha(index / 99) * clean + prior.sigma(index / 99) * noise, want)


def test_a_flow_scheduler_and_a_flow_prior_give_equal_members():
    network, scheduler = unet(), diffusers.FlowMatchEulerDiscreteScheduler()
    plain = FlowPrior(lambda x, t: network(x, 1000 * t).sample, (1, 8, 8), low=-1.0)
    assert torch.equal(drawn(DiffusersPrior(network, scheduler)), drawn(plain))


def test_of_a_learned_variance_the_first_channels_count():
    network, scheduler = unet(channels=2), noised("epsilon")

    def first(x, index):
        return network(x, index).sample[:, :1]

    plain = DiffusionPrior(first, (1, 8, 8), scheduler.alphas_cumprod)
    assert torch.equal(drawn(DiffusersPrior(network, scheduler)), drawn(plain))


def test_a_trained_one_finds_the_fiber_of_a_layer_and_is_left_as_it_was():
    network, scheduler = unet(), noised("sample")
    optimizer, images = torch.optim.Adam(network.parameters(), 3e-3), bars(64)
    for _ in range(TRAINING):
        noise, index = torch.randn_like(images), torch.randint(100, (64,))
        x = scheduler.add_noise(images, noise, index)
        loss = (network(x, index).sample - images).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    prior = DiffusersPrior(network.train(), scheduler)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    with layer_features(model) as features:
        found = compare_fibers(
            features, column, prior, bars(8), torch.arange(1, 7, 2), per_input=3, steps=20, strengths=(10.0,)
        )
    for side in (found.before, found.after):
        assert side.fibers[0].relative_loss.median() < 0.5 * side.neighbour_losses.median()
    free = sample_fibers(column, prior, bars(8), per_input=2, strength=0, steps=20)
    assert found.after.fibers[0].relative_loss.median() < 0.1 * free.relative_loss.median()
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    "scheduler", [lambda: diffusers.EulerDiscreteScheduler(prediction_type="other"), lambda: object()]
)
def test_another_scheduler_is_refused(scheduler):
    with pytest.raises((InputError, ValueError), match=r"prediction_type|scheduler"):
        DiffusersPrior(unet(), scheduler())
