"""The whole process: which of the operations a picture goes through, and how far, drawn from its place alone."""

import dataclasses
from typing import Annotated

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from infinity_jax.data.degradation import jpeg_formula, kernels, operations
from infinity_jax.errors import UserError
from infinity_jax.fields import Checked, OneOf, Range, Share
from infinity_jax.runtime import seeds

_Number = Annotated[float, Range(0, 1000)]
_Between = Annotated[tuple[_Number, ...], Range(2, 2)]
_Odds = Annotated[tuple[Share, ...], Range(3, 3)]
JPEGS = ("file", "formula")
# Of Gaussian noise, in grey levels.
_LEVELS = 255


@dataclasses.dataclass(frozen=True)
class Round(Checked):
    """One of the two rounds of spoiling.

    Attributes:
      blur: share of the pictures that are blurred, by `sigma` pixels between these.
      resize: odds of enlarging, shrinking, and neither; `factors` are the least and the greatest.
      gaussian: share with Gaussian noise, of `noise` grey levels; the others have Poisson noise times `poisson`.
      grey: share of the noise that is the same in all channels.
    """

    blur: Share = 1.0
    sigma: _Between = (0.2, 3.0)
    resize: _Odds = (0.2, 0.7, 0.1)
    factors: _Between = (0.15, 1.5)
    gaussian: Share = 0.5
    noise: _Between = (1.0, 30.0)
    poisson: _Between = (0.05, 3.0)
    grey: Share = 0.4


@dataclasses.dataclass(frozen=True)
class DegradationConfig(Checked):
    """How pictures are spoiled for an upscaler to learn from; the defaults are Real-ESRGAN's for 4 times.

    Attributes:
      sharpen: the true picture is sharpened first.
      rounds: 2, 1, or 0: bicubic shrinking alone.
      kernel: side of the largest blur, odd, 7 to 21.
      blur_1, sigma_1, resize_1, factors_1: of the first round, see `Round`.
      gaussian_1, noise_1, poisson_1, grey_1: of the first round, see `Round`.
      blur_2, sigma_2, resize_2, factors_2: of the second round.
      gaussian_2, noise_2, poisson_2, grey_2: of the second round.
      jpeg_1: qualities of the JPEG between the rounds.
      jpeg_2: qualities of the last one.
      sinc: share of a last low-pass filter, which rings.
      jpeg: "file", or "formula" as the release has it.
    """

    sharpen: bool = True
    rounds: Annotated[int, Range(0, 2)] = 2
    kernel: Annotated[int, Range(7, 21)] = 21
    blur_1: Share = 1.0
    sigma_1: _Between = (0.2, 3.0)
    resize_1: _Odds = (0.2, 0.7, 0.1)
    factors_1: _Between = (0.15, 1.5)
    gaussian_1: Share = 0.5
    noise_1: _Between = (1.0, 30.0)
    poisson_1: _Between = (0.05, 3.0)
    grey_1: Share = 0.4
    jpeg_1: _Between = (30.0, 95.0)
    blur_2: Share = 0.8
    sigma_2: _Between = (0.2, 1.5)
    resize_2: _Odds = (0.3, 0.4, 0.3)
    factors_2: _Between = (0.3, 1.2)
    gaussian_2: Share = 0.5
    noise_2: _Between = (1.0, 25.0)
    poisson_2: _Between = (0.05, 2.5)
    grey_2: Share = 0.4
    jpeg_2: _Between = (30.0, 95.0)
    sinc: Share = 0.8
    jpeg: Annotated[str, OneOf(JPEGS)] = "file"

    def __post_init__(self):
        super().__post_init__()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if isinstance(value, tuple) and len(value) == 2 and value[0] > value[1]:
                raise UserError(f"{field.name} is {value}; the first number must not be above the second")
        for name in ("resize_1", "resize_2"):
            if abs(sum(getattr(self, name)) - 1) > 1e-6:
                raise UserError(f"{name} is {getattr(self, name)}; the three odds must add up to 1")
        for number in (1, 2):
            how = self.of_round(number)
            if how.blur and how.sigma[0] <= 0:
                raise UserError(
                    f"sigma_{number} is {how.sigma}; give numbers above 0, or no blur (blur_{number}=0)"
                )
            if how.factors[0] <= 0 or (how.resize[1] and how.factors[0] > 1):
                raise UserError(
                    f"factors_{number} is {how.factors} and resize_{number} {how.resize}; pictures are shrunk by "
                    "factors above 0 and up to 1"
                )
        for name in ("jpeg_1", "jpeg_2"):
            if not 1 <= getattr(self, name)[0] <= getattr(self, name)[1] <= 100:
                raise UserError(f"{name} is {getattr(self, name)}; give qualities from 1 to 100")
        if self.kernel % 2 == 0:
            raise UserError(f"kernel is {self.kernel}; give an odd number")

    def of_round(self, number: int) -> Round:
        """Picks what one of the rounds, 1 or 2, needs."""
        names = (field.name for field in dataclasses.fields(Round))
        return Round(**{name: getattr(self, f"{name}_{number}") for name in names})


