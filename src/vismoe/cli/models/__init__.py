"""Verbs that list, convert and change models."""
