"""Training from scratch on your own folder of images."""

from vismoe.training import Recipe


def images() -> Recipe:
    """A V-MoE of width 128 with 8 experts in every second block, for a folder of images, at 64 × 64 pixels.

    Usage: vismoe train images --data FOLDER

    A folder with boxes trains a detector, whose trunk is this network; small objects need a larger --image-size.

    Training starts from random weights. With few images a pretrained network is much better: vismoe finetune --data
    FOLDER --from timm:NAME.
    """
    return Recipe(
        name="images",
        model="vmoe_nano_patch8_64_every2_e8",
        data="FOLDER",
        translate=0.0,
        scale=0.0,
        shear=0.0,
        flip=0.5,
        crop=0.5,
    )
