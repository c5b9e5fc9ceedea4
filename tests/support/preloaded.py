"""What the server that ranks are forked from imports last, behind the modules whose functions they run."""

import gc
import importlib

for _module in ("bucket_moo_ext", "numpy", "pytest", "tests.support.ranks", "torch._dynamo", "torch.distributed"):
    importlib.import_module(_module)

# A rank that collects garbage would look at all of it, and so copy the memory that it shares with the server.
gc.collect()
gc.freeze()
