"""Super-resolution (NSARM): small pictures in, large ones out, of which a network gives the first scales.

The transformer draws only the later scales, on what the network gives (docs/guides/upscaling.md).
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.checkpoints.trained import TrainedUpscaler
from infinity_jax.config import COLOURS, SampleConfig, TokenizerConfig, UpscalerConfig, check_choice
from infinity_jax.data import pictures as decoding
from infinity_jax.data.degradation.process import brought_to
from infinity_jax.errors import UserError
from infinity_jax.files.pictures import MOST_PIXELS
from infinity_jax.runtime.sharding import put
from infinity_jax.sampling.given import Given
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.tokenizer.model import Tokenizer, exact
from infinity_jax.upscaler import colour
from infinity_jax.upscaler.network import UpscalerNetwork, given_bits

# Share of a tile's side that lies under its neighbour.
_OVERLAP = 0.25
# Pictures encoded at once.
_BATCH = 8


@dataclasses.dataclass(frozen=True)
class UpscaleRequest:
    """Which N pictures become large.

    Attributes:
      pictures: RGB.
      prompts: what each shows; None is the upscaler's own text for all, or none.
      seeds: one a picture; None is 0, 1, 2, ...
      colour: how colours are brought back to the small picture's, a name of `config.COLOURS`; None is the upscaler's
        own.
      tile: pictures of another size than the upscaler's are cut into overlapping tiles of that.
    """

    pictures: Sequence[Image.Image]
    prompts: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    colour: str | None = None
    tile: bool = False


class UpscalePipeline:
    """A trained upscaler and its system, ready to draw.

    Attributes:
      pipeline: the system.
      upscaler: the network.
    """

    def __init__(self, pipeline: InfinityPipeline, upscaler: TrainedUpscaler):
        self.pipeline, self.upscaler = pipeline, upscaler

    @classmethod
    def from_pretrained(cls, path: str | Path, mesh: str | None = None, rules: str = "") -> "UpscalePipeline":
        """Loads a workdir of `train-upscaler`, or a folder that `export` or `convert` made of one.

        Args and errors as of `InfinityPipeline.from_pretrained`; UserError too where there is no upscaler.
        """
        upscaler = open_checkpoint(path).upscaler()
        pipeline = InfinityPipeline.from_pretrained(path, mesh, rules, upscales=True)
        if (layout := pipeline.layout) is not None:  # beside the tokenizer's
            params = jax.tree.map(lambda x: put(np.asarray(x), layout.replicated), upscaler.params)
            upscaler = dataclasses.replace(upscaler, params=params)
        return cls(pipeline, upscaler)

    @property
    def side(self) -> int:
        """Pixels of a side of the small pictures."""
        return self.pipeline.picture_size()[0] // self.upscaler.config.factor

    def __call__(self, request: UpscaleRequest, settings: SampleConfig | None = None) -> list[Image.Image]:
        """Draws N pictures, `factor` times as large as those that are given.

        Args:
          settings: None takes the checkpoint's own.
        Raises:
          UserError: a picture, prompt or setting that cannot be; it comes before anything is drawn.
        """
        prompts, seeds = self._check(request)
        settings = self.pipeline.settings if settings is None else settings
        given = [np.asarray(picture.convert("RGB")) for picture in request.pictures]
        tiles = [_Tiles(image, self.side) for image in given]
        small = np.concatenate([tile.cut() for tile in tiles])
        of_picture = [i for i, tile in enumerate(tiles) for _ in range(tile.count)]
        drawn = self._draw(small, [prompts[i] for i in of_picture], [seeds[i] for i in of_picture], settings)
        # Each tile's colours are its own: so seams have none.
        drawn = [
            colour.corrected(x, low, request.colour or self.upscaler.config.colour).astype(np.float32)
            for x, low in zip(drawn, small, strict=True)
        ]
        factor, parts = self.upscaler.config.factor, iter(drawn)
        return [
            Image.fromarray(tile.joined([next(parts) for _ in range(tile.count)], factor)) for tile in tiles
        ]

    def _check(self, request: UpscaleRequest) -> tuple[Sequence[str], Sequence[int]]:
        """Returns prompts and seeds; UserError where the request cannot be drawn."""
        count, own = len(request.pictures), self.upscaler.config.prompt
        prompts = [own] * count if request.prompts is None else request.prompts
        if request.prompts is None and not own:
            raise UserError(
                "this upscaler was trained on captions; give a prompt for each picture, of what it shows"
            )
        seeds = range(count) if request.seeds is None else request.seeds
        if not count or not len(prompts) == len(seeds) == count:
            raise UserError(
                f"got {count} pictures, {len(prompts)} prompts and {len(seeds)} seeds; give one of each for a picture"
            )
        check_choice(request.colour or "none", COLOURS, "colour")
        for number, picture in enumerate(request.pictures):
            size = f"picture {number} has {picture.width}x{picture.height} pixels"
            if picture.size != (self.side, self.side) and not request.tile:
                raise UserError(
                    f"{size}, and this upscaler makes {self.side}x{self.side} larger; resize it, or draw it in tiles "
                    "(--tile)"
                )
            if picture.width * picture.height * self.upscaler.config.factor**2 > MOST_PIXELS:
                raise UserError(
                    f"{size}; {self.upscaler.config.factor} times as large it has more than {MOST_PIXELS}: cut it first"
                )
        return prompts, seeds

    def _draw(
        self,
        small_Nhw3: UInt8[np.ndarray, "N h w 3"],
        prompts: Sequence[str],
        seeds: Sequence[int],
        settings: SampleConfig,
    ) -> UInt8[np.ndarray, "N H W 3"]:
        config = self.upscaler.config
        request = SampleRequest(
            prompts,
            seeds,
            given=self.given(small_Nhw3),
            given_scales=len(config.sizes),
            next_input=config.next_input,
        )
        return self.pipeline.arrays(request, settings)

    def given(self, small_Nhw3: UInt8[np.ndarray, "N h w 3"]) -> Given:
        """Predicts the first scales of pictures of `side` pixels: arrays of the host."""
        config, tokenizer = self.upscaler.config, self.pipeline.model.tokenizer
        predict = _predictor(config, tokenizer.config)
        side, found = config.side * tokenizer.config.stride, []
        for start in range(0, len(small_Nhw3), _BATCH):
            part = [decoding.to_float(brought_to(x, side)) for x in small_Nhw3[start : start + _BATCH]]
            missing = _BATCH - len(part)  # always the same shapes
            images = np.stack([*part, *[part[-1]] * missing])
            bits = jax.device_get(predict(tokenizer.params, self.upscaler.params, images))
            found.append([x[: len(part)] for x in bits])
        symbols = tuple(np.concatenate(scale) for scale in zip(*found, strict=True))
        where: Any = tuple(np.ones(x.shape[:3], bool) for x in symbols)
        given: Any = symbols
        return Given(where, given)


@functools.cache
def _predictor(config: UpscalerConfig, tokenizer: TokenizerConfig) -> Any:
    """Makes (tokenizer parameters, network parameters, pictures) -> the bits of the given scales."""
    encoder: Any = Tokenizer(tokenizer)
    network: Any = UpscalerNetwork(config)

    def predict(tokenizer_params: Any, params: Any, image_BHW3: jax.Array) -> Any:
        features = encoder.apply({"params": tokenizer_params}, image_BHW3, method="encode")
        with exact("float32"):
            return given_bits(network.apply({"params": params}, jnp.asarray(features)), tokenizer.patchify)

    return jax.jit(predict)


class _Tiles:
    """A picture in overlapping squares; one that is smaller is filled up with its edge.

    Attributes:
      count: of squares.
    """

    def __init__(self, image_hw3: UInt8[np.ndarray, "h w 3"], side: int):
        self._side, self._size = side, image_hw3.shape[:2]
        missing = [max(0, side - n) for n in self._size]
        self._image = np.pad(image_hw3, ((0, missing[0]), (0, missing[1]), (0, 0)), mode="edge")
        self.count = len(list(self._places()))

    def _places(self) -> Iterator[tuple[int, int]]:
        starts = []
        for length in self._image.shape[:2]:
            step = max(1, round(self._side * (1 - _OVERLAP)))
            starts.append([*range(0, length - self._side, step), length - self._side])
        return ((y, x) for y in starts[0] for x in starts[1])

    def cut(self) -> UInt8[np.ndarray, "n side side 3"]:
        """Cuts the squares out."""
        side = self._side
        return np.stack([self._image[y : y + side, x : x + side] for y, x in self._places()])

    def joined(self, tiles: Sequence[Float[np.ndarray, "S S 3"]], factor: int) -> UInt8[np.ndarray, "H W 3"]:
        """Joins what was made of the squares, each `factor` times as large: in overlaps one passes into the other."""
        side = self._side * factor
        height, width = (n * factor for n in self._image.shape[:2])
        total, weights = np.zeros((height, width, 3)), np.zeros((height, width, 1))
        # Highest in the middle, and nowhere 0.
        line = np.minimum(np.arange(side) + 1, side - np.arange(side)) / side
        line = np.minimum(line, _OVERLAP)
        weight = np.outer(line, line)[..., None]
        for tile, (y, x) in zip(tiles, self._places(), strict=True):
            at = (slice(y * factor, y * factor + side), slice(x * factor, x * factor + side))
            total[at] += weight * tile
            weights[at] += weight
        height, width = (n * factor for n in self._size)
        return np.clip(np.round(total / weights), 0, 255).astype(np.uint8)[:height, :width]
