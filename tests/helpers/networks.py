"""Networks with random weights and pictures for them, the same in the tests and where reference numbers are made."""

import zlib
from collections.abc import Mapping

import numpy as np


def random_state(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Weights float32 by torch's names, at which features neither vanish nor explode; of each name always the same."""
    state = {}
    for name, shape in shapes.items():
        random = np.random.default_rng(zlib.crc32(name.encode()))
        if len(shape) >= 2:
            # For LPIPS, whose heads have one output, these are the weights of channels: none is negative.
            values = random.standard_normal(shape, np.float32) * np.sqrt(2 / np.prod(shape[1:]))
            state[name] = np.abs(values) if shape[0] == 1 else values
        elif name.endswith(("running_var", "bn.weight")):
            state[name] = random.uniform(0.5, 1.5, shape)
        else:
            state[name] = 0.1 * random.standard_normal(shape)
    return {name: np.asarray(values, np.float32) for name, values in state.items()}


def random_pictures(count: int, height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth pictures uint8 [count, height, width, 3], from a few waves each."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width] / max(height, width)
    wave = random.uniform(-20, 20, (count, 3, 4, 2, 1, 1))
    phase = random.uniform(0, 6, (count, 3, 4, 1, 1))
    sums = np.cos(wave[:, :, :, 0] * y + wave[:, :, :, 1] * x + phase).sum(axis=2)
    return np.clip(127.5 + 45 * sums, 0, 255).round().astype(np.uint8).transpose(0, 2, 3, 1)


def random_features(count: int, size: int, seed: int) -> np.ndarray:
    """Correlated features float64 [count, size], of another law for each seed."""
    random = np.random.default_rng(seed)
    mixed = random.standard_normal((count, size)) @ random.standard_normal((size, size)) / size**0.5
    return mixed + 0.3 * seed
