"""Whatever a forward pass writes to, adds, replaces or deletes is as before: state, insides of attributes, hooks."""

from __future__ import annotations

import copy
import random
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torchmetrics
from torch import Tensor, nn
from torch.ao import quantization

from geomonitor.errors import GeomonitorWarning
from geomonitor.features.isolation import undisturbed

X = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
pytestmark = pytest.mark.filterwarnings("ignore:in evaluation mode:geomonitor.GeomonitorWarning")


class Acting(nn.Module):
    """Two layers, and a function of (the model, its input) that is called at each forward pass."""

    def __init__(self, act: Callable[[Any, Tensor], object] = lambda model, x: None, **attributes: object) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU())
        self.register_buffer("mean", torch.zeros(4))
        self.fc = nn.Linear(8, 3)
        for name, value in attributes.items():
            setattr(self, name, value)
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        self.act(self, x)
        return self.fc(self.body(x)) if hasattr(self, "body") else x


def run(model: nn.Module, x: Tensor = X) -> None:
    with undisturbed(model):
        model(x)


def hooks(model: nn.Module) -> list[tuple[str, str, int]]:
    return [
        (name, key, len(value))
        for name, module in model.named_modules()
        for key, value in vars(module).items()
        if "hooks" in key and isinstance(value, dict) and value
    ]


class TestHooks:
    """Hooks, and what records that they are registered, are put back together."""

    class Capturing(nn.Module):
        """Registers its hooks at the first forward pass, as models of transformers 5 do for hidden states."""

        def __init__(self, flag: str) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(2))
            self.config = SimpleNamespace(hooked=False)
            self.state = Meter()
            self.settings = {"hooked": False}
            self.flag = flag
            self.seen: list[Tensor] = []

        def _hooked(self) -> bool:
            places = {
                "attribute": lambda: getattr(self, "hooks_installed", False),
                "object": lambda: self.state.count,
                "namespace": lambda: self.config.hooked,
                "dictionary": lambda: self.settings["hooked"],
                "child": lambda: getattr(self.layers[0], "hooks_installed", False),
                "hooks": lambda: self.layers[0]._forward_hooks,
            }
            return bool(places[self.flag]())

        def _install(self) -> None:
            for layer in self.layers:
                layer.register_forward_hook(lambda module, args, output: self.seen.append(output))
            self.hooks_installed = self.flag == "attribute"
            self.state.count = int(self.flag == "object")
            self.config.hooked = self.flag == "namespace"
            self.settings["hooked"] = self.flag == "dictionary"
            self.layers[0].hooks_installed = self.flag == "child"

        def forward(self, x: Tensor) -> list[Tensor]:
            if not self._hooked():
                self._install()
            self.seen = []
            for layer in self.layers:
                x = layer(x)
            return self.seen

    @pytest.mark.parametrize("flag", ["attribute", "object", "namespace", "dictionary", "child", "hooks"])
    def test_hooks_of_a_library_run_once_after_a_first_pass(self, flag: str) -> None:
        model = self.Capturing(flag)
        run(model)
        assert hooks(model) == []
        assert len(model(X)) == 2
        run(model)  # registered by now: they stay
        assert len(model(X)) == 2

    @pytest.mark.parametrize("kind", ["forward", "forward_pre", "full_backward", "full_backward_pre"])
    def test_hooks_that_every_pass_adds_are_gone(self, kind: str) -> None:
        model = Acting(lambda model, x: getattr(model.fc, f"register_{kind}_hook")(lambda *_: None))
        model.body.register_forward_hook(lambda *_: None)
        before = hooks(model)
        run(model)
        assert hooks(model) == before

    def test_a_hook_that_removes_itself_is_there_again(self) -> None:
        model, calls = Acting(), []

        def once(*_: object) -> None:
            calls.append(1)
            handle.remove()

        handle = model.fc.register_forward_hook(once, with_kwargs=True, always_call=True)
        before = {key: dict(value) for key, value in vars(model.fc).items() if "hooks" in key and value}
        run(model)
        assert {key: dict(value) for key, value in vars(model.fc).items() if "hooks" in key and value} == before
        model(X)
        model(X)
        assert len(calls) == 2

    def test_a_hook_of_a_forward_that_raises_is_gone(self) -> None:
        def act(model: Acting, x: Tensor) -> None:
            model.body[0].register_forward_hook(lambda *_: None)
            raise ValueError("in the middle")

        model = Acting(act)
        with pytest.raises(ValueError, match="in the middle"):
            run(model)
        assert hooks(model) == []


