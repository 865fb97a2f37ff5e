"""Duplicates, splits without leaks, summaries."""
