"""Networks of transformers' with the interface of timm's, and their model folders."""
