"""A small language model on four languages in JAX: a device each, optax, plain mean beside a conflict-aware update.

The languages are made up: each is a Markov chain of the second order over one alphabet, and some have more to learn
than others. The model reads which language it is in and the last two letters. Both ways start alike and see the same
text.

    python examples/jax/train.py --method mgda --steps 300
"""

import argparse
from functools import partial
from typing import Any

import bucket_moo_ext.jax as moo_jax
import jax
import jax.numpy as jnp
import numpy as np
import optax

LANGUAGES = ("de", "el", "hu", "tr")
LETTERS = 24


def make_text(seed: int, length: int) -> np.ndarray[Any, np.dtype[np.int32]]:
    """[languages, length] letters."""
    rng = np.random.default_rng(seed)
    sharpness = np.array([1.0, 2.0, 1.5, 0.7])[:, None, None, None]  # how much two letters say of the next
    first, second = rng.standard_normal((2, len(LANGUAGES), LETTERS, LETTERS))
    odds = np.exp(sharpness * (first[:, :, None] + second[:, None]))
    cumulative = np.cumsum(odds / odds.sum(-1, keepdims=True), axis=-1)
    text = np.zeros((len(LANGUAGES), length), np.int32)
    draws = rng.random((len(LANGUAGES), length))
    languages = np.arange(len(LANGUAGES))
    for t in range(2, length):
        seen = cumulative[languages, text[:, t - 2], text[:, t - 1], :-1]
        text[:, t] = (seen < draws[:, t, None]).sum(-1)
    return text


def make_model(seed: int, width: int) -> dict[str, jax.Array]:
    """Parameters."""
    keys = jax.random.split(jax.random.key(seed), 3)
    shapes = {"letters": (2, LETTERS, width), "language": (len(LANGUAGES), width), "inner": (width, width)}
    parameters = {
        name: jax.random.normal(key, shapes[name]) / width**0.5 for name, key in zip(shapes, keys, strict=True)
    }
    return parameters | {"outer": jnp.zeros((width, LETTERS)), "bias": jnp.zeros(LETTERS)}


def loss_of(parameters: dict[str, jax.Array], language: jax.Array, windows: jax.Array) -> jax.Array:
    """Cross entropy of the third letter of each window [batch, 3]."""
    first, second = parameters["letters"]
    hidden = jax.nn.gelu(first[windows[:, 0]] + second[windows[:, 1]] + parameters["language"][language])
    hidden = hidden + jax.nn.gelu(hidden @ parameters["inner"])
    logits = hidden @ parameters["outer"] + parameters["bias"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, windows[:, 2]).mean()


def train(method: str, arguments: argparse.Namespace, text: np.ndarray[Any, Any]) -> list[float]:
    """The mean loss of each language over the last tenth of the steps. `method`: "plain" is `jax.lax.pmean`."""
    mesh = jax.make_mesh((len(LANGUAGES),), ("language",))
    spec = jax.sharding.PartitionSpec
    optimizer = optax.adam(arguments.learning_rate)
    parameters = make_model(arguments.seed, arguments.width)
    state = optimizer.init(parameters)

    @jax.jit
    @partial(
        jax.shard_map,
        mesh=mesh,
        in_specs=(spec(), spec(), spec("language")),
        out_specs=(spec(), spec(), spec("language")),
    )
    def step(parameters: Any, state: Any, windows: jax.Array) -> Any:
        # Each device's own gradients: those of shared parameters JAX would add up by itself.
        own = jax.lax.pcast(parameters, "language", to="varying")
        loss, gradients = jax.value_and_grad(loss_of)(own, jax.lax.axis_index("language"), windows[0])
        if method == "plain":
            update = jax.lax.pmean(gradients, "language")
        else:
            update = moo_jax.all_reduce(gradients, method, axis_name="language", objectives=LANGUAGES)
        update, state = optimizer.update(update, state)
        return optax.apply_updates(parameters, update), state, loss[None]

    rng = np.random.default_rng(arguments.seed)
    losses = []
    for _ in range(arguments.steps):
        starts = rng.integers(0, text.shape[1] - 3, (len(LANGUAGES), arguments.batch))
        windows = np.stack([text[k][starts[k][:, None] + np.arange(3)] for k in range(len(LANGUAGES))])
        placed = jax.device_put(windows, jax.sharding.NamedSharding(mesh, spec("language")))
        parameters, state, loss = step(parameters, state, placed)
        losses.append(np.asarray(loss))
    last = max(1, arguments.steps // 10)
    return [float(loss) for loss in np.mean(losses[-last:], axis=0)]


def main() -> None:
    """Trains both ways and prints the losses."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--method", default="mgda", help="a name of bucket_moo_ext.available_methods()")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=128, help="windows of each language in a step")
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--learning-rate", type=float, default=1e-2)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", len(LANGUAGES))
    text = make_text(arguments.seed, 20_000)
    print(
        f"loss (cross entropy; {np.log(LETTERS):.3f} knows nothing), mean of the last tenth of {arguments.steps} steps"
    )
    print(f"{'':12}" + "".join(f"{language:>8}" for language in LANGUAGES))
    for method in ("plain", arguments.method):
        losses = train(method, arguments, text)
        print(f"{method:12}" + "".join(f"{loss:8.3f}" for loss in losses), flush=True)


if __name__ == "__main__":
    main()
