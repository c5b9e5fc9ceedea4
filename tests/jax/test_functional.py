"""The functions, beside torch's (the same kernels: the same bits) and beside NumPy in float64."""

from functools import partial
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch

from tests.jax.devices import DTYPES, on_devices, plain, require_jax, torch_of
from tests.support import reference as ref

jax, moo_jax = require_jax()
jnp = jax.numpy
pytestmark = pytest.mark.device

METHODS: list[Any] = [
    *moo.available_methods(),
    moo.CAGrad(c=0.3, rescale=True),
    moo.MGDA(normalize="l2"),
    moo.Mean(weights=[0.5, 1.0, 2.0, 0.5, 1.0]),
    moo.UPGrad(preference=[0.1, 0.2, 0.3, 0.2, 0.2]),
    moo.DualProj(preference=[0.5] * 5),
    moo.PCGrad(permutation=[[4, 3, 2, 1, 0]] * 5),
    moo.Krum(n_byzantine=1, n_selected=2),
    moo.Rescaled("mgda"),
    moo.Smoothed("cagrad", alpha=0.5),
]
FLOAT32 = 2.0**-24


def rows_of(rng: np.random.Generator, k: int, n: int, dtype: str = "float32") -> Any:
    """To be rounded to a dtype of fewer digits; torch rounds from float64 to float16 twice, from float32 once."""
    rows = rng.standard_normal((k, n)) + 0.3
    return rows if dtype == "float64" else rows.astype(np.float32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("k", "n"), [(1, 1), (2, 7), (5, 1003), (64, 65), (3, 0)])
def test_a_gramian_is_torchs(rng: np.random.Generator, dtype: str, k: int, n: int) -> None:
    values = rows_of(rng, k, n, dtype)
    rows = torch_of(values, dtype)
    with jax.enable_x64(True):
        jacobian = jnp.asarray(values).astype(dtype)
        exact = moo_jax.gramian(jacobian)
        assert exact.dtype == np.float64
        assert (np.asarray(exact) == moo.gramian(rows).numpy()).all()
    error = ref.gramian_error(np.linalg.norm(plain(rows), axis=1), rows.dtype)
    assert (np.abs(np.asarray(exact) - ref.gramian(plain(rows))) <= error).all()
    if dtype != "float64":
        rounded = moo_jax.gramian(jnp.asarray(np.asarray(jacobian)))
        assert rounded.dtype == np.float32
        assert (np.asarray(rounded) == np.asarray(exact).astype(np.float32)).all()


def test_a_pytree_is_one_jacobian(rng: np.random.Generator) -> None:
    """Of leaves of any shapes, whose dtypes may differ."""
    shapes = {"w": (5, 30, 7), "b": (5,), "deep": {"s": (5, 1), "e": (5, 0, 3)}}
    tree = jax.tree.map(
        lambda shape: jnp.asarray(rng.standard_normal(shape), np.float32), shapes, is_leaf=lambda x: type(x) is tuple
    )
    tree["w"] = tree["w"].astype(jnp.bfloat16)
    flat = np.concatenate([plain(leaf).reshape(5, -1) for leaf in jax.tree.leaves(tree)], axis=1)
    assert np.allclose(moo_jax.gramian(tree), flat @ flat.T, rtol=1e-5, atol=1e-5)
    update = moo_jax.aggregate(tree, "mgda")
    assert jax.tree.structure(update) == jax.tree.structure(tree)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), update) == jax.tree.map(
        lambda leaf: (leaf.shape[1:], leaf.dtype), tree
    )
    w = ref.weights(flat, "mgda")
    assert np.allclose(update["deep"]["s"], w @ plain(tree["deep"]["s"]), atol=1e-5)
    assert np.allclose(plain(update["w"]), np.tensordot(w, plain(tree["w"]), 1), atol=2e-2)
    assert np.allclose(moo_jax.combine(tree, w)["b"], w @ plain(tree["b"]), atol=1e-5)


