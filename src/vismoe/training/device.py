"""Where to compute."""

import torch


def resolve_device(name: str) -> torch.device:
    """`auto`: CUDA, else MPS, else CPU.

    **Raises:** ValueError for a device that is not here.
    """
    number = {"cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available()), "cpu": 1}
    if name == "auto":
        return torch.device(next(device for device, there in number.items() if there))
    here = [device for device, there in number.items() if there]
    here += [f"{device}:{index}" for device in here for index in range(number[device])]
    if name not in here:
        raise ValueError(f"device {name!r} is not here; accepted are auto, {', '.join(here)}")
    return torch.device(name)
