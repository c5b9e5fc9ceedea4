"""The collectives inside shard_map: layouts of objectives, passes, sketches, sizes; the same bits on all devices."""

from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest

from tests.jax.devices import on_devices, plain, require_jax
from tests.support import reference as ref

jax, moo_jax = require_jax()
jnp = jax.numpy
pytestmark = pytest.mark.device


def draw(rng: np.random.Generator, *shape: int) -> Any:
    return rng.standard_normal(shape).astype(np.float32) + 0.2


def reduced(rows: Any, check_vma: bool = True, **options: Any) -> Any:
    """[n] and the solution, of which all devices must have the same bits."""
    result = on_devices(
        lambda row: moo_jax.all_reduce(row, axis_name="x", return_solution=True, **options), rows, check_vma=check_vma
    )
    for leaf in jax.tree.leaves(result):
        assert all(one.tobytes() == leaf[0].tobytes() for one in leaf)
    return jax.tree.map(lambda leaf: leaf[0], result)


@pytest.mark.parametrize("world", [1, 2, 3, 4])
@pytest.mark.parametrize("n", [1, 7, 1003])
def test_any_size_over_any_number_of_devices(rng: np.random.Generator, world: int, n: int) -> None:
    rows = draw(rng, world, n)
    update, solution = reduced(rows)
    expected = ref.reduce(list(rows.astype(float)))
    assert np.allclose(solution.gramian, expected.gramian, rtol=1e-5, atol=1e-5)
    assert np.allclose(update, solution.weights.astype(float) @ rows, atol=1e-5)
    assert ref.mgda_gap(expected.gramian, solution.weights.astype(float)) < 1e-5
    assert int(solution.status) == 0


