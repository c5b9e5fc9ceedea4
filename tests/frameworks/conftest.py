"""Tests that need trainers (requirements/frameworks.txt). Only `make test-frameworks` collects them."""

import os

collect_ignore_glob = [] if os.environ.get("BUCKET_MOO_FRAMEWORKS") else ["test_*.py"]
