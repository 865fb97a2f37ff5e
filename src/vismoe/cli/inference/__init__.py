"""Verbs that put a model to work."""
