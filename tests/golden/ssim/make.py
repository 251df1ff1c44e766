"""Makes reference.json: SSIM by scikit-image 0.26 with the paper's window, a mean over the colours of RGB.

PYTHONPATH=tests python tests/golden/ssim/make.py
"""

import json
from pathlib import Path

from helpers.networks import random_pictures
from skimage.metrics import structural_similarity  # pyright: ignore[reportMissingImports]


def main() -> None:
    found = {}
    for height, width in ((64, 64), (11, 30)):
        image, other = (random_pictures(4, height, width, seed) for seed in (0, 1))
        other[1] = image[1] // 2 + other[1] // 2
        other[2], other[3] = image[2], 255 - image[3]
        found[f"{height}x{width}"] = [
            structural_similarity(
                a,
                b,
                channel_axis=2,
                gaussian_weights=True,
                sigma=1.5,
                use_sample_covariance=False,
                data_range=255,
            )
            for a, b in zip(image, other, strict=True)
        ]
    (Path(__file__).parent / "reference.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