ACTIONS: dict[str, Callable[[Any, Tensor], object]] = {
    "a buffer grows in place": lambda m, x: m.mean.resize_(9).fill_(1),
    "a buffer shrinks in place": lambda m, x: m.mean.resize_(2).fill_(1),
    "a buffer gets other storage": lambda m, x: setattr(m.mean, "data", torch.ones(7)),
    "a buffer gets another dtype": lambda m, x: setattr(m.mean, "data", m.mean.double()),
    "a buffer is replaced": lambda m, x: setattr(m, "mean", torch.ones(4)),
    "a buffer is written to and replaced": lambda m, x: (m.mean.add_(1), setattr(m, "mean", torch.ones(4))),
    "a buffer is deleted": lambda m, x: delattr(m, "mean"),
    "a buffer is deleted and registered again": lambda m, x: (
        m._buffers.clear(),
        m.register_buffer("mean", torch.ones(4), persistent=False),
    ),
    "a buffer is added": lambda m, x: m.register_buffer("count", torch.ones(())),
    "a child is added": lambda m, x: setattr(m, "extra", nn.Linear(4, 4)),
    "a child of a child is added": lambda m, x: m.body.append(nn.Identity()),
    "a child is replaced": lambda m, x: setattr(m, "fc", nn.Linear(8, 3)),
    "a child is deleted": lambda m, x: delattr(m, "body"),
    "the order of the children changes": lambda m, x: m._modules.update(body=m._modules.pop("body")),
    "a parameter is replaced": lambda m, x: setattr(m.fc, "bias", nn.Parameter(torch.ones(3))),
    "a parameter is added": lambda m, x: setattr(m.fc, "gain", nn.Parameter(torch.ones(3))),
    "a parameter gets other storage": lambda m, x: setattr(m.fc.weight, "data", m.fc.weight.data * 2),
}


class TestRegisters:
    """Buffers, children and parameters that are added, replaced or deleted, or change their size."""

    @pytest.mark.parametrize("name", ACTIONS)
    def test_the_state_is_as_before(self, name: str) -> None:
        def objects() -> dict[str, Any]:
            return {**dict(model.named_parameters()), **dict(model.named_buffers()), **dict(model.named_modules())}

        model = Acting(ACTIONS[name])
        found, before = objects(), copy.deepcopy(model.state_dict())
        places = {key: value.data_ptr() for key, value in model.state_dict().items()}
        bytes_before = model.mean.untyped_storage().nbytes()
        run(model)
        after, now = model.state_dict(), objects()
        assert list(after) == list(before)  # the order in which an optimizer or a checkpoint lists them
        for key, value in before.items():
            assert after[key].dtype == value.dtype
            assert torch.equal(after[key], value)
            assert "in place" in name or after[key].data_ptr() == places[key]
        assert list(now) == list(found)
        assert all(now[key] is value for key, value in found.items())
        assert model.mean.untyped_storage().nbytes() == bytes_before

    @pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:.*reduce_range:UserWarning")
    @pytest.mark.parametrize("observed", ["a tensor", "a channel", "a histogram"])
    def test_observers_of_quantisation_before_their_first_batch(self, observed: str) -> None:
        """They take their shape from the first batch, in evaluation mode also (pytorch/pytorch issue 62346)."""
        model = nn.Sequential(quantization.QuantStub(), nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).train()
        histogram = quantization.FakeQuantize.with_args(observer=quantization.HistogramObserver)
        model.qconfig = {
            "a tensor": quantization.get_default_qat_qconfig("qnnpack"),
            "a channel": quantization.get_default_qat_qconfig("fbgemm"),
            "a histogram": quantization.QConfig(histogram, quantization.default_weight_fake_quant),
        }[observed]
        quantization.prepare_qat(model, inplace=True)
        before = copy.deepcopy(model.state_dict())
        run(model)
        after = model.state_dict()
        assert {key: value.shape for key, value in after.items()} == {key: v.shape for key, v in before.items()}
        assert all(torch.equal(after[key], before[key]) for key in before)


