"""The parts of bench/scaling_model.py."""
