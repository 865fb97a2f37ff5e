"""Requests before they reach a model: limits, security, errors, logs and metrics."""
