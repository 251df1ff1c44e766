"""From encoded pictures to arrays and back."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8
from PIL import ExifTags, Image, ImageOps

from infinity_jax.files import pictures as picture_files
from infinity_jax.files.pictures import BrokenPicture as BrokenPicture

# JPEGs of more pixels are decoded at a half, a quarter or an eighth of their size, at least twice what is wanted.
HUGE = 1 << 24
# EXIF's orientation -> what makes the picture upright; from 5 on height and width are exchanged.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Pillow warns from 89 million pixels on; `files.pictures` refuses.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)
# Of broken EXIF data and the like: of millions of pictures some have it, and they are whole.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")


def decode(
    image_bytes: bytes, height: int, width: int, fit: str = "crop"
) -> UInt8[np.ndarray, "height width 3"]:
    """Decodes a picture as RGB and brings it to height x width pixels as `fit`, one of `FITS`, says.

    EXIF orientation is applied and transparent parts become white. The resize is Lanczos on 8-bit values
    (docs/spec.md section 1). Of JPEGs above `HUGE` pixels the decoder itself skips what the size does not need.
    Raises BrokenPicture if the bytes are not a whole picture.
    """
    picture = decode_rgb(image_bytes, at_least=2 * max(height, width))
    return np.array(FITS[fit](picture, height, width), dtype=np.uint8)


def decode_squares(
    records: Sequence[Mapping[str, Any]], side: int, fit: str = "crop"
) -> UInt8[np.ndarray, "N side side 3"]:
    """Decodes the pictures of records of a data set, each as `decode` does; none gives an array of length 0."""
    images = [decode(record["image"], side, side, fit) for record in records]
    return np.stack(images) if images else np.zeros((0, side, side, 3), np.uint8)


def decode_rgb(image_bytes: bytes, at_least: int = 0) -> Image.Image:
    """Decodes a picture: mode RGB, upright, on white; at its own size unless it is a huge JPEG.

    Args:
      at_least: pixels a side that a JPEG above `HUGE` must keep; 0 keeps all.
    Raises:
      BrokenPicture: the bytes are not a whole picture.
    """
    with picture_files.opened(image_bytes) as picture:
        if at_least and picture.width * picture.height > HUGE:
            picture.draft(None, (at_least, at_least))  # does nothing to other formats
        picture_files.load(picture)
        return _plain(_upright(picture))


def check(image_bytes: bytes) -> tuple[int, int]:
    """Decodes a picture as cheaply as shows that it is whole; its upright (height, width). Raises BrokenPicture."""
    with picture_files.opened(image_bytes) as picture:
        width, height = picture.size
        picture.draft(None, (1, 1))  # a JPEG's bytes are all read, its pixels are not all computed
        picture_files.load(picture)
        turned = 5 <= _orientation(picture) <= 8
        _plain(picture)
        return (width, height) if turned else (height, width)


def cover(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes (Lanczos) to the smallest size that covers height x width; crops at the centre."""
    size = covering_size(picture, height, width)
    if size != picture.size:
        picture = picture.resize(size, Image.Resampling.LANCZOS)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    return picture.crop((left, top, left + width, top + height))


def covering_size(picture: Image.Image, height: int, width: int) -> tuple[int, int]:
    """Computes the smallest (width, height) of a picture's own proportions that covers height x width."""
    if picture.height * width <= picture.width * height:  # Wider than the target: the height fits exactly.
        return max(width, picture.width * height // picture.height), height
    return width, max(height, picture.height * width // picture.width)


def pad(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes (Lanczos) to the largest size that fits into height x width, in the middle of white."""
    return ImageOps.pad(picture, (width, height), Image.Resampling.LANCZOS, color="white")


def stretch(picture: Image.Image, height: int, width: int) -> Image.Image:
    """Resizes (Lanczos) to height x width, whatever the proportions were."""
    return picture.resize((width, height), Image.Resampling.LANCZOS)


# How pictures of other proportions are brought to those that are wanted: the values of `data.fit`.
FITS = {"crop": cover, "pad": pad, "stretch": stretch}


def to_float(image: UInt8[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Converts pixels 0..255 to float32 in [-1, 1]."""
    return image.astype(np.float32) / np.float32(127.5) - np.float32(1)


def to_uint8(image: Float[np.ndarray, "..."]) -> UInt8[np.ndarray, "..."]:
    """Converts floats in [-1, 1] to pixels: (x + 1) / 2 * 255, clipped to 0..255 and truncated, as the release does.

    Truncation makes `to_uint8(to_float(image))` lower than `image` by one for some values.
    """
    return np.clip((np.asarray(image) + 1) / 2 * 255, 0, 255).astype(np.uint8)


def _orientation(picture: Image.Image) -> int:
    """EXIF's orientation, 1 (upright) where the EXIF data cannot be read: the picture itself is whole."""
    try:
        return picture.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:
        return 1


def _upright(picture: Image.Image) -> Image.Image:
    turn = _TURNS.get(_orientation(picture))
    return picture if turn is None else picture.transpose(turn)


def _plain(picture: Image.Image) -> Image.Image:
    """Converts to 8 bits on white; large pictures by rows, as what is made on the way takes many times their memory."""
    if picture.width * picture.height <= HUGE:
        return _on_white(_to_eight_bits(picture))
    plain, rows = Image.new("RGB", picture.size), max(1, HUGE // 8 // picture.width)
    for top in range(0, picture.height, rows):
        part = picture.crop((0, top, picture.width, min(picture.height, top + rows)))
        plain.paste(_on_white(_to_eight_bits(part)), (0, top))
    return plain


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    """Converts grey pictures of 16 bits to mode L; Pillow's own conversion would clip at 255 instead of scaling."""
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
