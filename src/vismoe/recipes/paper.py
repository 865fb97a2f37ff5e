"""The recipes of V-MoE (Riquelme et al. 2021, appendix B; google-research/vmoe, configs/vmoe_paper/common.py).

These recipes have not been run, because the data and the hardware are not available. Tests build and train scaled-down
versions.

From common.py: learning rates, warm-up, decay, clipping, group size, and the options of the presets (k = 2, capacity
factor 1.05 in training, noise 1/E on the router logits, importance and load loss with weight 0.005 each, a tanh layer
before the classifier). It does not give epochs and batch size. These come from dense networks of the same sizes and
learning rates in google/uncertainty-baselines, baselines/jft/experiments: 5 epochs (jft300m_vit_small8_32), 7 epochs
(jft300m_vit_base16, jft300m_vit_l32), 14 epochs (vit_be/jft300m_be_vit_huge_14), batches of 4,096. For the 14 epochs of
L/16 there is no such network.

8 images are routed together, so each process's share of a batch must be a multiple of 8.

Differences: the rows sent to experts are not rounded to bfloat16 (dispatcher.bfloat16; here the model option
bfloat16_exchange), and more than the last checkpoint is kept (keep_checkpoints).
"""

from vismoe.training import Recipe

JFT_IMAGES = 305e6
"""Number of images in JFT-300M (section 3.1). The data set has 18,291 classes and is not public."""
GROUP = 8
"""Number of images that are routed together (get_vmoe_config)."""


def _upstream(size: str, patch: int, epochs: int, learning_rate: float, clip_norm: float = 0.0) -> Recipe:
    """The recipe of an upstream training.

    From get_optimizer_config: Adam (0.9, 0.999), 10,000 warm-up steps, linear decay to 1e-5, weight decay 0.1 for all
    parameters. From get_vmoe_config: initial bias −log(classes) of the classifier (−10 in the dense networks), the same
    initial weights for all experts of a layer. From the dense networks: random crops of at least 5 % of the area,
    flips, sigmoid loss summed over classes, batches of 4,096.
    """
    return Recipe(
        name=f"paper_{size}",
        model=f"vmoe_{size}_every2_e32",
        model_options=(
            ("group_size", GROUP * ((224 // patch) ** 2 + 1)),
            ("expert_init", "alike"),
            ("weight_init", "jax_nlhb"),
        ),
        data="jft-300m",
        steps=round(epochs * JFT_IMAGES / 4096),
        batch_size=4096,
        learning_rate=learning_rate,
        schedule="warmup-polynomial",
        warmup_steps=10_000,
        end_learning_rate=1e-5,
        weight_decay=((".*", 0.1),),
        clip_norm=clip_norm,
        loss="sigmoid",
        label_smoothing=0.0,
        degrees=0.0,
        translate=0.0,
        scale=0.0,
        shear=0.0,
        flip=0.5,
        crop=0.05,
        evaluate_every=1000,
        checkpoint_every=1000,
    )


def paper_s32() -> Recipe:
    """Upstream training of V-MoE-S/32: 5 epochs of JFT-300M, learning rate 1e-3. Never run at full size.

    Usage: torchrun --nproc-per-node 8 -m vismoe train paper_s32 --data FOLDER. An image may have several classes.
    """
    return _upstream("s32", 32, 5, 1e-3)


def paper_b32() -> Recipe:
    """Upstream training of V-MoE-B/32: 7 epochs of JFT-300M, learning rate 8e-4. Never run at full size.

    Usage: as paper_s32.
    """
    return _upstream("b32", 32, 7, 8e-4)


def paper_b16() -> Recipe:
    """Upstream training of V-MoE-B/16: 7 epochs of JFT-300M, learning rate 8e-4. Never run at full size.

    Usage: as paper_s32.
    """
    return _upstream("b16", 16, 7, 8e-4)


def paper_l32() -> Recipe:
    """Upstream training of V-MoE-L/32: 7 epochs of JFT-300M, learning rate 6e-4. Never run at full size.

    Usage: as paper_s32.
    """
    return _upstream("l32", 32, 7, 6e-4)


def paper_l16() -> Recipe:
    """Upstream training of V-MoE-L/16: 14 epochs of JFT-300M, learning rate 4e-4. Never run at full size.

    Usage: as paper_s32.
    """
    return _upstream("l16", 16, 14, 4e-4)


def paper_h14() -> Recipe:
    """Upstream training of V-MoE-H/14: 14 epochs of JFT-300M, learning rate 3e-4, gradient norm clipped at 10.

    Never run at full size.

    Usage: as paper_s32.
    """
    return _upstream("h14", 14, 14, 3e-4, clip_norm=10.0)


def paper_finetune() -> Recipe:
    """Fine-tuning of V-MoE-S/32 on ImageNet at 384 × 384 pixels. Never run at full size.

    Usage: torchrun --nproc-per-node 8 -m vismoe train paper_finetune --weights runs/paper_s32 --data FOLDER

    The classifier is new and has no tanh layer; position embeddings are resized. SGD with momentum 0.9, 500 warm-up
    steps, cosine decay from 3e-3 to 1e-5, 10,000 steps of 1,024 images, gradient norm clipped at 10, capacity factor
    1.5, no weight decay. From configs/vmoe_paper/vmoe_s32_last2_ilsvrc2012_randaug_light1_ft_ilsvrc2012.py;
    vmoe_b16_imagenet21k_randaug_strong_ft_ilsvrc2012.py is similar, and its initial classifier bias −log(classes) has
    no effect on a softmax. For another network set --model, and in --model-options a group_size of 8 times its tokens.
    """
    return Recipe(
        name="paper_finetune",
        model="vmoe_s32_every2_e32",
        image_size=384,
        model_options=(
            ("capacity_factor", 1.5),
            ("group_size", GROUP * ((384 // 32) ** 2 + 1)),
            ("representation_size", 0),
        ),
        data="imagenet",
        steps=10_000,
        batch_size=1024,
        optimizer="momentum",
        learning_rate=3e-3,
        schedule="warmup-cosine",
        warmup_steps=500,
        end_learning_rate=1e-5,
        weight_decay=0.0,
        clip_norm=10.0,
        label_smoothing=0.0,
        degrees=0.0,
        translate=0.0,
        scale=0.0,
        shear=0.0,
        flip=0.5,
        crop=0.05,
        evaluate_every=1000,
        checkpoint_every=1000,
    )
