"""Writes records with the features of prepared pictures, encoded once on all devices of this machine.

The new folder has the parts, ratios and columns of the old one, so that filters and buckets are the same. A part's
folder gets its name when it is whole; a killed run resumes where it stood.
"""

import contextlib
import functools
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from infinity_jax import scales
from infinity_jax.checkpoints import pretrained
from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import batches, pictures
from infinity_jax.data.encoded import FeaturesOnDevice
from infinity_jax.data.prepared import features, shards
from infinity_jax.data.prepared import index as record_index
from infinity_jax.data.prepared import writer as preparation
from infinity_jax.data.prepared.config import DataConfig, parse_sets
from infinity_jax.data.prepared.index import RecordIndex, Shard
from infinity_jax.errors import UserError
from infinity_jax.files import atomic
from infinity_jax.files.progress import Progress
from infinity_jax.runtime import sharding
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.text.encoder import TextEncoder, text_encoder_of
from infinity_jax.text.on_device import FEATURES, MASK, TextOnDevice, padded_ids

# Pixels that a device encodes at a time: 16 pictures of 256x256, one of 1024x1024; at most 64 pictures.
_PIXELS = 1 << 20
# Texts that a device encodes at a time.
_TEXTS = 16


def prepare_features(data: DataConfig, tokenizer_path: str, text: Mapping[str, Any], out: Path) -> int:
    """Writes the features of all pictures and captions of `data.source`, one prepared folder, into `out`.

    Args:
      data: source and scales.
      tokenizer_path: a folder as config.tokenizer names it.
      text: {"encoder", "max_length", ...} as config.text has them.
    Returns:
      how many records there are.
    Raises:
      UserError: a source of another kind, `out` holds another set, the disk is full.
    """
    [(folder, _), *more_sets] = parse_sets(data.source)
    if more_sets:
        raise UserError(f"{data.source!r} names several sets; make the features of one at a time")
    index = record_index.read(folder)
    if index.features:
        raise UserError(f"{folder} holds features already; give the shards of pictures")
    maker = _Maker(data, tokenizer_path, text)
    with preparation.locked(out, {"source": data.source, "hash": index.fingerprint, **maker.described}):
        parts = sorted({shard.part for shard in index.shards})
        missing = [part for part in parts if not (out / "parts" / part.name).is_dir()]
        total = sum(shard.count for shard in index.shards if shard.part in missing)
        with contextlib.closing(Progress("encoding", total, "pictures")) as progress:
            for part in missing:
                _write_part(index, part, out, maker, progress)
        record_index.write(out, [out / "parts" / part.name for part in parts], maker.described)
    return sum(index.counts.values())


def _write_part(index: RecordIndex, part: Path, out: Path, maker: "_Maker", progress: Progress) -> None:
    """Writes the folder of one part into `out`, whole or not at all."""
    with atomic.writing_folder(out / "parts" / part.name) as folder:
        writer = shards.ShardWriter(folder)
        for shard in index.shards:
            if shard.part == part:
                for record in maker.records(shard):
                    writer.write(shard.ratio, shards.pack(record))
                    progress.advance()
        writer.close()
        shutil.copyfile(part / "columns.npz", folder / "columns.npz")
        columns = record_index.read_part(part)["columns"]
        atomic.write_json(folder / "part.json", {"counts": writer.counts, "columns": columns})


class _Maker:
    """Tokenizer and text encoder on all devices."""

    def __init__(self, data: DataConfig, tokenizer_path: str, text: Mapping[str, Any]):
        self._scales = data.scales
        self._tokenizer: TrainedTokenizer = pretrained.load_tokenizer(tokenizer_path)
        self._text: TextEncoder = text_encoder_of(text)
        self.described = features.described(data.scales, self._tokenizer, self._text)
        self._layout = sharding.layout_of(parse_mesh(f"fsdp={jax.device_count()}"))
        self._place = TextOnDevice(self._text, self._layout)
        self._text.place(self._place.layout)
        self._features = FeaturesOnDevice(self._tokenizer, self._layout)

    def records(self, shard: Shard):
        """Yields the records of a shard with features in place of their pictures."""
        last = scales.schedule_of_ratio(self._scales, shard.ratio).last
        height, width = (n * self._tokenizer.config.transformer_stride for n in last)

        def decode(record: Mapping[str, Any]) -> Mapping[str, Any]:
            image = pictures.decode(record["image"], height, width)
            return {"image": image, "id": record["id"], "captions": record["captions"]}

        size = self._layout.batch_parts * min(64, max(1, _PIXELS // (height * width)))
        records = batches.Computed(functools.partial(shards.read, shard.file), range(shard.count))
        for batch in batches.eval_batches(records, size, decode):
            placed = jax.device_put(batch["image"], self._layout.batch(size))
            # Not rounded to bfloat16: some of the bits, signs of residuals, would be others.
            features_BhwC = np.asarray(self._features({"image": placed})["features"], np.float32)
            captions = batch["captions"][batch["valid"]]
            for i, text in enumerate(self._text_features(list(captions))):
                yield {
                    "id": batch["id"][i],
                    "captions": captions[i],
                    "features": features_BhwC[i],
                    "text": text,
                }

    def _text_features(self, captions: list[dict[str, list[str]]]) -> list[dict[str, list[np.ndarray]]]:
        """Encodes the captions of each picture: features bfloat16 [tokens, channels], by kind."""
        texts = [text for kinds in captions for alternatives in kinds.values() for text in alternatives]
        encoded = self._encode(texts)
        return [{kind: [next(encoded) for _ in texts] for kind, texts in kinds.items()} for kinds in captions]

    def _encode(self, texts: list[str]) -> Iterator[np.ndarray]:
        """Yields the features of each text, bfloat16 [tokens, channels]: as training would encode it on the fly."""
        size = self._layout.batch_parts * _TEXTS
        for start in range(0, len(texts), size):
            part = texts[start : start + size]
            # Filled up with copies: a few programs serve all.
            token_ids = self._text.tokens([*part, *[part[-1]] * (size - len(part))])
            batch = padded_ids(token_ids, self._text.max_length)
            placed = self._place(batch, np.arange(size), size, self._layout.batch(size))
            features_BTC, counts = np.asarray(placed[FEATURES]), batch[MASK].sum(1)
            yield from (features_BTC[i, : counts[i]] for i in range(len(part)))
