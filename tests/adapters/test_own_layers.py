"""Layers that do more than multiply by their kernel: every kind by every method, with α and without."""

import doctest
import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from flax.nnx.nn.dtypes import promote_dtype
from jax.sharding import AxisType, PartitionSpec

from rmtjax.adapters import (
    TRAINABLE,
    AdaptedLinear,
    AdapterParam,
    AlphaParam,
    apply_adapters,
    count_parameters,
    merge_weights,
    merged_copy,
    project_spectral_norm,
    save_peft,
    unmerge_weights,
)
from rmtjax.adapters.layers import adapted_layers
from rmtjax.adapters.methods import METHODS
from rmtjax.intruders import intruder_limits
from tests.adapters.helpers import set_to, with_adapters
from tests.helpers import array
from tests.models.helpers import filled, refused, relative

METHODS_AND_FULL = [*METHODS, "full"]
RANK = 2


class Count(nnx.Variable):
    """Calls of a layer."""


class Scaled(nnx.Linear):
    def __call__(self, x):
        return 3 * super().__call__(x)


class Clipped(nnx.Linear):
    def __call__(self, x):
        return super().__call__(jnp.clip(x, -0.1, 0.1))


class ScaledGeneral(nnx.LinearGeneral):
    def __call__(self, x):
        return 3 * super().__call__(x)


class SelfMade(nnx.Linear):
    """Multiplies by its kernel itself."""

    def __call__(self, x):
        return jnp.tanh(x @ self.kernel[...]) + self.bias[...]


class Remembering(nnx.Linear):
    """Counts its calls, draws, and sows what it gives."""

    def __init__(self, *args, rngs, **options):
        super().__init__(*args, rngs=rngs, **options)
        self.count = Count(jnp.zeros((), jnp.int32))
        self.drop = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        self.count[...] += 1
        y = super().__call__(x)
        with warnings.catch_warnings():  # Flax is about to do it otherwise
            warnings.simplefilter("ignore", DeprecationWarning)
            self.sow(nnx.Intermediate, "outputs", y)
        return y + 0.1 * self.drop(jnp.ones_like(y))


class Asked(nnx.Linear):
    """Takes arguments of its own."""

    def __call__(self, x, factor=1.0, *, other=None):
        return factor * super().__call__(x) if other is None else x @ other


class Spoilt(nnx.Linear):
    """Writes into its own kernel."""

    def __call__(self, x):
        self.kernel[...] = 2 * self.kernel[...]
        return super().__call__(x)


class Quantised:
    """A `dot_general` with a state, built for each call."""

    def __call__(self, lhs, rhs, dimension_numbers, precision=None, **options):
        return 2 * jax.lax.dot_general(lhs, rhs, dimension_numbers, precision=precision, **options)


def lora(**options) -> nnx.LoRALinear:
    return filled(lambda rngs: nnx.LoRALinear(6, 4, lora_rank=2, rngs=rngs, **options))


def linear(kind=nnx.Linear, **options):
    return lambda **more: filled(lambda rngs: kind(6, 4, rngs=rngs, **options, **more))


def general(kind=nnx.LinearGeneral, inputs=(3, 2), outputs=(2, 2), **options):
    axis = tuple(range(-len(inputs), 0))
    return lambda **more: filled(lambda rngs: kind(inputs, outputs, axis=axis, rngs=rngs, **options, **more))


def own_promotion(arrays, dtype=None, inexact=True):
    """Halves the inputs."""
    x, *rest = promote_dtype(arrays, dtype=dtype, inexact=inexact)
    return (0.5 * x, *rest)


KINDS = {
    "plain": linear(),
    "without a bias": linear(use_bias=False),
    "general": general(),
    "subclass": linear(Scaled),
    "nonlinear inputs": linear(Clipped),
    "general subclass": general(ScaledGeneral),
    "nnx.LoRALinear": lora,
    "dot_general": linear(dot_general=lambda *a, **k: 2 * jax.lax.dot_general(*a, **k)),
    "general dot_general": general(dot_general=lambda *a, **k: 2 * jax.lax.dot_general(*a, **k)),
    "dot_general_cls": general(dot_general_cls=Quantised),
    "precision": linear(precision=jax.lax.Precision.HIGHEST),
    "promote_dtype": linear(promote_dtype=own_promotion),
    "preferred_element_type": linear(preferred_element_type=jnp.float32),
    "by hand": linear(SelfMade),
}
SPLIT = [name for name in KINDS if name != "by hand"]
"""Those that multiply through nnx, where half precision does not touch the update."""


