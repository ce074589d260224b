"""Routing in a monitor: values of the functions, padding, processes, no trace, history, and experts that die."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm
from geomonitor.adapter import Adapter
from geomonitor.features.routers import find_routers
from geomonitor.markers.routing_layers import routing_markers
from tests.processes import in_processes

WORDS, WIDTH, EXPERTS, K, LENGTH, ITEMS = 40, 16, 6, 2, 12, 50
MOE = gm.MARKER_GROUPS["moe"]


class Block(nn.Module):
    """Top ``k`` of ``E`` experts for each token; the router is a plain linear layer, as in transformers 4."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(EXPERTS)])

    def forward(self, x: Tensor) -> Tensor:
        p = self.gate(x).softmax(dim=-1)
        top, indices = p.topk(K, dim=-1)
        wide = torch.zeros_like(p).scatter(-1, indices, top / top.sum(dim=-1, keepdim=True))
        return x + torch.tanh(sum(wide[..., e : e + 1] * expert(x) for e, expert in enumerate(self.experts)))


class Model(nn.Module):
    """A language model with experts: predicts each token from the tokens up to it."""

    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = SimpleNamespace(num_local_experts=EXPERTS, num_experts_per_tok=K)
        self.embedding = nn.Embedding(WORDS, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(blocks)])
        self.head = nn.Linear(WIDTH, WORDS)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        kept = attention_mask[:, :, None]
        x = self.embedding(input_ids) * kept
        x = x + x.cumsum(dim=1) / kept.cumsum(dim=1).clamp(min=1)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def texts(items: int = ITEMS) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(1, WORDS, (items, LENGTH), generator=generator)
    mask = (torch.arange(LENGTH)[None] < 4 + torch.arange(items)[:, None] % (LENGTH - 3)).long()
    return [{"input_ids": i, "attention_mask": m} for i, m in zip(ids * mask, mask, strict=True)]


def probe(items: int = ITEMS) -> gm.ProbeSet:
    return gm.ProbeSet.from_unlabelled(texts(items), samples=items)


def monitor_of(points: Any = None, markers: Any = "moe", **options: Any) -> gm.GeometryMonitor:
    options = {"panel": None, "on_error": "raise", "layers": {"z": "head:input"}, **options}
    return gm.GeometryMonitor(probe() if points is None else points, markers=markers, **options)


