"""What a run trains on, as batches {features or image, text or text_ids, text_mask}: encoded whole, or records.

These feeds, and that of scenes (`scenes/feed.py`), have `schedules`, `shapes`, `batches`, `eval_batches`,
`encodes_text`, and for sample sheets `held_back` and `caption`.
"""

import dataclasses
import functools
import os
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grain
import jax.numpy as jnp
import numpy as np

from infinity_jax import scales
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import batches as pipeline
from infinity_jax.data import captions, pictures, sources
from infinity_jax.data.batches import Batch, Computed
from infinity_jax.data.encoded import EncodedSource, encode_split
from infinity_jax.data.prepared import features
from infinity_jax.data.prepared.buckets import BucketOrder, Picture
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.data.prepared.record_set import MixedRecords, RecordSource
from infinity_jax.data.records import Source
from infinity_jax.errors import UserError
from infinity_jax.text.encoder import TextEncoder
from infinity_jax.text.on_device import padded_ids

_ENDLESS = 2**48
# (ratio, record, random numbers of this picture at this time) -> arrays and text.
Transform = Callable[[str, dict[str, Any], random.Random], Mapping[str, Any]]

Rows = Sequence[int] | np.ndarray
# Of each array of a batch its shape without the first axis, and its dtype.
Shapes = Mapping[str, tuple[tuple[int, ...], Any]]