class Net(nnx.Module):
    def __init__(self, layer):
        self.fc = layer

    def __call__(self, x, *args, **options):
        return self.fc(x, *args, **options)


def inputs_of(layer, seed: int = 5) -> jax.Array:
    shape = layer.in_features if isinstance(layer, nnx.LinearGeneral) else (layer.in_features,)
    return array(np.random.default_rng(seed).normal(size=(3, 5, *shape)))


called = nnx.jit(lambda model, x: model(x))


def moved(model, by: float = 0.3, seed: int = 0):
    rng = np.random.default_rng(seed)
    for _, v in nnx.to_flat_state(nnx.state(model, nnx.Any(TRAINABLE, AlphaParam))):
        set_to(v, np.asarray(v[...]) + by * rng.normal(size=v.shape))
    return model


def with_kernel(make, kernel) -> nnx.Module:
    """The plain layer with another matrix for its kernel."""
    layer = make()
    set_to(layer.kernel, np.asarray(kernel).reshape(layer.kernel.shape))
    return layer


def of(kind, method, alpha, by=0.3):
    make = KINDS[kind]
    options = {} if method == "full" and not alpha else {"target_modules": ["fc"]}
    model = with_adapters(Net(make()), method, rank=RANK, alpha=alpha, **options)
    return make, moved(model, by) if by else model


def by_kind_and_method(function):
    """Every kind by every method, with α and without; `full` trains a layer's own Δ with α alone."""
    for name, values in (("alpha", [False, True]), ("method", METHODS_AND_FULL), ("kind", list(KINDS))):
        function = pytest.mark.parametrize(name, values)(function)
    return function


def skip_unmarkable(kind, method, alpha):
    """Full fine-tuning refuses types of parameters that it cannot mark, and without α has no adapted layer."""
    if method == "full" and kind == "nnx.LoRALinear":
        with refused("lora.lora_a", "LoRAParam", "nnx.Param"):
            apply_adapters(Net(lora()), "full", alpha=alpha, **({"target_modules": ["fc"]} if alpha else {}))
        return True
    return method == "full" and not alpha


@pytest.mark.first(1)
@by_kind_and_method
def test_start_is_the_layer_itself(kind, method, alpha):
    if skip_unmarkable(kind, method, alpha):
        return
    make, model = of(kind, method, alpha, by=0)
    layer = make()
    x = inputs_of(layer)
    if method == "orthogonal":  # which begins with an update
        layer = with_kernel(make, model.fc.kernel())
    assert relative(called(model, x), called(layer, x)) < 1e-5


@pytest.mark.each_value
@by_kind_and_method
def test_the_layer_with_another_kernel(kind, method, alpha):
    """Adapted, merged in place and merged away: what the layer itself makes of diag(α) W + ΔW."""
    if skip_unmarkable(kind, method, alpha):
        return
    make, model = of(kind, method, alpha)
    x, base = inputs_of(make()), model.fc.base
    for run in (ways, compiled_ways) if method == "lora" else (compiled_ways,):
        kernel, outputs, merged, whole, after = map(np.asarray, run(model, x))
        assert relative(kernel.reshape(-1), np.asarray(make().kernel[...]).reshape(-1)) > 0.05
        plain = with_kernel(make, kernel)
        if method == "full" and base.bias is not None:
            plain.bias[...] = base.bias[...]
        wanted = called(plain, x)
        for got in (outputs, merged, whole):
            np.testing.assert_allclose(got, wanted, atol=2e-5, rtol=2e-5)
        np.testing.assert_array_equal(after, outputs)


