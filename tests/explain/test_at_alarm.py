"""Which weights count as before, when they are kept, and what of the probe set is drawn from."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

import geomonitor as gm
from geomonitor.explain import Fibers, FlowPrior, at_alarm
from geomonitor.history.saved import SavedCheckpoint
from tests.fiber_targets import Exact, Net, prior, probe, squares


def verdict(*, declined=False, checks=0, since=None):
    return gm.Verdict(declined, "mine", "dimension", 1.0, 2.0, 0.1, since_step=since, checks=checks)


def monitor(healthy=None, **verdicts):
    return SimpleNamespace(
        last_healthy=healthy, verdicts=verdicts, probe=probe(), layers={"mine": "head:input"}, pool="auto"
    )


def forward(model, inputs):
    return model(inputs)


def weights_of(value):
    return {name: torch.full_like(each, value) for name, each in Net().state_dict().items()}


def network(value):
    net = Net()
    net.load_state_dict(weights_of(value))
    return net


def test_a_copy_is_kept_only_if_nothing_declines():
    fibers = Fibers(prior())
    fibers.keep(network(1.0), monitor(a=verdict(), b=verdict()))
    assert all((value == 1).all() for value in fibers.kept.values())
    for bad in (verdict(declined=True), verdict(checks=1)):  # an alarm, and what may become one
        fibers.keep(network(2.0), monitor(a=verdict(), b=bad))
        assert all((value == 1).all() for value in fibers.kept.values())
    fibers.keep(network(3.0), monitor(a=verdict()))
    assert all((value == 3).all() for value in fibers.kept.values())


def test_the_copy_does_not_follow_the_model_and_has_its_buffers():
    fibers, net = Fibers(prior()), nn.BatchNorm1d(3)
    fibers.keep(net, monitor())
    net.running_mean.fill_(7.0)
    net.weight.data.fill_(7.0)
    assert set(fibers.kept) == set(net.state_dict())
    assert not fibers.kept["running_mean"].any()
    assert (fibers.kept["weight"] == 1).all()


def test_no_copy_if_a_file_has_the_weights():
    fibers = Fibers(prior())
    fibers.keep(network(1.0), monitor())
    fibers.keep(network(1.0), monitor(SavedCheckpoint("healthy.ckpt", 10)))
    assert fibers.kept is None


@pytest.fixture
def compared(monkeypatch):
    """What the comparison is given: a weight of each side, the pool, the places, the options."""
    calls = []

    def compare(before, after, used, pool, places, **options):
        image = torch.ones(1, 1, 6, 6)
        calls.append((float(before(image)[0, 0]), float(after(image)[0, 0]), pool, places, options))
        return "a comparison"

    monkeypatch.setattr(at_alarm, "compare_fibers", compare)
    return calls


def draw(fibers, seen, at, *, model=None):
    return fibers.draw(model or network(2.0), seen, at, forward)


@pytest.mark.parametrize(
    ("step", "since", "exists", "side"),
    [(10, 20, True, "file"), (20, 20, True, "copy"), (30, 20, True, "copy"), (10, None, True, "file"),
     (10, 20, False, "copy")],
)  # fmt: skip
def test_the_file_counts_if_it_is_from_before_the_decline_and_there(tmp_path, compared, step, since, exists, side):
    path = tmp_path / "healthy.pt"
    if exists:
        torch.save(weights_of(1.0), path)
    fibers = Fibers(prior())
    fibers.kept = weights_of(3.0)
    assert (
        draw(fibers, monitor(SavedCheckpoint(str(path), step)), verdict(declined=True, since=since)) == "a comparison"
    )
    before, after = compared[0][:2]
    values = {"file": 1.0, "copy": 3.0, "now": 2.0}  # each weight and bias of the network: 36 w + w
    assert (before, after) == (37 * values[side], 37 * values["now"])


def test_without_weights_from_before_it_is_a_sentence(compared):
    with pytest.raises(gm.InputError, match="no weights from before the decline"):
        draw(Fibers(prior()), monitor(), verdict(declined=True, since=20))
    assert not compared


def test_options_reach_the_comparison_and_representatives_are_the_first_of_each_class(compared):
    fibers = Fibers(prior(), per_class=3, members=5, strengths=(7, 2), steps=11, seed=4, to_model=lambda x: 2 * x)
    fibers.kept = weights_of(3.0)
    draw(fibers, monitor(), verdict(declined=True))
    before, _, pool, places, options = compared[0]
    assert before == 3 * (36 * 2 + 1)
    assert options == {"strengths": (2.0, 7.0), "per_input": 5, "steps": 11, "seed": 4}
    known = probe()
    batch = known.batch_of(torch.arange(40))
    assert torch.equal(pool, batch.inputs)
    assert places.tolist() == [0, 1, 2, 20, 21, 22]
    assert batch.labels[places].tolist() == [0, 0, 0, 1, 1, 1]


def test_of_a_class_no_more_than_there_are(compared):
    fibers = Fibers(prior(), per_class=99)
    fibers.kept = weights_of(3.0)
    draw(fibers, monitor(), verdict(declined=True))
    assert compared[0][3].tolist() == list(range(40))


def test_the_layer_is_that_of_the_alarm():
    net, fibers = network(1.0), Fibers(prior(), members=2, steps=2, strengths=(3,))
    with torch.no_grad():
        net.body.weight.normal_(generator=torch.Generator().manual_seed(0))
    fibers.kept = dict(net.state_dict())
    seen = monitor()
    seen.layers = {"mine": "body", "other": "head"}
    found = draw(fibers, seen, verdict(declined=True), model=net)
    images = probe().batch_of(torch.arange(40)).inputs
    features = net.body(images.flatten(1)).detach().double()
    apart = torch.cdist(features, features).square().sum() / (40 * 39)
    assert found.after.scale == pytest.approx(float(apart), rel=1e-4)


def test_what_is_no_probe_set_is_a_sentence():
    fibers, seen = Fibers(prior()), monitor()
    fibers.kept, seen.probe = weights_of(1.0), [squares()]
    with pytest.raises(gm.InputError, match=r"fibers need a ProbeSet, .* got list"):
        draw(fibers, seen, verdict(declined=True))


def test_the_network_of_a_prior_is_moved_to_the_device_of_the_model():
    moved = FlowPrior(Exact(squares()[0]), (1, 6, 6))
    at_alarm.to_device(moved, torch.device("meta"))
    assert moved.network.images.device.type == "meta"
    at_alarm.to_device(FlowPrior(lambda x, t: x, (1, 6, 6)), torch.device("meta"))  # nothing to move


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prior": nn.Linear(2, 2)}, "prior"),
        ({"per_class": 0}, "per_class"),
        ({"members": 1}, "members"),
        ({"steps": 0}, "steps"),
        ({"seed": -1}, "seed"),
        ({"strengths": ()}, "strengths"),
        ({"strengths": (0.0,)}, "strengths"),
        ({"to_model": 3}, "to_model"),
    ],
)
def test_options_are_checked_where_they_are_given(options, words):
    with pytest.raises(gm.InputError, match=words):
        Fibers(**{"prior": prior()} | options)