@dataclasses.dataclass(frozen=True)
class EncodedFeed:
    """A small data set, encoded whole at the start; pictures are square."""

    source: Source
    config: DataConfig
    tokenizer: TrainedTokenizer
    text_encoder: TextEncoder
    encodes_text = False

    @property
    def schedules(self) -> dict[str, scales.ScaleSchedule]:
        """The schedule of the one ratio."""
        return {"1:1": scales.make_schedule(self.config.scales)}

    def shapes(self) -> list[Shapes]:
        """Tells what `batches` yields: of each kind of batch the arrays."""
        tokenizer = self.tokenizer.config
        grid = self.schedules["1:1"].times(tokenizer.patchify).last
        return [
            {"features": ((*grid, tokenizer.bits), np.float32), **text_shapes(self.text_encoder, np.float16)}
        ]

    @functools.cached_property
    def _encoded(self) -> EncodedSource:
        return self._encode(self.source)

    @functools.cached_property
    def held_back(self) -> Source:
        """The validation split."""
        return sources.open_source(self.config.source, "validation")

    @functools.cached_property
    def _validation(self) -> EncodedSource | None:
        return self._encode(self.held_back) if len(self.held_back) else None

    def _encode(self, split: Source) -> EncodedSource:
        return encode_split(split, self.tokenizer, self.text_encoder, self.config.fit)

    def batches(self, rows: Rows, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
        """Yields the places `rows` of training batches from step `first_step` on; see `batches.batches`."""
        return pipeline.batches(
            self._encoded, batch_size=batch_size, seed=seed, first_step=first_step, rows=rows
        )

    def caption(self, index: int, held_back: bool = False) -> str:
        """Returns the caption of a picture of the train split, or of the validation split."""
        return (self.held_back if held_back else self.source)[index]["caption"]

    def encode(self) -> None:
        """Encodes what is not yet encoded."""
        _ = self._encoded, self._validation

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields the validation split once, see `batches.eval_batches`."""
        return iter(()) if self._validation is None else pipeline.eval_batches(self._validation, batch_size)


@dataclasses.dataclass(frozen=True)
class RecordFeed:
    """Prepared shards, read while the run trains, each batch of one aspect ratio.

    Attributes:
      records: what is trained on.
      validation: what is evaluated on; None is nothing.
      config: how captions are chosen.
      tokenizer: its stride says how large pictures of each ratio are.
      text_encoder: of captions, which become its token ids here and features on the devices (`text/on_device.py`);
        not used where the records hold features.
    """

    records: MixedRecords
    validation: MixedRecords | None
    config: DataConfig
    tokenizer: TrainedTokenizer
    text_encoder: TextEncoder

    def __post_init__(self):
        for records in filter(None, (self.records, self.validation)):
            if records.features:
                features.check(records.features, self.config, self.tokenizer, self.text_encoder)

    @property
    def encodes_text(self) -> bool:
        """Whether captions are encoded during the run, by each process for itself."""
        return not self.records.features or (self.validation is not None and not self.validation.features)

    @functools.cached_property
    def schedules(self) -> dict[str, scales.ScaleSchedule]:
        """The schedule of each ratio."""
        return {
            ratio: scales.schedule_of_ratio(self.config.scales, ratio) for ratio in scales.aspect_ratios()
        }

    def shapes(self) -> list[Shapes]:
        """Tells what a batch is on the devices before its pictures are encoded, for each ratio that has some."""
        tokenizer, text = self.tokenizer.config, text_shapes(self.text_encoder)

        def of_ratio(ratio: str) -> Shapes:
            grid = self.schedules[ratio].times(tokenizer.patchify).last
            if self.records.features:
                kind = self.records.features.get(features.DTYPE, "bfloat16")
                return {"features": ((*grid, tokenizer.bits), jnp.dtype(kind)), **text}
            height, width = (n * tokenizer.stride for n in grid)
            return {"image": ((height, width, 3), np.uint8), **text}

        return [of_ratio(bucket.ratio) for bucket in self.records.buckets]

    def batches(self, rows: Rows, batch_size: int, seed: int, first_step: int) -> Iterator[Batch]:
        """Yields the places `rows` of training batches from step `first_step` on; see `bucket_batches`."""
        order = BucketOrder(self.records.buckets, batch_size, seed)
        threads = max(2, min(16, os.cpu_count() or 2))  # Pillow lets go of Python's lock while it decodes
        return bucket_batches(
            self.records, order, self._transform, rows, first_step, self._with_text, threads
        )

    @functools.cached_property
    def held_back(self) -> RecordSource | tuple[()]:
        """What is evaluated on."""
        return RecordSource(self.validation) if self.validation else ()

    def caption(self, index: int, held_back: bool = False) -> str:
        """Returns a caption of a picture that is trained on, or evaluated on."""
        records = self.validation if held_back and self.validation else self.records
        return RecordSource(records).caption(index)

    def eval_batches(self, batch_size: int) -> Iterator[Batch]:
        """Yields the validation records once, ratio by ratio, in batches with `valid`, see `batches.eval_batches`."""
        if self.validation is None:
            return
        for bucket in self.validation.buckets:
            for part, count in enumerate(bucket.sizes):
                read = functools.partial(self.validation.read, bucket.ratio, part)

                def transform(record: dict[str, Any], ratio: str = bucket.ratio) -> Mapping[str, Any]:
                    return self._transform(ratio, record, random.Random(record["id"]))

                for batch in pipeline.eval_batches(Computed(read, range(count)), batch_size, transform):
                    yield self._with_text(batch)

    def _transform(self, ratio: str, record: dict[str, Any], draw: random.Random) -> Mapping[str, Any]:
        config = self.config
        if "features" in record:
            return features.arrays(record, config.long_captions, self.text_encoder.max_length, draw)
        height, width = (n * self.tokenizer.config.transformer_stride for n in self.schedules[ratio].last)
        caption = captions.choose(record["captions"], config.long_captions, config.cut_captions, draw)
        return {"image": pictures.decode(record["image"], height, width), "caption": caption}

    def _with_text(self, batch: Batch) -> Batch:
        return with_text_ids(batch, self.text_encoder)


def with_text_ids(batch: Batch, encoder: TextEncoder) -> Batch:
    """Replaces captions, if there are any, by their token ids and mask, `on_device.padded_ids`."""
    if "caption" not in batch:
        return batch
    token_ids = encoder.tokens(batch.pop("caption").tolist())
    return {**batch, **padded_ids(token_ids, encoder.max_length)}


def text_shapes(encoder: TextEncoder, dtype: Any = jnp.bfloat16) -> Shapes:
    """Tells what a batch's texts are on the devices; bfloat16 is what `TextOnDevice` makes."""
    return {
        "text": ((encoder.max_length, encoder.channels), dtype),
        "text_mask": ((encoder.max_length,), np.bool_),
    }


def bucket_batches(
    records: MixedRecords,
    order: BucketOrder,
    transform: Transform,
    rows: Sequence[int] | np.ndarray,
    first_step: int = 0,
    finish: Callable[[Batch], Batch] = lambda batch: batch,
    threads: int = 2,
) -> Iterator[Batch]:
    """Endless batches from step `first_step` on, of each only its places `rows`.

    (seed, step, row) alone decides what is in a place, so any number of processes reads the same batches.

    Args:
      transform: makes the record of a picture ready, in one of `threads` threads.
      finish: what is done with a whole batch then, for example the encoding of its captions.
    """
    pool = ThreadPoolExecutor(threads)

    def read(ratio: str, picture: Picture) -> Mapping[str, Any]:
        record = records.read(ratio, picture.part, picture.index)
        try:
            return transform(ratio, record, random.Random(f"{order.seed}/{ratio}/{picture}"))
        except pictures.BrokenPicture as error:
            folder = records.sets[picture.part].index.folder
            raise UserError(
                f"{record['id']} in {folder}: {error}; its shard has changed, prepare it again"
            ) from error

    def batch(step: int) -> Batch:
        ratio, chosen = order.pictures(step, rows)
        return finish(pipeline.stack(list(pool.map(lambda picture: read(ratio, picture), chosen))))

    # The threads share the pictures of a batch, so that few batches are under way at a time.
    reading = grain.ReadOptions(num_threads=1, prefetch_buffer_size=2)
    return pipeline.prefetched(batch, range(first_step, _ENDLESS), reading)