def ways(model, x):
    """The kernel; and outputs of the model, merged in place, merged away, and unmerged again."""
    merged, whole = nnx.clone(model), merged_copy(model)
    assert type(whole.fc) is type(model.fc.base)
    merge_weights(merged)
    in_place = merged(x)
    unmerge_weights(merged)
    return model.fc.kernel(), model(x), in_place, whole(x), merged(x)


compiled_ways = nnx.jit(ways)


@pytest.mark.each_value
@by_kind_and_method
def test_gradients(kind, method, alpha):
    """Of what trains and of the inputs, against those by way of the whole kernel."""
    if skip_unmarkable(kind, method, alpha) or method == "full":
        return
    make, model = of(kind, method, alpha)
    x = inputs_of(make())
    graph, own, rest = nnx.split(model, nnx.Any(TRAINABLE, AlphaParam), ...)
    outputs = jax.eval_shape(model, x).shape
    g = np.random.default_rng(1).normal(size=outputs).astype(np.float32)

    def adapted(trained, x):
        return jnp.sum(nnx.merge(graph, trained, rest)(x) * g)

    def plainly(trained, x):
        layer = make()
        layer.kernel[...] = nnx.merge(graph, trained, rest).fc.kernel().reshape(layer.kernel.shape)
        return jnp.sum(layer(x) * g)

    got, wanted = jax.jit(lambda *at: [jax.grad(f, (0, 1))(*at) for f in (adapted, plainly)])(own, x)
    for mine, theirs in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        assert relative(mine, theirs) < 1e-4 and np.any(np.asarray(theirs) != 0)


@pytest.mark.first(1)
@pytest.mark.parametrize("storage", ["bfloat16", "float32"])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", SPLIT)
def test_half_precision_does_not_round_the_update_away(kind, method, storage):
    """An update of 1e-3 of W, computed in bfloat16 from a kernel of either type: its effect is there within 5 %."""
    make = functools.partial(KINDS[kind], dtype=jnp.bfloat16, param_dtype=jnp.dtype(storage))
    model = with_adapters(Net(make()), method, target_modules=["fc"], rank=RANK)
    layer = model.fc
    base = make()
    kernel = np.array(base.kernel[...]).reshape(6, 4)
    kernel[1] = kernel[0]
    for one in (base, layer.base):  # two rows of the kernel alike, so that these inputs give W nothing to round
        set_to(one.kernel, kernel.reshape(one.kernel.shape))
        if one.bias is not None:
            set_to(one.bias, np.zeros(one.bias.shape))
    if method == "orthogonal":
        layer.update.scale = 1e-3
    else:
        moved(model, 1e-3)
    a, b = map(np.asarray, nnx.jit(lambda update: update.factors())(layer.update))
    if method == "dora":
        set_to(layer.update.magnitude, np.linalg.norm(kernel.astype(np.float32) + a @ b, axis=0))
    x = np.array([[0.09, -0.09, 0, 0, 0, 0]], jnp.bfloat16)
    effect = x.astype(np.float32) @ (a @ b)
    x = jax.device_put(x.reshape(1, *(base.in_features if isinstance(base, nnx.LinearGeneral) else (6,))))
    wanted = effect.reshape(-1) * {"subclass": 3, "general subclass": 3, "dot_general": 2, "general dot_general": 2,
                                   "dot_general_cls": 2, "promote_dtype": 0.5}.get(kind, 1)  # fmt: skip
    after, before = model(x), base(x)
    got = np.asarray(after, np.float32).reshape(-1) - np.asarray(before, np.float32).reshape(-1)
    wide = kind in ("preferred_element_type", "nnx.LoRALinear")  # whose own update is in single precision
    assert after.dtype == before.dtype == (jnp.float32 if wide else jnp.bfloat16)
    assert 0 < np.abs(wanted).max() < 0.05 and relative(got, wanted) < 0.05


def test_a_layer_that_multiplies_by_hand_in_half_precision_says_that_it_rounds():
    model = with_adapters(Net(linear(SelfMade, param_dtype=jnp.bfloat16)()), target_modules=["fc"], rank=RANK)
    with pytest.warns(UserWarning, match="SelfMade multiplies by its kernel itself"):
        model(np.ones((1, 6), jnp.bfloat16))
    model = with_adapters(Net(linear(SelfMade)()), target_modules=["fc"], rank=RANK)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(np.ones((1, 6), np.float32))


