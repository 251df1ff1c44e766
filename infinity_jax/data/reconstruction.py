"""How well a tokenizer gives a data set's pictures back, measured on a few of them in seconds."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, UInt8

from infinity_jax.data import pictures
from infinity_jax.data.records import Source
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.metrics.psnr import psnr_per_picture

FEWEST = 4  # pictures, where one is as much as the tokenizer takes at once
ENOUGH_DB = 21.0  # below it, pictures of the kinds that were tried lose what tells them apart


@dataclasses.dataclass(frozen=True)
class Reconstruction:
    """Some pictures before and after the bits.

    Attributes:
      places: of the pictures in the source.
      images: what the tokenizer is fed.
      made: what it gives back.
      psnr: of each picture, in dB.
    """

    places: Int[np.ndarray, " N"]
    images: UInt8[np.ndarray, "N H W 3"]
    made: UInt8[np.ndarray, "N H W 3"]
    psnr: Float[np.ndarray, " N"]

    @property
    def mean_psnr(self) -> float:
        """The mean over the pictures, in dB."""
        return float(self.psnr.mean())


def reconstruct_some(source: Source, through_bits: ThroughBits, fit: str) -> Reconstruction:
    """Sends pictures through a tokenizer, always the same ones of the same data: 32, or fewer large ones.

    `fit` is that of `pictures.decode`.
    """
    count = min(len(source), max(FEWEST, through_bits.batch_size))
    places = np.sort(np.random.default_rng(0).permutation(len(source))[:count])
    images = pictures.decode_squares([source[int(place)] for place in places], through_bits.side, fit)
    made = through_bits(images)
    return Reconstruction(places, images, made, psnr_per_picture(images, made))
