"""Captured features must be what the layer computed, and nothing may be left on the model."""

from __future__ import annotations

import gc
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.testing import assert_close

from geomonitor.errors import InputError, MeasurementError
from geomonitor.features.capture import captured, resolve_layers


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 8), nn.ReLU(inplace=True))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.body(x))


class Returns(nn.Module):
    """A model whose layer ``inner`` returns what it is told to."""

    class Inner(nn.Module):
        def __init__(self, value: object) -> None:
            super().__init__()
            self.value = value

        def forward(self, x: Tensor) -> object:
            return self.value

    def __init__(self, value: object) -> None:
        super().__init__()
        self.inner = Returns.Inner(value)

    def forward(self, x: Tensor) -> object:
        return self.inner(x)


def pooled(value: object, **options: object) -> Tensor:
    with captured(model := Returns(value), "inner", **options) as features:  # type: ignore[arg-type]
        model(torch.zeros(1))
    return features["inner"]


def hooks_of(model: nn.Module) -> list[str]:
    return [
        f"{name}.{attribute}"
        for name, module in model.named_modules()
        for attribute, value in vars(module).items()
        if "hooks" in attribute and isinstance(value, dict) and value
    ]


X = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))


class TestFeatures:
    def test_inputs_and_outputs_are_those_of_the_forward_pass(self) -> None:
        model = Net()
        with captured(model, {"in": "fc:input", "out": "fc", "all": ":output"}) as features:
            logits = model(X)
        assert_close(features["in"], model.body(X).detach())
        assert_close(features["out"], logits.detach())
        assert_close(features["all"], logits.detach())

    def test_they_are_what_the_layer_gave_although_the_model_wrote_over_it(self) -> None:
        model = Net()
        with captured(model, "body.0") as features:
            model(X)  # the ReLU works in place
        assert (features["body.0"] < 0).any()
        assert_close(features["body.0"], model.body[0](X).detach())

    def test_they_are_detached_and_usable_after_inference_mode(self) -> None:
        model = Net()
        with torch.inference_mode(), captured(model) as features:
            model(X)
        assert not features["penultimate"].is_inference()
        with captured(model) as features:
            model(X)
        assert not features["penultimate"].requires_grad

    def test_keyword_inputs(self) -> None:
        class ByName(Net):
            def forward(self, x: Tensor) -> Tensor:
                return self.fc(input=self.body(x))

        model = ByName()
        with captured(model) as features:
            model(X)
        assert_close(features["penultimate"], model.body(X).detach())

    @pytest.mark.parametrize("layer", ["penultimate", "body", "fc"])
    def test_several_runs_with_other_features_are_refused(self, layer: str) -> None:
        class Twice(Net):
            def forward(self, x: Tensor) -> Tensor:
                return self.fc(self.body(x)) + self.fc(self.body(2 * x))

        model = Twice()
        words = rf"layer '{layer}'.*ran several times.*5 rows, then 5.*runs once.*forward="
        with pytest.raises(MeasurementError, match=words), captured(model, layer):
            model(X)
        with captured(model, {"whole": ""}):
            model(X)

    def test_a_batch_in_parts_is_refused(self) -> None:
        model = Net()
        parts = nn.Sequential(model)
        parts.forward = lambda x: torch.cat([model(part) for part in x.split(3)])  # type: ignore[method-assign]
        with pytest.raises(MeasurementError, match=r"3 rows, then 2.*on the whole batch"), captured(parts, "0.fc"):
            parts(X)

    def test_several_runs_on_the_same_inputs_are_one(self) -> None:
        """A validation step may call the model for the loss and again for the metrics."""
        model = Net()
        with captured(model) as features:
            model(X), model(X)
        assert_close(features["penultimate"], model.body(X).detach())

    def test_layers_already_resolved(self) -> None:
        model = Net()
        with captured(model, resolve_layers(model)) as features:
            model(X)
        assert list(features) == ["penultimate"]


