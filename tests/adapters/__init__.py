"""Tests of where the reduction enters a module, apart from DDP."""
