"""Base weights of the toy modules: toys/<name>.safetensors."""

from pathlib import Path

import torch

from common import generator, normal, write_tensors
from toys import TOYS

NAMES = tuple(TOYS)


def generate(name: str) -> None:
    rng = generator("toys/" + name)
    model = TOYS[name]()
    with torch.no_grad():
        for key, parameter in sorted(model.named_parameters()):
            parameter.copy_(normal(rng, parameter.shape, 0.4))
    write_tensors(Path("toys") / f"{name}.safetensors", model.state_dict())
