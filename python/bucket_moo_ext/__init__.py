"""Conflict-aware gradient reduction: a multi-objective all-reduce inside DDP's gradient buckets.

Every rank's gradient belongs to an *objective* (a language, a task). Where data parallelism averages a bucket of
gradients, this package takes the K x K Gramian of the objectives' gradients in that bucket, solves a small problem for
weights, and makes their weighted sum the bucket's update (arXiv 2606.05613).

    >>> import bucket_moo_ext as moo
    >>> state = moo.register(ddp, method="mgda", objective="sw")  # doctest: +SKIP
"""

from importlib import import_module as _import_module
from importlib.metadata import version as _version
from pathlib import Path as _Path
from typing import TYPE_CHECKING as _TYPE_CHECKING
from typing import Any as _Any

import torch as _torch  # loads the libraries that the extension links to

try:
    from bucket_moo_ext import _C
except ImportError as error:
    raise ImportError(
        f"bucket_moo_ext's native part does not load with torch {_torch.__version__}: {error}. It was probably built "
        "against another torch; rebuild it against the one installed: "
        "pip install --no-build-isolation --force-reinstall --no-deps . (in its source folder)"
    ) from error


def _minor(version: str) -> str:
    return ".".join(version.split(".")[:2])


if _minor(_C.build_info()["torch"]) != _minor(_torch.__version__):
    raise ImportError(
        f"bucket_moo_ext was built against torch {_C.build_info()['torch']}, but torch {_torch.__version__} is "
        "installed; rebuild it: pip install --no-build-isolation --force-reinstall --no-deps . (in its source folder)"
    )

from bucket_moo_ext import methods as _methods
from bucket_moo_ext.collectives import all_reduce, reduce_scatter
from bucket_moo_ext.functional import aggregate, combine, gramian, sketch, weights
from bucket_moo_ext.gramian_source import Sketch
from bucket_moo_ext.hooks import bucket_moo_hook, register
from bucket_moo_ext.methods import *
from bucket_moo_ext.observe import Recorder, StepProbe
from bucket_moo_ext.report import BucketReport, Report
from bucket_moo_ext.state import BucketMOO

__version__ = _version("bucket_moo_ext")


def build_info() -> dict[str, str | int | bool]:
    """How the native part was built.

    Returns:
        A dict with ``version``, ``torch`` (the version built against), ``compiler``, ``cuda`` (whether CUDA kernels are
        in it), ``cuda_compiler`` and ``cuda_architectures`` (with what and for what; empty without, and an
        architecture that is not "-real" is in it as PTX too), ``max_objectives``, ``max_objective_name_bytes``,
        ``min_sketch_width``, ``max_sketch_width`` and ``library`` (the file with all that needs no Python, for
        ``torch.ops.load_library`` and C++).
    """
    return {**_C.build_info(), "library": str(_Path(_C.__file__).with_name("libbucket_moo_ext.so"))}


if not _TYPE_CHECKING:  # or any attribute would do for a type checker

    def __getattr__(name: str) -> _Any:
        """``moo.jax``, imported when it is asked for; it needs JAX."""
        if name == "jax":
            return _import_module("bucket_moo_ext.jax")
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "BucketMOO",
    "BucketReport",
    "Recorder",
    "Report",
    "Sketch",
    "StepProbe",
    "__version__",
    "aggregate",
    "all_reduce",
    "bucket_moo_hook",
    "build_info",
    "combine",
    "gramian",
    "reduce_scatter",
    "register",
    "sketch",
    "weights",
]
__all__ += _methods.__all__
