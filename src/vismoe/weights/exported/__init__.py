"""Exported files where a network is expected."""
