"""Networks of transformers' where timm's are expected, and their folders."""
