"""A test that is skipped says so in the result; in a dry run only what is listed may be."""

import pytest

from tests.gpu.device import IS_DRY_RUN, note

_unlisted: list[str] = []


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Notes what was skipped."""
    if not report.skipped:
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    reason = reason.removeprefix("Skipped: ")
    if not IS_DRY_RUN:
        note("note", f"{report.nodeid} was skipped: {reason}")
        return
    from tests.gpu.dry_run import SKIPPED

    if not reason.startswith(SKIPPED):
        _unlisted.append(f"{report.nodeid}: {reason}")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fails a dry run that left out more than is listed."""
    if _unlisted:
        print("\nskipped in a dry run without being listed in tests/gpu/dry_run.py: " + "; ".join(_unlisted))
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
