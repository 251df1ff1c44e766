"""Random crops and mirroring of the pictures that a tokenizer is trained on, drawn from a picture's place alone."""

import dataclasses
import random

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from infinity_jax.data import pictures


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What is drawn for each picture that a run reads.

    Attributes:
      enlarge: the shorter side becomes so many times that of the square, which is cut at a place drawn evenly; 1 cuts
        the middle.
      flip: probability that the square is mirrored left to right.
      seed: of the run.
    """

    enlarge: float
    flip: float
    seed: int

    def decode(self, image_bytes: bytes, side: int, fit: str, place: int) -> UInt8[np.ndarray, "side side 3"]:
        """Decodes the picture at a `place` of all that the run reads, which decides all that is drawn.

        So it does not depend on how many processes or devices share a batch, nor on where a run resumed. Without
        enlarging or mirroring it is `pictures.decode`, which raises the same.
        """
        draw = random.Random(f"augmentation/{self.seed}/{place}")
        if self.enlarge == 1:
            image = pictures.decode(image_bytes, side, side, fit)
        else:
            image = self._cut(image_bytes, side, draw)
        return np.ascontiguousarray(image[:, ::-1]) if draw.random() < self.flip else image

    def _cut(self, image_bytes: bytes, side: int, draw: random.Random) -> np.ndarray:
        least = round(self.enlarge * side)
        picture = pictures.decode_rgb(image_bytes, at_least=2 * least)
        size = pictures.covering_size(picture, least, least)
        left, top = (draw.randint(0, length - side) for length in size)
        picture = picture.resize(size, Image.Resampling.LANCZOS) if size != picture.size else picture
        return np.array(picture.crop((left, top, left + side, top + side)), dtype=np.uint8)
