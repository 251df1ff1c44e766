"""Decoding, resizing and the two directions between pixels and floats."""

import io

import numpy as np
import pytest
from PIL import Image

from infinity_jax.data import pictures
from infinity_jax.errors import UserError

RNG = np.random.default_rng(0)


def encoded(image, format="PNG", **options):
    out = io.BytesIO()
    image.save(out, format, **options)
    return out.getvalue()


def noise(height, width):
    return Image.fromarray(RNG.integers(0, 256, (height, width, 3), dtype=np.uint8))


def test_alpha_is_put_on_white():
    image = np.zeros((4, 4, 4), np.uint8)
    image[0, 0] = [255, 0, 0, 255]
    image[1, 1] = [0, 0, 0, 128]
    decoded = pictures.decode(encoded(Image.fromarray(image)), 4, 4)
    assert decoded[0, 0].tolist() == [255, 0, 0]
    assert decoded[1, 1].tolist() == [127, 127, 127]
    assert decoded[3, 3].tolist() == [255, 255, 255]


def test_exif_orientation_is_applied():
    image = np.zeros((16, 16, 3), np.uint8)
    image[:8] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # Turn 90 degrees clockwise to see it upright: the top goes to the right.
    decoded = pictures.decode(encoded(Image.fromarray(image), "JPEG", quality=95, exif=exif), 16, 16)
    assert decoded[:, 12:].min() > 240 and decoded[:, :4].max() < 15


def test_cmyk():
    decoded = pictures.decode(encoded(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG", quality=95), 8, 8)
    assert decoded[..., 0].min() > 200 and decoded[..., 1:].max() < 60


def test_sixteen_bits_are_scaled():
    grey = Image.fromarray(np.array([[0, 257 * 100], [65535, 257 * 200]], np.uint16))
    assert pictures.decode(encoded(grey), 2, 2)[..., 1].tolist() == [[0, 100], [255, 200]]


def test_palette_with_and_without_transparency():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert pictures.decode(encoded(image), 1, 2).tolist() == [[[10, 20, 30], [200, 100, 50]]]
    assert pictures.decode(encoded(image, transparency=0), 1, 2).tolist() == [[[255] * 3, [200, 100, 50]]]


@pytest.mark.parametrize("mode", ["1", "L", "LA"])
def test_grey_modes(mode):
    white = pictures.decode(encoded(Image.new(mode, (3, 3), 255 if mode != "LA" else (255, 255))), 3, 3)
    assert white.shape == (3, 3, 3) and white.dtype == np.uint8 and white.min() == 255


def test_resize_is_lanczos_to_cover_then_the_centre():
    image = noise(96, 128)
    np.testing.assert_array_equal(
        pictures.decode(encoded(image), 48, 64), np.asarray(image.resize((64, 48), Image.Resampling.LANCZOS))
    )
    cropped = np.asarray(image.resize((85, 64), Image.Resampling.LANCZOS))[:, 10:74]
    np.testing.assert_array_equal(pictures.decode(encoded(image), 64, 64), cropped)
    np.testing.assert_array_equal(pictures.decode(encoded(image), 96, 128), np.asarray(image))


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (65, 63)])
def test_every_shape_covers_the_target(size):
    assert pictures.decode(encoded(noise(*size)), 64, 48).shape == (64, 48, 3)


@pytest.mark.parametrize("damage", [b"", b"no picture", encoded(noise(64, 64))[:3000]])
def test_damaged_bytes_are_a_user_error(damage):
    with pytest.raises(UserError, match="cannot decode"):
        pictures.decode(damage, 64, 64)


def test_broken_exif_leaves_a_whole_picture():
    whole = encoded(noise(16, 24), "JPEG", exif=b"Exif\x00\x00MM\x00*\xff\xff\xff\xff broken")
    assert pictures.check(whole) == (16, 24)
    assert pictures.decode(whole, 16, 24).shape == (16, 24, 3)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_check_knows_the_upright_size(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    whole = encoded(noise(16, 40), "JPEG", exif=exif)
    assert pictures.check(whole) == ((16, 40) if orientation < 5 else (40, 16))
    assert pictures.check(whole) == pictures.decode_rgb(whole).size[::-1]


def test_huge_jpegs_are_decoded_smaller_and_others_as_they_are(monkeypatch):
    smooth = noise(8, 12).resize((480, 320), Image.Resampling.BICUBIC)
    whole = encoded(smooth, "JPEG", quality=95)
    exact = pictures.decode(whole, 32, 48)
    monkeypatch.setattr(pictures, "HUGE", 320 * 480 - 1)
    assert pictures.decode_rgb(whole, at_least=96).size == (240, 160)
    assert pictures.decode_rgb(whole).size == (480, 320)
    drafted = pictures.decode(whole, 32, 48)
    assert 0 < np.abs(drafted.astype(int) - exact).max() < 16
    png = encoded(smooth)
    np.testing.assert_array_equal(pictures.decode(png, 32, 48), pictures.cover(smooth, 32, 48))


def test_formats_are_known_by_their_bytes():
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"):
        assert pictures.check(encoded(noise(8, 12), kind)) == (8, 12)


def test_floats_and_back():
    pixels = np.arange(256, dtype=np.uint8)
    floats = pictures.to_float(pixels)
    assert floats.dtype == np.float32 and floats[0] == -1 and floats[-1] == 1
    lost = pixels.astype(int) - pictures.to_uint8(floats)
    assert set(lost.tolist()) <= {0, 1}
    assert pictures.to_uint8(np.array([-3.0, -1.0, 0.0, 1.0, 9.0])).tolist() == [0, 0, 127, 255, 255]


def test_fit_crops_pads_or_stretches():
    wide = Image.new("RGB", (80, 40), "red")
    wide.paste("blue", (0, 0, 20, 40))
    crop, pad, stretch = (pictures.decode(encoded(wide), 20, 20, fit) > 127 for fit in pictures.FITS)
    white, red, blue = [True, True, True], [True, False, False], [False, False, True]
    assert crop[10, 2].tolist() == red  # the blue quarter is cut off
    assert pad[2, 2].tolist() == pad[17, 15].tolist() == white
    assert (pad[10, 2].tolist(), pad[10, 15].tolist()) == (blue, red)
    assert (stretch[2, 2].tolist(), stretch[17, 15].tolist()) == (blue, red)
    np.testing.assert_array_equal(pictures.decode(encoded(wide), 20, 20) > 127, crop)
