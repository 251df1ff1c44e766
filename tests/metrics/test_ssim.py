"""SSIM against scikit-image (tests/golden/ssim/make.py)."""

import json

import numpy as np
import pytest
from helpers import paths
from helpers.networks import random_pictures

from infinity_jax.errors import UserError
from infinity_jax.metrics.ssim import ssim_per_picture

GOLDEN = paths.GOLDEN / "ssim" / "reference.json"


@pytest.mark.parametrize(("height", "width"), [(64, 64), (11, 30)])
def test_ssim_equals_the_reference(height, width):
    image, other = (random_pictures(4, height, width, seed) for seed in (0, 1))
    other[1] = image[1] // 2 + other[1] // 2
    other[2], other[3] = image[2], 255 - image[3]
    wanted = json.loads(GOLDEN.read_text())[f"{height}x{width}"]
    np.testing.assert_allclose(ssim_per_picture(image, other), wanted, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ssim_per_picture(other, image), wanted, rtol=0, atol=1e-9)


def test_many_pictures_are_those_of_each_alone():
    image, other = (random_pictures(35, 16, 16, seed) for seed in (0, 1))
    together = ssim_per_picture(image, other)
    np.testing.assert_allclose(together[33:34], ssim_per_picture(image[33:34], other[33:34]))
    assert len(together) == 35 and len(ssim_per_picture(image[:0], other[:0])) == 0


def test_pictures_smaller_than_the_window_are_refused():
    image = random_pictures(1, 10, 30)
    with pytest.raises(UserError, match="10x30 are too small"):
        ssim_per_picture(image, image)
