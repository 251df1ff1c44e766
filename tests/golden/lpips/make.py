"""Makes reference.npz: the package `lpips` (PyTorch, CPU) on random weights for VGG16 and for its heads.

Run with torch 2.13, torchvision 0.28 and lpips 0.1.4, as tests/metrics/test_lpips.py reads it:
PYTHONPATH=tests:. python tests/golden/lpips/make.py SHAPES.json, where SHAPES.json holds the name -> shape of both
files (`vgg_shapes()` and `head_shapes()`).
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from helpers.networks import random_pictures, random_state
from lpips import LPIPS  # pyright: ignore[reportMissingImports, reportAttributeAccessIssue]


def main() -> None:
    vgg_shapes, head_shapes = json.loads(Path(sys.argv[1]).read_text())
    model = LPIPS(net="vgg", pretrained=False, pnet_rand=True, verbose=False).eval()
    vgg = [torch.from_numpy(value) for value in random_state(vgg_shapes).values()]
    with torch.no_grad():
        for parameter, value in zip(model.net.parameters(), vgg, strict=True):
            parameter.copy_(value)
    heads = {name: torch.from_numpy(value) for name, value in random_state(head_shapes).items()}
    model.load_state_dict(heads, strict=False)
    found = {}
    for height, width in ((32, 32), (50, 37)):
        images = [random_pictures(3, height, width, seed) for seed in (0, 1)]
        images[1][0] = images[0][0]
        images[1][1] = images[0][1] // 2 + images[1][1] // 2
        image, other = (torch.from_numpy(i.transpose(0, 3, 1, 2) / np.float32(127.5) - 1) for i in images)
        other.requires_grad_(True)
        distance = model(image, other).reshape(-1)
        found[f"distance_{height}"] = distance.detach().numpy()
        if height == 32:
            distance[1:].sum().backward()
            found["gradient_32"] = other.grad.numpy()[1:, :, ::4, ::4].transpose(0, 2, 3, 1)
    np.savez(Path(__file__).parent / "reference.npz", **found)
    print({name: value.ravel()[:3] for name, value in found.items()})


if __name__ == "__main__":
    main()
