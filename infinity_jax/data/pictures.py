"""From encoded pictures to arrays and back."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from infinity_jax.errors import UserError


def decode(image_bytes: bytes, height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """The encoded picture as RGB, resized to cover height x width pixels and cropped at the centre.

    EXIF orientation is applied and transparent parts become white. The resize is Lanczos on 8-bit values
    (spec.md section 1). Raises UserError if the bytes are not a whole picture.
    """
    return np.array(cover(decode_rgb(image_bytes), height, width), dtype=np.uint8)


def decode_squares(records: Sequence[Mapping[str, Any]], side: int) -> UInt8[np.ndarray, "N side side 3"]:
    """The pictures of records of a data set, each as `decode` gives it; none gives an array of length 0."""
    images = [decode(record["image"], side, side) for record in records]
    return np.stack(images) if images else np.zeros((0, side, side, 3), np.uint8)


def decode_rgb(image_bytes: bytes) -> Image.Image:
    """The picture at its own size: mode RGB, upright, on white. Raises UserError if it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(image_bytes)) as picture:
            picture.load()
            upright = ImageOps.exif_transpose(picture)
            return _on_white(_to_eight_bits(upright))
    except Exception as error:  # Pillow's decoders raise many types on damaged files, not only OSError.
        unknown = isinstance(error, UnidentifiedImageError)
        reason = "no known picture format" if unknown else str(error) or type(error).__name__
        raise UserError(
            f"cannot decode a picture of {len(image_bytes)} bytes: {reason}; give a whole PNG, JPEG or WebP"
        ) from error


def cover(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes (Lanczos) to the smallest size that covers height x width; crops at the centre."""
    if picture.height * width <= picture.width * height:  # Wider than the target: the height fits exactly.
        size = (max(width, picture.width * height // picture.height), height)
    else:
        size = (width, max(height, picture.height * width // picture.width))
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))


def to_float(image: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Pixels 0..255 as float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(image: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Floats in [-1, 1] as pixels: (x + 1) / 2 * 255, clipped to 0..255 and truncated, as the release does.

    Truncation makes `to_uint8(to_float(image))` lower than `image` by one for some values.
    """
    return np.clip((np.asarray(image) + 1) / 2 * 255, 0, 255).astype(np.uint8)


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Grey pictures of 16 bits as mode L; Pillow's own conversion would clip at 255 instead of scaling."""
    if not picture.mode.startswith("I"):
        return picture
    grey = np.clip(np.asarray(picture).astype(np.int64), 0, 65535)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def _on_white(picture: Image.Image) -> Image.Image:
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Image.new("RGBA", layer.size, "white")
    return Image.alpha_composite(white, layer).convert("RGB")
