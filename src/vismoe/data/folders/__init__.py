"""A person's folder of images, its table, or a zip of it."""
