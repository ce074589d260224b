"""Members, strengths and gradients that are not finite are refused one by one; one sentence if nothing is left."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.explain import DiffusionPrior, FlowPrior, compare_fibers, layer_features, sample_fibers
from geomonitor.explain.comparison import Comparison, Side
from geomonitor.explain.control import gradient
from geomonitor.explain.fiber_markers import Estimate, Ladder, Nearest, comparable_loss, diversity_at
from geomonitor.explain.prior_training import SmallUNet
from tests.fiber_targets import Exact, squares

IMAGES = squares()[0]
PLACES = torch.tensor([3, 12, 30, 41])
SETTINGS = {"per_input": 3, "steps": 6}


def prior(network=None):
    return FlowPrior(network or Exact(IMAGES), (1, 6, 6), predicts="x0")


def whole(x):
    return x.flatten(1)


class Breaks(Exact):
    """As ``Exact``, and NaN for the second member of a batch."""

    def forward(self, x, t):
        found = super().forward(x, t)
        return torch.where(torch.arange(len(x))[:, None, None, None] == 1, torch.nan, found)


def test_one_member_that_the_prior_breaks_leaves_the_others_as_they_are():
    found, sound = (
        sample_fibers(whole, prior(network(IMAGES)), IMAGES[PLACES], **SETTINGS) for network in (Breaks, Exact)
    )
    lost = torch.zeros(4, 3, dtype=torch.bool)
    lost[0, 1] = True
    assert torch.equal(found.relative_loss.isnan(), lost)
    assert torch.equal(found.samples.isnan().flatten(2).all(dim=2), lost)
    torch.testing.assert_close(found.samples[~lost], sound.samples[~lost])
    torch.testing.assert_close(found.relative_loss[~lost], sound.relative_loss[~lost])


def test_no_input_that_is_not_finite_reaches_the_model_after_the_drawing():
    given = []

    def watched(x):
        given.append(bool(torch.isfinite(x.detach()).all()))
        return x.flatten(1)

    found = sample_fibers(watched, prior(Breaks(IMAGES)), IMAGES[PLACES], strength=0, **SETTINGS)
    compare_fibers(watched, whole, prior(), IMAGES, PLACES, strengths=(3.0,), **SETTINGS)
    assert found.relative_loss.isnan().any()
    assert all(given)


def dark(x):
    """Sees all; not finite for an image without a bright pixel."""
    return torch.where(x.flatten(1).amax(dim=1, keepdim=True) < 0.7, torch.nan, x.flatten(1))


def test_members_that_a_layer_cannot_take_are_refused_and_the_comparison_goes_on():
    """The later network gives NaN for the darker half of the images, the earlier one is blind to the shade."""

    def blind(x):
        return x.flatten(1) / x.flatten(1).norm(dim=1, keepdim=True).clamp_min(1e-3)

    bright, places = IMAGES[25:], torch.tensor([3, 12, 20])
    how = {"strengths": (3.0, 10.0), "per_input": 6, "steps": 6}
    found = compare_fibers(blind, blind, prior(), bright, places, **how)
    broken = compare_fibers(blind, lambda x: blind(dark(x).view_as(x)), prior(), bright, places, **how)
    for plain, side in zip(found.after.fibers, broken.after.fibers, strict=True):
        lost = side.relative_loss.isnan()
        assert 0 < lost.double().mean() < 1
        assert torch.isfinite(side.samples).all()
        assert not plain.relative_loss.isnan().any()
    for side, refused in zip(broken.after.fibers, broken.after.refused, strict=True):
        assert refused[side.relative_loss.isnan()].all()
    assert not torch.stack(found.after.refused).any()  # they are near real points in the network before
    for name in ("fiber_loss_after", "fiber_loss_crossed", "fiber_forgotten", "fiber_fidelity_after"):
        assert math.isfinite(broken.markers[name].value), name


def test_members_without_a_loss_do_not_count_in_the_diversity():
    fibers = sample_fibers(whole, prior(), IMAGES[PLACES], **SETTINGS)
    fibers = fibers._replace(relative_loss=fibers.relative_loss.clone())
    fibers.relative_loss[:, 2] = torch.nan
    want = (fibers.samples[:, 0] - fibers.samples[:, 1]).double().flatten(1).square().mean(dim=1).sqrt()
    torch.testing.assert_close(Ladder.of([fibers]).diversities[0], want)


@pytest.mark.parametrize("infinite", [torch.nan, torch.inf])
@pytest.mark.parametrize(
    ("what", "error", "words"),
    [
        ("prior", gm.InputError, r"prior\.x0 gives no finite estimate \(NaN or infinite\) for any of 12 members"),
        ("members", gm.MeasurementError, "features of all 12 members are not finite"),
        ("representatives", gm.MeasurementError, "features of 4 of 4 representatives are not finite"),
    ],
)
def test_nothing_left_is_one_sentence(what, error, words, infinite):
    def odd(x):  # finite for the representatives alone
        return whole(x) if len(x) == len(PLACES) else whole(x) + infinite

    features = {"prior": whole, "members": odd, "representatives": lambda x: whole(x) + infinite}[what]
    given = prior(lambda x, t: x * infinite) if what == "prior" else prior()
    with pytest.raises(error, match=words):
        sample_fibers(features, given, IMAGES[PLACES], **SETTINGS)


@pytest.mark.parametrize("side", ["before", "after"])
def test_points_that_a_network_cannot_take_are_named_with_their_side(side):
    networks = {"before": whole, "after": whole} | {side: dark}
    with pytest.raises(gm.MeasurementError, match=f"features of 25 of 50 points {side} are not finite"):
        compare_fibers(*networks.values(), prior(), IMAGES, PLACES, **SETTINGS)
    networks |= {side: lambda x: 0 * whole(x)}
    with pytest.raises(gm.MeasurementError, match=f"all points {side} equal features, so everything is one fiber"):
        compare_fibers(*networks.values(), prior(), IMAGES, PLACES, **SETTINGS)


def test_a_member_without_a_gradient_is_not_guided_and_the_others_are():
    """A layer that is constant where the image is dark on the left, in batches of one member."""

    def half(x):
        lit = x[..., :3].amax(dim=(1, 2, 3)) > 0.3
        return torch.where(lit[:, None], x.flatten(1), 0.0)

    both = IMAGES[[0, 4]]
    found = sample_fibers(half, prior(), both, per_input=2, steps=4, batch=1, strength=10)
    assert torch.isfinite(found.relative_loss).all()
    with pytest.raises(gm.MeasurementError, match="zero at every step"):
        sample_fibers(lambda x: whole(x).round() + 0 * whole(x), prior(), IMAGES[PLACES], per_input=2, steps=4, batch=1)


def test_a_gradient_that_is_not_finite_is_no_step():
    x = torch.tensor([[1.0, 2.0], [0.0, 4.0]], requires_grad=True)
    assert gradient(x.sqrt().sum(dim=1), x).tolist() == [[0.5, pytest.approx(2**-0.5 / 2)], [0, 0]]


def test_a_strength_without_a_finite_member_is_left_out():
    nan = math.nan
    ladder = Ladder(
        torch.tensor([[1e-1] * 3, [nan] * 3, [1e-3] * 3]).double(), torch.tensor([[3.0] * 3, [nan] * 3, [1.0] * 3])
    )
    assert ladder.range() == pytest.approx((1e-3, 1e-1))
    assert ladder.at(1e-2) == pytest.approx(2)
    assert ladder.at(1) == pytest.approx(3)  # the weakest one that is known
    assert comparable_loss(1e-2, ladder, ladder) == (1e-2, "")
    nothing = Ladder(torch.full((2, 3), nan), torch.full((2, 3), nan))
    assert all(math.isnan(end) for end in nothing.range())
    loss, reason = comparable_loss(1e-2, ladder, nothing)
    assert math.isnan(loss)
    assert "0.001 to 0.1 before and nothing finite after" in reason
    assert math.isnan(comparable_loss(1e-2, nothing, ladder)[0])


def test_the_diversity_of_one_input_has_no_error_and_no_verdict():
    fibers = sample_fibers(whole, prior(), IMAGES[PLACES[:1]], scale=1.0, **SETTINGS)
    found = diversity_at([fibers], float(fibers.relative_loss.nanmedian()))
    assert math.isnan(found.standard_error)
    none = torch.empty(0)
    side = Side((), Nearest(none, none), 1.0, ())
    markers = {f"fiber_diversity_{name}": Estimate(1.0) for name in ("before", "after", "change")}
    sentence = Comparison(none, none, side, side, 0.1, "", markers).sentence
    assert "blind to more" not in sentence
    assert "no change" not in sentence
    assert "no error" in sentence


def test_each_member_passes_the_network_before_twice_and_the_one_after_once():
    """Beside what guides it: once for its loss, and members of both sides once in the network before."""
    rows = {"before": 0, "after": 0}

    def counted(name, network):
        def run(x):
            rows[name] += 0 if torch.is_grad_enabled() else len(x)
            return network(x)

        return run

    compare_fibers(
        counted("before", whole),
        counted("after", dark_free),
        prior(),
        IMAGES,
        PLACES,
        strengths=(3.0, 10.0),
        **SETTINGS,
    )
    members, own = 2 * 4 * 3, len(IMAGES) + 2 * len(PLACES)  # all points, and the targets at each strength
    assert rows == {"before": own + members + 2 * members, "after": own + members}


def dark_free(x):
    return 2 * x.flatten(1)


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 6)

    def forward(self, x, index):
        return self.layer(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_prior_in_another_precision(dtype):
    torch.manual_seed(0)
    network = SmallUNet(1, 8)
    same = SmallUNet(1, 8).to(dtype)
    same.load_state_dict(network.state_dict())
    found, want = (sample_fibers(whole, prior(each), IMAGES[PLACES], steps=3, per_input=1) for each in (same, network))
    assert found.samples.dtype == torch.float32
    torch.testing.assert_close(found.samples, want.samples, atol=0.05, rtol=0)
    table, x = [0.99, 0.5, 0.1], torch.rand(2, 1, 6, 6)
    network = Layer()
    noisy, plain = (DiffusionPrior(copy.deepcopy(network).to(each), (1, 6, 6), table) for each in (dtype, x.dtype))
    assert noisy.x0(x, 0.5).dtype == torch.float32
    torch.testing.assert_close(noisy.x0(x, 0.5), plain.x0(x, 0.5), atol=0.05, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_model_in_another_precision(dtype):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 2)).to(dtype)
    with layer_features(model) as features:
        found = sample_fibers(features, prior(), IMAGES[PLACES], strength=10, **SETTINGS)
        free = sample_fibers(features, prior(), IMAGES[PLACES], strength=0, **SETTINGS)
        assert features(IMAGES[:2]).dtype == torch.promote_types(dtype, torch.float32)
    assert found.samples.dtype == torch.float32
    assert found.relative_loss.median() < 0.3 * free.relative_loss.median()
