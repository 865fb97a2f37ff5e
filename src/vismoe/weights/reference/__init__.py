"""The reference's checkpoints and parameters, in both directions."""