def test_further_arguments():
    """They reach the layer, by place and by name."""
    make = linear(Asked)
    model = moved(with_adapters(Net(make()), target_modules=["fc"], rank=RANK, alpha=True))
    x, plain = inputs_of(make()), with_kernel(make, model.fc.kernel())
    wanted = np.asarray(called(plain, x))
    np.testing.assert_allclose(model(x, 2.0), 2 * wanted, atol=1e-5)
    np.testing.assert_allclose(model(x, factor=3.0), 3 * wanted, atol=1e-5)
    np.testing.assert_array_equal(model(x, other=array(np.eye(6))), x)
    with pytest.raises(TypeError, match="unknown"):
        model(x, unknown=1)
    with pytest.raises(TypeError):
        with_adapters(Net(linear()()), target_modules=["fc"], rank=RANK)(x, 1, 2, 3)


def test_a_layers_state_is_its_own():
    """A layer that counts, draws and sows when called keeps its own state, as if it were called alone; compiled, too."""

    def make():
        return Remembering(6, 4, rngs=nnx.Rngs(0))

    plain, model = Net(make()), with_adapters(Net(make()), target_modules=["fc"], rank=RANK)
    x = inputs_of(make())
    for call in (lambda m: m(x), nnx.jit(lambda m: m(x))):
        np.testing.assert_allclose(call(model), call(plain), atol=1e-6)
    base = model.fc.base
    assert int(base.count[...]) == int(plain.fc.count[...]) == 2
    sown = base.outputs.get_value(), plain.fc.outputs.get_value()
    assert len(sown[0]) == len(sown[1]) == 2
    np.testing.assert_allclose(sown[0][1], sown[1][1], atol=1e-6)
    assert type(base.kernel) is nnx.Param and base.dot_general is plain.fc.dot_general
    assert vars(base).keys() == vars(plain.fc).keys()
    assert base.promote_dtype is plain.fc.promote_dtype


def test_a_layer_that_changes_its_kernel_is_refused():
    model = with_adapters(Net(linear(Spoilt)()), target_modules=["fc"], rank=RANK)
    with refused("Spoilt", "changes its kernel"):
        model(np.ones((1, 6), np.float32))


def test_attributes_of_the_layer():
    """Its sizes are asked by many models; its methods know of no adapter and are not to be had."""

    class Attending(nnx.Linear):
        def attend(self, x):
            return x @ self.kernel[...].T

    layer = with_adapters(Net(linear(Attending)()), target_modules=["fc"], rank=RANK).fc
    assert (layer.in_features, layer.out_features, layer.use_bias) == (6, 4, True)
    for name in ("attend", "nothing", "dot_general"):
        with pytest.raises(AttributeError, match=name):
            getattr(layer, name)


