"""Image folders, their tables, and zips."""