def test_what_vmap_of_grad_gives_is_a_jacobian(rng: np.random.Generator) -> None:
    xs = jnp.asarray(rng.standard_normal((3, 4)), np.float32)
    parameters = {"w": jnp.ones(4), "b": jnp.ones(())}
    gradients = jax.vmap(jax.grad(lambda p, x: (p["w"] @ x + p["b"]) ** 2), in_axes=(None, 0))(parameters, xs)
    update = moo_jax.aggregate(gradients, "mean")
    assert update["b"].shape == ()
    assert np.allclose(update["w"], np.asarray(gradients["w"]).mean(0), rtol=1e-6)


@pytest.mark.parametrize("method", METHODS, ids=str)
def test_weights_and_updates_are_torchs(rng: np.random.Generator, method: Any) -> None:
    rows = rows_of(rng, 5, 301)
    update = jax.jit(partial(moo_jax.aggregate, method=method, seed=3, step=2**35))(rows)
    assert update.dtype == np.float32
    assert (np.asarray(update) == moo.aggregate(torch.tensor(rows), method, seed=3, step=2**35).numpy()).all()
    gram = moo.gramian(torch.tensor(rows))
    expected, certificate = moo.weights(gram, method, return_certificate=True)
    with jax.enable_x64(True):
        got = moo_jax.weights(gram.numpy(), method, return_certificate=True)
        assert (np.asarray(got[0]) == expected.numpy()).all()
        assert float(got[1]) == float(certificate)
    rounded = moo_jax.weights(gram.numpy().astype(np.float32), method)
    of_rounded = moo.weights(gram.float(), method).numpy()
    assert (np.asarray(rounded) == of_rounded.astype(np.float32)).all()


