"""Expert modules, and how MLPs of other libraries are converted to experts."""
