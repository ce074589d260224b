"""What a user writes must find the layer meant, or say clearly why not."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.optim.swa_utils import AveragedModel

from geomonitor.errors import InputError
from geomonitor.features.layers import Layer, plain_modules, resolve_layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x))


def written(model: nn.Module, layers: object) -> dict[str, str]:
    return {alias: str(layer) for alias, layer in resolve_layers(model, layers).items()}  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        ("penultimate", {"penultimate": "fc:input"}),
        ("body.1", {"body.1": "body.1:output"}),
        ("fc:input", {"fc_input": "fc:input"}),
        (":output", {"model": ":output"}),
        (["body.0", "penultimate"], {"body.0": "body.0:output", "penultimate": "fc:input"}),
        ({"early": "body.0:output", "late": "penultimate"}, {"early": "body.0:output", "late": "fc:input"}),
    ],
)
def test_names_and_aliases(layers: object, expected: dict[str, str]) -> None:
    assert written(Net(), layers) == expected


def test_resolved_layers_can_be_resolved_again() -> None:
    resolved = resolve_layers(Net(), ["penultimate", "body"])
    assert resolve_layers(Net(), resolved) == resolved


def test_only_the_rule_for_penultimate_asks_for_confirmation() -> None:
    assert resolve_layers(Net())["penultimate"] == Layer("fc", "input", automatic=True)
    assert resolve_layers(Net(), "fc:input")["fc_input"] == Layer("fc", "input", automatic=False)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("fcc", "Did you mean 'fc'"),
        ("body.7", r"no layer 'body\.7'.*body\.0, body\.1, body\.2, fc"),
        ("fc:inputs", "'path', 'path:input' or 'path:output'"),
        ([], "no layer given"),
        (["fc", "fc:output"], "two layers are called 'fc'"),
        ({"a/b": "fc"}, "'/'"),
        ({"late": Layer("gone", "input")}, "no layer 'gone'"),
    ],
)
def test_a_name_that_cannot_work_is_an_error_that_helps(layers: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        written(Net(), layers)


@pytest.mark.parametrize(
    "wrap",
    [
        lambda net: torch.compile(net, backend="eager"),
        nn.DataParallel,
        AveragedModel,
        checkpoint_wrapper,
        lambda net: nn.DataParallel(torch.compile(checkpoint_wrapper(net), backend="eager")),
    ],
    ids=["compile", "DataParallel", "AveragedModel", "checkpoint", "all"],
)
def test_wrappers_do_not_show_in_names(wrap) -> None:
    net = Net()
    net.body = wrap(net.body)
    wrapped = wrap(net)
    assert list(plain_modules(wrapped)) == ["", "body", "body.0", "body.1", "body.2", "fc"]
    found = plain_modules(wrapped)["fc"]
    assert found.weight.shape == net.fc.weight.shape
    assert written(wrapped, "penultimate") == {"penultimate": "fc:input"}


def test_the_original_module_is_found_not_the_wrapper() -> None:
    net = Net()
    assert plain_modules(torch.compile(net, backend="eager"))[""] is net


def test_a_child_that_a_user_calls_module_keeps_its_name() -> None:
    class Holder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = nn.Linear(2, 2)

    assert list(plain_modules(Holder())) == ["", "module"]


class Heads(nn.Module):
    def __init__(self, heads: nn.Module) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 8)
        self.heads = heads


class TestPenultimate:
    def test_without_a_linear_layer_the_layers_there_are_listed(self) -> None:
        with pytest.raises(InputError, match=r"no nn\.Linear.*0, 1"):
            resolve_layers(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()))

    @pytest.mark.parametrize(
        "heads",
        [
            nn.ModuleList([nn.Linear(8, 3), nn.Linear(8, 5)]),
            nn.ModuleDict({"colour": nn.Linear(8, 3), "shape": nn.Linear(8, 5)}),
            nn.ModuleList([nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(2)]),
        ],
        ids=["list", "dict", "deep"],
    )
    def test_heads_side_by_side_are_ambiguous(self, heads: nn.Module) -> None:
        candidates = [path for path in plain_modules(Heads(heads)) if path.startswith("heads.")]
        with pytest.raises(InputError, match="several heads") as caught:
            resolve_layers(Heads(heads))
        assert f"{candidates[-1]}:input" in str(caught.value)
        assert "trunk" not in str(caught.value)

    def test_blocks_in_a_row_are_not(self) -> None:
        blocks = nn.ModuleList([nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 8)) for _ in range(3)])
        assert written(Heads(blocks), "penultimate") == {"penultimate": "heads.2.2:input"}

    def test_a_single_head_in_a_container_is_not(self) -> None:
        assert written(Heads(nn.ModuleDict({"only": nn.Linear(8, 3)})), "penultimate") == {
            "penultimate": "heads.only:input"
        }

    def test_the_projection_inside_attention_is_never_called_and_so_never_taken(self) -> None:
        model = nn.Sequential(nn.Linear(4, 8), nn.MultiheadAttention(8, 2))
        assert written(model, "penultimate") == {"penultimate": "0:input"}


def test_long_lists_of_layers_are_cut() -> None:
    with pytest.raises(InputError, match="more \\(see model"):
        resolve_layers(nn.Sequential(*[nn.ReLU() for _ in range(200)]), "nothing")
