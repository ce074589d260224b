"""Formulas of the sampler and of the markers, against values by hand, torch's Adam, and the exact posterior."""

from __future__ import annotations

import math

import pytest
import torch

from geomonitor.explain import DiffusionPrior, FiberSamples, FlowPrior, compare_fibers, crossing, sample_fibers
from geomonitor.explain.comparison import AIM, REFUSED_ABOVE, Comparison, Side
from geomonitor.explain.control import Control, distance
from geomonitor.explain.fiber_markers import (
    Estimate,
    Ladder,
    Nearest,
    bootstrapped,
    comparable_loss,
    diversity_at,
    diversity_change,
    forgotten,
    kernel_distance,
    median_loss,
    pair_distances,
    pair_scale,
    real_neighbours,
)
from geomonitor.explain.sampling import _generator, _step
from geomonitor.explain.saving import BYTES_OF_HEADERS, room_for

INFINITE = {"low": -float("inf"), "high": float("inf")}
TABLE = [0.99, 0.9, 0.7, 0.4, 0.1]


def still(dim, **options):
    """Takes each state for its own clean input: without control and fresh noise the state does not move."""
    return FlowPrior(lambda x, t: x, (dim,), predicts="x0", **(INFINITE | options))


def first(x):
    return x[:, :1]


def start(count, dim):
    """The noise from which the members of point 0 start, by seed 0."""
    return torch.stack([torch.randn(dim, generator=_generator(0, 0, number)) for number in range(count)])


def vp(**options):
    return DiffusionPrior(lambda x, index: x, (3,), TABLE, predicts="x0", **(INFINITE | options))


def test_the_control_moves_a_state_by_its_budget_towards_the_target():
    """Strength x inner x sum of the falling rates, times sqrt(dim) along the only coordinate that the layer sees."""
    found = sample_fibers(
        first, still(4), torch.full((1, 4), 100.0), per_input=3, strength=3, steps=4, inner=2, rate=0.01, eta=0,
        guided_below=1, scale=1,
    )  # fmt: skip
    shift = 3 * 2 * 0.01 * (1 + 0.75 + 0.5 + 0.25) * 2
    torch.testing.assert_close(found.samples[0], start(3, 4) + torch.tensor([shift, 0, 0, 0]))


def test_the_rate_falls_over_the_times_that_a_prior_has():
    class Few(FlowPrior):
        def times(self, steps):
            return [1.0, 0.5, 0.0]

    found = sample_fibers(
        first, Few(lambda x, t: x, (1,), predicts="x0", **INFINITE), torch.full((1, 1), 100.0), per_input=3, strength=1,
        steps=50, inner=1, rate=0.01, eta=0, guided_below=1, scale=1,
    )  # fmt: skip
    torch.testing.assert_close(found.samples[0], start(3, 1) + 0.01 * (1 + 0.5))


def test_the_cost_is_the_euclidean_distance():
    found = distance(torch.tensor([[3.0, 4.0], [0.0, 2.0]]), lambda x: 2 * x, torch.tensor([[0.0, 0.0], [3.0, 0.0]]))
    assert found.tolist() == [10, 5]


def test_plain_guidance_moves_a_state_by_the_strength_after_each_step_but_the_last():
    found = sample_fibers(
        first, still(4), torch.full((1, 4), 100.0), per_input=3, strength=0.1, steps=4, eta=0, guided_below=1, scale=1,
        optimiser="gradient",
    )  # fmt: skip
    torch.testing.assert_close(found.samples[0], start(3, 4) + torch.tensor([0.3, 0, 0, 0]))


def test_the_target_of_a_step_is_the_representative_noised_as_much_as_the_state():
    found = sample_fibers(
        first, still(1), torch.full((1, 1), 100.0), per_input=40, strength=1, steps=1, inner=1, rate=0.01, eta=0,
        guided_below=1, scale=1, target="per_step",
    )  # fmt: skip
    noise = []
    for number in range(40):
        stream = _generator(0, 0, number)
        noise.append([torch.randn(1, generator=stream), torch.randn(1, generator=stream)])
    want = torch.stack([x + 0.01 * (again - x).sign() for x, again in noise])  # at time 1 nothing is left of the input
    torch.testing.assert_close(found.samples[0], want)