class TestNothingIsLeft:
    @pytest.mark.parametrize("error", [None, ValueError, KeyboardInterrupt])
    def test_no_hook_and_no_attribute(self, error: type[BaseException] | None) -> None:
        model = Net()
        before = {name: dict(vars(module)) for name, module in model.named_modules()}
        try:
            with captured(model, ["penultimate", "body.0", "fc:output"]):
                assert hooks_of(model)
                model(X)
                if error:
                    raise error
        except (ValueError, KeyboardInterrupt) as caught:
            assert type(caught) is error  # noqa: PT017
        assert hooks_of(model) == []
        assert {name: dict(vars(module)) for name, module in model.named_modules()} == before

    def test_hooks_of_the_user_stay(self) -> None:
        model, calls = Net(), []
        model.fc.register_forward_hook(lambda *_: calls.append(1))
        with captured(model):
            model(X)
        model(X)
        assert len(calls) == 2

    def test_an_error_inside_the_forward_pass_is_not_hidden_by_the_check_for_silent_layers(self) -> None:
        model = Net()
        with pytest.raises(RuntimeError, match="mat1 and mat2"), captured(model):
            model(torch.ones(1, 7))
        assert hooks_of(model) == []

    def test_a_wrong_second_layer_leaves_no_hook_of_the_first(self) -> None:
        model = Net()
        with pytest.raises(InputError), captured(model, ["fc", "gone"]):
            pass
        assert hooks_of(model) == []

    def test_the_features_do_not_keep_the_model_alive(self) -> None:
        model = Net()
        with captured(model) as features:
            model(X)
        gone = weakref.ref(model.fc)
        del model
        gc.collect()
        assert gone() is None
        assert features["penultimate"].shape == (5, 8)

    def test_settings_of_torch_are_put_back(self) -> None:
        model = Net()
        assert torch.backends.mha.get_fastpath_enabled()
        with pytest.raises(KeyboardInterrupt), captured(model):
            raise KeyboardInterrupt
        assert torch.backends.mha.get_fastpath_enabled()


class TestSilentLayers:
    def test_a_layer_that_does_not_run_is_an_error_that_lists_the_layers(self) -> None:
        model = Net()
        model.unused = nn.ReLU()
        listed = r"'unused'.*body\.0, body\.1, fc, unused"
        with pytest.raises(MeasurementError, match=listed) as caught, captured(model, ["fc", "unused"]):
            model(X)
        assert "'fc'" not in str(caught.value)

    def test_a_model_that_is_not_called(self) -> None:
        with pytest.raises(MeasurementError, match="call the model there"), captured(Net()):
            pass

    def test_a_head_that_only_the_loss_uses_is_not_taken_for_the_last_layer(self) -> None:
        model = Net()
        model.projector = nn.Linear(3, 2)
        with pytest.raises(MeasurementError, match=r"that ran: body\.0, fc"), captured(model):
            model(X)

    def test_a_linear_layer_that_runs_after_the_last_registered_one(self) -> None:
        class Reordered(Net):
            def __init__(self) -> None:
                super().__init__()
                self.early = nn.Linear(4, 4)

            def forward(self, x: Tensor) -> Tensor:
                return super().forward(self.early(x))

        model = Reordered()
        with pytest.raises(MeasurementError, match="layers='fc:input'"), captured(model):
            model(X)
        with captured(model, "fc:input"):
            model(X)


