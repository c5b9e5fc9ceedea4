"""How large a test is: most of a statistic's worth is in its first draws, and `make test-all` takes more."""

import os

NIGHTLY = os.environ.get("BUCKET_MOO_NIGHTLY") == "1"


def draws(usual: int, nightly: int) -> int:
    """How many draws a statistic takes. Its bounds have to follow from the number."""
    return nightly if NIGHTLY else usual