def test_a_control_beyond_the_range_of_the_data_has_no_gradient():
    found = sample_fibers(
        first, still(1, low=0.0, high=1.0), torch.full((1, 1), 0.5), per_input=60, strength=1, steps=1, inner=1,
        rate=0.2, eta=0, guided_below=1, scale=1,
    )  # fmt: skip
    x = start(60, 1)
    outside = (x > 1) | (x < 0)
    assert 20 < int(outside.sum()) < 60
    torch.testing.assert_close(found.samples[0][outside], x.clamp(0, 1)[outside])
    torch.testing.assert_close(found.samples[0][~outside], (x + 0.2 * (0.5 - x).sign())[~outside])


@pytest.mark.parametrize("prior", [still(3), vp()], ids=["flow", "diffusion"])
def test_control_acts_below_the_share_of_noise_that_is_asked_for(prior):
    calls = []

    def seen(x):
        calls.append(len(x))
        return x

    sample_fibers(seen, prior, torch.full((1, 3), 9.0), per_input=2, strength=1, steps=4, inner=3, guided_below=0.5,
                  scale=1)  # fmt: skip
    shares = [prior.sigma(t) / (prior.alpha(t) + prior.sigma(t)) for t in prior.times(4)[:-1]]
    guided = sum(share <= 0.5 for share in shares)
    assert 0 < guided < sum(prior.sigma(t) <= 0.75 for t in prior.times(4)[:-1]) + 1 < 5
    assert len(calls) == 1 + 3 * guided + 1  # the target, each step of the control, the loss


def test_times_and_coefficients_of_a_diffusion_model():
    prior = vp()
    assert prior.times(2) == [1.0, 0.5, 0.0]
    assert prior.times(50) == [1.0, 0.75, 0.5, 0.25, 0.0]
    for t, share in [(0.24, 0.9), (0.26, 0.9), (0.49, 0.7), (1.0, 0.1)]:  # of the nearest index
        assert (prior.alpha(t), prior.sigma(t)) == pytest.approx((share**0.5, (1 - share) ** 0.5))
    assert (prior.alpha(0), prior.sigma(0)) == (1, 0)
    assert still(1).times(4) == [1.0, 0.75, 0.5, 0.25, 0.0]


def test_of_twice_the_channels_the_first_half_is_the_prediction():
    prior = DiffusionPrior(lambda x, index: torch.cat([x, 7 + x], dim=1), (3,), TABLE, predicts="x0")
    x = torch.rand(2, 3)
    assert torch.equal(prior.x0(x, 0.5), x)


def test_the_first_state_has_the_noise_of_the_first_time():
    states = []

    def network(x, index):
        states.append(x)
        return x

    prior = DiffusionPrior(network, (3,), [0.9, 0.75], predicts="x0", **INFINITE)
    sample_fibers(first, prior, torch.zeros(1, 3), per_input=3, strength=0, steps=1, scale=1)
    torch.testing.assert_close(states[0], 0.5 * start(3, 3))


@pytest.mark.parametrize(("prior", "t", "r"), [(still(3), 0.75, 0.5), (vp(), 0.75, 0.25)], ids=["flow", "diffusion"])
def test_a_reverse_step(prior, t, r):
    x0, e, z = torch.randn(3, 5, 3, dtype=torch.float64)
    a, s, a_r, s_r = prior.alpha(t), prior.sigma(t), prior.alpha(r), prior.sigma(r)
    x = a * x0 + s * e
    torch.testing.assert_close(_step(prior, x, x0, x0, (t, r), 0.0, lambda: z), a_r * x0 + s_r * e)
    # Ancestral sampling: mean and variance of q(x_r | x_t, x0), Kingma et al. 2021, arXiv:2107.00630, eq. 24-25.
    forward = s**2 - (a / a_r) ** 2 * s_r**2
    mean = (a / a_r) * s_r**2 / s**2 * x + a_r * forward / s**2 * x0
    spread = (forward * s_r**2 / s**2) ** 0.5
    torch.testing.assert_close(_step(prior, x, x0, x0, (t, r), 1.0, lambda: z), mean + spread * z)
    half = a_r * x0 + (s_r**2 - spread**2 / 4) ** 0.5 * e + spread / 2 * z
    torch.testing.assert_close(_step(prior, x, x0, x0, (t, r), 0.5, lambda: z), half)
    # The noise is that of the estimate before it was clipped: the state keeps it.
    clean = x0.clamp(-0.5, 0.5)
    torch.testing.assert_close(_step(prior, x, x0, clean, (t, r), 0.0, lambda: z), a_r * clean + s_r * e)