class TestPooling:
    @pytest.mark.parametrize("space", [(4, 5), (2, 4, 5)])
    def test_space_becomes_its_mean(self, space: tuple[int, ...]) -> None:
        value = torch.randn(3, 6, *space)
        expected = value.mean(dim=tuple(range(2, value.ndim)))
        assert_close(pooled(value), expected)
        assert_close(pooled(value, pool="mean"), expected)

    def test_only_auto_knows_that_the_length_of_a_convolution_is_last(self) -> None:
        model, x = nn.Sequential(nn.Conv1d(2, 7, 3)), torch.randn(3, 2, 9)
        for pool, dim in (("auto", 2), ("mean", 1)):
            with captured(model, {"z": "0"}, pool=pool) as features:
                out = model(x)
            assert_close(features["z"], out.detach().mean(dim=dim))

    @pytest.mark.parametrize(
        ("pool", "expected"),
        [
            ("auto", [[2.0, 2.0], [4.0, 4.0]]),
            ("mean", [[2.0, 2.0], [4.0, 4.0]]),
            ("first", [[1.0, 1.0], [3.0, 3.0]]),
            ("last", [[3.0, 3.0], [5.0, 5.0]]),
        ],
    )
    def test_tokens_under_a_mask(self, pool: str, expected: list[list[float]]) -> None:
        """One row padded on the right, one on the left; the padding holds values that no result may touch."""
        nan = float("nan")
        rows = [[1.0, 2.0, 3.0, nan, nan], [nan, nan, 3.0, 4.0, 5.0]]
        tokens = torch.tensor(rows)[:, :, None].expand(2, 5, 2)
        mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 1, 1, 1]])
        for given in (mask, mask.bool(), mask.float()):
            assert_close(pooled(tokens, pool=pool, mask=given), torch.tensor(expected))

    def test_tokens_without_a_mask(self) -> None:
        tokens = torch.randn(3, 5, 2)
        assert_close(pooled(tokens), tokens.mean(1))
        assert_close(pooled(tokens, pool="first"), tokens[:, 0])
        assert_close(pooled(tokens, pool="last"), tokens[:, 4])

    def test_flattened_and_already_flat(self) -> None:
        value = torch.randn(3, 4, 2, 2)
        assert_close(pooled(value, pool="flatten"), value.reshape(3, 16))
        for pool in ("auto", "mean", "first", "last", "flatten"):
            assert_close(pooled(value[:, :, 0, 0], pool=pool), value[:, :, 0, 0])

    def test_own_function(self) -> None:
        value, mask = torch.randn(3, 4, 4, 6), torch.ones(3, 4)
        seen = []

        def channels_last(tensor: Tensor, mask: Tensor | None) -> Tensor:
            seen.append(mask)
            return tensor.mean((1, 2))

        assert_close(pooled(value, pool=channels_last, mask=mask), value.mean((1, 2)))
        assert seen[0].all()
        with pytest.raises(InputError, match=r"\(B, N\), found \(3, 6, 4, 4\)"):
            pooled(value, pool=lambda tensor, mask: tensor.movedim(-1, 1))

    def test_one_dimensional_layers_of_torch_have_their_length_last(self) -> None:
        model = nn.Sequential(nn.Conv1d(2, 7, 3))
        x = torch.randn(4, 2, 9)
        with captured(model, "0") as features:
            out = model(x)
        assert_close(features["0"], out.mean(2).detach())

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_means_of_half_precision_are_not_rounded_to_it(self, dtype: torch.dtype) -> None:
        # A mean of these that went through half precision would come back as a multiple of 1/128 at best.
        value = 1 + torch.arange(63).reshape(1, 63, 1).to(dtype) / 128
        expected = value.double().mean(1).float()
        assert_close(pooled(value), expected, rtol=1e-6, atol=0)
        assert_close(pooled(value, mask=torch.ones(1, 63)), expected, rtol=1e-6, atol=0)
        assert_close(pooled(value[..., None]), value[..., 0].float(), rtol=1e-6, atol=0)

    @pytest.mark.parametrize("shape", [(3,), (), (3, 2, 2, 2, 2, 2)])
    def test_other_shapes_are_an_error_that_names_the_way_out(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(MeasurementError, match="pool='flatten' or a function"):
            pooled(torch.zeros(shape))

    def test_first_and_last_of_an_image_mean_nothing(self) -> None:
        with pytest.raises(MeasurementError, match="pool='first' does not cover"):
            pooled(torch.zeros(2, 3, 4, 4), pool="first")

    def test_wrong_masks(self) -> None:
        with pytest.raises(InputError, match="1 of 2 rows"):
            pooled(torch.zeros(2, 3, 4), mask=torch.tensor([[1, 0, 0], [0, 0, 0]]))
        with pytest.raises(InputError, match=r"\(B, L\)"):
            pooled(torch.zeros(2, 3, 4), mask=torch.ones(2, 1, 3))
        with pytest.raises(MeasurementError, match=r"\(2, 3, 4\).*\(2, 5\)"):
            pooled(torch.zeros(2, 3, 4), mask=torch.ones(2, 5))

    def test_unknown_rule(self) -> None:
        with pytest.raises(InputError, match="auto, mean, first, last, flatten"):
            pooled(torch.zeros(2, 3), pool="max")


class TestOutputs:
    WANTED = torch.randn(2, 3)

    @pytest.mark.parametrize(
        "value",
        [
            (WANTED, torch.zeros(2)),
            [None, WANTED],
            {"logits": WANTED},
            OrderedDict(loss=torch.zeros(()), last_hidden_state=WANTED),
            SimpleNamespace(last_hidden_state=WANTED),
        ],
        ids=["tuple", "list", "dict", "model output", "object"],
    )
    def test_the_features_among_several_things(self, value: object) -> None:
        assert_close(pooled(value), self.WANTED)

    @dataclass
    class Opaque:
        tensor: Tensor

    @pytest.mark.parametrize(
        ("value", "named"),
        [
            ({"a": WANTED, "b": WANTED}, "a mapping with a, b"),
            ((None, 1), "tuple"),
            (None, "NoneType"),
            (Opaque(WANTED), "Opaque"),
            (nn.utils.rnn.pack_sequence([WANTED]), "PackedSequence"),
        ],
    )
    def test_anything_else_is_an_error_that_says_what_came(self, value: object, named: str) -> None:
        with pytest.raises(MeasurementError, match=f"output of layer 'inner' is {named}"):
            pooled(value)


class TestCompiled:
    """Hooks registered after compilation do not run in compiled code (pytorch/pytorch issue 117758)."""

    class Counting:
        def __init__(self) -> None:
            self.compilations = 0
            self.runs = 0

        def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]):
            self.compilations += 1

            def run(*args: Tensor):
                self.runs += 1
                return graph.forward(*args)

            return run

    @pytest.fixture(params=["whole", "in place", "part", "part in place", "nested"])
    def compiled(self, request: pytest.FixtureRequest) -> Iterator[tuple[nn.Module, Counting]]:
        torch._dynamo.reset()
        backend, model = self.Counting(), Outer()
        if request.param in ("part", "nested"):
            model.net = torch.compile(model.net, backend=backend)
        if request.param in ("whole", "nested"):
            model = torch.compile(model, backend=backend)
        elif request.param == "in place":
            model.compile(backend=backend)
        elif request.param == "part in place":
            model.net.compile(backend=backend)
        yield model, backend
        torch._dynamo.reset()

    def test_layers_run_uncompiled_inside_and_compiled_afterwards(self, compiled) -> None:
        model, backend = compiled
        expected = model(X)
        compilations, runs = backend.compilations, backend.runs
        assert runs > 0
        with captured(model, {"inner": "net.body.0", "late": "net.fc:input", "net": "net"}) as features:
            out = model(X)
        assert set(features) == {"inner", "late", "net"}
        assert_close(out, expected)
        assert backend.runs == runs
        model(X)
        assert backend.runs > runs
        assert backend.compilations == compilations

    def test_the_compiler_is_back_after_an_exception(self, compiled) -> None:
        model, backend = compiled
        with pytest.raises(ValueError, match="stop"), captured(model, "net"):
            raise ValueError("stop")
        model(X)
        assert backend.runs > 0


