"""Tiny configurations of the reference, parameters of the shapes that it would make for them, and what it would say:
written down again in plain NumPy, in float64, one token after the other where that is plainest."""

import numpy as np

DIM, HEADS, MLP, PATCH, SIDE = 8, 2, 16, 4, 2


def configuration(dispatcher=None, router=None, moe=None, encoder=None, **model):
    """Two blocks, four experts of which each token takes two in the second, nothing dropped; and what is given."""
    dispatcher = {"name": "einsum", **(dispatcher or {"capacity_factor": 4.0})}
    router = {"num_selected_experts": 2, "noise_std": 0.5, "dispatcher": dispatcher} | (router or {})
    moe = {"num_experts": 4, "layers": [1], "group_size": 10, "router": router} | (moe or {})
    encoder = {"num_layers": 2, "mlp_dim": MLP, "num_heads": HEADS, "moe": moe} | (encoder or {})
    own = {"num_classes": 3, "patch_size": [PATCH, PATCH], "hidden_size": DIM, "classifier": "token"}
    return {
        "model_class": "vmoe.nn.vit_moe.VisionTransformerMoe",
        "model": own | {"encoder": encoder} | model,
        "deterministic": False,
    }


def _attention(qk_norm):
    head = DIM // HEADS
    shapes = {f"{part}/kernel": (DIM, HEADS, head) for part in ("query", "key", "value")}
    shapes |= {f"{part}/bias": (HEADS, head) for part in ("query", "key", "value")}
    shapes |= {"out/kernel": (HEADS, head, DIM), "out/bias": (DIM,)}
    return shapes | ({"query_ln/scale": (head,), "key_ln/scale": (head,)} if qk_norm else {})


def _mlp(*experts, width=MLP):
    shapes = {"Dense_0/kernel": (*experts, DIM, width), "Dense_0/bias": (*experts, width)}
    return shapes | {"Dense_1/kernel": (*experts, width, DIM), "Dense_1/bias": (*experts, DIM)}


def _below(place, shapes):
    return {f"{place}/{name}": shape for name, shape in shapes.items()}