def test_the_relative_loss_is_the_squared_distance_over_that_of_pairs():
    inputs = torch.randn(3, 4)
    found = sample_fibers(lambda x: x[:, :2], still(4), inputs, per_input=2, steps=3)
    apart = (found.samples[..., :2] - inputs[:, None, :2]).double().square().sum(dim=2)
    torch.testing.assert_close(found.relative_loss, apart / pair_scale(inputs[:, :2]))
    given = sample_fibers(lambda x: x[:, :2], still(4), inputs, per_input=2, steps=3, scale=2.0)
    torch.testing.assert_close(given.relative_loss, apart / 2)


def test_noise_is_by_seed_point_and_member():
    def noise(ids, seed=0):
        points = torch.zeros(len(ids), 2)
        return sample_fibers(
            lambda x: x, still(2), points, ids=torch.tensor(ids), strength=0, per_input=2, steps=2, seed=seed, scale=1
        ).samples

    both = noise([7, 3])
    assert torch.equal(noise([3])[0], both[1])
    rows = torch.cat([both.flatten(0, 1), noise([7, 3], seed=1).flatten(0, 1)])
    assert len(rows.unique(dim=0)) == 8


def test_adam_is_that_of_torch_on_gradients_of_length_one_at_most():
    gradients = [torch.tensor([[3.0, -4.0], [0.3, 0.1]]), torch.tensor([[0.2, 0.5], [-6.0, 0.4]])]
    control, value = Control(gradients[0], "adam"), torch.zeros(2, 2, requires_grad=True)
    adam = torch.optim.Adam([value], lr=0.01)
    for g in gradients:
        control.step(g, 0.01)
        value.grad = g / g.norm(dim=1, keepdim=True).clamp_min(1)
        adam.step()
    torch.testing.assert_close(control.value, value.detach())


def test_only_accepted_and_finite_members_count():
    samples = torch.tensor([[[0.0, 0.0], [3.0, 3.0], [9.0, 9.0], [math.nan, 0.0]]])
    assert pair_distances(samples).tolist() == pytest.approx([(3 + 9 + 6) / 3])
    assert pair_distances(samples, torch.tensor([[True, False, True, True]])).tolist() == pytest.approx([9])
    assert pair_distances(samples, torch.tensor([[True, False, False, True]])).isnan().all()


def fibers(losses, apart, strength=1.0):
    """Three members at 0, ``apart`` and 2 ``apart`` of one coordinate: mean distance 4/3 of it."""
    losses, apart = torch.tensor(losses).double(), torch.tensor(apart)
    samples = (apart[:, None] * torch.arange(3.0))[..., None]
    return FiberSamples(samples, losses, torch.arange(len(losses)), strength)


def test_the_ladder_has_the_median_loss_and_the_mean_diversity():
    weak = fibers([[0.1, 0.1, 9.0], [0.1, 0.1, 9.0], [5.0, 5.0, 5.0]], [3.0, 3.0, 9.0])
    strong = fibers([[1e-3, 1e-3, 9.0], [1e-3, 1e-3, 9.0], [5.0, 5.0, 5.0]], [0.0, 0.0, 3.0])
    ladder = Ladder.of([strong, weak])
    assert ladder.range() == pytest.approx((1e-3, 0.1))
    for each in (ladder, Ladder.of([weak, strong])):  # in any order
        assert each.at(10**-1.5) == pytest.approx(4 / 3 * (1 + 0.75 * 4))  # three quarters of the way, in logarithms
        assert each.at(5.0) == pytest.approx(4 / 3 * 5)
    assert math.isnan(diversity_at([weak, strong], 1e-4).value)
    assert math.isnan(diversity_at([weak, strong], 0.2).value)


def test_the_error_of_a_change_is_of_pairs():
    spread = torch.randn(20, generator=torch.Generator().manual_seed(0)).double()
    before = Ladder(torch.full((1, 20), 0.1).double(), 10 + spread[None])
    after = before._replace(diversities=before.diversities + 2)
    change = diversity_change(before, after, float(before.range()[0]))
    assert change.value == pytest.approx(2)
    assert change.standard_error < 1e-9
    elsewhere = after._replace(losses=after.losses * 2)
    assert math.isnan(diversity_change(before, elsewhere, float(before.range()[0])).value)
    assert math.isnan(diversity_change(elsewhere, before, float(before.range()[0])).value)


