"""What "penultimate" takes in models of transformers, peft, sentence-transformers and keras, and how it is pooled."""

from __future__ import annotations

import copy
import importlib.util
import math
import os

import pytest
import torch
from torch import Tensor, nn

import geomonitor as gm

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("KERAS_BACKEND", "torch")
for library in ("transformers", "peft", "sentence_transformers", "keras"):
    if importlib.util.find_spec(library) is None and not os.environ.get("GEOMONITOR_FRAMEWORKS"):
        pytest.skip(f"{library} is not installed: make test-frameworks", allow_module_level=True)

from tests.zoo import hugging_face as zoo  # noqa: E402

# The libraries warn of their own deprecations; a model that installs hooks when it first runs is one warning of ours.
pytestmark = pytest.mark.filterwarnings("ignore")
ITEMS, PER_CLASS = 40, 8


class Items(torch.utils.data.Dataset):
    def __init__(self, kind: str) -> None:
        self.inputs, self.labels = zoo.inputs(kind, ITEMS), torch.arange(ITEMS) % zoo.CLASSES

    def __len__(self) -> int:
        return ITEMS

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {**{name: value[index] for name, value in self.inputs.items()}, "labels": self.labels[index]}


def measured(model: nn.Module, kind: str, **options) -> tuple[str, gm.GeometryMonitor]:
    probe = gm.ProbeSet.from_dataset(Items(kind), per_class=PER_CLASS)
    monitor = gm.GeometryMonitor(probe, markers=["mean_norm", "accuracy"], panel=None, on_error="raise", **options)
    monitor.measure(model, step=0)
    return monitor.protocol.get("resolved", {}).get("penultimate", ""), monitor


def value(monitor: gm.GeometryMonitor, marker: str) -> float:
    return float(monitor.history.series("penultimate", marker).values[-1])