def parameters(config=None):
    """Random parameters for images of 2 × 2 patches."""
    config = configuration() if config is None else config
    model, encoder = config["model"], config["model"]["encoder"]
    moe, qk_norm = encoder["moe"], encoder.get("attention_qk_norm", False)
    norm = {"scale": (DIM,), "bias": (DIM,)}
    shapes = {"embedding/kernel": (PATCH, PATCH, 3, DIM), "embedding/bias": (DIM,)} | _below(
        "Encoder/encoder_norm", norm
    )
    if model["classifier"] == "token":
        shapes["cls"] = (1, 1, DIM)
    if (encoder.get("position_emb") or {}).get("name", "learned") == "learned":
        shapes["Encoder/posembed_input/pos_embedding"] = (1, SIDE**2 + (model["classifier"] == "token"), DIM)
    for number in range(encoder["num_layers"]):
        block = _below("LayerNorm_0", norm) | _below("LayerNorm_1", norm) | _below("SelfAttention", _attention(qk_norm))
        if number in moe["layers"]:
            block |= _below("Moe/Mlp", _mlp(moe["num_experts"], width=moe.get("mlp_dim", MLP)))
            members = moe.get("ensemble_size")
            own = (moe["num_experts"],) if members is None else (members, moe["num_experts"] // members)
            block["Moe/Router/dense/kernel"] = (DIM, *own)
        else:
            block |= _below("Mlp", _mlp())
        shapes |= _below(f"Encoder/encoderblock_{number}", block)
    if model["classifier"] == "map":
        shapes |= {"MapHead/probe": (1, 1, DIM)} | _below("MapHead/LayerNorm", norm) | _below("MapHead/Mlp", _mlp())
        shapes |= _below("MapHead/MultiHeadDotProductAttention", _attention(qk_norm))
    width = model.get("representation_size")
    if width is not None:
        shapes |= {"pre_logits/kernel": (DIM, width), "pre_logits/bias": (width,)}
    if model["num_classes"]:
        shapes |= {"head/kernel": (width or DIM, model["num_classes"]), "head/bias": (model["num_classes"],)}
    random = np.random.default_rng(0)
    return {name: random.normal(scale=0.5, size=shape).astype(np.float32) for name, shape in shapes.items()}


def sincos2d(height, width, dim, temperature=10_000.0):
    """MoCo v3's embedding of each patch, number by number."""
    rows = []
    for y in range(height):
        for x in range(width):
            angles = {"x": [], "y": []}
            for number in range(dim // 4):
                frequency = temperature ** (-number / (dim // 4 - 1))
                angles["x"].append(x * frequency)
                angles["y"].append(y * frequency)
            rows.append(np.concatenate([f(angles[axis]) for axis in ("x", "y") for f in (np.sin, np.cos)]))
    return np.array(rows)


def _layer_norm(x, scale, bias=0.0):
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6) * scale + bias


def _softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def _feed(x, kernel_0, bias_0, kernel_1, bias_1):
    hidden = x @ kernel_0 + bias_0
    hidden = 0.5 * hidden * (1 + np.tanh(np.sqrt(2 / np.pi) * (hidden + 0.044715 * hidden**3)))
    return hidden @ kernel_1 + bias_1


def _attend(p, place, asking, answering):
    query, key, value = (
        np.einsum("bnd,dhf->bhnf", x, p[f"{place}/{part}/kernel"]) + p[f"{place}/{part}/bias"][:, None]
        for part, x in (("query", asking), ("key", answering), ("value", answering))
    )
    if f"{place}/query_ln/scale" in p:
        query = _layer_norm(query, p[f"{place}/query_ln/scale"])
        key = _layer_norm(key, p[f"{place}/key_ln/scale"])
    weight = _softmax(np.einsum("bhqf,bhkf->bhqk", query, key) / np.sqrt(DIM / HEADS))
    return np.einsum("bhqk,bhkf,hfd->bqd", weight, value, p[f"{place}/out/kernel"]) + p[f"{place}/out/bias"]


def _dense(p, place):
    return [p[f"{place}/{name}"] for name in ("Dense_0/kernel", "Dense_0/bias", "Dense_1/kernel", "Dense_1/bias")]


def _experts(p, place, x, k):
    flat = x.reshape(-1, DIM)
    out = np.zeros_like(flat)
    for number, token in enumerate(flat):
        gates = _softmax(token @ p[f"{place}/Router/dense/kernel"])
        for expert in np.argsort(-gates)[:k]:
            out[number] += gates[expert] * _feed(token, *(each[expert] for each in _dense(p, f"{place}/Mlp")))
    return out.reshape(x.shape)


def logits(config, arrays, images):
    """What the reference says of `images` (B, height, width, 3) while nothing is dropped and without noise."""
    p = {name: array.astype(np.float64) for name, array in arrays.items()}
    model, encoder = config["model"], config["model"]["encoder"]
    batch, height, width = images.shape[0], images.shape[1] // PATCH, images.shape[2] // PATCH
    patches = images.reshape(batch, height, PATCH, width, PATCH, 3)
    x = np.einsum("bypxqc,pqcd->byxd", patches, p["embedding/kernel"]).reshape(batch, -1, DIM) + p["embedding/bias"]
    position = encoder.get("position_emb") or {}
    if position.get("name") == "sincos2d":
        x = x + sincos2d(height, width, DIM, position.get("temperature", 10_000.0))
    if "cls" in p:
        x = np.concatenate([np.repeat(p["cls"], batch, 0), x], 1)
    x = x + p.get("Encoder/posembed_input/pos_embedding", 0)
    for number in range(encoder["num_layers"]):
        at = f"Encoder/encoderblock_{number}"
        norms = [[p[f"{at}/LayerNorm_{i}/{part}"] for part in ("scale", "bias")] for i in (0, 1)]
        normed = _layer_norm(x, *norms[0])
        x = x + _attend(p, f"{at}/SelfAttention", normed, normed)
        normed = _layer_norm(x, *norms[1])
        if f"{at}/Moe/Router/dense/kernel" in p:
            x = x + _experts(p, f"{at}/Moe", normed, encoder["moe"]["router"]["num_selected_experts"])
        else:
            x = x + _feed(normed, *_dense(p, f"{at}/Mlp"))
    x = _layer_norm(x, p["Encoder/encoder_norm/scale"], p["Encoder/encoder_norm/bias"])
    if model["classifier"] == "map":
        probe = np.repeat(p["MapHead/probe"], batch, 0)
        y = _attend(p, "MapHead/MultiHeadDotProductAttention", probe, x)
        normed = _layer_norm(y, p["MapHead/LayerNorm/scale"], p["MapHead/LayerNorm/bias"])
        pooled = (y + _feed(normed, *_dense(p, "MapHead/Mlp")))[:, 0]
    else:
        pooled = x[:, 0] if model["classifier"] == "token" else x.mean(1)
    if "pre_logits/kernel" in p:
        pooled = np.tanh(pooled @ p["pre_logits/kernel"] + p["pre_logits/bias"])
    return pooled @ p["head/kernel"] + p["head/bias"] if "head/kernel" in p else pooled