CLEAN = DegradationConfig(sharpen=False, rounds=0)


def degrade(
    true_HW3: UInt8[np.ndarray, "H W 3"], factor: int, config: DegradationConfig, seed: int, place: int
) -> tuple[UInt8[np.ndarray, "H W 3"], UInt8[np.ndarray, "h w 3"]]:
    """Spoils a picture and makes it smaller.

    Args:
      factor: the sides become so many times smaller.
      seed: of the run.
      place: of the picture among all that the run reads, its epoch included: with the seed it decides all that is
        drawn.
    Returns:
      the picture to learn, sharpened where the config says so, and the spoiled one.
    """
    height, width = (n // factor for n in true_HW3.shape[:2])
    random = np.random.default_rng([seeds.seed_of("degradation", seed), place])
    x = true_HW3.astype(np.float32) / 255
    if config.sharpen:
        x = operations.sharpened(x)
    true = (x * 255).round().astype(np.uint8) if config.sharpen else true_HW3
    if config.rounds == 0:
        small = Image.fromarray(true).resize((width, height), Image.Resampling.BICUBIC)
        return true, np.asarray(small)
    for number in range(1, config.rounds + 1):
        whole = x.shape[:2] if number == 1 else (height, width)
        x = _round(random, x, config.of_round(number), whole, config.kernel)
        if number < config.rounds:
            x = _jpeg(random, x, config.jpeg_1, config.jpeg)
    return true, _last(random, x, (height, width), config)


def brought_to(image_hw3: UInt8[np.ndarray, "h w 3"], side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Enlarges a low-quality picture bicubically to what the tokenizer reads of it."""
    if image_hw3.shape[:2] == (side, side):
        return image_hw3
    return np.asarray(Image.fromarray(image_hw3).resize((side, side), Image.Resampling.BICUBIC))


def _round(
    random: np.random.Generator,
    x: operations.Picture,
    how: Round,
    whole: tuple[int, int],
    kernel: int,
) -> operations.Picture:
    """Blurs, resizes to a multiple of `whole`, and adds noise."""
    if random.random() < how.blur:
        x = operations.filtered(x, _fitting(kernels.drawn(random, (how.sigma[0], how.sigma[1]), kernel), x))
    up, down, _ = how.resize
    which, low, high = random.random(), *how.factors
    factor = 1.0
    if which < up:
        factor = random.uniform(1.0, max(1.0, high))
    elif which < up + down:
        factor = random.uniform(low, min(1.0, high))
    mode = str(random.choice(operations.MODES))
    if whole == x.shape[:2]:
        x = np.clip(operations.scaled(x, factor, mode), 0, 1)
    else:
        size = max(1, int(whole[0] * factor)), max(1, int(whole[1] * factor))
        x = np.clip(operations.resized(x, size, mode), 0, 1)
    is_grey = random.random() < how.grey
    if random.random() < how.gaussian:
        return operations.gaussian_noise(random, x, _between(random, how.noise) / _LEVELS, is_grey)
    return operations.poisson_noise(random, x, _between(random, how.poisson), is_grey)


def _last(
    random: np.random.Generator, x: operations.Picture, size: tuple[int, int], config: DegradationConfig
) -> UInt8[np.ndarray, "h w 3"]:
    """Brings a picture to its size, rings and compresses it, in one order or the other."""
    compress_first, mode = random.random() < 0.5, str(random.choice(operations.MODES))
    kernel = kernels.drawn_sinc(random, config.sinc, config.kernel)
    if compress_first:
        x = _jpeg(random, x, config.jpeg_2, config.jpeg)
    x = operations.resized(x, size, mode)
    x = np.clip(operations.filtered(x, _fitting(kernel, x)), 0, 1)
    if not compress_first:
        x = _jpeg(random, x, config.jpeg_2, config.jpeg)
    return (np.clip(x, 0, 1) * 255).round().astype(np.uint8)


def _jpeg(
    random: np.random.Generator, x: operations.Picture, qualities: tuple[float, ...], how: str
) -> operations.Picture:
    quality = _between(random, qualities)
    return operations.jpeg(x, quality) if how == "file" else jpeg_formula.jpeg(x, quality)


def _between(random: np.random.Generator, ends: tuple[float, ...]) -> float:
    return random.uniform(ends[0], ends[1])


def _fitting(kernel: kernels.Kernel, x: operations.Picture) -> kernels.Kernel:
    """Cuts the middle out of a kernel that is larger than what a small picture can be mirrored by."""
    most = 2 * min(x.shape[:2]) - 1
    if len(kernel) <= most:
        return kernel
    cut = (len(kernel) - most) // 2
    middle = kernel[cut:-cut, cut:-cut]
    return middle / middle.sum()
