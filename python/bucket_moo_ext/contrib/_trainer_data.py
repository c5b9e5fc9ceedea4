"""The column with the objectives, on its way from the data set to a pass."""

import difflib
import numbers
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

import torch

from bucket_moo_ext.data import ObjectiveSampler, ObjectiveStream

KEY = "bucket_moo_objective"
"""Under this a batch has the name of its objective."""


def namer_of(dataset: Any, column: str) -> Callable[[Any], str]:
    """From a value of the column to the name: a ClassLabel's, or the value as text."""
    feature: Any = (getattr(dataset, "features", None) or {}).get(column)
    return _ClassNames(feature.int2str) if hasattr(feature, "int2str") else _plain_name


def _plain_name(value: Any) -> str:
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, str | numbers.Integral):
        raise TypeError(f"objectives must be strings or ints; got {type(value).__name__} {value!r}")
    return str(value)


class _ClassNames:
    def __init__(self, names: Callable[[int], str]) -> None:
        self._names = names

    def __call__(self, value: Any) -> str:
        return self._names(int(value))


def labels_of(dataset: Any, column: str, what: str = "train_dataset") -> list[str]:
    """The objective of every example, by name; ``what`` the data set is, for errors.

    Raises:
        ValueError: No such column.
        TypeError: Something else than strings and ints in it.
    """
    columns = getattr(dataset, "column_names", None)
    if columns is None:
        first = dataset[0] if len(dataset) else {}
        if not isinstance(first, Mapping):
            raise TypeError(
                f"objective: examples of {what} must be mappings with {column!r}; got {type(first).__name__}"
            )
        columns = list(first)
        if column in columns:
            values: Sequence[Any] = [dataset[place][column] for place in range(len(dataset))]
    elif column in columns:
        values = list(dataset[column])
    if column not in columns:
        close = difflib.get_close_matches(column, columns, n=1)
        raise ValueError(
            f"objective: {what} has no column {column!r}; it has {', '.join(map(repr, columns))}. "
            + (
                f"Did you mean objective={close[0]!r}?"
                if close
                else "Give every row a string or an int there, which says what it is an objective of, or name another "
                "column as objective=. Trainers that prepare their data set themselves may have dropped it"
            )
        )
    name_of = namer_of(dataset, column)
    names: list[str] = []
    try:
        for value in values:
            names.append(name_of(value))
    except TypeError as error:
        raise TypeError(f"objective: column {column!r} of {what}, row {len(names)}: {error}") from None
    return names


def parts_of(dataset: Any, column: str) -> dict[str, Any]:
    """The parts of an eval data set by objective; empty where it has no such column or cannot be cut."""
    if column not in (getattr(dataset, "column_names", None) or ()) or not hasattr(dataset, "select"):
        return {}
    if not hasattr(dataset, "__len__"):
        return {}
    places: dict[str, list[int]] = {}
    for place, name in enumerate(labels_of(dataset, column, "eval_dataset")):
        places.setdefault(name, []).append(place)
    return {name: dataset.select(places[name]) for name in sorted(places)}


def sampling_of(
    trainer: Any, column: str, objectives: Sequence[str] | None, layout: str, shares: Any, seed: int
) -> ObjectiveSampler | ObjectiveStream:
    """Where batches of one objective come from: an order of the data set, or what deals a stream.

    Raises:
        TypeError, ValueError: Bad labels, ``shares`` or ``objectives``.
    """
    args, dataset = trainer.args, trainer.train_dataset
    size = args.train_batch_size
    options: dict[str, Any] = {
        "per": "rank" if layout == "ranks" else "pass",
        "passes": args.gradient_accumulation_steps,
        "shares": shares,
        "world_size": args.world_size,
    }
    if hasattr(dataset, "__len__") and not isinstance(dataset, torch.utils.data.IterableDataset):
        return ObjectiveSampler(labels_of(dataset, column), size, objectives=objectives, seed=seed, **options)
    if objectives is None:
        raise ValueError(
            f"objectives must name what occurs in column {column!r}, since train_dataset has no length and is not read "
            'ahead: objectives=("de", "sw")'
        )
    name_of = namer_of(dataset, column)
    return ObjectiveStream(
        dataset, lambda row: name_of(row[column]), objectives, size, args.max_steps, rank=args.process_index, **options
    )


class UnlabelledCollator:
    """Collates examples without the column. Trainers find the attributes of the collator that it calls."""

    def __init__(self, collator: Callable[[list[Any]], Any], column: str) -> None:
        self._collator, self._column = collator, column

    def __call__(self, examples: list[Any]) -> Any:
        return self._collator([without(example, self._column) for example in examples])

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "_collator" not in vars(self):  # while it is unpickled, say
            raise AttributeError(name)
        return getattr(self._collator, name)


class LabelledCollator(UnlabelledCollator):
    """Collates examples of one objective; the batch has its name under ``KEY``."""

    def __init__(self, collator: Callable[[list[Any]], Any], column: str, name_of: Callable[[Any], str]) -> None:
        super().__init__(collator, column)
        self._name_of = name_of

    def __call__(self, examples: list[Any]) -> Any:
        """Raises ValueError for examples of several objectives."""
        names = sorted({self._name_of(example[self._column]) for example in examples})
        if len(names) != 1:
            raise ValueError(
                f"a batch must have one objective; got {', '.join(map(repr, names))}. Batches of the trainer are not "
                "those that attach() samples: leave the data loader to it"
            )
        batch = super().__call__(examples)
        if not isinstance(batch, MutableMapping):
            raise TypeError(f"data_collator must return a dict; got {type(batch).__name__}")
        batch[KEY] = names[0]
        return batch


def without(example: Any, column: str) -> Any:
    """The example without the column."""
    if not isinstance(example, Mapping) or column not in example:
        return example
    return {name: value for name, value in example.items() if name != column}
