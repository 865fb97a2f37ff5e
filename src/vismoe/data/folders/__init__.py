"""Folders of images, their tables, and zips of them."""