@pytest.mark.parametrize("check_vma", [True, False])
def test_with_and_without_the_check_of_what_varies(rng: np.random.Generator, check_vma: bool) -> None:
    rows = draw(rng, 4, 50)
    update, solution = reduced(rows, check_vma=check_vma, method="cagrad")
    assert np.allclose(update, moo_jax.aggregate(rows, "cagrad"), atol=1e-5)
    assert np.allclose(solution.weights, moo_jax.weights(moo_jax.gramian(rows), "cagrad"), atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_shard_is_a_piece_of_the_whole(rng: np.random.Generator, dtype: str) -> None:
    rows = jnp.asarray(draw(rng, 4, 12 * 4)).astype(dtype)
    for options in ({}, {"gramian": moo.Sketch(64)}, {"objectives": [1, 2, 1, 3], "method": "upgrad"}):
        whole, of_whole = reduced(rows, **options)
        shards, solution = on_devices(
            lambda row, options=options: moo_jax.reduce_scatter(row, axis_name="x", return_solution=True, **options),
            rows,
        )
        assert shards.shape == (4, 12)
        assert (plain(shards).reshape(-1) == plain(whole)).all()
        assert all((a == b).all() for a, b in zip(solution, of_whole, strict=True))


def test_a_pytree_of_several_dtypes_has_one_vector_of_weights(rng: np.random.Generator) -> None:
    tree = {
        "w": jnp.asarray(draw(rng, 4, 3, 5)),
        "h": jnp.asarray(draw(rng, 4, 9)).astype(jnp.bfloat16),
        "b": jnp.asarray(draw(rng, 4)),
        "e": jnp.zeros((4, 0), np.float32),
    }
    update, solution = reduced(tree)
    flat = np.concatenate([plain(tree[name]).reshape(4, -1) for name in ("w", "h", "b")], axis=1)
    assert np.allclose(solution.gramian, flat @ flat.T, rtol=1e-5, atol=1e-5)
    assert jax.tree.map(lambda leaf: (leaf.shape, str(leaf.dtype)), update) == {
        "w": ((3, 5), "float32"),
        "h": ((9,), "bfloat16"),
        "b": ((), "float32"),
        "e": ((0,), "float32"),
    }
    weights = solution.weights.astype(float)
    assert np.allclose(update["w"], np.tensordot(weights, plain(tree["w"]), 1), atol=1e-5)
    assert np.allclose(update["b"], weights @ plain(tree["b"]), atol=1e-5)
    assert np.allclose(plain(update["h"]), weights @ plain(tree["h"]), atol=2e-2)


def test_objectives_are_means_of_their_devices(rng: np.random.Generator) -> None:
    rows, names, weight = draw(rng, 4, 301), ["b", "a", "b", "a"], [1.0, 2.0, 3.0, 0.0]
    rows[3] = np.nan  # of weight 0: not read
    update, solution = on_devices(
        lambda row, weight: moo_jax.all_reduce(
            row, "cagrad", axis_name="x", objectives=names, weight=weight, return_solution=True
        ),
        rows,
        np.array(weight, np.float32),
    )
    expected = ref.reduce(list(rows.astype(float)), names, weight, "cagrad")
    assert np.allclose(solution.gramian[0], expected.gramian, rtol=1e-5)
    assert np.allclose(solution.weights[0], expected.weights, atol=1e-5)
    assert np.allclose(update, expected.update, atol=1e-5)


def test_a_preference_by_name_is_for_those_names(rng: np.random.Generator) -> None:
    rows, names = draw(rng, 3, 40), ["tr", "de", "sw"]
    by_name = reduced(rows, method=moo.UPGrad(preference={"sw": 3, "tr": 1, "de": 2}), objectives=names)
    by_order = reduced(rows, method=moo.UPGrad(preference=[1, 2, 3]))
    assert (by_name[0] == by_order[0]).all()


@pytest.mark.parametrize("sketched", [False, True])
def test_passes_are_rows(rng: np.random.Generator, sketched: bool) -> None:
    """Two devices, three passes each, four objectives, which come up pass by pass."""
    rows, names = draw(rng, 2, 3, 500), [["a", "c", "a"], ["b", "d", "c"]]
    weight = np.array([[1.0, 2.0, 3.0], [1.0, 1.0, 0.5]], np.float32)
    gramian = moo.Sketch(64, seed=3) if sketched else "exact"

    def reduce(rows: Any, weight: Any) -> Any:
        return moo_jax.all_reduce(
            rows,
            axis_name="x",
            passes=3,
            objectives=names,
            weight=weight,
            gramian=gramian,
            step=5,
            return_solution=True,
        )

    update, solution = on_devices(reduce, rows, weight)
    order = [(device, p) for p in range(3) for device in range(2)]
    by_row = [rows[at].astype(float) for at in order]
    labels, weights = [names[d][p] for d, p in order], [float(weight[at]) for at in order]
    seen = [ref.sketch(row, 64, seed=3, step=5) for row in by_row] if sketched else by_row
    expected = ref.reduce(seen, labels, weights)
    assert np.allclose(solution.gramian[0], expected.gramian, rtol=1e-4, atol=1e-2)
    assert np.allclose(solution.weights[0], expected.weights, atol=1e-4)
    _, means = ref.objective_means(by_row, labels, weights)
    assert np.allclose(update, solution.weights[0].astype(float) @ means, atol=1e-4)


def test_more_rows_than_there_may_be_objectives(rng: np.random.Generator) -> None:
    rows = draw(rng, 2, 40, 30)
    names = [[f"objective {p % 3}" for p in range(40)], [f"objective {p % 2}" for p in range(40)]]
    update, solution = reduced(rows, passes=40, objectives=names)
    by_row = [rows[device, p].astype(float) for p in range(40) for device in range(2)]
    expected = ref.reduce(by_row, [names[device][p] for p in range(40) for device in range(2)])
    assert np.allclose(solution.weights, expected.weights, atol=1e-5)
    assert np.allclose(update, expected.update, atol=1e-5)


def test_passes_of_one_objective_a_device_are_its_mean(rng: np.random.Generator) -> None:
    rows = draw(rng, 2, 3, 50)
    update, solution = reduced(rows, passes=3)
    alone, of_means = reduced(rows.mean(1))
    assert solution.weights.shape == (2,)
    assert np.allclose(update, alone, atol=1e-5)
    assert np.allclose(solution.weights, of_means.weights, atol=1e-5)


def test_a_sketch_is_drawn_anew_for_every_step_without_compiling_anew(rng: np.random.Generator) -> None:
    rows = draw(rng, 4, 1000)
    steps = np.arange(4, dtype=np.int32)

    def two_steps(row: Any, _: Any) -> Any:
        def body(step: Any, found: Any) -> Any:
            solved = moo_jax.all_reduce(
                row, axis_name="x", gramian=moo.Sketch(64, seed=7), step=step, return_solution=True
            )[1]
            return found.at[step].set(solved.weights)

        return jax.lax.fori_loop(0, 2, body, jnp.zeros((2, 4)))

    found = on_devices(two_steps, rows, steps)[0]
    for step in range(2):
        expected = ref.weights(np.stack([ref.sketch(row.astype(float), 64, 7, step) for row in rows]), "mgda")
        assert np.allclose(found[step], expected, atol=1e-4)
    assert (found[0] != found[1]).any()


def test_a_small_bucket_is_not_sketched(rng: np.random.Generator) -> None:
    rows = draw(rng, 4, 128)
    assert (reduced(rows, gramian=moo.Sketch(64))[0] == reduced(rows)[0]).all()


@pytest.mark.parametrize("gramian", ["exact", moo.Sketch(64)], ids=["exact", "sketch"])
def test_over_two_axes_of_a_mesh(rng: np.random.Generator, gramian: Any) -> None:
    """Devices are counted as ``jax.lax.axis_index`` does."""
    rows = draw(rng, 2, 2, 200)
    mesh, spec = jax.make_mesh((2, 2), ("a", "b")), jax.sharding.PartitionSpec
    placed = jax.device_put(rows, jax.sharding.NamedSharding(mesh, spec("a", "b")))

    def mapped(axis_name: Any, out: Any, **options: Any) -> Any:
        def reduce(row: Any) -> Any:
            results = moo_jax.all_reduce(
                row[0, 0], axis_name=axis_name, gramian=gramian, return_solution=True, **options
            )
            return jax.tree.map(lambda leaf: leaf[None], results)

        call = jax.shard_map(reduce, mesh=mesh, in_specs=spec("a", "b"), out_specs=out)
        return jax.device_get(jax.jit(call)(placed))

    names = ["p", "q", "p", "r"]
    flat = list(rows.reshape(4, 200).astype(float))
    seen = flat if gramian == "exact" else [ref.sketch(row, 64) for row in flat]
    update, solution = mapped(("a", "b"), spec(), objectives=names)
    expected = ref.reduce(seen, names)
    assert np.allclose(solution.gramian[0], expected.gramian, rtol=1e-4)
    _, means = ref.objective_means(flat, names, [1.0] * 4)
    assert np.allclose(update[0], expected.weights @ means, atol=1e-4)
    of_b, _ = mapped("b", spec("a"))
    assert of_b.shape == (2, 200)
    if gramian == "exact":
        assert np.allclose(of_b, np.stack([moo_jax.aggregate(row) for row in rows]), atol=1e-5)


def test_vmap_of_a_collective(rng: np.random.Generator) -> None:
    rows = draw(rng, 4, 3, 21)
    got = on_devices(jax.vmap(lambda row: moo_jax.all_reduce(row, axis_name="x")), rows)
    expected = np.stack([moo_jax.aggregate(rows[:, i]) for i in range(3)])
    assert np.allclose(got, expected, atol=1e-5)


def test_what_is_not_finite_becomes_the_mean(rng: np.random.Generator) -> None:
    rows = draw(rng, 3, 10)
    rows[1, 4] = np.inf
    update, solution = reduced(rows)
    assert int(solution.status) == 1
    assert np.allclose(update, rows.mean(0))


def test_gradients_that_jax_has_added_up_are_an_error(rng: np.random.Generator) -> None:
    """Of parameters that all devices share; with pcast they are each device's own."""
    batches = draw(rng, 4, 6)

    def step(batch: Any, cast: bool) -> Any:
        w = jnp.ones(6) if not cast else jax.lax.pcast(jnp.ones(6), "x", to="varying")
        return moo_jax.all_reduce(jax.grad(lambda w: (w @ batch) ** 2)(w), "mgda", axis_name="x")

    with pytest.raises(ValueError, match=r"each device's own.*jax.lax.pcast\(parameters, 'x', to='varying'\)"):
        on_devices(lambda batch: step(batch, cast=False), batches)
    with pytest.raises(ValueError, match=r"of shape \(6,\) there are some"):  # beside others that are
        on_devices(lambda batch: moo_jax.all_reduce({"a": batch, "b": jnp.ones(6)}, axis_name="x"), batches)
    own = 2 * batches.sum(1, keepdims=True) * batches
    assert np.allclose(on_devices(lambda batch: step(batch, cast=True), batches), moo_jax.aggregate(own), atol=1e-4)


ROW = np.ones(4, np.float32)


@pytest.mark.parametrize(
    ("options", "kind", "text"),
    [
        ({"axis_name": "y"}, ValueError, "axis_name must be an axis of the shard_map .*; got 'y'"),
        ({"objectives": ["a"]}, ValueError, "objectives must be 2 names, one a device; got 1"),
        ({"objectives": "ab"}, TypeError, "objectives must be 2 names, one a device; got str"),
        ({"objectives": ["a", 1.5]}, TypeError, "strings or integers; got float 1.5"),
        ({"objectives": ["a", ["b", "c"]]}, ValueError, r"a name a pass \(1\); got 2"),
        ({"passes": 0}, ValueError, "passes must be an integer >= 1 or None; got 0"),
        ({"passes": 2.0}, TypeError, "passes must be an integer >= 1 or None; got float"),
        ({"passes": 3}, ValueError, r"must be arrays \[3, ...\], one row a pass; got shape \(4,\)"),
        ({"weight": -1.0}, ValueError, "weight must be a finite number >= 0; got -1.0"),
        ({"weight": np.nan}, ValueError, "weight must be a finite number >= 0; got nan"),
        ({"weight": np.ones(3)}, ValueError, r"weight must be a number or an array \[\]; got shape \(3,\)"),
        ({"gramian": "auto"}, ValueError, "gramian='auto' is not for JAX"),
        ({"gramian": "no"}, ValueError, "gramian must be 'exact', 'auto' or a Sketch"),
        ({"gramian": moo.Sketch(64, lag=1)}, ValueError, "lag keep weights from step to step"),
        ({"method": "x"}, ValueError, "method='x' is unknown"),
        ({"c": 0.3}, TypeError, r"method=moo.CAGrad\(c=0.3\)"),
        ({"method": moo.Mean(weights=[1, 2, 3])}, ValueError, "3 weights.* 2 objectives"),
        (
            {"method": moo.Mean(weights={"a": 1, "z": 2}), "objectives": ["a", "b"]},
            ValueError,
            "names the objectives a, z",
        ),
        ({"seed": -1}, ValueError, "seed must be an integer"),
        ({"return_solution": 1}, TypeError, "return_solution must be True or False"),
    ],
)
@pytest.mark.parametrize("name", ["all_reduce", "reduce_scatter"])
def test_wrong_arguments_are_named(name: str, options: Any, kind: type[Exception], text: str) -> None:
    with pytest.raises(kind, match=text):
        on_devices(lambda row: getattr(moo_jax, name)(row, **{"axis_name": "x"} | options), np.stack([ROW, ROW]))


def test_wrong_gradients_are_named() -> None:
    def reduce(tree: Any, name: str = "all_reduce", **options: Any) -> Any:
        return on_devices(lambda row: getattr(moo_jax, name)(row, axis_name="x", **options), tree)

    two = np.stack([ROW, ROW])
    with pytest.raises(TypeError, match=r"gradients must have one of the dtypes .*; got int32"):
        reduce(two.astype(np.int32))
    with pytest.raises(ValueError, match="one dtype for a Sketch"):
        reduce({"a": two, "b": two.astype(np.float16)}, gramian=moo.Sketch(64))
    with pytest.raises(ValueError, match="input must be an array; got a pytree"):
        reduce({"a": two}, "reduce_scatter")
    with pytest.raises(ValueError, match="a multiple of 2 elements, the devices of axis 'x'; got 3"):
        reduce(two[:, :3], "reduce_scatter")
    with pytest.raises(ValueError, match="one without arrays"):
        on_devices(lambda row: moo_jax.all_reduce({}, axis_name="x"), two)


@pytest.mark.host
def test_a_weight_that_is_wrong_when_it_runs_is_an_error_then() -> None:
    with pytest.raises(jax.errors.JaxRuntimeError, match="weight must be a finite number >= 0; row 1 has -2"):
        jax.block_until_ready(
            on_devices(
                lambda row, weight: moo_jax.all_reduce(row, axis_name="x", weight=weight),
                np.stack([ROW, ROW]),
                np.array([1.0, -2.0], np.float32),
            )
        )