class TestFailures:
    """A part that cannot be put back is named, and does not stop the others."""

    @pytest.mark.parametrize("raises", [False, True])
    def test_all_others_are_put_back(self, raises: bool) -> None:
        def act(model: Any, x: Tensor) -> None:
            for array in (model.first, model.last):
                array[:] = 1
                array.flags.writeable = False  # as arrays in shared memory are
            model.mean += 1
            model.list.append(1)
            model.fc.register_forward_hook(lambda *_: None)
            if raises:
                raise KeyboardInterrupt

        model = Acting(act, first=np.zeros(2), list=[], last=np.zeros(2))
        words = r"could not be put back: first, last \(ValueError: .*read-only"
        with pytest.warns(GeomonitorWarning, match=words):
            if raises:
                with pytest.raises(KeyboardInterrupt):
                    run(model)
            else:
                run(model)
        assert torch.equal(model.mean, torch.zeros(4))
        assert model.list == []
        assert hooks(model) == []
        assert model.training

    def test_a_buffer_that_cannot_be_written_to(self) -> None:
        class Stubborn(Tensor):
            @classmethod
            def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
                if function is Tensor.copy_:
                    raise RuntimeError("cannot be written to")
                return super().__torch_function__(function, types, args, kwargs or {})

        def act(model: Any, x: Tensor) -> None:
            for buffer in (model.mean, model.stubborn, model.later):
                buffer.add_(1)

        model = Acting(act)
        model.register_buffer("stubborn", torch.zeros(2).as_subclass(Stubborn))
        model.register_buffer("later", torch.zeros(2))
        with pytest.warns(GeomonitorWarning, match=r"put back: stubborn \(RuntimeError: cannot be written to\)"):
            run(model)
        assert torch.equal(model.mean, torch.zeros(4))
        assert torch.equal(model.later, torch.zeros(2))


class Updated(ABC):
    @abstractmethod
    def update(self, x: Tensor) -> None: ...