def measured(model: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    return {r.key: (r.value, r.standard_error) for r in monitor_of(**options).measure(model, step=1)}


def by_hand(model: nn.Module) -> dict[str, Any]:
    """The pass of all items at once, and the functions."""
    batch = torch.utils.data.default_collate(texts())
    with torch.no_grad(), gm.captured_routing(model, mask=batch["attention_mask"]) as routing:
        model(**batch)
    return routing_markers(routing, {path: router.weight.detach() for path, router in find_routers(model).items()})


@pytest.mark.parametrize("batch_size", [7, 128])
def test_the_mean_is_in_each_layer_and_each_router_has_its_own(batch_size):
    model = Model(blocks=3)
    found, expected = (
        measured(model, batch_size=batch_size, layers={"z": "head:input", "y": "blocks.0"}),
        by_hand(model),
    )
    for path, of_layer in expected.items():
        for name, estimate in of_layer.items():
            for layer in [path] if path else ["z", "y"]:
                value = found.pop(f"geometry/{layer}/{name}")
                assert value == pytest.approx(tuple(map(float, estimate)), rel=1e-5, nan_ok=True), (layer, name)
    assert set(found) == {
        "geometry/z/nonfinite_rows", "geometry/y/nonfinite_rows", "geometry_cost/seconds", "geometry_cost/overhead",
    }  # fmt: skip


def test_history_keys_and_layers_stay_apart():
    monitor = monitor_of(markers=["mean_norm", "dead_experts"])
    monitor.measure(Model(), step=1)
    assert monitor.history.layers == ("z",)
    assert monitor.history.routers == ("blocks.0.gate", "blocks.1.gate")
    assert monitor.history.markers("blocks.0.gate") == ("dead_experts",)
    logged = {record.key for record in monitor.history if record.layer}
    keys = Adapter(monitor).keys(Model())
    assert logged == {key for key in keys if not key.endswith("/alarm")} | {"geometry/z/nonfinite_rows"}


def test_tokens_as_points_give_the_same_routing():
    model = Model()
    sequences = gm.TokenProbe.from_unlabelled(texts(), samples=ITEMS)
    one, other = measured(model), measured(model, points=sequences, layers={"z": "blocks.1"})
    for name in MOE:
        assert other[f"geometry/z/{name}"] == pytest.approx(one[f"geometry/z/{name}"], rel=1e-5, nan_ok=True)


def in_validation(
    model: nn.Module, batch_size: int = 7, rank: int = 0, size: int = 1
) -> dict[str, tuple[float, float]]:
    """The same items as batches of a validation loop, dealt out to processes one by one."""
    labelled = [{**item, "labels": torch.tensor(place % 2)} for place, item in enumerate(texts())]
    monitor = monitor_of(gm.ValidationProbe(classes=2, per_class=ITEMS // 2), layers={"z": "head:input"})
    validation = monitor.validation_pass(model, dataset_length=ITEMS)
    for batch in torch.utils.data.DataLoader(labelled[rank::size], batch_size=batch_size):
        with validation.batch(batch), torch.inference_mode():
            model(batch["input_ids"], batch["attention_mask"])
    return {r.key: (r.value, r.standard_error) for r in monitor.measure(model, step=1, validation=validation)}


@pytest.mark.parametrize("batch_size", [7, 50])
def test_a_validation_loop_gives_what_a_probe_set_of_its_items_gives(batch_size):
    model = Model(blocks=3)
    found, expected = in_validation(model, batch_size), measured(model, layers={"z": "head:input"})
    assert found.keys() == expected.keys()
    for key in expected:
        if not key.startswith("geometry_cost"):
            assert found[key] == pytest.approx(expected[key], rel=1e-5, nan_ok=True), key


def _rank_of_validation(rank: int) -> dict[str, tuple[float, float]]:
    return in_validation(Model(), rank=rank, size=2)


def test_two_processes_that_validate_give_what_one_gives():
    alone = in_validation(Model())
    for found in in_processes(_rank_of_validation):
        for key in alone:
            if not key.startswith("geometry_cost"):
                assert found[key] == pytest.approx(alone[key], rel=1e-5, nan_ok=True), key


def _rank(rank: int) -> dict[str, tuple[float, float]]:
    # 25 items one by one: 13 and 12, so one process borrows an item for its last pass, which counts once.
    return measured(Model(), points=probe(25), batch_size=1)


def test_two_processes_give_what_one_gives():
    alone = measured(Model(), points=probe(25), batch_size=1)
    for found in in_processes(_rank):
        for key, value in alone.items():
            if "cost" not in key:
                assert found[key] == pytest.approx(value, rel=1e-6, nan_ok=True), key


def test_no_trace_is_left_and_the_output_is_as_before():
    model = Model().train()
    batch = torch.utils.data.default_collate(texts())
    before, state = model(**batch), {name: value.clone() for name, value in model.state_dict().items()}
    stream = torch.get_rng_state()
    measured(model)
    assert torch.equal(torch.get_rng_state(), stream)
    assert torch.equal(model(**batch), before)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def test_experts_that_die_in_training_are_counted():
    """A router bias that is pushed at each step, as by a balancing rule of the wrong sign, starves experts."""
    model, monitor, batch = Model(), monitor_of(), torch.utils.data.default_collate(texts())
    optimizer = torch.optim.Adam([p for n, p in model.named_parameters() if "gate" not in n], lr=3e-3)
    for epoch in range(6):
        monitor.measure(model, step=10 * epoch, epoch=epoch)
        for _ in range(10):
            logits = model(**batch)[:, :-1].flatten(0, 1)
            loss = nn.functional.cross_entropy(logits, batch["input_ids"][:, 1:].flatten(), ignore_index=0)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            with torch.no_grad():
                for block in model.blocks:
                    block.gate.bias[2:5] -= 0.2  # three of six, in each layer
    history = monitor.history
    dead, load = (history.series("z", name).values for name in ("dead_experts", "router_load_entropy"))
    assert dead[0] == 0
    assert dead[-1] == 0.5
    assert (dead[1:] >= dead[:-1]).all()
    assert load[-1] < math.log(EXPERTS / 2) / math.log(EXPERTS) + 1e-9 < load[0]
    for path in history.routers:
        assert history.series(path, "dead_experts").values[-1] == 0.5


def test_few_tokens_leave_dead_experts_undefined_with_one_reason():
    monitor = monitor_of(probe(5))
    with pytest.warns(
        gm.GeomonitorWarning, match="dead_experts is NaN: the probe set makes 60 assignments of .* 120 "
    ) as caught:
        monitor.measure(Model(), step=1)
    assert len(caught) == 1


@pytest.mark.parametrize(("points", "options", "name", "message"), [
    (5, {}, "dead_experts", "the probe set makes .* and 120 are needed"),
    (50, {"blocks": 1}, "pathway_consistency", "it needs two layers or more"),
])  # fmt: skip
def test_what_is_undefined_is_nan_with_its_reason(points, options, name, message):
    monitor = monitor_of(probe(points), markers=[name])
    with pytest.warns(gm.GeomonitorWarning, match=f"{name} is NaN: {message}"):
        monitor.measure(Model(**options), step=1)
    assert math.isnan(monitor.history.series("z", name).values[-1])


def test_an_overflow_leaves_its_items_out():
    class Overflow(Model):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            self.embedding.weight.data[int(texts()[3]["input_ids"][0])] = torch.nan
            return super().forward(input_ids, attention_mask)

    hit = [int(texts()[3]["input_ids"][0]) in text["input_ids"] for text in texts()]
    with pytest.warns(gm.GeomonitorWarning) as caught:
        found = measured(Overflow())
    assert any(f"for {sum(hit)} of {ITEMS} items, which are left out" in str(each.message) for each in caught)
    assert 0 < found["geometry/z/router_load_entropy"][0] <= 1


@pytest.mark.parametrize(("make", "message"), [
    (lambda: monitor_of(layers="output").measure(nn.Linear(4, 4), step=0), "no router of a mixture of experts was"),
    (lambda: monitor_of(layers="output").begin(nn.Linear(4, 4), step=0), "no router of a mixture of experts was found"),
    (lambda: monitor_of(routers=["gate"]).measure(Model(), step=0), "the model has no module 'gate' for routers"),
    (lambda: monitor_of(routers=3), "routers must be a name"),
    (lambda: monitor_of(layers="blocks.0.gate").measure(Model(), step=0), "is a router and the name of a layer"),
])  # fmt: skip
def test_what_is_wrong_is_refused_from_the_start(make, message):
    with pytest.raises(gm.InputError, match=message):
        make()


def test_named_routers_are_part_of_the_protocol():
    one, named = monitor_of(), {"blocks.1.gate": 3, "blocks.2.gate": None}
    other = monitor_of(routers=named)
    other.measure(Model(blocks=3), step=1)
    assert other.protocol["routers"] == named
    assert "routers" not in one.protocol
    assert other.history.routers == tuple(named)
    with pytest.raises(gm.InputError, match="routers: None -> "):
        other.load_state_dict(monitored_state(one))


def monitored_state(monitor: gm.GeometryMonitor) -> dict[str, Any]:
    monitor.measure(Model(), step=1)
    return monitor.state_dict()


def test_a_run_goes_on_after_a_checkpoint_and_through_a_failure():
    model, state = Model(), monitored_state(monitor_of())
    monitor = monitor_of(on_error="warn")
    monitor.load_state_dict(state)
    monitor.measure(model, step=2)

    def broken(*_: Any) -> Any:
        raise RuntimeError("no memory")

    with pytest.warns(gm.GeomonitorWarning, match="no memory"):
        monitor.measure(model, step=3, forward=broken)
    for layer in ("z", "blocks.0.gate"):
        series = monitor.history.series(layer, "router_load_entropy")
        assert series.steps.tolist() == [1, 2, 3]
        assert series.values[0] == series.values[1]
        assert math.isnan(series.values[2])
    assert monitor.history.layers == ("z",)
