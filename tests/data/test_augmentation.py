"""Random crops and mirroring of a tokenizer's pictures."""

import io

import numpy as np
import pytest
from PIL import Image

from infinity_jax.data import pictures
from infinity_jax.data.augmentation import Augmentation
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.errors import UserError

SIDE = 16


def picture(width=48, height=32) -> bytes:
    """A PNG whose red tells the column and whose green tells the row."""
    image = np.zeros((height, width, 3), np.uint8)
    image[..., 0], image[..., 1] = 5 * np.arange(width), 7 * np.arange(height)[:, None]
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def many(augmentation: Augmentation, count=60) -> np.ndarray:
    return np.stack([augmentation.decode(picture(), SIDE, "crop", place) for place in range(count)])


@pytest.mark.parametrize("fit", list(pictures.FITS))
def test_off_it_is_the_plain_picture(fit):
    decoded = Augmentation(1.0, 0.0, seed=3).decode(picture(), SIDE, fit, place=5)
    np.testing.assert_array_equal(decoded, pictures.decode(picture(), SIDE, SIDE, fit))


def test_a_share_of_the_pictures_is_mirrored():
    plain = pictures.decode(picture(), SIDE, SIDE)
    images = many(Augmentation(1.0, 0.5, seed=0))
    mirrored = (images == plain[:, ::-1]).all((1, 2, 3))
    assert (mirrored | (images == plain).all((1, 2, 3))).all() and 0.3 < mirrored.mean() < 0.7
    assert (many(Augmentation(1.0, 1.0, seed=0)) == plain[:, ::-1]).all()


def test_a_square_of_the_enlarged_picture_is_cut_anywhere():
    """At twice the side nothing of 48x32 pixels is resized, so a square is a part of the picture itself."""
    whole = pictures.decode(picture(), 32, 48)
    images = many(Augmentation(2.0, 0.0, seed=0))
    lefts, tops = images[:, 0, 0, 0] // 5, images[:, 0, 0, 1] // 7
    for image, left, top in zip(images, lefts, tops, strict=True):
        np.testing.assert_array_equal(image, whole[top : top + SIDE, left : left + SIDE])
    assert lefts.min() < 4 and tops.min() < 4 and lefts.max() > 28 and tops.max() > 12


def test_seed_and_place_alone_decide():
    images = many(Augmentation(1.5, 0.5, seed=0))
    np.testing.assert_array_equal(images, many(Augmentation(1.5, 0.5, seed=0)))
    assert not np.array_equal(images, many(Augmentation(1.5, 0.5, seed=1)))


def test_what_cannot_be_is_refused():
    with pytest.raises(UserError, match=r"enlarge is 1\.5 and data\.fit 'pad'"):
        PictureConfig("emoji_captions", "64px", fit="pad", enlarge=1.5)
    with pytest.raises(UserError, match=r"enlarge is 0\.5; it must be a number from 1 to 4"):
        PictureConfig("emoji_captions", "64px", enlarge=0.5)
    with pytest.raises(UserError, match=r"flip is 2\.0; it must be a number from 0 to 1"):
        PictureConfig("emoji_captions", "64px", flip=2.0)
