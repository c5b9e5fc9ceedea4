"""The parts of studies/scaling_model.py."""
