"""Conflict-aware training in trainers that others have written: one module a trainer.

Each knows the public package only, and needs its trainer installed: importing ``bucket_moo_ext`` never imports these.
"""
