"""A pytest plugin (``-p torchjd_plugin``): TorchJD's own tests, unmodified, on our solvers.

Where a test asks for what we do on purpose otherwise, it is marked as one that may fail, with the reason.
"""

import warnings

import pytest

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of solvers that TorchJD imports
    import torchjd_adapter

torchjd_adapter.stub_imports()
torchjd_adapter.install()

# Part of the file's name, parts of the test's name of which one must occur, reason.
DIFFERENCES = [
    ("test_values", ("UPGrad", "DualProj"), "the expected values hold the error of a ridge of 1e-4; ours has none"),
    ("test_upgrad", ("test_representations",), "the text of another version than the TorchJD that is installed"),
    ("test_dualproj", ("test_representations",), "the text of another version than the TorchJD that is installed"),
    (
        "test_config",
        ("test_permutation_invariant[ConFIG-T[20, 100]0]", "test_linear_under_scaling[ConFIG-T[20, 100]0]"),
        "ten unit gradients each way: their sum, and with it the least-squares direction, is rounding",
    ),
]


def pytest_report_header() -> str:
    return "torchjd: its solvers are replaced by bucket_moo_ext's"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for file, names, reason in DIFFERENCES:
            if file in item.path.name and any(name in item.name for name in names):
                item.add_marker(pytest.mark.xfail(reason=reason, strict=False))
