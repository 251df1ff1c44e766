"""Makes reference.npz: features of pytorch-fid 0.3 (CPU) with random weights, and its Frechet distances.

PYTHONPATH=tests python tests/golden/fid/make.py SHAPES.json, where SHAPES.json holds `inception.torch_shapes()`.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
from helpers.networks import random_features, random_pictures, random_state
from pytorch_fid import fid_score, inception  # pyright: ignore[reportMissingImports]


def random_weights(*_, **__) -> dict[str, torch.Tensor]:
    shapes = json.loads(Path(sys.argv[1]).read_text())
    state = {name: torch.from_numpy(value) for name, value in random_state(shapes).items()}
    counters = {
        name.replace("running_mean", "num_batches_tracked") for name in state if "running_mean" in name
    }
    state |= {name: torch.tensor(0) for name in counters}
    return state | {"fc.weight": torch.zeros(1008, 2048), "fc.bias": torch.zeros(1008)}


def main() -> None:
    inception.load_state_dict_from_url = random_weights
    model = inception.InceptionV3().eval()
    found = {}
    for height, width in ((64, 64), (310, 330)):
        image = torch.from_numpy(random_pictures(2, height, width).transpose(0, 3, 1, 2)) / 255
        with torch.no_grad():
            found[f"features_{height}"] = model(image)[0][:, ::8, 0, 0].numpy()
    for count, size in ((300, 48), (20, 48)):  # of 20 pictures the covariances are singular
        a, b = (random_features(count + 5 * seed, size, seed) for seed in (0, 1))
        statistics = [value for x in (a, b) for value in (x.mean(axis=0), np.cov(x, rowvar=False))]
        found[f"distance_{count}"] = fid_score.calculate_frechet_distance(*statistics)
    np.savez(Path(__file__).parent / "reference.npz", **found)
    print({name: np.ravel(value)[:4] for name, value in found.items()})


if __name__ == "__main__":
    main()
