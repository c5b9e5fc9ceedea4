"""Where a wrapper of modules lets the reduction in: one file a wrapper.

Each says what the wrapper is given, whether it can be reduced, and how. What is private in torch is asked for in
``bucket_moo_ext.private_torch``, by all of them.
"""
