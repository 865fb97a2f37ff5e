"""Commands that list, convert and change models."""