def test_the_compared_loss_is_in_both_ranges():
    def ladder(low, high):
        return Ladder(torch.tensor([[low], [high]]).double(), torch.ones(2, 1).double())

    for before, after in [((1.0, 8.0), (2.0, 9.0)), ((2.0, 9.0), (1.0, 8.0))]:
        both = ladder(*before), ladder(*after)
        assert comparable_loss(4.0, *both) == (4.0, "")
        loss, note = comparable_loss(0.5, *both)
        assert loss == 2
        assert "moved from 0.5" in note
        assert comparable_loss(20.0, *both)[0] == 8
    loss, reason = comparable_loss(1.0, ladder(1.0, 2.0), ladder(3.0, 4.0))
    assert math.isnan(loss)
    assert "1 to 2 before and 3 to 4 after" in reason


def test_the_loss_in_another_network():
    samples = torch.tensor([[[1.0], [2.0]], [[3.0], [math.inf]]])
    found = crossing(
        FiberSamples(samples, torch.zeros(2, 2), torch.arange(2), 1.0), lambda x: torch.cat([x, 2 * x], dim=1),
        torch.tensor([[0.0, 0.0], [1.0, 1.0]]), 5.0,
    )  # fmt: skip
    torch.testing.assert_close(
        found, torch.tensor([[1.0, 4.0], [29 / 5, math.nan]], dtype=torch.float64), equal_nan=True
    )


def test_medians_and_their_ratio():
    own, crossed = torch.tensor([[1.0, 2.0, 30.0]]).double(), torch.tensor([[8.0, 6.0, 900.0]]).double()
    assert median_loss(own).value == 2
    assert forgotten(own, crossed).value == 4
    assert forgotten(0 * own, crossed).value == pytest.approx(8e12)


def test_the_kernel_distance_is_the_mean_over_all_pairs():
    """Binkowski et al. 2018, arXiv:1801.01401, eq. 4, term by term; features are divided by the real ones' RMS."""
    members, real = (torch.randn(n, 3, generator=torch.Generator().manual_seed(n)).double() * n for n in (4, 5))
    size = real.square().mean().sqrt()

    def mean(a, b, same):
        each = [
            (float(x @ y) / size.item() ** 2 / 3 + 1) ** 3
            for i, x in enumerate(a) for j, y in enumerate(b) if not (same and i == j)
        ]  # fmt: skip
        return sum(each) / len(each)

    want = mean(members, members, True) + mean(real, real, True) - 2 * mean(members, real, False)
    assert kernel_distance(members, real) == pytest.approx(want)


def test_real_points_in_a_fiber_are_counted_without_the_representative():
    pool = torch.tensor([[0.0], [1.0], [3.0], [3.5]])
    found = real_neighbours(pool[[0, 2]], pool, torch.tensor([0, 2]), 0.25, 18.0)  # a distance of 2.12
    assert found.value == 1.5  # that at 1; those at 1 and 3.5
    assert real_neighbours(pool[[0, 2]], pool, torch.tensor([0, 2]), 0.1, 18.0).value == 1


def test_the_bootstrap_draws_as_many_as_there_are():
    sizes = []
    bootstrapped(lambda chosen: float(sizes.append(len(chosen)) or chosen.double().mean()), 7)
    assert set(sizes) == {7}
    assert math.isnan(bootstrapped(lambda chosen: 1.0, 1).standard_error)


