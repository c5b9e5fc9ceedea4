"""A pytest plugin (``-p torchjd_plugin``): TorchJD's own tests, unmodified, on our solvers."""

import warnings

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # of solvers that TorchJD imports
    import torchjd_adapter

torchjd_adapter.stub_imports()
torchjd_adapter.install()


def pytest_report_header() -> str:
    return "torchjd: its solvers are replaced by bucket_moo_ext's"
