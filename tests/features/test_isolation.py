"""A probe pass between two training steps must be as if it had never happened."""

from __future__ import annotations

import copy
import random
from collections import deque

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from geomonitor._random import preserved_rng
from geomonitor.errors import GeomonitorWarning, MeasurementError
from geomonitor.features.isolation import undisturbed


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.5))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.layers(x))


def random_state() -> list[object]:
    return [random.random(), float(np.random.rand()), torch.rand(3).tolist()]


def train(probed: bool) -> tuple[dict[str, Tensor], list[float], list[object]]:
    """Dropout, batch norm, momentum, gradient accumulation, augmentation from all three random streams."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    model, losses = Block(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for step in range(12):
        x = torch.randn(16, 6) * random.uniform(0.5, 1.5) + float(np.random.randn())
        loss = nn.functional.cross_entropy(model(x), torch.randint(3, (16,)))
        if probed:  # with a graph that still waits for its backward pass, and gradients half accumulated
            with undisturbed(model):
                model(torch.randn(50, 6) * random.random() + np.random.randn())
        loss.backward()
        losses.append(loss.item())
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    return model.state_dict(), losses, random_state()


def test_training_is_bit_identical_with_and_without_probe_passes() -> None:
    weights, losses, streams = train(probed=False)
    probed_weights, probed_losses, probed_streams = train(probed=True)
    assert probed_losses == losses
    assert probed_streams == streams
    assert all(torch.equal(weights[name], probed_weights[name]) for name in weights)


class TestModes:
    def test_inside_everything_is_in_evaluation_mode_without_gradients(self) -> None:
        model = Block()
        with undisturbed(model):
            assert not any(module.training for module in model.modules())
            assert not model(torch.ones(2, 6)).requires_grad
        assert torch.is_grad_enabled()

    def test_partly_frozen_networks_come_back_module_by_module(self) -> None:
        model = Block()
        model.layers[1].eval()
        model.fc.eval()
        before = [module.training for module in model.modules()]
        assert True in before
        assert False in before
        with undisturbed(model):
            pass
        assert [module.training for module in model.modules()] == before

    def test_overridden_train_and_eval_are_not_called(self) -> None:
        """As in LoRA layers, where leaving training mode merges weights."""

        class Merging(Block):
            def train(self, mode: bool = True) -> Merging:
                raise AssertionError("train() was called")

        model = Merging()
        with undisturbed(model):
            assert not model.fc.training
        assert model.fc.training

    def test_nested_blocks_restore_in_turn(self) -> None:
        model = Block()
        torch.manual_seed(3)
        expected = torch.rand(2)
        torch.manual_seed(3)
        with undisturbed(model):
            torch.rand(7)
            with undisturbed(model):
                torch.rand(5)
            assert not model.training
            assert not torch.is_grad_enabled()
        assert model.training
        assert torch.equal(torch.rand(2), expected)

    def test_tensors_made_under_inference_mode_can_be_used_in_training(self) -> None:
        """Lightning calls its validation hooks under inference mode."""
        model = Block()
        with torch.inference_mode():
            with undisturbed(model):
                inside = model(torch.ones(2, 6))
                assert not torch.is_grad_enabled()
            assert torch.is_inference_mode_enabled()
        assert not inside.is_inference()

    def test_autocast_is_off_and_its_cache_keeps_no_weight_without_gradients(self) -> None:
        model = nn.Linear(4, 4)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with undisturbed(model):
                assert model(torch.ones(1, 4)).dtype == torch.float32
                with torch.autocast("cpu", dtype=torch.bfloat16):  # a forward of the user may turn it on
                    assert model(torch.ones(1, 4)).dtype == torch.bfloat16
                assert not torch.is_autocast_cache_enabled()
            assert torch.is_autocast_cache_enabled()
            out = model(torch.ones(1, 4))
            assert out.dtype == torch.bfloat16
            out.sum().backward()
        assert model.weight.grad is not None

    def test_weights_that_parametrize_caches_keep_their_gradients(self) -> None:
        model = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
        with nn.utils.parametrize.cached():
            with undisturbed(model):
                model(torch.ones(1, 4))
            model(torch.ones(1, 4)).sum().backward()
        assert model.parametrizations.weight.original1.grad is not None


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, torch.OutOfMemoryError])
def test_everything_is_restored_after_an_exception(error: type[BaseException]) -> None:
    class Failing(Block):
        def forward(self, x: Tensor) -> Tensor:
            self.layers[1].running_mean.add_(1)
            self.calls = 1
            torch.rand(3)
            raise error("in the middle")

    model = Failing()
    model.fc.eval()
    before = copy.deepcopy(model.state_dict())
    torch.manual_seed(5)
    expected = torch.rand(2)
    torch.manual_seed(5)
    with pytest.raises(error, match="in the middle"), undisturbed(model):
        model(torch.ones(2, 6))
    assert torch.equal(torch.rand(2), expected)
    assert torch.is_grad_enabled()
    assert (model.training, model.fc.training) == (True, False)
    assert not hasattr(model, "calls")
    assert torch.equal(model.layers[1].running_mean, before["layers.1.running_mean"])


class TestRandomStreams:
    def test_a_measurement_sees_the_same_random_numbers_every_time(self) -> None:
        model, seen = Block(), []
        for seed in (1, 2):
            torch.manual_seed(seed)
            with undisturbed(model):
                seen.append(random_state())
        assert seen[0] == seen[1]

    @pytest.mark.parametrize("draw", [random.random, lambda: float(np.random.rand()), lambda: float(torch.rand(()))])
    def test_every_stream_goes_on_as_if_nothing_had_been_drawn(self, draw) -> None:
        state = random.getstate(), np.random.get_state(), torch.get_rng_state()
        expected = [draw() for _ in range(3)]
        random.setstate(state[0])
        np.random.set_state(state[1])
        torch.set_rng_state(state[2])
        found = [draw()]
        with preserved_rng():
            draw()
        found.append(draw())
        with preserved_rng():
            draw()
        found.append(draw())
        assert found == expected

    @pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
    def test_the_gpu_stream_goes_on_as_well(self) -> None:
        torch.cuda.manual_seed(7)
        expected = torch.rand(3, device="cuda")
        torch.cuda.manual_seed(7)
        with preserved_rng():
            torch.rand(9, device="cuda")
        assert torch.equal(torch.rand(3, device="cuda"), expected)

    @pytest.mark.skipif(torch.cuda.is_initialized(), reason="needs a GPU that nothing has used, or none")
    def test_a_sleeping_gpu_is_not_seeded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """torch.manual_seed would leave a seed behind for the moment when CUDA starts."""
        seeds: list[int] = []
        monkeypatch.setattr(torch.cuda, "manual_seed_all", seeds.append)
        with preserved_rng():
            pass
        assert seeds == []


class Stateful(nn.Module):
    """Does in ``forward``, in evaluation mode too, what forward should not do."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.register_buffer("mean", torch.zeros(2))
        self.register_buffer("last", torch.tensor([float("nan"), 1.0]))
        self.register_buffer("untouched", torch.tensor([float("nan"), 1.0]))
        self.queue = torch.zeros(4)
        self.steps = 0
        self.seen: list[int] = []
        self.table = {"a": 1}
        self.ring = deque([1, 2], maxlen=2)

    def forward(self, x: Tensor) -> Tensor:
        self.mean += x.mean(0)
        self.last = x[0]
        self.queue[0] += 1
        self.steps += 1
        self.seen.append(self.steps)
        self.table["a"] += 1
        self.ring.append(3)
        self.created = x
        return self.fc(x)


