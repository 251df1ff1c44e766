"""What a run trains on that draws its scenes on the devices: no picture is seen twice."""

import dataclasses
import functools
from collections.abc import Iterator

import numpy as np

from infinity_jax import scales
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import batches as pipeline
from infinity_jax.data.batches import Batch, Computed
from infinity_jax.data.feeds import Rows, Shapes, text_shapes, with_text_ids
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.data.scenes.captions import caption
from infinity_jax.data.scenes.description import NUMBERS, describe
from infinity_jax.data.scenes.on_device import key_of
from infinity_jax.data.scenes.source import LENGTHS, SceneSource
from infinity_jax.text.encoder import TextEncoder

_ENDLESS = 2**48


@dataclasses.dataclass(frozen=True)
class SceneFeed:
    """The data set `scenes`: (seed, step, row) alone decides a scene; pictures are square.

    Attributes:
      config: its scales say how large the pictures are.
      tokenizer: with its stride.
      text_encoder: of captions, which become its token ids here and features on the devices.
    """

    config: DataConfig
    tokenizer: TrainedTokenizer
    text_encoder: TextEncoder
    encodes_text = True

    @property
    def schedules(self) -> dict[str, scales.ScaleSchedule]:
        """The schedule of the one ratio."""
        return {"1:1": scales.make_schedule(self.config.scales)}

    @property
    def _key(self) -> str:
        height, width = (n * self.tokenizer.config.transformer_stride for n in self.schedules["1:1"].last)
        return key_of(height, width)

    def shapes(self) -> list[Shapes]:
        """Tells what a batch is on the devices before its scenes are drawn."""
        return [{self._key: ((NUMBERS,), np.float32), **text_shapes(self.text_encoder)}]

    @functools.cached_property
    def held_back(self) -> SceneSource:
        """The validation split."""
        return SceneSource("validation")

    def batches(self, rows: Rows, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
        """Yields the places `rows` of training batches from step `first_step` on, each of scenes not seen before."""

        def batch(step: int) -> Batch:
            scenes = [describe(seed, "train", step * batch_size + int(row)) for row in rows]
            numbers = [{self._key: scene.numbers(), "caption": caption(scene)} for scene in scenes]
            return with_text_ids(pipeline.stack(numbers), self.text_encoder)

        return pipeline.prefetched(batch, range(first_step, _ENDLESS // batch_size))

    def caption(self, index: int, held_back: bool = False) -> str:
        """Returns a caption of the train split, or of the validation split."""
        source = self.held_back if held_back else SceneSource("train")
        return source.described[index]["caption"]

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields the validation split once, see `batches.eval_batches`."""
        described = self.held_back.described

        def record(index: int) -> dict:
            scene = described[index]
            return {self._key: scene["scene"], "caption": scene["caption"]}

        for batch in pipeline.eval_batches(Computed(record, range(LENGTHS["validation"])), batch_size):
            yield with_text_ids(batch, self.text_encoder)
