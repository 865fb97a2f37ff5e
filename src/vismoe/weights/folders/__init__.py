"""Model folders: read, written, described."""
