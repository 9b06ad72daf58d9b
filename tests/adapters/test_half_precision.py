"""Merging into half precision reports its loss, and single precision loses nothing."""

import re
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file

from rmtjax.adapters import (
    AdaptedLinear,
    AlphaParam,
    TrainedParam,
    merge_weights,
    merged_copy,
    save_peft,
)
from rmtjax.models import save_model
from tests.adapters.helpers import with_adapters, with_peft
from tests.models.helpers import batch, classifier, logits, refused, relative

SIZE = 128
KINDS = ["lora", "rslora", "dora", "orthogonal", "spectral-additive", "spectral-rotational", "full", "alpha"]


class Net(nnx.Module):
    def __init__(self, storage, layer=nnx.Linear, **options):
        self.fc = layer(SIZE, SIZE, param_dtype=storage, rngs=nnx.Rngs(0), **options)
        self.last = nnx.Linear(SIZE, SIZE, param_dtype=storage, rngs=nnx.Rngs(1))

    def __call__(self, x):
        return self.fc(x)


class Own(nnx.Linear):
    def __call__(self, x):
        return super().__call__(x)


def effect(model) -> float:
    """Return the relative change of W by an adapter."""
    return relative(model.fc._wide_kernel(), model.fc.base.kernel[...].astype(jnp.float32))


def small(kind, storage, **options):
    """An adapter whose effect is about 1e-3 of W."""
    if kind == "alpha":
        model = with_adapters(Net(storage, **options), target_modules=["fc"], rank=4, alpha=True)
        model.fc.alpha[...] = jnp.full(SIZE, 1.001)
    elif kind == "full":
        model = with_adapters(Net(storage, **options), "full", target_modules=["fc"], alpha=True)
        model.fc.update.delta[...] = 1e-3 / SIZE**0.5 * jax.random.normal(jax.random.key(1), (SIZE, SIZE))
    else:
        model = with_adapters(
            Net(storage, **options),
            kind,
            target_modules=["fc"],
            rank=4,
            lora_alpha=0.02 if kind == "orthogonal" else None,
        )
        for name in ("B", "AU", "AV", "QU", "QV") if kind != "orthogonal" else ():
            if hasattr(model.fc.update, name):
                variable = getattr(model.fc.update, name)
                size = {"B": 3e-3, "AU": 3e-4, "AV": 3e-4, "QU": 6e-3, "QV": 6e-3}[name]
                variable[...] = size * jax.random.normal(jax.random.key(2), variable.shape)
    assert 1e-4 < effect(model) < 1e-2
    return model


def share_lost(model, plain, x) -> float:
    """The share of what the adapter does to the outputs that a merged model lacks."""
    wanted, base = model(x).astype(jnp.float32), model.fc.base(x).astype(jnp.float32)
    return float(jnp.linalg.norm(plain(x) - wanted) / jnp.linalg.norm(wanted - base))


X = jax.random.normal(jax.random.key(3), (64, SIZE))


@pytest.mark.first(1)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("layer", [nnx.Linear, Own])
@pytest.mark.parametrize("kind", KINDS)
def test_merging_says_what_it_loses(kind, layer, dtype):
    """The share in the message is that of the outputs within a quarter; float32 loses nothing and says nothing."""
    model = small(kind, jnp.dtype(dtype), layer=layer)
    with pytest.warns(
        UserWarning, match=rf"merged_copy: rounding to {dtype} loses \d+% .*in fc;.*dtype=jnp.float32"
    ) as said:
        plain = merged_copy(model)
    assert len(said) == 1 and plain.fc.kernel.dtype == dtype
    told = int(re.search(r"loses (\d+)%", str(said[0].message))[1]) / 100
    assert told == pytest.approx(share_lost(model, plain, X), rel=0.25, abs=0.01) and told > 0.02
    with pytest.warns(UserWarning, match=rf"merge_weights: rounding to {dtype} loses {told:.0%}"):
        merge_weights(model)
    np.testing.assert_array_equal(model(X), plain(X))
    model.fc.unmerge_weights()
    for call in (model.fc.merge_weights, model.fc.plain):
        with pytest.warns(UserWarning, match=rf"rounding to {dtype} loses {told:.0%}"):
            call()
    model.fc.unmerge_weights()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wide = merged_copy(model, dtype=jnp.float32)
        assert wide.fc.kernel.dtype == wide.fc.param_dtype == jnp.float32 and wide.last.kernel.dtype == dtype
        assert model.fc.plain(jnp.float32).kernel.dtype == jnp.float32
    # Computed in single precision, whose own rounding is up to 3e-3 of an effect of 1e-4.
    assert share_lost(model, wide, X) < 5e-3


def test_nothing_is_said_where_nothing_is_lost():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for model in (small("lora", jnp.float32), with_adapters(Net(jnp.bfloat16), target_modules=["fc"], rank=2)):
            merge_weights(model)
            merged_copy(model)
            merged_copy(model, dtype="float32")
        strong = with_adapters(Net(jnp.float16), target_modules=["fc"], rank=2)
        strong.fc.update.B[...] = jnp.ones_like(strong.fc.update.B[...])
        merged_copy(strong)
        # Within a compiled function there are no numbers to tell of.
        graph, state = nnx.split(small("lora", jnp.bfloat16))
        jax.jit(lambda state: merged_copy(nnx.merge(graph, state))(X))(state)


