"""The method classes: arguments, errors, descriptions."""

import contextlib
import dataclasses
import io
import math
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import numpy as np
import pytest
import torch
from bucket_moo_ext import _C
from bucket_moo_ext.methods import METHODS

GRAM = torch.tensor([[2.0, -1.0, 0.5], [-1.0, 3.0, 0.1], [0.5, 0.1, 1.0]])


def test_available_methods() -> None:
    assert len(set(METHODS)) == len(METHODS)
    for cls, (name, info) in zip(METHODS, moo.available_methods().items(), strict=True):
        assert cls.__name__ in moo.__all__
        assert cls.__name__.lower() == name
        assert cls.info is info
        assert info.source
        assert info.certificate
        assert info.scale
        assert info.stateful == (cls()._native().state_size(3) > 0)


def test_native_ids_and_names_agree() -> None:
    assert [cls.__name__ for cls in METHODS] == list(_C.METHOD_NAMES)


def test_documented_methods(repository: Path) -> None:
    """The table of docs/methods.md has the methods with their parameters and guarantees, and each has its section."""
    text = (repository / "docs" / "methods.md").read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| `")
    ]
    sections = {part.split("\n", 1)[0]: part for part in text.split("\n## ")[1:]}
    for cls, (name, conflict, *_, parameters, _) in zip(METHODS, rows, strict=True):
        assert name == f"`{cls.info.name}`"
        assert (conflict == "yes") == ("non-conflicting" in cls.info.guarantees), name
        fields = [field.name for field in dataclasses.fields(cls)]
        assert parameters == (", ".join(f"`{field}`" for field in fields) or "-"), name
        values = (f"{field.name}={field.default!r}".replace("'", '"') for field in dataclasses.fields(cls))
        assert f"- `{cls.__name__}({', '.join(values)})`" in sections[cls.__name__], name


@pytest.mark.parametrize(
    ("name", "cls"),
    [("AlignedMTL", moo.AlignedMTL), ("aligned_mtl", moo.AlignedMTL), ("Nash-MTL", moo.NashMTL), ("IMTL-G", moo.IMTLG)],
)
def test_spellings(name: str, cls: Any) -> None:
    assert moo.BucketMOO(name).method == cls()


def test_guarantees_hold_for_conflicts() -> None:
    """What says that it does not conflict does not, on an example where the mean does."""
    rows = torch.tensor([[3.0, 0.0], [-1.0, 1.0], [-1.0, 1.2]], dtype=torch.float64)
    gram = rows @ rows.T
    assert (gram @ moo.weights(gram, moo.Mean([0.8, 0.1, 0.1])) < 0).any()
    for name, info in moo.available_methods().items():
        if "non-conflicting" in info.guarantees:
            assert (gram @ moo.weights(gram, name) >= -1e-9).all(), name


@pytest.mark.parametrize("cls", METHODS, ids=lambda cls: cls.__name__)
def test_classes(cls: Any) -> None:
    method = cls()
    assert method == cls()
    assert hash(method) == hash(cls())
    assert pickle.loads(pickle.dumps(method)) == method
    for field in dataclasses.fields(method):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(method, field.name, None)
    assert torch.equal(moo.weights(GRAM, method), moo.weights(GRAM, cls.__name__))


@pytest.mark.parametrize("cls", [moo.UPGrad, moo.DualProj, moo.AlignedMTL, moo.ConFIG, moo.Mean])
def test_preferences_of_every_kind(cls: Any) -> None:
    expected = cls([1.0, 2.0, 3.0])
    assert cls((1, 2, 3)) == expected
    assert cls(np.array([1, 2, 3])) == expected
    assert cls(np.array([1, 2, 3], dtype=np.float32)) == expected
    assert torch.equal(moo.weights(GRAM, expected), moo.weights(GRAM, cls([10, 20, 30])))
    assert not torch.equal(moo.weights(GRAM, expected), moo.weights(GRAM, cls()))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: moo.UPGrad([1.0, -1.0]), ["UPGrad", "preference", "-1.0", ">= 0"]),
        (lambda: moo.UPGrad([0.0, 0.0]), ["UPGrad", "preference", "not all zero"]),
        (lambda: moo.UPGrad([]), ["UPGrad", "preference"]),
        (lambda: moo.UPGrad(1.0), ["UPGrad", "preference", "1.0"]),  # type: ignore[arg-type]
        (lambda: moo.UPGrad("ab"), ["UPGrad", "preference", "'a'"]),  # type: ignore[arg-type]
        (lambda: moo.DualProj([math.nan, 1.0]), ["DualProj", "preference", "nan"]),
        (lambda: moo.DualProj([1.7e308, 1.7e308]), ["DualProj", "preference", "finite sum"]),
        (lambda: moo.ConFIG([True, True]), ["ConFIG", "preference", "True"]),
        (lambda: moo.AlignedMTL([math.inf]), ["AlignedMTL", "preference", "inf"]),
        (lambda: moo.AlignedMTL(None, "max"), ["AlignedMTL", "scale_mode", "'max'", "'min'", "'median'", "'mean'"]),  # type: ignore[arg-type]
        (lambda: moo.AlignedMTL(scale_mode=None), ["AlignedMTL", "scale_mode", "None"]),  # type: ignore[arg-type]
        (lambda: moo.NashMTL(0.0), ["NashMTL", "max_norm", "0.0", "> 0"]),
        (lambda: moo.NashMTL(math.nan), ["NashMTL", "max_norm", "nan"]),
        (lambda: moo.NashMTL("1"), ["NashMTL", "max_norm", "'1'"]),  # type: ignore[arg-type]
        (lambda: moo.FairGrad(0), ["FairGrad", "alpha", "0", "> 0"]),
        (lambda: moo.FairGrad(math.inf), ["FairGrad", "alpha", "inf", "finite"]),
        (lambda: moo.GradVac(1.5), ["GradVac", "beta", "1.5", "0 to 1"]),
        (lambda: moo.GradVac(-0.1), ["GradVac", "beta", "-0.1"]),
        (lambda: moo.GradVac(True), ["GradVac", "beta", "True"]),
        (lambda: moo.GradVac(permutation=[[0, 1]]), ["GradVac", "permutation", "[[0, 1]]", "K rows"]),
        (lambda: moo.GradVac(permutation=[[0.5]]), ["GradVac", "permutation", "0.5"]),  # type: ignore[list-item]
        (lambda: moo.GradVac(permutation=3), ["GradVac", "permutation", "3"]),  # type: ignore[arg-type]
        (lambda: moo.Krum(-1), ["Krum", "n_byzantine", "-1", ">= 0"]),
        (lambda: moo.Krum(0.5), ["Krum", "n_byzantine", "0.5", "integer"]),  # type: ignore[arg-type]
        (lambda: moo.Krum(2**31), ["Krum", "n_byzantine", "2**31"]),
        (lambda: moo.Krum(0, 0), ["Krum", "n_selected", "0", ">= 1"]),
        (lambda: moo.Krum(0, True), ["Krum", "n_selected", "True"]),
        (lambda: moo.Smoothed("mgda", 1.0), ["Smoothed", "alpha", "1.0", ">= 0", "< 1"]),
        (lambda: moo.Smoothed("mgda", -0.5), ["Smoothed", "alpha", "-0.5"]),
        (lambda: moo.Smoothed("mgda", math.nan), ["Smoothed", "alpha", "nan"]),
        (lambda: moo.Smoothed("adam", 0.5), ["'adam'", "available", "upgrad"]),
    ],
)
def test_bad_parameters(make: Callable[[], Any], words: list[str]) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        make()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in {str(caught.value)!r}"


def test_smoothed() -> None:
    method = moo.Smoothed("nash-mtl", 0.9)
    assert method == moo.Smoothed(moo.NashMTL(), 0.9)
    assert isinstance(method.method, moo.NashMTL)
    assert method.info.stateful
    assert method.info.name == "smoothed nashmtl"
    assert method.info.guarantees == ("permutation equivariant",)
    assert "Zhou" in method.info.source
    assert not moo.Smoothed("mgda", 0).info.stateful
    assert pickle.loads(pickle.dumps(method)) == method
    assert "NashMTL(max_norm=1.0)" in repr(moo.BucketMOO(method))
    with pytest.raises(TypeError, match="smoothed itself"):
        moo.Smoothed(method, 0.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="UPGrad"):
        moo.Smoothed(3, 0.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("wrap", [lambda method: method, lambda method: moo.Smoothed(method, 0.5)])
def test_another_number_of_objectives(wrap: Callable[[Any], Any]) -> None:
    for cls in (moo.UPGrad, moo.DualProj, moo.AlignedMTL, moo.ConFIG):
        with pytest.raises(ValueError, match=rf"{cls.__name__}\(preference=...\) holds 2 weights, but there are 3"):
            moo.weights(GRAM, wrap(cls([1.0, 2.0])))
    with pytest.raises(ValueError, match=r"GradVac\(permutation=...\) is for 2 objectives, but there are 3"):
        moo.weights(GRAM, wrap(moo.GradVac(permutation=[[0, 1], [1, 0]])))


@pytest.mark.parametrize("section", ["Two languages", "What the certificate says"])
def test_documented_examples(repository: Path, section: str) -> None:
    """What the examples of docs/methods.md print is what stands below them."""
    text = (repository / "docs" / "methods.md").read_text(encoding="utf-8").split(f"\n## {section}\n")[1]
    code = text.split("```python\n")[1].split("```")[0]
    expected = text.split("```text\n")[1].split("```")[0]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, section, "exec"), {})
    # Certificates are rounding noise.
    words = [
        [word for word in out.split() if "e-" not in word and "e+" not in word]
        for out in (printed.getvalue(), expected)
    ]
    assert words[0] == words[1]
