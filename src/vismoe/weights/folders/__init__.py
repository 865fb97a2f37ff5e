"""Reads, writes and uploads model folders."""