def test_one_message_for_many_layers():
    model = with_adapters(Net(jnp.bfloat16), target_modules=["fc", "last"], rank=2, alpha=True)
    for layer, alpha in ((model.fc, 1.001), (model.last, 1.004)):
        layer.alpha = AlphaParam(jnp.full(SIZE, alpha))
    with pytest.warns(UserWarning, match=r"in fc \(2 layers lose more than 1%\)") as said:
        merged_copy(model)
    assert len(said) == 1


def test_merging_in_place_counts_the_precision_of_computing():
    """A kernel in single precision that is computed with in half of it: beside the kernel the adapter works, merged not."""
    model = small("lora", jnp.float32, dtype=jnp.bfloat16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert merged_copy(model).fc.kernel.dtype == jnp.float32
    with pytest.warns(UserWarning, match="merge_weights: rounding to bfloat16 loses"):
        merge_weights(model)


def test_what_is_too_large_is_refused():
    model = with_adapters(Net(jnp.float16), target_modules=["fc"], rank=2, alpha=True)
    model.fc.alpha = AlphaParam(jnp.full(SIZE, 1e7))
    for call in (lambda: merged_copy(model), lambda: merge_weights(model), model.fc.merge_weights):
        with refused("not finite in float16"):
            call()
    assert not model.fc.is_merged and bool(jnp.isfinite(merged_copy(model, dtype="bfloat16").fc.kernel[...]).all())


@pytest.mark.parametrize("dtype", ["int8", "floaty", jnp.complex64, 3])
def test_dtypes_that_are_none_are_refused(dtype):
    with refused("dtype = ", "float32"):
        merged_copy(small("lora", jnp.float32), dtype=dtype)


def test_full_fine_tuning_beside_a_half_precision_kernel_keeps_small_steps():
    """Δ is added in single precision: in that of the kernel a step of 1e-3 of W would do nothing."""
    model = small("full", jnp.bfloat16)
    w, delta = model.fc.base.kernel[...].astype(jnp.float32), model.fc.update.delta[...]
    np.testing.assert_allclose(model(X) - model.fc.base(X), X @ delta, atol=2e-4)
    assert relative(model.fc._wide_kernel() - w, delta) < 1e-3


def test_files_are_in_single_precision(tmp_path):
    """α merged into the base of an adapter for PEFT, and a merged model: nothing of it is rounded."""
    model = with_adapters(
        classifier(num_hidden_layers=1, options={"dtype": jnp.bfloat16}), rank=2, alpha=True, train=["classifier"]
    )
    for layer in (model.bert.encoder.layer[0].attention.self.query, model.bert.encoder.layer[0].attention.self.value):
        assert isinstance(layer, AdaptedLinear)
        layer.alpha[...] = jnp.full(16, 1.001)
        layer.update.B[...] = 1e-3 * jnp.ones_like(layer.update.B[...])
    wanted = np.asarray(layer.kernel()).T
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_model(merged_copy(model), tmp_path / "model")
        save_peft(model, tmp_path / "adapter", save_base=save_model)
    name = "bert.encoder.layer.0.attention.self.value.weight"
    file = load_file(tmp_path / "model" / "model.safetensors")
    assert {t.dtype for t in file.values()} == {np.dtype("float32")}
    np.testing.assert_array_equal(file[name], wanted)
    base = load_file(tmp_path / "adapter" / "base" / "model.safetensors")[name]
    np.testing.assert_allclose(base, 1.001 * np.asarray(layer.base.kernel[...]).T, rtol=1e-6)

    half = with_adapters(classifier(num_hidden_layers=1), rank=2, alpha=True)
    for layer in (half.bert.encoder.layer[0].attention.self.query, half.bert.encoder.layer[0].attention.self.value):
        layer.base.kernel = nnx.Param(layer.base.kernel[...].astype(jnp.bfloat16))
        layer.alpha[...] = jnp.full(16, 1.001)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_peft(half, tmp_path / "half", save_base=save_model)
    base = load_file(tmp_path / "half" / "base" / "model.safetensors")[name]
    np.testing.assert_allclose(base, 1.001 * np.asarray(layer.base.kernel[...], np.float32).T, rtol=1e-6)


def test_a_head_from_a_file_is_in_single_precision(tmp_path):
    model = with_adapters(classifier(num_hidden_layers=1), rank=2, train=["classifier"])
    save_peft(model, tmp_path)
    again = with_peft(classifier(num_hidden_layers=1), tmp_path)
    assert isinstance(again.classifier.kernel, TrainedParam) and again.classifier.kernel.dtype == jnp.float32
    np.testing.assert_array_equal(logits(again, *batch(model.config)), logits(model, *batch(model.config)))
