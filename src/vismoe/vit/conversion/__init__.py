"""Networks changed in place: dense to sparse, sparse to dense, and the form that is fastest to run."""
