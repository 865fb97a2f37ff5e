"""Verbs that make models of models."""
