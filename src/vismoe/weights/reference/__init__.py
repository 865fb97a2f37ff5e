"""Checkpoints and parameters of the reference, google-research/vmoe: reading, conversion and back."""