class Outer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x) * 2


def test_the_fused_path_of_the_transformer_hides_nothing() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.TransformerEncoder(layer, 2).eval()
    padding = torch.tensor([[False, False, True], [False, False, False]])
    x = torch.randn(2, 3, 8)
    with torch.no_grad(), captured(model, ["layers.0", "layers.1.linear1"], mask=~padding) as features:
        model(x, src_key_padding_mask=padding)
    assert features["layers.0"].shape == (2, 8)
    assert features["layers.1.linear1"].shape == (2, 16)


def test_a_distributed_model_takes_the_names_of_the_plain_one() -> None:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        model = Net()
        with captured(wrapped := nn.parallel.DistributedDataParallel(model)) as features:
            wrapped(X)
        assert_close(features["penultimate"], model.body(X).detach())
    finally:
        dist.destroy_process_group()


class StepsFirst(nn.Module):
    """(B, N) in; inside, four time steps come before the points."""

    def __init__(self, inner: nn.Module, steps: int = 4) -> None:
        super().__init__()
        self.inner = inner
        self.norm = nn.LayerNorm(8)
        self.steps = steps

    def forward(self, x: Tensor) -> Tensor:
        scales = torch.arange(1.0, self.steps + 1)[:, None, None]
        value = x * scales
        found = self.inner(value, value, value) if isinstance(self.inner, nn.MultiheadAttention) else self.inner(value)
        return self.norm(found[0] if isinstance(found, tuple) else found)


