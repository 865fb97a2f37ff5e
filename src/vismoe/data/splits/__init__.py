"""Copies found, splits without leaks, summaries."""
