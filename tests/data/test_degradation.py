"""How pictures are spoiled: the same for a seed and a place, other ones else, and of the size that is asked for."""

import numpy as np
import pytest

from infinity_jax.data.degradation import kernels, operations
from infinity_jax.data.degradation.process import CLEAN, DegradationConfig, degrade
from infinity_jax.errors import UserError

# A lighter process of the release's code, of one round.
LIGHT = DegradationConfig(
    rounds=1,
    factors_1=(0.5, 1.5),
    gaussian_1=0.3,
    noise_1=(1.0, 20.0),
    poisson_1=(0.05, 2.0),
    grey_1=0.2,
    jpeg_2=(60.0, 95.0),
)


def picture(side: int = 64, seed: int = 0) -> np.ndarray:
    rough = np.random.default_rng(seed).uniform(0, 1, (8, 8, 3)).astype(np.float32)
    return (operations.resized(rough, (side, side), "bilinear") * 255).round().astype(np.uint8)


@pytest.mark.parametrize("config", [CLEAN, LIGHT, DegradationConfig()], ids=["clean", "light", "heavy"])
@pytest.mark.parametrize("side", [64, 16])
def test_a_place_decides_all_that_is_drawn(config, side):
    true, low = degrade(picture(side), 4, config, seed=3, place=7)
    assert true.shape == (side, side, 3) and low.shape == (side // 4, side // 4, 3)
    again = degrade(picture(side), 4, config, seed=3, place=7)[1]
    np.testing.assert_array_equal(low, again)
    for other in ({"seed": 4, "place": 7}, {"seed": 3, "place": 8}):
        is_same = np.array_equal(low, degrade(picture(side), 4, config, **other)[1])
        assert is_same == (config is CLEAN)


def test_heavier_spoils_more():
    def error(config: DegradationConfig) -> float:
        clean = degrade(picture(), 4, CLEAN, 0, 0)[1].astype(float)
        spoiled = (degrade(picture(), 4, config, 0, place)[1] for place in range(40))
        return float(np.mean([np.square(x - clean).mean() for x in spoiled]))

    assert 0 < error(LIGHT) < error(DegradationConfig())


def test_every_drawn_kernel_sums_to_one():
    random = np.random.default_rng(0)
    for _ in range(300):
        kernel = kernels.drawn(random, (0.2, 3.0))
        assert kernel.shape[0] == kernel.shape[1] <= kernels.LARGEST and kernel.shape[0] % 2
        np.testing.assert_allclose(kernel.sum(), 1.0)


def test_mean_stays_under_noise_and_blur():
    x = np.full((64, 64, 3), 0.5, np.float32)
    random = np.random.default_rng(0)
    np.testing.assert_allclose(operations.filtered(x, kernels.drawn(random, (0.2, 3.0))), x, atol=1e-6)
    for grey in (False, True):
        noisy = operations.gaussian_noise(random, x, 0.05, grey)
        assert abs(noisy.mean() - 0.5) < 0.005 and 0.04 < noisy.std() < 0.06
        assert (np.ptp(noisy, axis=-1).max() == 0) == grey
        noisy = operations.poisson_noise(random, np.round(x * 255) / 255, 0.5, grey)
        assert abs(noisy.mean() - 0.5) < 0.02 and noisy.std() > 0.01


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"jpeg_1": (0.0, 50.0)}, "jpeg_1"),
        ({"kernel": 8}, "odd"),
        ({"resize_1": (0.5, 0.5, 0.5)}, "add up to 1"),
        ({"sigma_2": (2.0, 1.0)}, "sigma_2"),
        ({"rounds": 3}, "rounds"),
        ({"sigma_1": (0.0, 1.0)}, "sigma_1"),
        ({"factors_2": (1.1, 1.2)}, "factors_2"),
    ],
)
def test_wrong_numbers_are_refused_by_name(values, said):
    with pytest.raises(UserError, match=said):
        DegradationConfig(**values)
