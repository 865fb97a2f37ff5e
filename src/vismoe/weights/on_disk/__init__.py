"""Networks whose experts stay on disk: a forward pass reads those that its plans name."""
