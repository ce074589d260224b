"""Points from the validation loop's own forward passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import geomonitor as gm
from geomonitor.probe.reservoir import priority
from tests.options import grouped
from tests.processes import in_processes

CLASSES, PER_CLASS, POINTS, KEY = 3, 8, 97, "geometry/penultimate/"


def dataset() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(POINTS) % 4 + 2  # one class more than is measured, and labels that start at 2
    centers = torch.randn(6, 6, generator=generator)
    return TensorDataset((centers[labels] + torch.randn(POINTS, 6, generator=generator)).double(), labels)


def network() -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 7)).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / 3)
    return model


def monitor(probe: gm.ValidationProbe | None = None, **options) -> gm.GeometryMonitor:
    probe = probe or gm.ValidationProbe(classes=[2, 3, 5], per_class=PER_CLASS)
    return gm.GeometryMonitor(probe, **grouped(**{"directions": 40, "on_error": "raise", "markers": "all"} | options))


def measured(
    watcher: gm.GeometryMonitor, model: nn.Module, loader, *, length: int | None = POINTS, step: int = 1
) -> dict[str, float]:
    validation = watcher.validation_pass(model, dataset_length=length)
    with torch.inference_mode():
        for batch in loader:
            with validation.batch(batch):
                model(batch[0])
            assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    records = watcher.measure(model, step=step, validation=validation)
    return {r.key: r.value for r in records if r.marker not in ("seconds", "overhead")}


def test_the_markers_are_those_of_the_chosen_points():
    x, labels = dataset().tensors
    chosen = []
    for label in (2, 3, 5):
        ids = torch.nonzero(labels == label).flatten()
        chosen.append(ids[priority(ids, seed=0).argsort()[:PER_CLASS]])
    rows, model = torch.cat(chosen), network()
    with torch.no_grad():
        features, logits = model[:2](x[rows]), model(x[rows])
    found = measured(monitor(), model, DataLoader(dataset(), batch_size=16))
    classes = torch.arange(3).repeat_interleave(PER_CLASS)
    geometry = gm.manifold_geometry(features, classes, directions=40, ridge=gm.GeometryOptions().ridge)
    assert found[KEY + "dimension"] == pytest.approx(geometry.dimension.item(), rel=1e-9)
    assert found[KEY + "participation_ratio"] == pytest.approx(gm.participation_ratio(features).item(), rel=1e-9)
    assert found[KEY + "accuracy"] == (logits.argmax(1) == labels[rows]).double().mean().item()
    weight = model[2].weight[[2, 3, 5]]
    assert found[KEY + "nc3"] == pytest.approx(gm.neural_collapse(features, classes, weight=weight).nc3.item())


def test_batch_size_does_not_matter():
    runs = [measured(monitor(), network(), DataLoader(dataset(), batch_size=size)) for size in (5, 97)]
    assert runs[0] == pytest.approx(runs[1], rel=1e-8, nan_ok=True)


class ByPosition(TensorDataset):
    """Gives the number of a sample along with it."""

    def __getitem__(self, index: int):
        return *super().__getitem__(index), index


def test_a_shuffled_loader_with_names_for_its_samples_measures_the_same():
    named = gm.ValidationProbe(classes=[2, 3, 5], per_class=PER_CLASS, ids=lambda batch: batch[2], label_key=1)
    loader = DataLoader(ByPosition(*dataset().tensors), batch_size=16, shuffle=True)
    in_order = measured(monitor(), network(), DataLoader(dataset(), batch_size=16))
    assert measured(monitor(named), network(), loader) == pytest.approx(in_order, rel=1e-8, nan_ok=True)


def test_other_points_than_before_are_noticed():
    watcher = monitor(on_error="warn", markers=["dimension"])
    measured(watcher, network(), DataLoader(dataset(), batch_size=16))
    saved = watcher.state_dict()
    half = DataLoader(TensorDataset(*dataset()[:50]), batch_size=16)
    for known in (watcher, monitor(on_error="warn", markers=["dimension"])):
        known.load_state_dict(saved)
        with pytest.warns(gm.GeomonitorWarning, match="gave other points than at the measurements before"):
            assert math.isnan(measured(known, network(), half, length=50, step=2)[KEY + "dimension"])


def _on_a_rank(rank: int, world_size: int) -> dict[str, float]:
    sampler = DistributedSampler(dataset(), num_replicas=world_size, rank=rank, shuffle=False)  # repeats to pad
    return measured(monitor(), network(), DataLoader(dataset(), batch_size=11, sampler=sampler))


def _second_rank_is_empty(rank: int) -> dict[str, float]:
    by_name = gm.ValidationProbe(classes=[2, 3, 5], per_class=PER_CLASS, ids=lambda batch: batch[2], label_key=1)
    whole = ByPosition(*dataset().tensors)
    return measured(monitor(by_name), network(), DataLoader(whole, batch_size=16) if rank == 0 else [])


def test_processes_measure_what_one_measures():
    alone = measured(monitor(), network(), DataLoader(dataset(), batch_size=16))
    for result in [*in_processes(_on_a_rank, 2), *in_processes(_second_rank_is_empty)]:
        assert result == pytest.approx(alone, rel=1e-8, nan_ok=True)


def _fails_on_one(rank: int) -> float:
    import warnings

    def pool(rows: Tensor, mask: Tensor | None) -> Tensor:
        if rank:
            raise ValueError("not here")
        return rows

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", gm.GeomonitorWarning)
        loader = DataLoader(dataset(), batch_size=16)
        return measured(monitor(pool=pool, on_error="warn"), network(), loader)[KEY + "dimension"]


def test_a_failure_on_one_process_is_one_on_all_and_nobody_waits():
    assert all(math.isnan(value) for value in in_processes(_fails_on_one))


class TestFailures:
    def test_what_goes_wrong_never_reaches_the_validation(self):
        def pool(rows: Tensor, mask: Tensor | None) -> Tensor:
            raise ZeroDivisionError("pooling")

        with pytest.raises(ZeroDivisionError, match="pooling"):
            measured(monitor(pool=pool), network(), DataLoader(dataset(), batch_size=16))
        watcher = monitor(pool=pool, on_error="warn")
        with pytest.warns(gm.GeomonitorWarning, match="ZeroDivisionError: pooling"):
            assert math.isnan(measured(watcher, network(), DataLoader(dataset(), batch_size=16))[KEY + "dimension"])

    def test_an_error_of_the_validation_itself_takes_the_hooks_off(self):
        model = network()
        validation = monitor().validation_pass(model)
        with pytest.raises(KeyboardInterrupt), validation.batch((torch.ones(2, 6), torch.zeros(2, dtype=torch.int64))):
            raise KeyboardInterrupt
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())

    @pytest.mark.parametrize(
        ("batch", "message"),
        [
            ((torch.ones(4, 6, dtype=torch.float64), torch.ones(4)), "no integer labels"),
            (torch.ones(4, 6, dtype=torch.float64), "no integer labels"),
            ((torch.ones(4, 6, dtype=torch.float64), torch.ones(3, dtype=torch.int64)), "4 rows for 3 labels"),
            ((torch.ones(4, 6, dtype=torch.float64), torch.ones(4, dtype=torch.int64)), "had no points of the classes"),
        ],
    )
    def test_batches_of_which_nothing_can_be_made(self, batch, message):
        model, watcher = network(), monitor()
        validation = watcher.validation_pass(model)
        with validation.batch(batch):
            model(batch[0] if isinstance(batch, tuple) else batch)
        with pytest.raises(gm.GeomonitorError, match=message):
            watcher.measure(model, step=1, validation=validation)


class TestWhichLayer:
    """As with a probe set: a forward pass of a few points of the first batch shows it."""

    def compared(
        self, model: nn.Module, run=lambda model, x: model(x), layers: object = "penultimate", **options
    ) -> tuple[dict[str, float], dict[str, float]]:
        """Markers of the points as a validation loop gives them, and as a probe set of the same items does."""
        items = TensorDataset(*(part[:96] for part in dataset().tensors))  # 24 of each class: all are chosen
        names = ["mean_norm", "accuracy", "energy", "nc3", "nc4", "coherence"]
        options = {"layers": layers, "markers": names, "watch": ["mean_norm"], **options}
        model = model.double().eval()
        watcher = monitor(gm.ValidationProbe(classes=[2, 3, 5], per_class=24), **options)
        validation = watcher.validation_pass(model)
        with torch.inference_mode():
            for batch in DataLoader(items, batch_size=16):
                with validation.batch(batch):
                    run(model, batch[0])
        one = {r.marker: r.value for r in watcher.measure(model, step=0, validation=validation) if r.marker in names}
        probe = gm.ProbeSet.from_dataset(items, classes=[2, 3, 5], per_class=24)
        watcher = monitor(probe, **options)
        return one, {r.marker: r.value for r in watcher.measure(model, step=0) if r.marker in names}

    @pytest.mark.filterwarnings("ignore::geomonitor.errors.GeomonitorWarning")
    @pytest.mark.parametrize("case", [
        "last linear", "registered last, run first", "convolution", "hidden by path", "sigmoid behind", "negated",
        "log_softmax", "no module of torch", "zero head", "dictionary",
    ])  # fmt: skip
    def test_the_same_as_with_a_probe_set(self, case):
        torch.manual_seed(0)

        class Net(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.fc, self.body = nn.Linear(12, 7), nn.Sequential(nn.Linear(6, 12), nn.Tanh())
                self.conv = nn.Conv1d(12, 7, 1)

            def forward(self, x: Tensor) -> object:
                h = self.body(x)
                if case == "convolution":
                    return self.conv(h[..., None])[..., 0]
                out = self.fc(h)
                out = {"negated": -out, "log_softmax": out.log_softmax(1), "sigmoid behind": out.sigmoid()}.get(
                    case, out
                )
                return {"logits": out, "features": h} if case == "dictionary" else out

        class Own(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.weight = nn.Parameter(torch.randn(12, 7))

            def forward(self, x: Tensor) -> Tensor:
                return x @ self.weight

        model: nn.Module = Net()
        if case == "last linear":
            model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 7))
        elif case == "no module of torch":
            model = nn.Sequential(nn.Conv1d(6, 12, 1), nn.Flatten(), nn.ReLU(), Own())
            model = nn.Sequential(nn.Unflatten(1, (6, 1)), *model)
        elif case == "zero head":
            nn.init.zeros_(model.fc.weight)
        found, expected = self.compared(
            model, layers={"h": "body.0:input"} if case == "hidden by path" else "penultimate"
        )
        assert found == pytest.approx(expected, rel=1e-9, nan_ok=True)
        assert not math.isnan(found["mean_norm"])
        assert math.isnan(found["nc3"]) == (case in ("hidden by path", "sigmoid behind", "negated", "zero head"))

    def test_a_model_that_writes_to_its_inputs_finds_them_as_they_were(self):
        class InPlace(nn.Sequential):
            def forward(self, x: Tensor, scale: Tensor) -> Tensor:
                return super().forward(x.sub_(1).mul_(scale.add_(1)))

        torch.manual_seed(0)
        model = InPlace(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 7)).double().eval()
        watcher = monitor(markers=["mean_norm", "accuracy"])
        validation, seen = watcher.validation_pass(model), []

        def keep(module: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> None:
            seen.append([value.clone() for value in (*args, *kwargs.values())])

        model.register_forward_pre_hook(keep, with_kwargs=True)
        with torch.inference_mode():
            for x, labels in DataLoader(dataset(), batch_size=16):
                scale = torch.ones((), dtype=torch.float64)
                with validation.batch({"x": x, "scale": scale, "label": labels}):
                    model(x, scale)
        watcher.measure(model, step=0, validation=validation)
        assert watcher.protocol["resolved"] == {"penultimate": "2:input"}
        assert torch.equal(seen[1][0], dataset().tensors[0][:16])  # after the pass of a few points
        assert [float(scale) for _, scale in seen[1:]] == [1.0] * 7

    def test_a_loop_that_calls_parts_of_the_model(self):
        """The model as a whole runs in the traced pass alone: the logits of the loop are what the head gives."""
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 7))
        found, expected = self.compared(model, run=lambda model, x: model[2](model[1](model[0](x))))
        assert found == pytest.approx(expected, rel=1e-9)

    def test_a_model_that_cannot_be_called_is_read_by_the_order_of_registration(self, caplog):
        torch.manual_seed(0)
        model = nn.Module()  # without a forward, and of two networks
        model.add_module("other", nn.Linear(2, 2))
        model.add_module("net", nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 7)))
        validation = (watcher := monitor(markers=["mean_norm", "accuracy"])).validation_pass(model.double().eval())
        for batch in DataLoader(dataset(), batch_size=16):
            with validation.batch(batch), torch.no_grad():
                model.net(batch[0])
        values = {r.marker: r.value for r in watcher.measure(model, step=0, validation=validation)}
        assert 0 <= values["accuracy"] <= 1
        assert "by the order of registration, not by a run of the model" in caplog.text

    @pytest.mark.filterwarnings("ignore::geomonitor.errors.GeomonitorWarning")
    def test_a_hidden_layer_of_a_model_that_cannot_be_called_has_no_head(self):
        torch.manual_seed(0)
        model = nn.Module()
        model.add_module("other", nn.Linear(2, 2))
        model.add_module("net", nn.Sequential(nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 7)))
        for layer, without in (("net.0:input", True), ("net.2:input", False)):
            watcher = monitor(markers=["nc3", "nc4", "mean_norm"], layers={"z": layer}, watch=["mean_norm"])
            validation = watcher.validation_pass(model.double().eval())
            for batch in DataLoader(dataset(), batch_size=16):
                with validation.batch(batch), torch.no_grad():
                    model.net(batch[0])
            values = {r.marker: r.value for r in watcher.measure(model, step=0, validation=validation)}
            assert [math.isnan(values[name]) for name in ("nc3", "nc4", "mean_norm")] == [without, without, False]

    def test_a_batch_of_which_the_model_reads_other_tokens_is_an_error(self):
        class Tokens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = nn.Linear(2, 12), nn.Linear(12, 6)

            def forward(self, x: Tensor) -> Tensor:
                logits = self.head(self.body(x.view(len(x), 3, 2)).tanh())
                return logits[torch.arange(len(x)), [0 if first > 50 else 2 for first in x[:, 0].tolist()]]

        torch.manual_seed(0)
        model, (x, labels) = Tokens().double().eval(), dataset().tensors
        for changed in (False, True):
            x[40, 0] += 100.0 * changed
            validation = (watcher := monitor(markers=["mean_norm", "accuracy"])).validation_pass(model)
            for batch in DataLoader(TensorDataset(x, labels), batch_size=16):
                with validation.batch(batch), torch.no_grad():
                    model(batch[0])
            if changed:
                with pytest.raises(
                    gm.MeasurementError, match="for 1 of 16 points of a batch the model reads logits from"
                ):
                    watcher.measure(model, step=0, validation=validation)
            else:
                watcher.measure(model, step=0, validation=validation)
                assert watcher.protocol["resolved"] == {"penultimate": "head:input, last"}

    @pytest.mark.parametrize("forward", [None, lambda model, x: model.net(x)])
    def test_tokens_of_a_model_that_cannot_be_called_are_a_question(self, forward):
        class Tokens(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.head = nn.Linear(2, 12), nn.Linear(12, 7)

            def forward(self, x: Tensor) -> Tensor:
                return self.head(self.body(x.view(len(x), 3, 2)).tanh())[:, -1]

        torch.manual_seed(0)
        model = nn.Module()
        model.add_module("other", nn.Linear(2, 2))
        model.add_module("net", Tokens())
        watcher = monitor(markers=["mean_norm", "accuracy"], **({} if forward is None else {"forward": forward}))
        validation = watcher.validation_pass(model.double().eval())
        for batch in DataLoader(dataset(), batch_size=16):
            with validation.batch(batch), torch.no_grad():
                model.net(batch[0])
        if forward is None:
            with pytest.raises(gm.MeasurementError, match=r"which of them the model reads .* Give forward="):
                watcher.measure(model, step=0, validation=validation)
            return
        watcher.measure(model, step=0, validation=validation)
        assert watcher.protocol["resolved"] == {"penultimate": "net.head:input, last"}

    def test_several_heads_are_a_question_that_the_validation_does_not_feel(self):
        class Two(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.one, self.two = nn.Linear(6, 12), nn.Linear(12, 7), nn.Linear(12, 7)

            def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
                h = self.body(x).tanh()
                return self.one(h), self.two(h)

        with pytest.raises(gm.GeomonitorError, match="several outputs that may be meant"):
            self.compared(Two())

    def test_a_head_in_functional_form_is_a_question(self):
        class Functional(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.body, self.weight = nn.Sequential(nn.Linear(6, 12), nn.ReLU()), nn.Parameter(torch.randn(12, 6))

            def forward(self, x: Tensor) -> Tensor:
                return self.body(x) @ self.weight

        with pytest.raises(gm.GeomonitorError, match="computed in the forward of Functional"):
            self.compared(Functional())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"classes": 1}, "two classes or more"),
        ({"classes": [4, 4]}, "two classes or more"),
        ({"classes": 3, "per_class": 1}, "per_class is a whole number, 2 or more"),
        ({"classes": 3, "seed": -1}, "seed is a whole number"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(gm.InputError, match=message):
        gm.ValidationProbe(**options)


def test_probe_and_way_of_measuring_have_to_fit():
    probe = gm.ProbeSet.from_dataset(dataset(), per_class=5)
    with pytest.raises(gm.InputError, match=r"measure\(validation=validation_pass\)"):
        monitor().measure(network(), step=1)
    with pytest.raises(gm.InputError, match="only a ValidationProbe"):
        monitor(probe).validation_pass(network())
    with pytest.raises(gm.InputError, match="forward passes of their own"):
        monitor(shifts={"none": lambda x: x})