class TestSideEffects:
    def test_what_forward_changes_is_put_back_and_named(self) -> None:
        model = Stateful()
        last, queue = model.last, model.queue
        with pytest.warns(GeomonitorWarning, match="put back") as warned, undisturbed(model):
            model(torch.ones(3, 2))
        assert torch.equal(model.mean, torch.zeros(2))
        assert model.last is last
        assert model.queue is queue
        assert torch.equal(queue, torch.zeros(4))
        assert (model.steps, model.seen, model.table, list(model.ring)) == (0, [], {"a": 1}, [1, 2])
        assert not hasattr(model, "created")
        assert len(warned) == 1
        message = str(warned[0].message)
        assert "Stateful" in message
        assert "mean" in message
        assert "untouched" not in message
        assert warned[0].filename == __file__

    def test_names_are_those_of_the_module_tree(self) -> None:
        model = nn.Sequential(nn.ReLU(), Stateful())
        with pytest.warns(GeomonitorWarning, match=r"1\.mean"), undisturbed(model):
            model(torch.ones(3, 2))

    def test_batch_norm_written_without_a_version_count_is_noticed(self) -> None:
        class AlwaysTraining(nn.BatchNorm1d):
            def forward(self, x: Tensor) -> Tensor:
                return nn.functional.batch_norm(x, self.running_mean, self.running_var, training=True)

        model = AlwaysTraining(3)
        with pytest.warns(GeomonitorWarning, match="running_mean, running_var"), undisturbed(model):
            model(torch.randn(8, 3) + 5)
        assert torch.equal(model.running_mean, torch.zeros(3))
        assert torch.equal(model.running_var, torch.ones(3))

    def test_buffers_made_under_inference_mode_are_put_back(self) -> None:
        model = Stateful()
        with torch.inference_mode():
            model.mean = torch.zeros(2)
        with pytest.warns(GeomonitorWarning), undisturbed(model), torch.inference_mode():
            model(torch.ones(3, 2))
        assert torch.equal(model.mean, torch.zeros(2))

    def test_a_model_made_under_inference_mode_can_be_measured(self) -> None:
        with torch.inference_mode():
            model = nn.BatchNorm1d(2)
        with undisturbed(model):
            assert model(torch.ones(3, 2)).shape == (3, 2)

    def test_sparse_buffers_are_compared_by_content(self) -> None:
        model = nn.Linear(3, 3)
        model.register_buffer("graph", torch.eye(3).to_sparse())
        with undisturbed(model):
            model(torch.ones(1, 3))  # no warning

    def test_embedding_weights_renormalised_by_forward_are_put_back(self) -> None:
        model = nn.Embedding(5, 3, max_norm=0.1)
        before = model.weight.detach().clone()
        with pytest.warns(GeomonitorWarning, match="put back weight"), undisturbed(model):
            model(torch.tensor([1, 2]))
        assert torch.equal(model.weight, before)

    def test_a_write_to_a_parameter_is_reported_by_name(self) -> None:
        class Clamping(Block):
            def forward(self, x: Tensor) -> Tensor:
                with torch.no_grad():
                    self.fc.weight.clamp_(-0.01, 0.01)
                return super().forward(x)

        model = Clamping()
        with pytest.warns(GeomonitorWarning, match=r"cannot be undone: fc\.weight\. "), undisturbed(model):
            model(torch.ones(2, 6))

    def test_gradients_made_in_forward_are_dropped(self) -> None:
        class Energy(Block):
            def forward(self, x: Tensor) -> Tensor:
                with torch.enable_grad():
                    super().forward(x).sum().backward()
                self.fc.weight.requires_grad_(False)
                return x

        model = Energy()
        with pytest.warns(GeomonitorWarning, match="gradient settings"), undisturbed(model):
            model(torch.ones(2, 6))
        assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())

    def test_lazy_parameters_are_refused_and_stay_lazy(self) -> None:
        model = nn.Sequential(nn.LazyLinear(3))
        with pytest.raises(MeasurementError, match=r"0\.weight"), undisturbed(model):
            model(torch.ones(2, 6))
        assert isinstance(model[0], nn.LazyLinear)


def test_a_compiled_model_is_isolated_like_its_original() -> None:
    model = Block()
    compiled = torch.compile(model, backend="eager")
    with undisturbed(compiled):
        assert not model.fc.training
    assert model.training
    assert model.fc.training


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_model_is_restored() -> None:
    model = torch.jit.trace(nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)).eval(), torch.ones(2, 2))
    model.train()
    with undisturbed(model):
        assert not model.training
        model(torch.ones(2, 2))
    assert model.training