@pytest.mark.parametrize("name", zoo.CLASSIFIERS)
def test_a_classifier(name: str) -> None:
    make, kind, expected = zoo.CLASSIFIERS[name]
    torch.manual_seed(0)
    model = make().eval()
    found, monitor = measured(model, kind)
    assert found == expected
    assert math.isfinite(value(monitor, "accuracy"))
    path, _, pool = expected.partition(":input")
    inputs = zoo.inputs(kind, 7)
    plain = getattr(model, "_orig_mod", model)
    mask = inputs.get("attention_mask", inputs.get("input_ids", torch.zeros(0)) != zoo.PADDING)
    mask = mask if mask.ndim == 2 else None
    with gm.captured(model, {"z": f"{path}:input"}, pool=pool.strip(", ") or "auto", mask=mask) as features:
        logits = model(**inputs).logits
    torch.testing.assert_close(plain.get_submodule(path)(features["z"]), logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", zoo.CLASSIFIERS)
def test_a_classifier_in_its_own_validation_loop(name: str) -> None:
    make, kind, expected = zoo.CLASSIFIERS[name]
    torch.manual_seed(0)
    model, items = make().eval(), Items(kind)
    each = {"per_class": ITEMS // zoo.CLASSES}  # all items
    options = {"markers": ["mean_norm", "accuracy"], "panel": None, "on_error": "raise"}
    with_probe_set = gm.GeometryMonitor(gm.ProbeSet.from_dataset(items, **each), **options)
    monitor = gm.GeometryMonitor(gm.ValidationProbe(classes=zoo.CLASSES, **each), **options)
    with_probe_set.measure(model, step=0)
    validation = monitor.validation_pass(model)
    for batch in torch.utils.data.DataLoader(items, batch_size=9):
        with validation.batch(batch), torch.inference_mode():
            model(**batch)
    monitor.measure(model, step=0, validation=validation)
    assert monitor.protocol["resolved"] == {"penultimate": expected}
    for marker in ("mean_norm", "accuracy"):
        assert value(monitor, marker) == pytest.approx(value(with_probe_set, marker), rel=1e-4)


def test_logits_of_an_output_object_without_logits_have_an_accuracy() -> None:
    import transformers as hf

    torch.manual_seed(0)
    model = hf.BertForPreTraining(hf.BertConfig(**zoo.TEXT)).eval()
    model.cls.seq_relationship = nn.Linear(32, zoo.CLASSES)
    found, monitor = measured(model, "text")
    assert found == "cls.seq_relationship:input"
    inputs = zoo.inputs("text", ITEMS)
    with torch.no_grad():
        predicted = model(**inputs).seq_relationship_logits.argmax(1)[monitor.probe.indices]
    assert value(monitor, "accuracy") == pytest.approx(float((predicted == monitor.probe.labels).double().mean()))


def test_one_row_of_a_decoder_of_queries() -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = hf.PerceiverConfig(
        **{"vocab_size": zoo.WORDS, "num_latents": 6, "d_latents": 32, "d_model": 32, "num_blocks": 1},
        **{"num_self_attends_per_block": 1, "num_self_attention_heads": 2, "num_cross_attention_heads": 2},
        **{"max_position_embeddings": 40, **zoo.LABELS},
    )
    model = hf.PerceiverForSequenceClassification(config).eval()
    forward = lambda model, given: model(inputs=given["input_ids"], attention_mask=given["attention_mask"])  # noqa: E731
    found, monitor = measured(model, "text", forward=forward)
    assert found.startswith("perceiver.decoder.decoder.final_layer:input")
    assert math.isfinite(value(monitor, "accuracy"))


def test_a_decoder_with_tokens_of_its_own_is_not_masked_as_its_encoder() -> None:
    import transformers as hf

    torch.manual_seed(0)
    config = {"vocab_size": zoo.WORDS, "d_model": 32, "d_kv": 16, "d_ff": 48, "num_layers": 1, "num_heads": 2}
    model = hf.T5ForConditionalGeneration(hf.T5Config(**config, decoder_start_token_id=0)).eval()
    items = Items("text")
    items.inputs["decoder_input_ids"] = items.inputs["input_ids"].flip(0)
    probe = gm.ProbeSet.from_dataset(items, per_class=PER_CLASS)
    monitor = gm.GeometryMonitor(probe, markers=["mean_norm"], panel=None, on_error="raise")
    monitor.measure(model, step=0)
    with torch.no_grad(), gm.captured(model, "lm_head:input") as features:
        model(**{name: given[probe.indices] for name, given in items.inputs.items()})
    assert value(monitor, "mean_norm") == pytest.approx(float(features["lm_head_input"].norm(dim=1).mean()), rel=1e-4)


def test_weights_that_rwkv_divides_in_evaluation_mode_are_as_they_were() -> None:
    import transformers

    sizes = {"hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32, "context_length": 16}
    torch.manual_seed(0)
    model = transformers.RwkvForCausalLM(
        transformers.RwkvConfig(vocab_size=40, num_hidden_layers=5, rescale_every=2, **sizes)
    ).train()
    before, tokens = copy.deepcopy(model.state_dict()), torch.randint(0, 40, (ITEMS, 10))
    items = [({"input_ids": row}, number % zoo.CLASSES) for number, row in enumerate(tokens)]
    probe = gm.ProbeSet.from_dataset(items, per_class=PER_CLASS)
    monitor = gm.GeometryMonitor(probe, markers=["mean_norm"], batch_size=16, panel=None, on_error="raise")
    norms = []
    with pytest.warns(gm.GeomonitorWarning, match=r"put back rwkv\.layers_are_rescaled, rwkv\.blocks\.2\."):
        for step in range(2):
            norms += [r.value for r in monitor.measure(model, step=step) if r.marker == "mean_norm"]
            assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert norms[0] == norms[1]


@pytest.mark.parametrize("name", zoo.OTHERS)
def test_a_model_without_logits_of_the_classes(name: str) -> None:
    make, kind, expected = zoo.OTHERS[name]
    torch.manual_seed(0)
    found, monitor = measured(make().eval(), kind)
    assert found == expected
    assert math.isfinite(value(monitor, "mean_norm"))
    assert math.isnan(value(monitor, "accuracy"))


def test_two_towers_are_a_question() -> None:
    import transformers as hf

    with pytest.raises(gm.InputError, match=r"several outputs.*text_embeds.*image_embeds"):
        measured(hf.CLIPModel(zoo.clip()), "pairs")


@pytest.mark.parametrize(("layers", "field"), [("pooled", "pooler_output"), ("output", "last_hidden_state")])
def test_pooled_and_output_of_an_encoder(layers: str, field: str) -> None:
    import transformers as hf

    for make in (
        lambda: hf.BertModel(hf.BertConfig(**zoo.TEXT)),
        lambda: hf.Dinov2Model(hf.Dinov2Config(**zoo.VISION)),
    ):
        model = make().eval()
        inputs = zoo.inputs("text" if "Bert" in type(model).__name__ else "image", 5)
        with gm.captured(model, layers, pool="first") as features:
            output = model(**inputs)
        expected = output[field] if layers == "pooled" else output[field][:, 0]
        torch.testing.assert_close(features[layers], expected)


def test_keras() -> None:
    import keras

    from geomonitor_integrations._keras_layers import KerasLayers

    model = keras.Sequential([keras.Input((8,)), keras.layers.Dense(16, "relu", name="body"),
                              keras.layers.Dense(4, name="scores"), keras.layers.Softmax()])  # fmt: skip
    data = torch.utils.data.TensorDataset(torch.randn(40, 8), torch.arange(40) % 4)
    probe = gm.ProbeSet.from_dataset(data, per_class=8)
    monitor = gm.GeometryMonitor(probe, markers=["mean_norm", "accuracy"], panel=None, on_error="raise")
    monitor.measure(KerasLayers(model), step=0)
    assert monitor.protocol["resolved"] == {"penultimate": "scores:input"}


def test_sentence_transformers() -> None:
    import transformers as hf
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling

    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.auto_model = hf.BertModel(hf.BertConfig(**zoo.TEXT))

        def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
            keys = ("input_ids", "attention_mask")
            tokens = self.auto_model(**{key: features[key] for key in keys}).last_hidden_state
            return {**features, "token_embeddings": tokens}

    model = SentenceTransformer(modules=[Words(), Pooling(32)], device="cpu")
    found, monitor = measured(model, "text", forward=lambda model, inputs: model(dict(inputs))["sentence_embedding"])
    assert found == ":output"
    assert math.isfinite(value(monitor, "mean_norm"))


@pytest.mark.parametrize("half", [False, True])
def test_tokens_of_a_classifier_of_tokens(half: bool) -> None:
    import transformers as hf

    torch.manual_seed(0)
    model = hf.BertForTokenClassification(hf.BertConfig(**zoo.TEXT, **zoo.LABELS)).eval()
    inputs = zoo.inputs("text", ITEMS)
    labels = torch.where(inputs["attention_mask"].bool(), inputs["input_ids"] % zoo.CLASSES, -100)
    items = [{**{name: value[i] for name, value in inputs.items()}, "labels": labels[i]} for i in range(ITEMS)]
    probe = gm.TokenProbe.from_dataset(items, per_class=20)
    monitor = gm.GeometryMonitor(probe, markers=["mean_norm", "accuracy", "nc3"], panel=None, on_error="raise")
    monitor.measure(model.bfloat16() if half else model, step=0)
    assert monitor.protocol["resolved"] == {"penultimate": "classifier:input"}
    with torch.no_grad():
        predicted = model.float()(**inputs).logits.argmax(dim=2)[probe.indices, probe.places]
    assert value(monitor, "accuracy") == pytest.approx(float((predicted == probe.labels).double().mean()), abs=0.02)
    assert math.isfinite(value(monitor, "nc3"))


@pytest.mark.parametrize("side", ["text", "left"])
def test_next_tokens_of_a_language_model(side: str) -> None:
    import transformers as hf

    torch.manual_seed(0)
    model = hf.GPT2LMHeadModel(zoo.gpt2()).eval()
    inputs = zoo.inputs(side, 200)
    items = [{name: value[i] for name, value in inputs.items()} for i in range(200)]
    probe = gm.TokenProbe.from_next_tokens(items, classes=4, per_class=10, special_tokens=[0, 1])
    layers = {"penultimate": "penultimate", **{f"block {n}": f"transformer.h.{n}" for n in range(2)}}
    monitor = gm.GeometryMonitor(
        probe, layers=layers, markers=["mean_norm", "accuracy", "mean_cosine", "token_entropy"], panel=None,
        on_error="raise",
    )  # fmt: skip
    monitor.measure(model, step=0)
    assert monitor.protocol["resolved"] == {"penultimate": "lm_head:input"}
    with torch.no_grad():
        out = model(**inputs, output_hidden_states=True)
    start = inputs["attention_mask"].int().argmax(dim=1)[probe.indices]
    rows = (probe.indices, start + probe.places)
    assert torch.equal(inputs["input_ids"][rows[0], rows[1] + 1], probe.labels)
    predicted = out.logits.argmax(dim=2)[rows]
    assert value(monitor, "accuracy") == pytest.approx(float((predicted == probe.labels).double().mean()))
    norm = monitor.history.series("block 0", "mean_norm").values[-1]
    assert norm == pytest.approx(float(out.hidden_states[1][rows].norm(dim=1).mean()), rel=1e-4)
    assert all(math.isfinite(monitor.history.series(layer, "token_entropy").values[-1]) for layer in layers)


def of_the_head(model: nn.Module, points: Tensor, labels: Tensor) -> dict[str, float]:
    names = ("nc3", "nc4", "coherence")
    probe = gm.ProbeSet.from_dataset(torch.utils.data.TensorDataset(points, labels), per_class=PER_CLASS)
    monitor = gm.GeometryMonitor(probe, markers=names, panel=None, on_error="raise")
    return {r.marker: r.value for r in monitor.measure(model, step=0) if r.marker in names}


@pytest.mark.parametrize("kind", ["Conv1D", "peft", "keras"])
def test_a_head_of_a_library_is_measured_as_an_nn_linear(kind: str) -> None:
    torch.manual_seed(0)
    points, labels = torch.randn(ITEMS, 6), torch.arange(ITEMS) % zoo.CLASSES
    same = nn.Linear(12, zoo.CLASSES)
    body = nn.Sequential(nn.Linear(6, 12), nn.ReLU())
    model: nn.Module = nn.Sequential(*body, same)
    if kind == "Conv1D":
        from transformers.pytorch_utils import Conv1D

        model = nn.Sequential(body, Conv1D(zoo.CLASSES, 12))
        weight, bias = model[1].weight.T, model[1].bias
    elif kind == "peft":
        model = zoo.lora(model, "2", [])
        head = model.base_model.model[2]
        weight = head.base_layer.weight + head.get_delta_weight("default")
        bias = head.base_layer.bias
    else:
        import keras

        from geomonitor_integrations._keras_layers import KerasLayers

        made = keras.Sequential([keras.layers.Input((6,)), keras.layers.Dense(12, "relu"), keras.layers.Dense(4)])
        made.layers[0].set_weights([body[0].weight.detach().numpy().T, body[0].bias.detach().numpy()])
        made.layers[1].enable_lora(2)
        made.layers[1].lora_kernel_b.assign(torch.randn(2, 4))
        model, weight, bias = KerasLayers(made), made.layers[1].kernel.T, made.layers[1].bias.value + 0.0
    found = of_the_head(model, points, labels)
    plain = nn.Sequential(body, nn.Linear(12, zoo.CLASSES))
    with torch.no_grad():
        plain[1].weight.copy_(weight), plain[1].bias.copy_(bias)
    assert found == pytest.approx(of_the_head(plain, points, labels), abs=1e-6)