class Meter(Updated):
    """A running mean as training scripts have them: no module."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0
        self.values: list[float] = []
        self.by_class = torch.zeros(3)

    def update(self, x: Tensor) -> None:
        self.total += float(x.mean())
        self.count += len(x)
        self.values.append(self.total)
        self.by_class += 1
        self.latest = x[:1]

    def state(self) -> str:
        return repr(sorted(vars(self).items()))


class TestInsidesOfAttributes:
    @pytest.mark.parametrize("held", ["attribute", "list", "dictionary", "tuple", "object"])
    def test_meters_do_not_see_the_pass(self, held: str) -> None:
        meter, holder = Meter(), Meter()
        holder.inner = meter  # type: ignore[attr-defined]
        places = {"attribute": meter, "list": [meter], "dictionary": {"a": meter}, "tuple": (meter,), "object": holder}
        model = Acting(lambda m, x: meter.update(x), held=places[held])
        model(X[:3])
        before = meter.state()
        run(model)
        assert meter.state() == before
        assert torch.equal(meter.by_class, torch.ones(3))

    @pytest.mark.parametrize(
        ("value", "change"),
        [
            ([[1]], lambda held: held[0].append(7)),
            (([1],), lambda held: held[0].append(7)),
            ({"a": [1]}, lambda held: held["a"].append(7)),
            ({"a": {"b": 1}}, lambda held: held["a"].update(b=7)),
            (defaultdict(list, a=[1]), lambda held: (held["a"].append(7), held["new"])),
            (OrderedDict(a=1, b=2), lambda held: held.move_to_end("a")),
            (Counter(a=2), lambda held: held.update("abc")),
            ({1, 2}, lambda held: held.add(7)),
        ],
        ids=lambda value: type(value).__name__,
    )
    def test_nested_containers(self, value: Any, change: Callable[[Any], object]) -> None:
        before = copy.deepcopy(value)
        model = Acting(lambda m, x: change(m.held), held=value)
        run(model)
        assert model.held is value
        assert value == before
        assert list(value) == list(before)

    def test_tensors_in_a_list_and_arrays(self) -> None:
        def act(model: Any, x: Tensor) -> None:
            model.queue[0] += 1
            model.array += 1
            model.array.resize(5, refcheck=False)

        model = Acting(act, queue=[torch.zeros(2)], array=np.array([0.0, np.nan]))
        run(model)
        assert torch.equal(model.queue[0], torch.zeros(2))
        assert np.array_equal(model.array, [0.0, np.nan], equal_nan=True)

    @pytest.mark.parametrize(
        ("stream", "draw"),
        [
            (lambda: torch.Generator().manual_seed(1), lambda g: torch.rand(3, generator=g).tolist()),
            (lambda: np.random.default_rng(1), lambda g: g.random(3).tolist()),
            (lambda: np.random.RandomState(1), lambda g: g.rand(3).tolist()),
            (lambda: random.Random(1), lambda g: [g.random() for _ in range(3)]),
        ],
        ids=["torch", "numpy", "the older one of numpy", "python"],
    )
    def test_generators_of_a_module_continue_as_if_nothing_had_been_drawn(
        self, stream: Callable[[], Any], draw: Callable[[Any], list[float]]
    ) -> None:
        model = Acting(lambda m, x: draw(m.noise), noise=stream())
        run(model)
        assert draw(model.noise) == draw(stream())

    def test_a_module_hidden_in_a_list(self) -> None:
        """A teacher in a list is in no ``modules()``, so its mode is left to the user, but its state comes back."""
        norm = nn.BatchNorm1d(4)
        model = Acting(lambda m, x: m.teacher[0](x), teacher=[nn.Sequential(norm)])
        run(model)
        assert norm.training
        assert torch.equal(norm.running_mean, torch.zeros(4))
        assert norm.num_batches_tracked == 0


def metrics() -> Iterator[tuple[str, Any]]:
    task = {"task": "multiclass", "num_classes": 3}
    yield "tensor states", torchmetrics.Accuracy(**task, average="micro")
    yield "list states", torchmetrics.CatMetric()
    yield "a window", torchmetrics.RunningMean(window=2)
    collection = [torchmetrics.Precision(**task), torchmetrics.Recall(**task), torchmetrics.AUROC(**task)]
    yield "a collection with groups", torchmetrics.MetricCollection(collection)


@pytest.mark.parametrize("whole", [False, True], ids=["update", "forward"])
@pytest.mark.parametrize("first", [False, True], ids=["in training", "before training"])
@pytest.mark.parametrize("name", [name for name, _ in metrics()])
def test_metrics_updated_in_forward_do_not_see_the_pass(name: str, first: bool, whole: bool) -> None:
    def act(model: Any, x: Tensor) -> None:
        logits = model.fc(model.body(x)).detach()
        given = (logits.sum(1),) if name in ("list states", "a window") else (logits, torch.arange(len(x)) % 3)
        (model.metric if whole else model.metric.update)(*given)

    def trained(measured: bool) -> tuple[dict[str, Tensor], list[int]]:
        torch.manual_seed(0)
        model = Acting(act, metric=dict(metrics())[name])
        if measured and first:
            run(model, X[:3])
        model(X)
        if measured and not first:
            run(model, X[:3])
        model(X.flip(0))
        found = model.metric.compute()
        counts = [m._update_count for m in model.modules() if isinstance(m, torchmetrics.Metric)]
        return (found if isinstance(found, dict) else {"": found}), counts

    (expected, counts), (found, found_counts) = trained(False), trained(True)
    assert found_counts == counts
    assert all(torch.equal(found[key], value) for key, value in expected.items())


class TestParameters:
    @pytest.mark.parametrize(
        "weight",
        [
            torch.ones(4, 4),
            torch.ones(3, 3, dtype=torch.bfloat16),
            torch.ones(5, 4, dtype=torch.float64).t(),
            torch.ones(3, 5, dtype=torch.complex64).t(),
            torch.ones(9)[1:4],
        ],
        ids=["float32", "bfloat16", "transposed", "complex", "in the middle of a storage"],
    )
    def test_writes_through_data_are_reported(self, weight: Tensor) -> None:
        """The version counter does not count them."""
        model = Acting(lambda m, x: m.own.data[-1:].mul_(1.01))
        model.own = nn.Parameter(weight)
        with pytest.warns(GeomonitorWarning, match=r"cannot be undone: own\. "):
            run(model)

    @pytest.mark.filterwarnings("error")
    def test_weights_that_were_only_read_are_not(self) -> None:
        model = Acting()
        model.own = nn.Parameter(torch.tensor([float("nan"), 1.0]))
        run(model)


def test_layers_of_torch_that_compute_their_weight_give_no_warning() -> None:
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(4, 3)), nn.utils.spectral_norm(nn.Linear(3, 3)))
    model(X)
    weight = model[0].weight
    messages: list[str] = []
    with undisturbed(model, lambda message, cause: messages.append(message)):
        model(X)
    assert messages == []
    assert model[0].weight is weight
    weight.sum().backward()  # it still has its graph
