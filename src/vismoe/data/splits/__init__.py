"""Checks of image files, duplicates, splits without leaks, summaries."""
