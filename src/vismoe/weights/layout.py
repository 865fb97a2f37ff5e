"""The files of a model folder."""

CONFIG, WEIGHTS, PROCESSOR, CARD = "config.json", "model.safetensors", "preprocessor_config.json", "README.md"
FILES = (CONFIG, WEIGHTS, PROCESSOR, CARD)