def length_first_modules(batch_first: bool) -> dict[str, nn.Module]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=batch_first)
    return {
        "LSTM": nn.LSTM(8, 8, batch_first=batch_first),
        "GRU": nn.GRU(8, 8, batch_first=batch_first),
        "RNN": nn.RNN(8, 8, batch_first=batch_first),
        "MultiheadAttention": nn.MultiheadAttention(8, 2, batch_first=batch_first),
        "TransformerEncoderLayer": layer,
        "TransformerEncoder": nn.TransformerEncoder(layer, 2, enable_nested_tensor=False),
    }


class TestTimeStepsFirst:
    """``batch_first=False`` is the default of torch, and is silent where there are as many steps as points."""

    @pytest.mark.parametrize("side", ["input", "output"])
    @pytest.mark.parametrize("points", [4, 7])
    @pytest.mark.parametrize("name", list(length_first_modules(False)))
    def test_a_layer_that_states_it_is_read_by_points(self, name: str, points: int, side: str) -> None:
        model, x = StepsFirst(length_first_modules(False)[name]).eval(), torch.randn(points, 8)
        for pool, steps in (("auto", slice(None)), ("first", slice(1)), ("last", slice(3, None))):
            with captured(model, {"layer": f"inner:{side}"}, pool=pool) as features:
                model(x)
            raw = x * torch.arange(1.0, 5)[:, None, None]
            if side == "output":
                inner = model.inner
                raw = inner(raw, raw, raw)[0] if name == "MultiheadAttention" else inner(raw)
                raw = raw[0] if isinstance(raw, tuple) else raw
            assert_close(features["layer"], raw[steps].mean(0).detach())

    def test_batch_first_layers_stay(self) -> None:
        x = torch.randn(4, 4, 8)
        for name, inner in length_first_modules(True).items():
            if name != "MultiheadAttention":
                with captured(inner.eval(), {"layer": ""}) as features:
                    raw = inner(x)
                assert_close(features["layer"], (raw[0] if isinstance(raw, tuple) else raw).mean(1).detach())

    def test_a_layer_that_does_not_is_refused_where_it_cannot_be_seen(self) -> None:
        model = StepsFirst(nn.GRU(8, 8))
        words = r"'norm:output'.*\(4, 4, 8\).*batch_first=False.*pool function"
        with pytest.raises(MeasurementError, match=words), captured(model, "norm"):
            model(torch.randn(4, 8))
        with captured(model, "norm", pool=lambda tensor, mask: tensor.mean(0)) as features:
            model(torch.randn(4, 8))
        assert features["norm"].shape == (4, 8)
        model.inner = nn.GRU(8, 8, batch_first=True)
        with captured(model, "norm"):  # nothing here has its time steps first
            model(torch.randn(4, 8))

    def test_a_packed_sequence_beside_the_states_is_no_features(self) -> None:
        model, x = nn.GRU(8, 8, batch_first=True), torch.randn(2, 3, 8)
        packed = nn.utils.rnn.pack_padded_sequence(x, torch.tensor([3, 2]), batch_first=True)
        with pytest.raises(MeasurementError, match="tuple with a PackedSequence"), captured(model, {"layer": ""}):
            model(packed)


