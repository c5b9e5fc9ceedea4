"""Tests of the package."""

import os

# NumPy's threads wait busily, on cores that ranks and other tests need. To be said before NumPy is loaded.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