@pytest.mark.parametrize("kind", ["plain", "subclass", "by hand"])
def test_under_transformations(kind):
    """Within nnx.remat, jax.checkpoint and vmap."""

    class Block(nnx.Module):
        def __init__(self):
            self.fc = KINDS[kind]()

        @nnx.remat
        def __call__(self, x):
            return jnp.tanh(self.fc(x))

    model = moved(with_adapters(Block(), target_modules=["fc"], rank=RANK, alpha=True))
    plain = with_kernel(KINDS[kind], model.fc.kernel())
    x = inputs_of(plain)
    wanted = np.asarray(called(plain, x))
    np.testing.assert_allclose(model(x), np.tanh(wanted), atol=1e-5)
    np.testing.assert_allclose(jax.jit(jax.vmap(model.fc))(x), wanted, atol=1e-5)
    graph, own, rest = nnx.split(model, TRAINABLE, ...)

    @jax.jit
    def slopes(own):
        calls = (lambda layer, x: layer(x), lambda layer, x: jax.checkpoint(layer)(x))
        return [
            jax.grad(lambda trained, f=f: jnp.sum(f(nnx.merge(graph, trained, rest).fc, x) ** 2))(own) for f in calls
        ]

    for one, other in zip(*map(jax.tree.leaves, slopes(own)), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_limits_and_counts_of_own_layers():
    """The guard and the count read the same kernel."""
    for make in (linear(Scaled), general(ScaledGeneral), lora):
        model = with_adapters(Net(make()), target_modules=["fc"], rank=1)
        total = sum(v.size for v in jax.tree.leaves(nnx.state(make(), nnx.Param)))
        assert count_parameters(model) == (10, total + 10)
        limits = intruder_limits(model, top_k=2)
        assert set(limits) == {"fc"}
        project_spectral_norm(model, limits)


def test_example_in_the_docstrings():
    finder = doctest.DocTestFinder()
    for function in (apply_adapters, merged_copy, save_peft):
        (example,) = (t for t in finder.find(function, globs={}) if t.examples)
        assert len(example.examples) >= 4 and doctest.DocTestRunner().run(example).failed == 0


# -- what is refused, and what a pattern leaves out ---------------------------------------------------------------------


def stack(kind=nnx.Linear, outputs=6):
    def build(_):
        keys = jax.random.split(jax.random.key(0), 3)
        return nnx.vmap(lambda key: kind(6, outputs, rngs=nnx.Rngs(params=key)))(keys)

    return filled(build)


def general_stack():
    return stack(nnx.LinearGeneral, (2, 3))


def of_type(dtype):
    layer = linear()()
    layer.kernel = nnx.Param(array(layer.kernel[...], dtype))
    return layer


def transposed():
    layer = linear()()
    layer.kernel = nnx.Param(array(np.asarray(layer.kernel[...]).T))
    return layer


@pytest.mark.parametrize(
    ("make", "parts"),
    [
        (stack, ["is a stack of layers", "(3, 6, 6)", "(6, 6)"]),
        (general_stack, ["is a stack of layers", "(3, 6, 2, 3)", "(6, 2, 3)"]),
        (transposed, ["not a plain matrix product", "(4, 6)", "(6, 4)"]),
        (lambda: filled(lambda rngs: nnx.LinearGeneral(4, 5, axis=-2, rngs=rngs)), ["contracts axes other"]),
        (lambda: filled(lambda rngs: nnx.LinearGeneral((4, 5), 5, axis=(-1, -2), rngs=rngs)), ["contracts axes other"]),
        (lambda: filled(lambda rngs: nnx.LinearGeneral(4, 5, batch_axis={0: 2}, rngs=rngs)), ["batch axes"]),
        (lambda: of_type(jnp.int8), ["kernel of dtype int8", "bfloat16"]),
        (lambda: of_type(jnp.float8_e4m3fn), ["kernel of dtype float8_e4m3fn"]),
        (lambda: of_type(jnp.complex64), ["kernel of dtype complex64"]),
    ],
)
@pytest.mark.parametrize("method", ["lora", "dora", "full"])
def test_kernels_that_are_no_matrix_are_refused(make, parts, method):
    model = nnx.Dict(here=make())
    before = model.here
    with refused("target_modules: here", *parts):
        apply_adapters(model, method, target_modules=["here"], rank=2, alpha=method == "full")
    with refused("alpha_modules: here", *parts):
        apply_adapters(
            nnx.Dict(here=make(), other=linear()()),
            target_modules=["other"],
            rank=2,
            alpha=True,
            alpha_modules=["here"],
        )
    assert model.here is before


def test_a_layer_whose_weights_another_module_rescales_is_refused():
    for kind in (nnx.SpectralNorm, nnx.WeightNorm):
        model = nnx.Dict(norm=kind(linear()(), rngs=nnx.Rngs(0)))
        with refused("norm.layer_instance", kind.__name__):
            apply_adapters(model, target_modules=["layer_instance"], rank=2)


class Mixed(nnx.Module):
    def __init__(self, rngs):
        self.fc = nnx.Linear(4, 4, rngs=rngs)
        self.embed = nnx.Embed(3, 4, rngs=rngs)
        self.turn = nnx.Einsum("ab,bc->ac", (4, 4), rngs=rngs)
        self.conv = nnx.Conv(4, 4, (3,), rngs=rngs)
        self.norm = nnx.LayerNorm(4, rngs=rngs)


def test_a_pattern_that_takes_a_part_of_what_it_names_says_so():
    with pytest.warns(UserWarning, match=r"3 of the 4 modules.*left out.*conv.*Conv.*embed.*Embed.*turn.*Einsum"):
        assert set(adapted_layers(with_adapters(filled(Mixed), target_modules=".*", rank=2))) == {"fc"}
    with pytest.warns(UserWarning, match=r"alpha_modules.*turn \(of type Einsum\)"):
        apply_adapters(filled(Mixed), target_modules=["fc"], rank=2, alpha=True, alpha_modules=["fc", "turn"])
    with pytest.warns(UserWarning, match="target_modules: 'fd' matches no dense layer"):
        apply_adapters(filled(Mixed), target_modules=["fc", "fd"], rank=2)
    with pytest.warns(UserWarning, match="matches no weight outside the adapted layers"):
        apply_adapters(filled(Mixed), target_modules=["fc"], rank=2, train=["fc"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        apply_adapters(filled(Mixed), target_modules=["fc"], rank=2, train=["norm", "embed"])
    for name in ("embed", "turn", "conv"):
        with refused(f"target_modules = ['{name}']", "matches no dense layer", f"{name} (of type "):
            apply_adapters(filled(Mixed), target_modules=[name], rank=2)


def test_a_layer_goes_by_each_of_its_paths():
    """One that is held in two places is adapted by either name, and in both."""

    class Twice(nnx.Module):
        def __init__(self):
            self.layers = nnx.List([nnx.Linear(4, 4, rngs=nnx.Rngs(0))])
            self.again = self.layers[0]

    for target in (["layers.0"], ["again"], r"layers\..*"):
        model = with_adapters(Twice(), target_modules=target, rank=2)
        assert model.again is model.layers[0] and isinstance(model.again, AdaptedLinear)
    model = with_adapters(nnx.Dict(twice=Twice(), fc=linear()()), target_modules=["fc"], rank=2, train=["layers"])
    assert type(model.twice.again.kernel).__name__ == "TrainedParam"

    class Hidden(nnx.Module):
        def __init__(self):
            self.fc = nnx.Linear(4, 4, rngs=nnx.Rngs(0))
            self.copies = nnx.data((self.fc,))

    model = Hidden()
    with refused("copies.0", "to be replaced"):
        apply_adapters(model, target_modules=["fc"], rank=2)
    assert model.fc is model.copies[0]


# -- sharding ----------------------------------------------------------------------------------------------------------


def sharded(kind=nnx.Linear):
    init = nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out"))
    if issubclass(kind, nnx.LinearGeneral):
        init = nnx.initializers.lecun_normal()
        layer = kind(
            6, (2, 2), rngs=nnx.Rngs(0), kernel_init=init, kernel_metadata={"out_sharding": ("in", "out", None)}
        )
        return layer
    return kind(6, 4, kernel_init=init, rngs=nnx.Rngs(0))


EXPECTED = {
    "A": ("in", None), "B": (None, "out"), "magnitude": ("out",), "delta": ("in", "out"), "U": ("out", None),
    "V": ("in", None), "AU": ("out", None), "AV": ("in", None), "alpha": ("out",),
}  # fmt: skip


@pytest.mark.first(2)
@pytest.mark.parametrize("axis_type", [AxisType.Auto, AxisType.Explicit])
@pytest.mark.parametrize("kind", [nnx.Linear, Scaled, nnx.LinearGeneral])
@pytest.mark.parametrize("method", METHODS_AND_FULL)
def test_sharding_is_kept(method, kind, axis_type):
    """Metadata and placement of kernels stay, those of A, B, m, Δ and α follow; within the mesh's context and without."""
    mesh = jax.make_mesh((1, 1), ("in", "out"), axis_types=(axis_type,) * 2)
    with jax.set_mesh(mesh):
        model = Net(sharded(kind))
        wanted = model(jnp.ones((2, 6)))
    metadata = model.fc.kernel.get_metadata()
    if axis_type == AxisType.Auto:
        apply_adapters(model, method, target_modules=["fc"], rank=RANK, alpha=True)
    else:
        with jax.set_mesh(mesh):
            apply_adapters(model, method, target_modules=["fc"], rank=RANK, alpha=True)
    own = {path[-1]: v for path, v in nnx.to_flat_state(nnx.state(model, nnx.Variable))}
    specs = {path[-1]: v for path, v in nnx.to_flat_state(nnx.get_partition_spec(nnx.state(model, nnx.Variable)))}
    for name, variable in own.items():
        if name in EXPECTED:
            axes = EXPECTED[name]
            if method == "orthogonal" and name == "B":
                axes = ("out", None)
            assert specs[name].get_value() == PartitionSpec(*axes), name
            assert variable[...].sharding.spec == PartitionSpec(*axes), name
    assert own["kernel"].get_metadata() == metadata
    with jax.set_mesh(mesh):
        if method != "orthogonal":
            got = jax.jit(lambda state: nnx.merge(nnx.graphdef(model), state)(jnp.ones((2, 6))))(nnx.state(model))
            np.testing.assert_allclose(got, wanted, atol=1e-5)
        whole = merged_copy(model)
        assert whole.fc.kernel.get_metadata() == metadata and whole.fc.kernel[...].sharding.spec[0] == "in"
        merge_weights(model)
        assert model.fc.merged_kernel.get_metadata()["out_sharding"] == ("in", "out")
    trained = with_adapters(
        nnx.Dict(head=nnx.clone(whole.fc), fc=linear()()), target_modules=["fc"], rank=2, train=["head"]
    )
    assert trained.head.kernel.get_metadata() == metadata
    assert merged_copy(trained).head.kernel.get_metadata() == metadata


@pytest.mark.first(3)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("method", METHODS_AND_FULL)
def test_out_sharding_reaches_the_product(method, dtype):
    """If the contracted axis is split over a mesh with explicit axes, JAX needs the product's sharding."""
    mesh = jax.make_mesh((1, 1), ("in", "out"), axis_types=(AxisType.Explicit,) * 2)
    with jax.set_mesh(mesh):
        layer = nnx.Linear(
            6, 4, dtype=dtype, kernel_init=nnx.with_partitioning(nnx.initializers.lecun_normal(), ("in", "out")),
            rngs=nnx.Rngs(0),
        )  # fmt: skip
        x = jax.device_put(jnp.ones((2, 6), dtype), jax.NamedSharding(mesh, PartitionSpec(None, "in")))
        wanted = layer(x, out_sharding=PartitionSpec(None, "out"))
        model = with_adapters(Net(layer), method, target_modules=["fc"], rank=RANK, alpha=True)
        got = model(x, out_sharding=PartitionSpec(None, "out"))
        assert got.sharding.spec == wanted.sharding.spec == PartitionSpec(None, "out")
        if method != "orthogonal":
            np.testing.assert_allclose(np.asarray(got, float), np.asarray(wanted, float), atol=1e-5)


@pytest.mark.thorough
def test_precision_of_adapters_under_x64():
    """In double precision's scope the adapters are single precision as ever, and all methods compute."""
    with jax.enable_x64():
        for method in METHODS_AND_FULL:
            for make in (linear(), linear(Scaled), linear(param_dtype=jnp.float64)):
                model = with_adapters(Net(make()), method, target_modules=["fc"], rank=RANK, alpha=True)
                kinds = {v.dtype for _, v in nnx.to_flat_state(nnx.state(model, nnx.Any(AdapterParam, AlphaParam)))}
                assert kinds == {jnp.dtype("float32")}, method
                x = inputs_of(make()).astype(make().kernel.dtype)
                moved(model)
                assert relative(merged_copy(model)(x), model(x)) < 1e-5
        model = with_adapters(Net(linear(param_dtype=jnp.float64)()), target_modules=["fc"], rank=RANK)
        np.testing.assert_array_equal(merged_copy(model).fc.kernel[...], linear(param_dtype=jnp.float64)().kernel[...])