@pytest.mark.parametrize("method", ["mgda", "cagrad"])
def test_updates_are_those_of_the_reference(rng: np.random.Generator, method: str) -> None:
    rows = rows_of(rng, 4, 999, "float64")
    expected = ref.combine(rows, ref.weights(rows, method))
    assert np.allclose(moo_jax.aggregate(rows.astype(np.float32), method), expected, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_combination_is_torchs(rng: np.random.Generator, dtype: str) -> None:
    values, w = rows_of(rng, 3, 1003, dtype), [0.25, 0.0, -3.1]
    values[1, 5] = np.nan  # of weight 0: not read
    rows = torch_of(values, dtype)
    with jax.enable_x64(True):
        jacobian = jnp.asarray(values).astype(dtype)
        assert jacobian.dtype == dtype
        for weights in (w, np.array(w), jnp.asarray(w), [jnp.float64(x) for x in w]):
            got = moo_jax.combine(jacobian, weights)
            assert got.dtype == jacobian.dtype
            assert (plain(got) == plain(moo.combine(rows, w))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_sketch_is_torchs(rng: np.random.Generator, dtype: str) -> None:
    values = rows_of(rng, 2, 1003, dtype)
    rows = torch_of(values, dtype)
    key = {"seed": 2**64 - 1, "step": 2**40 + 3, "bucket": 9}
    expected = moo.sketch(rows, 64, **key)
    with jax.enable_x64(True):
        jacobian = jnp.asarray(values).astype(dtype)
        assert (plain(moo_jax.sketch(jacobian, 64, **key)) == plain(expected)).all()
        traced = jax.jit(lambda rows, step: moo_jax.sketch(rows, 64, seed=key["seed"], step=step, bucket=9))
        assert (plain(traced(jacobian, jnp.int64(key["step"]))) == plain(expected)).all()
    assert np.allclose(plain(expected)[1], ref.sketch(plain(rows)[1], 64, *key.values()), rtol=1e-5, atol=1e-4)


def test_a_traced_step_is_the_same_key(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((6, 50)).astype(np.float32)
    compiled = jax.jit(lambda rows, step: moo_jax.aggregate(rows, "pcgrad", step=step))
    updates = [np.asarray(compiled(rows, step)) for step in range(4)]
    for step, update in enumerate(updates):
        assert (update == moo.aggregate(torch.tensor(rows), "pcgrad", step=step).numpy()).all()
    assert any((update != updates[0]).any() for update in updates)
    assert compiled._cache_size() == 1


@pytest.mark.parametrize("method", ["mgda", "pcgrad"])
def test_a_batch_is_torchs_and_vmap_is_a_loop(rng: np.random.Generator, method: str) -> None:
    rows = rng.standard_normal((7, 4, 30)).astype(np.float32)
    grams = np.asarray(jax.vmap(moo_jax.gramian)(rows))
    assert (grams == np.stack([moo_jax.gramian(one) for one in rows])).all()
    batch = moo.weights(torch.tensor(grams), method).numpy()
    assert (np.asarray(moo_jax.weights(grams, method)) == batch.astype(np.float32)).all()
    mapped = jax.jit(jax.vmap(lambda gram: moo_jax.weights(gram, method)))(grams)
    assert (np.asarray(mapped) == np.stack([moo_jax.weights(gram, method) for gram in grams])).all()
    updates = jax.vmap(partial(moo_jax.aggregate, method=method))(rows)
    assert (np.asarray(updates) == np.stack([moo_jax.aggregate(one, method) for one in rows])).all()
    assert moo_jax.weights(grams[:0], method).shape == (0, 4)
    nested = jax.vmap(jax.vmap(moo_jax.weights))(jnp.asarray(grams[:6]).reshape(2, 3, 4, 4))
    assert (np.asarray(nested).reshape(6, 4) == np.asarray(moo_jax.weights(grams[:6]))).all()


def test_vmap_over_one_of_two_arguments(rng: np.random.Generator) -> None:
    rows, many = rows_of(rng, 3, 20), rng.standard_normal((4, 3)).astype(np.float32)
    sums = jax.vmap(moo_jax.combine, in_axes=(None, 0))(rows, many)
    assert (np.asarray(sums) == np.stack([moo_jax.combine(rows, w) for w in many])).all()
    steps = jax.vmap(lambda step: moo_jax.sketch(rows, 64, step=step))(jnp.arange(3))
    assert (np.asarray(steps) == np.stack([moo_jax.sketch(rows, 64, step=step) for step in range(3)])).all()


def test_inside_shard_map_each_device_computes_for_itself(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((4, 3, 50)).astype(np.float32)
    updates = on_devices(lambda rows: moo_jax.aggregate(rows, "pcgrad", step=jax.lax.axis_index("x")), rows)
    assert (updates == np.stack([moo_jax.aggregate(rows[i], "pcgrad", step=i) for i in range(4)])).all()


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_arrays_are_gathered(rng: np.random.Generator, kind: str) -> None:
    """Outside shard_map, with the mesh's axes of either type."""
    rows = rng.standard_normal((4, 64)).astype(np.float32)
    expected = np.asarray(moo_jax.aggregate(rows))
    mesh = jax.make_mesh((4,), ("x",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    for spec in (("x", None), (None, "x"), ()):
        placed = jax.device_put(rows, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec)))
        assert (np.asarray(jax.jit(moo_jax.aggregate)(placed)) == expected).all()


def test_inside_loops_and_branches(rng: np.random.Generator) -> None:
    rows = rng.standard_normal((4, 30)).astype(np.float32)
    each = jax.jit(lambda rows: jax.lax.map(lambda step: moo_jax.aggregate(rows, "pcgrad", step=step), jnp.arange(3)))
    assert (np.asarray(each(rows)) == np.stack([moo_jax.aggregate(rows, "pcgrad", step=i) for i in range(3)])).all()
    either = jax.jit(lambda rows, conflict: jax.lax.cond(conflict, moo_jax.aggregate, lambda rows: rows.mean(0), rows))
    assert (np.asarray(either(rows, True)) == np.asarray(moo_jax.aggregate(rows))).all()


def test_what_is_not_finite_or_zero_is_as_in_torch() -> None:
    rows = np.array([[1.0, 2.0], [0.0, 0.0], [-1.0, 1.0]], np.float32)
    assert np.asarray(moo_jax.weights(moo_jax.gramian(rows)))[1] == 0.0
    rows[0, 0] = np.nan
    assert np.allclose(moo_jax.weights(moo_jax.gramian(rows)), 1 / 3)


def test_the_bits_of_a_layout_are_those_of_its_values(rng: np.random.Generator) -> None:
    """Transposed and sliced arrays are read as what they are."""
    wide = jnp.asarray(rng.standard_normal((40, 6)), np.float32)
    assert (np.asarray(moo_jax.gramian(wide.T)) == np.asarray(moo_jax.gramian(np.ascontiguousarray(wide.T)))).all()
    sliced = jax.jit(lambda x: moo_jax.gramian(x[::2].T))(wide)
    assert (np.asarray(sliced) == np.asarray(moo_jax.gramian(np.asarray(wide[::2].T)))).all()


GRAM = np.eye(2, dtype=np.float32)
ROWS = np.ones((2, 3), np.float32)


@pytest.mark.parametrize(
    ("call", "kind", "text"),
    [
        (lambda: moo_jax.gramian(np.ones(3, np.float32)), ValueError, r"must be \[K, n\].*got shape \(3,\)"),
        (lambda: moo_jax.gramian(np.ones((2, 3, 4), np.float32)), ValueError, r"got shape \(2, 3, 4\)"),
        (lambda: moo_jax.gramian([np.ones(3, np.float32)] * 2), ValueError, r"stack them: jnp.stack\(rows\)"),
        (lambda: moo_jax.gramian({}), ValueError, "one without arrays"),
        (lambda: moo_jax.gramian({"a": ROWS, "b": ROWS[:1]}), ValueError, r"of one K; got shapes .*\(1, 3\)"),
        (lambda: moo_jax.gramian(np.ones((65, 2), np.float32)), ValueError, "1 to 64 rows; got 65"),
        (lambda: moo_jax.gramian(np.ones((0, 2), np.float32)), ValueError, "1 to 64 rows; got 0"),
        (lambda: moo_jax.gramian(np.ones((2, 2), np.int32)), TypeError, "float32, bfloat16, .*; got int32"),
        (lambda: moo_jax.weights(ROWS), ValueError, r"\[K, K\] or \[B, K, K\]; got shape \(2, 3\)"),
        (lambda: moo_jax.weights(GRAM.astype(int)), TypeError, "must be floating point; got int"),
        (lambda: moo_jax.weights(np.zeros((0, 0), np.float32)), ValueError, "1 <= K <= 64; got K = 0"),
        (lambda: moo_jax.weights(GRAM, "mgad"), ValueError, "method='mgad' is unknown"),
        (lambda: moo_jax.weights(GRAM, 3), TypeError, "method must be a name"),
        (lambda: moo_jax.weights(GRAM, "cagrad", c=0.2), TypeError, r"method=moo.CAGrad\(c=0.2\)"),
        (lambda: moo_jax.weights(GRAM, moo.UPGrad(preference=[1, 2, 3])), ValueError, "3 weights.* 2 objectives"),
        (lambda: moo_jax.weights(GRAM, moo.UPGrad(preference={"a": 1, "b": 2})), ValueError, "names objectives"),
        (lambda: moo_jax.weights(GRAM, seed=-1), ValueError, r"seed must be an integer from 0 to 2\*\*64 - 1; got -1"),
        (lambda: moo_jax.weights(GRAM, step=2**64), ValueError, "step must be an integer"),
        (lambda: jax.jit(lambda s: moo_jax.weights(GRAM, step=s))(1.5), ValueError, "step must be .*; got float32"),
        (lambda: moo_jax.combine(ROWS, [1.0]), ValueError, r"weights must be \[2\], one a row; got shape \(1,\)"),
        (lambda: moo_jax.combine(ROWS, 3), TypeError, "weights must be K numbers; got int"),
        (lambda: moo_jax.combine(ROWS, np.ones(2, complex)), TypeError, "weights must be real numbers"),
        (lambda: moo_jax.sketch(ROWS, 100), ValueError, "power of two from 64"),
        (lambda: moo_jax.sketch(ROWS, 64.0), TypeError, "width must be an integer"),
        (lambda: moo_jax.sketch({"a": ROWS}, 64), ValueError, r"must be \[K, n\]"),
        (lambda: moo_jax.aggregate(ROWS, moo.Mean(weights=[1.0])), ValueError, "1 weights.* 2 objectives"),
    ],
)
def test_wrong_arguments_are_named(call: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        call()
