"""What has a derivative, and what says that it has none."""

from typing import Any

import numpy as np
import pytest

from tests.jax.devices import on_devices, require_jax

jax, moo_jax = require_jax()
jnp = jax.numpy


@pytest.fixture
def rows(rng: np.random.Generator) -> Any:
    return rng.standard_normal((3, 50)).astype(np.float32)


def _gramian(tree: Any) -> Any:
    return sum(leaf.reshape(len(leaf), -1) @ leaf.reshape(len(leaf), -1).T for leaf in jax.tree.leaves(tree))


def test_a_gramian_has_the_derivatives_of_its_products(rng: np.random.Generator, rows: Any) -> None:
    tree = {"a": jnp.asarray(rows).reshape(3, 5, 10), "b": jnp.asarray(rows[:, :4])}
    some = jnp.asarray(rng.standard_normal((3, 3)), np.float32)
    got = jax.jit(jax.grad(lambda tree: (some * moo_jax.gramian(tree)).sum()))(tree)
    expected = jax.grad(lambda tree: (some * _gramian(tree)).sum())(tree)
    assert all(np.allclose(got[name], expected[name], atol=1e-4) for name in tree)
    _, forward = jax.jvp(moo_jax.gramian, (tree,), (jax.tree.map(jnp.ones_like, tree),))
    assert np.allclose(forward, jax.jvp(_gramian, (tree,), (jax.tree.map(jnp.ones_like, tree),))[1], atol=1e-3)


def test_a_combination_is_differentiated_in_both(rows: Any) -> None:
    w = jnp.asarray([0.5, -1.0, 2.0])
    got = jax.grad(lambda rows, w: (moo_jax.combine(rows, w) ** 2).sum(), argnums=(0, 1))(jnp.asarray(rows), w)
    expected = jax.grad(lambda rows, w: ((w @ rows) ** 2).sum(), argnums=(0, 1))(jnp.asarray(rows), w)
    assert all(np.allclose(a, b, atol=1e-3) for a, b in zip(got, expected, strict=True))


def test_constant_weights_let_a_derivative_through(rows: Any) -> None:
    def loss(rows: Any) -> Any:
        weights = moo_jax.weights(jax.lax.stop_gradient(moo_jax.gramian(rows)), "cagrad")
        return moo_jax.combine(rows, weights).sum()

    gradient = jax.jit(jax.grad(loss))(jnp.asarray(rows))
    weights = moo_jax.weights(moo_jax.gramian(rows), "cagrad")
    assert np.allclose(gradient, np.broadcast_to(np.asarray(weights)[:, None], rows.shape))


@pytest.mark.parametrize(
    ("function", "name", "advice"),
    [
        (lambda rows: moo_jax.weights(moo_jax.gramian(rows)), "weights", r"weights\(jax.lax.stop_gradient\(gramian\)"),
        (moo_jax.aggregate, "aggregate", r"combine\(jacobian, weights\(jax.lax.stop_gradient"),
        (lambda rows: moo_jax.sketch(rows, 64), "sketch", "stop_gradient"),
    ],
)
@pytest.mark.parametrize("jit", [False, True])
def test_what_has_none_says_so(rows: Any, function: Any, name: str, advice: str, jit: bool) -> None:
    called = jax.jit(function) if jit else function
    message = rf"bucket_moo_ext.jax.{name} has no derivative: .*{advice}"
    with pytest.raises(TypeError, match=message):
        jax.grad(lambda rows: called(rows).sum())(jnp.asarray(rows))
    with pytest.raises(TypeError, match=message):
        jax.jvp(called, (jnp.asarray(rows),), (jnp.asarray(rows),))
    assert jax.grad(lambda rows: rows.sum() + called(jax.lax.stop_gradient(rows)).sum())(jnp.asarray(rows)).all()


@pytest.mark.parametrize("name", ["all_reduce", "reduce_scatter"])
def test_a_collective_has_none(rng: np.random.Generator, name: str) -> None:
    gradients = rng.standard_normal((2, 6)).astype(np.float32)
    collective = getattr(moo_jax, name)
    with pytest.raises(TypeError, match=rf"bucket_moo_ext.jax.{name} has no derivative: .*stop_gradient\(gradients\)"):
        on_devices(jax.grad(lambda row: collective(row, axis_name="x").sum()), gradients)