class TestWhatTakesNoHooks:
    @pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
    @pytest.mark.parametrize("path", ["body", "body.0", "traced.0"])
    def test_torchscript_is_refused_by_name(self, path: str) -> None:
        model = Net()
        model.body = torch.jit.script(model.body)
        model.traced = torch.jit.trace(nn.Sequential(nn.Linear(4, 8)), X)
        with pytest.raises(InputError, match=f"'{path}' is TorchScript code.*outside it.*before it goes"):
            resolve_layers(model, path)
        with captured(model) as features:  # around it all is well
            model(X)
        assert features["penultimate"].shape == (5, 8)

    @pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
    def test_a_traced_model_as_a_whole(self) -> None:
        model = torch.jit.trace(Net(), X)
        with captured(model, {"whole": ""}) as features:
            out = model(X)
        assert_close(features["whole"], out.detach())

    @pytest.mark.parametrize("transform", ["vmap", "grad"])
    def test_transforms_of_torch_func_are_refused_by_name(self, transform: str) -> None:
        model = Net()

        def loss(x: Tensor) -> Tensor:
            return model(x[None]).sum()

        words = r"layer 'fc:input' runs inside a transform of torch.func.*forward="
        with pytest.raises(MeasurementError, match=words), captured(model):
            torch.vmap(loss)(X) if transform == "vmap" else torch.func.grad(loss)(X[0])


class TestOneModuleUnderTwoNames:
    def test_an_alias_is_not_another_layer(self) -> None:
        model = Net()
        model.backbone = model.body
        with captured(model) as features:
            model(X)
        assert_close(features["penultimate"], model.body(X).detach())
        with captured(model, ["backbone", "body"]) as features:
            model(X)
        assert_close(features["backbone"], features["body"])

    def test_a_head_that_another_module_also_holds(self) -> None:
        model = Net()
        model.task = nn.ModuleDict({"classifier": model.fc, "encoder": model.body})
        assert str(resolve_layers(model)["penultimate"]) == "fc:input"
        with captured(model):
            model(X)


@pytest.mark.parametrize("dtype", ["float64", "bfloat16"])
def test_the_dtype_of_the_layer_is_known(dtype: str) -> None:
    model = Net().to(getattr(torch, dtype))
    with captured(model, ["fc", "body"]) as features:
        model(X.to(getattr(torch, dtype)))
    assert features.dtypes == {"fc": dtype, "body": dtype}


@pytest.mark.parametrize("later", [False, True])
def test_blocks_of_two_threads_leave_the_settings_of_the_process(later: bool) -> None:
    """The first to enter leaves before the second, or after it."""
    first, second = captured(Net()), captured(Net())
    first.__enter__()
    second.__enter__()
    for block in (second, first) if later else (first, second):
        assert not torch.backends.mha.get_fastpath_enabled()
        with pytest.raises(MeasurementError, match="call the model there"):
            block.__exit__(None, None, None)
    assert torch.backends.mha.get_fastpath_enabled()
