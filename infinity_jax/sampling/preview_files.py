"""`infinity-jax sample --preview`: beside each picture how it came, as a strip of all scales and as an animation."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from infinity_jax.config import SampleConfig
from infinity_jax.files import pictures as picture_files
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest

_GAP, _WHITE = 4, 255
_SUFFIXES = (".scales.png", ".webp")
# Milliseconds: of a scale, and of the finished picture.
_SCALE_MS, _LAST_MS = 400, 2000


def drawn_with_previews(
    pipeline: InfinityPipeline, request: SampleRequest, settings: SampleConfig, files: Mapping[int, Path]
) -> Iterator[tuple[Sequence[int], np.ndarray]]:
    """Draws some pictures of a request and writes `NAME.scales.png` and `NAME.webp` beside each.

    Args:
      files: the pictures' own files, by number.
    Returns:
      which pictures, and uint8 [n,H,W,3], as `InfinityPipeline.stream` gives them.
    """
    drawn = pipeline.stream_scales(request, settings, only=list(files))

    def finished() -> Iterator[tuple[Sequence[int], np.ndarray]]:
        frames: list[np.ndarray] = []
        for part, preview in drawn:
            frames.append(preview.images)
            if not preview.is_final:
                continue
            for number, scales in zip(part, zip(*frames, strict=True), strict=True):
                write(files[number], scales)
            frames = []
            yield part, preview.images

    return finished()


def are_there(file: Path) -> bool:
    """Tells whether the strip and the animation of a picture are there."""
    return all(file.with_suffix(suffix).is_file() for suffix in _SUFFIXES)


def write(file: Path, scales: Sequence[np.ndarray]) -> None:
    """Writes the strip and the animation of one picture's scales, uint8 [H,W,3] each."""
    gap = np.full((scales[0].shape[0], _GAP, 3), _WHITE, np.uint8)
    parts = [part for image in scales for part in (image, gap)][:-1]
    picture_files.write_png(Image.fromarray(np.concatenate(parts, 1)), file.with_suffix(_SUFFIXES[0]))
    milliseconds = [_SCALE_MS] * (len(scales) - 1) + [_LAST_MS]
    picture_files.write_animation(
        [Image.fromarray(x) for x in scales], milliseconds, file.with_suffix(_SUFFIXES[1])
    )
