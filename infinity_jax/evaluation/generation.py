"""How good generated pictures are: EffNet-KID, and whether the real picture of a prompt is the nearest one."""

import contextlib
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from absl import logging
from jaxtyping import Bool, Float, Int, UInt8

from infinity_jax.config import SampleConfig
from infinity_jax.data import pictures, sources
from infinity_jax.data.records import SPLITS, Source
from infinity_jax.data.scenes.source import MEASURED
from infinity_jax.data.scenes.source import NAME as SCENES
from infinity_jax.errors import UserError
from infinity_jax.files import caches, paths
from infinity_jax.files.progress import Progress, counted
from infinity_jax.metrics.efficientnet import METRIC_SIZE, load_efficientnet, picture_features
from infinity_jax.metrics.kid import FEWEST, effnet_kid
from infinity_jax.metrics.retrieval import retrieval
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest


class Split(NamedTuple):
    """One split in memory: uint8 pictures [N,H,W,3] and captions [N]."""

    source: Source
    images: UInt8[np.ndarray, "N H W 3"]
    captions: list[str]


class RealPictures(NamedTuple):
    """A data set's pictures, at the size that a checkpoint draws."""

    train: Split
    validation: Split
    compositions: Split

    def distinct(self) -> Bool[np.ndarray, " N"]:
        """Marks the train captions whose picture has no look-alikes, which retrieval could not tell apart."""
        from infinity_jax.data.emoji_captions import is_variant  # imported here: TFDS takes seconds

        return np.array([not is_variant(caption) for caption in self.train.captions], bool)

    def choose_prompts(self, first: int, total: int, seed: int) -> Int[np.ndarray, " n"]:
        """Chooses `total` different train captions, at most half of them, the `first` ones `distinct`; their places.

        Raises:
          UserError: the data set is too small.
        """
        captions = self.train.captions
        order = np.random.default_rng(seed).permutation(len(captions))
        start = order[self.distinct()[order]][:first]
        rest = order[~np.isin(order, start)]
        chosen = np.concatenate([start, rest])[: max(first, min(total, len(captions) // 2))]
        if len(chosen) < FEWEST or len(captions) - len(chosen) < FEWEST:
            raise UserError(
                f"evaluation compares {len(chosen)} of {len(captions)} training pictures with the others; "
                f"both parts need at least {FEWEST}: use a larger data set or fewer --prompts"
            )
        return chosen


class Generated(NamedTuple):
    """Pictures uint8 [n,H,W,3] of the chosen train prompts, and of the captions of all held-out compositions."""

    chosen: Int[np.ndarray, " n"]
    images: UInt8[np.ndarray, "n H W 3"]
    composed: UInt8[np.ndarray, "m H W 3"]


@functools.lru_cache(maxsize=1)
def real_pictures(source_name: str, side: int, fit: str = "crop") -> RealPictures:
    """Reads all splits of a data set, as squares of `side` pixels; `fit` is that of `pictures.decode`.

    Of scenes, which have no end, the first `MEASURED` of a split.
    """
    return RealPictures(*(_read(source_name, split, side, fit) for split in SPLITS))


def _read(source_name: str, split: str, side: int, fit: str) -> Split:
    source = sources.open_source(source_name, split)
    count = min(len(source), MEASURED) if source_name == SCENES else len(source)
    records = [source[i] for i in range(count)]
    images = pictures.decode_squares(records, side, fit)
    return Split(source, images, [record["caption"] for record in records])


def generate(
    pipeline: InfinityPipeline,
    real: RealPictures,
    settings: SampleConfig,
    chosen: Int[np.ndarray, " n"],
    seed: int,
) -> Generated:
    """Draws what `quality` looks at, picture i with seed `seed` + i."""

    def draw(captions: Sequence[str]) -> np.ndarray:
        request = SampleRequest(captions, range(seed, seed + len(captions)))
        batches = pipeline.stream(request, settings)
        drawn = counted(batches, "drawing", len(captions), "pictures", lambda batch: len(batch[0]))
        return np.concatenate([images for _, images in drawn])

    composed = np.zeros_like(real.compositions.images)
    if real.compositions.captions:
        composed = draw(real.compositions.captions)
    return Generated(chosen, draw([real.train.captions[i] for i in chosen]), composed)


def quality(real: RealPictures, generated: Generated, prompts: int) -> dict[str, Any]:
    """Measures EffNet-KID beside real against real, and retrieval among all pictures of all splits.

    Args:
      prompts: how many of the chosen prompts retrieval asks for.
    Returns:
      `kid` and `kid_error`, of the generated pictures against the train pictures that were not chosen; `real_kid` and
      `real_kid_error`, the same of the chosen real ones; `kid_pictures`; `retrieval_top1`, `retrieval_top5`, shares of
      the prompts whose own picture is the nearest, among the five nearest of `retrieval_gallery`; the same of the
      held-out compositions, None where there are none.
    """
    features = gallery_features(real.train.images)
    others = [gallery_features(s.images) for s in (real.compositions, real.validation) if s.captions]
    everything = np.concatenate([features, *others])
    chosen = generated.chosen
    drawn = features_of(generated.images)
    unchosen = np.setdiff1d(np.arange(len(features)), chosen)
    kid, error = effnet_kid(drawn, features[unchosen])
    real_kid, real_error = effnet_kid(features[chosen], features[unchosen])
    shares = retrieval(drawn[:prompts], everything, chosen[:prompts])
    numbers = {
        "kid": kid,
        "kid_error": error,
        "real_kid": real_kid,
        "real_kid_error": real_error,
        "kid_pictures": len(chosen),
        "retrieval_top1": shares["top1"],
        "retrieval_top5": shares["top5"],
        "retrieval_gallery": len(everything),
        "retrieval_compositions_top1": None,
        "retrieval_compositions_top5": None,
    }
    if real.compositions.captions:
        places = np.arange(len(features), len(features) + len(generated.composed))
        shares = retrieval(features_of(generated.composed), everything, places)
        numbers |= {f"retrieval_compositions_{name}": value for name, value in shares.items()}
    return numbers


_CHUNK = 512


def gallery_features(
    image_NHW3: UInt8[np.ndarray, "N H W 3"], cache_dir: Path | None = None
) -> Float[np.ndarray, "N 1280"]:
    """Returns features float32 [N,1280] of uint8 pictures, from the cache where the same pictures were seen before."""
    name = hashlib.sha256(np.ascontiguousarray(image_NHW3).tobytes()).hexdigest()[:24]
    path = (cache_dir or paths.data_dir() / "features") / f"gallery-{METRIC_SIZE}-{name}.npy"
    if path.exists():
        try:
            return np.load(path)
        except (OSError, ValueError, EOFError) as error:
            logging.warning("picture features in %s cannot be read (%s): recomputing them", path, error)
    features = features_of(image_NHW3)
    with caches.writing(path, features.nbytes) as temporary, open(temporary, "wb") as file:
        np.save(file, features)
    return features


def features_of(images: Sequence[np.ndarray] | np.ndarray) -> Float[np.ndarray, "N 1280"]:
    """Computes features float32 [N,1280] of uint8 pictures, which are not cached, and shows the progress."""
    variables = load_efficientnet()
    parts = []
    with contextlib.closing(Progress("comparing", len(images), "pictures")) as progress:
        for start in range(0, len(images), _CHUNK):
            parts.append(picture_features(variables, np.asarray(images[start : start + _CHUNK])))
            progress.advance(len(parts[-1]))
    return np.concatenate(parts)
