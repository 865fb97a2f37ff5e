"""Training from scratch on your own folder of images."""

from vismoe.training import Recipe


def images() -> Recipe:
    """A 128-wide V-MoE, 8 experts in every second block, on a folder of your own images, at 64 × 64.

    vismoe train images --data FOLDER. A network that starts from trained weights does much better on few images:
    vismoe finetune --data FOLDER --from timm:NAME.
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
