"""The files of a model folder."""

CONFIG, WEIGHTS, PROCESSOR, CARD = "config.json", "model.safetensors", "preprocessor_config.json", "README.md"
FILES = (CONFIG, WEIGHTS, PROCESSOR, CARD)
ONNX = ".onnx"
ANSWERS_ONLY = "an ONNX file gives answers only (vismoe predict, eval): use the model folder that it was exported from"