def test_a_comparison_by_hand():
    """Loss, neighbours, refused members and the crossing, from the fibers that it has."""
    stream = torch.Generator().manual_seed(0)
    pool = torch.randn(30, 3, generator=stream) / 2
    places = torch.tensor([4, 11, 20, 27])

    def before(x):
        return 2 * x[:, :2]

    def after(x):
        return torch.cat([x[:, :1] * 3, x[:, :1] ** 2], dim=1)

    prior = FlowPrior(lambda x, t: ((1 - t) / ((1 - t) ** 2 + t**2))[:, None] * x, (3,), predicts="x0", **INFINITE)
    found = compare_fibers(before, after, prior, pool, places, per_input=3, steps=8, strengths=(0.5, 8.0))
    points, scales, aims, own = [], [], [], []
    for network, side in ((before, found.before), (after, found.after)):
        features = network(pool).double()
        apart = torch.cdist(features, features).square()
        points.append(features)
        scales.append(apart.sum() / (30 * 29))
        apart.fill_diagonal_(math.inf)
        own.append(apart.min(dim=1).values)
        aims.append(features[places])
        torch.testing.assert_close(side.neighbour_losses, own[-1][places] / scales[-1])
        for each in side.fibers:
            loss = (network(each.samples.flatten(0, 1)).view(4, 3, 2) - aims[-1][:, None]).square().sum(dim=2)
            torch.testing.assert_close(each.relative_loss, loss / scales[-1], rtol=1e-4, atol=1e-7)
            assert each.representative_ids.tolist() == places.tolist()
    ranges = [
        sorted(float(each.relative_loss.median(dim=1).values.median()) for each in side.fibers)
        for side in (found.before, found.after)
    ]
    low, high = max(r[0] for r in ranges), min(r[1] for r in ranges)
    aim = AIM * float((own[0][places] / scales[0]).median())
    assert found.loss == pytest.approx(min(max(aim, low), high))
    assert f"moved from {aim:.2g}" in found.note
    limit = own[0].quantile(REFUSED_ABOVE)
    masks = {}
    for name, side in (("before", found.before), ("after", found.after)):
        for each, refused in zip(side.fibers, side.refused, strict=True):
            seen = before(each.samples.flatten(0, 1)).double()
            far = torch.cdist(seen, points[0]).square().min(dim=1).values > limit
            assert torch.equal(refused.flatten(), far)
        masks[name] = torch.stack(side.refused)
        nearest = min(range(2), key=lambda i: abs(math.log(float(side.fibers[i].relative_loss.median()) / found.loss)))
        shown = side.fibers[nearest]
        assert found.markers[f"fiber_refused_{name}"].value == pytest.approx(side.refused[nearest].double().mean())
        assert found.markers[f"fiber_loss_{name}"].value == pytest.approx(float(shown.relative_loss.median()))
        seen = before(shown.samples.flatten(0, 1))
        assert found.markers[f"fiber_fidelity_{name}"].value == pytest.approx(kernel_distance(seen, points[0]))
        natural = diversity_at(side.fibers, found.loss, [~mask for mask in side.refused])
        assert found.markers[f"fiber_diversity_natural_{name}"].value == pytest.approx(natural.value, nan_ok=True)
        number = ("before", "after").index(name)
        count = real_neighbours(points[number][places], points[number], places, found.loss, float(scales[number]))
        assert found.markers[f"fiber_real_neighbours_{name}"].value == count.value
    assert 0 < masks["after"].double().mean() < 1
    crossed = (seen.view(4, 3, 2).double() - aims[0][:, None]).square().sum(dim=2) / scales[0]
    ratio = float(crossed.median() / shown.relative_loss.median())
    assert found.markers["fiber_forgotten"].value == pytest.approx(ratio, rel=1e-4)
    assert found.markers["fiber_loss_crossed"].value == pytest.approx(float(crossed.median()), rel=1e-4)


@pytest.mark.parametrize(
    ("change", "verdict"),
    [(2.1, "blind to more"), (1.9, "no change"), (-1.9, "no change"), (-2.1, "distinguishes more")],
)
def test_a_change_counts_beyond_two_errors(change, verdict):
    markers = {"fiber_diversity_before": Estimate(1, 1), "fiber_diversity_after": Estimate(1, 1)}
    none = torch.empty(0)
    side = Side((), Nearest(none, none), 1.0, ())
    found = Comparison(none, none, side, side, 0.1, "", markers | {"fiber_diversity_change": Estimate(change, 1.0)})
    assert verdict in found.sentence


@pytest.mark.parametrize(("bytes_less", "room"), [(0, (10, 4)), (1, (10, 3))])
def test_a_file_has_room_for_representative_neighbours_and_members_of_both_sides(bytes_less, room):
    full = BYTES_OF_HEADERS + 10 * 100 * (1 + 2 + 2 * 4)
    assert room_for(10, 8, 100, (full - bytes_less) / 2**20) == room
