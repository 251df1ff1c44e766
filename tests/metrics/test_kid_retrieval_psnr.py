"""EffNet-KID, retrieval, PSNR and picture sheets."""

import numpy as np
import pytest
from helpers.full_disks import full_disk
from PIL import Image

from infinity_jax.errors import UserError
from infinity_jax.evaluation import evaluate_checkpoint
from infinity_jax.files import sheets
from infinity_jax.metrics.kid import effnet_kid
from infinity_jax.metrics.psnr import HIGHEST_PSNR, mean_psnr, psnr_per_picture
from infinity_jax.metrics.retrieval import retrieval, retrieval_ranks

# Shapes and dtypes that do not fit are caught by the checks of annotations in tests, by our own in production.
REFUSED = (ValueError, TypeError)


def features(count, size=16, shift=0.0, seed=0):
    return np.random.default_rng(seed).normal(shift, 1.0, (count, size)).astype(np.float32)


def naive_kid(a, b):
    a, b = a.astype(np.float64), b.astype(np.float64)

    def kernel(x, y):
        return (float(x @ y) / len(x) + 1.0) ** 3

    def within(s):
        return np.mean([kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j])

    return within(a) + within(b) - 2 * np.mean([kernel(x, y) for x in a for y in b])


def test_kid_equals_the_double_sum_of_the_paper():
    a, b = features(11), features(7, shift=0.3, seed=1)
    assert effnet_kid(a, b)[0] == pytest.approx(naive_kid(a, b), rel=1e-9)


def test_kid_is_unbiased_and_its_standard_error_is_honest():
    def repeated(shift):
        pairs = [(features(60, seed=2 * s), features(80, shift=shift, seed=2 * s + 1)) for s in range(60)]
        return np.array([effnet_kid(a, b) for a, b in pairs]).T

    values, _ = repeated(0.0)
    assert abs(values.mean()) < 3 * values.std() / np.sqrt(len(values))
    values, errors = repeated(0.5)
    assert 0.7 < errors.mean() / values.std() < 1.4
    assert values.mean() > 5 * values.std()


def test_kid_does_not_depend_on_which_set_comes_first():
    a, b = features(40), features(50, shift=0.2, seed=1)
    assert effnet_kid(a, b) == pytest.approx(effnet_kid(b, a))


@pytest.mark.parametrize("b", [features(3), features(9, size=5), np.full((9, 16), np.nan)])
def test_kid_refuses_what_it_cannot_compare(b):
    with pytest.raises(REFUSED):
        effnet_kid(features(9), b)


def test_retrieval_of_the_gallery_itself_is_perfect_and_of_noise_is_chance():
    gallery = features(200)
    assert retrieval(gallery[:50] * 3.0, gallery, np.arange(50)) == {"top1": 1.0, "top5": 1.0}
    found = retrieval(features(2000, seed=1), gallery, np.arange(2000) % 200)
    assert found["top1"] < 0.02 and 0.005 < found["top5"] < 0.06


def test_retrieval_ranks_count_the_pictures_that_are_nearer():
    gallery = np.eye(4)
    generated = np.array([[4.0, 3.0, 2.0, 1.0]] * 4)
    np.testing.assert_array_equal(retrieval_ranks(generated, gallery, np.arange(4)), [0, 1, 2, 3])
    assert retrieval(generated, gallery, np.arange(4), k=(2, 9)) == {"top2": 0.5, "top9": 1.0}


def test_copies_of_the_real_picture_count_as_the_real_one():
    gallery = features(30)
    gallery[20:23] = gallery[4]
    gallery[10] = gallery[4] * 1.001  # as near by cosine, but another picture
    assert retrieval_ranks(gallery[4:5] + 0.01, gallery, np.array([22]))[0] <= 1
    gallery[10] = -gallery[4]
    assert retrieval_ranks(gallery[4:5] + 0.01, gallery, np.array([22]))[0] == 0


def test_a_blank_generated_picture_finds_nothing():
    assert retrieval(np.zeros((2, 16)), features(30), np.array([0, 1]))["top5"] == 0.0


def test_retrieval_refuses_what_does_not_fit():
    not_finite = np.full((1, 16), np.nan)
    for generated, index in (
        (not_finite, [0]),
        (features(2), [0]),
        (features(1), [30]),
        (features(1), [-1]),
        (features(0), []),
    ):
        with pytest.raises(REFUSED):
            retrieval(generated, features(30), np.array(index, int))


def test_psnr_of_known_errors():
    image = np.full((3, 4, 4, 3), 100, np.uint8)
    other = image.copy()
    other[1] += 1
    other[2, :2] += 10  # half of the pixels: mean squared error 50
    wanted = [HIGHEST_PSNR, 20 * np.log10(255), 10 * np.log10(255**2 / 50)]
    np.testing.assert_allclose(psnr_per_picture(image, other), wanted)
    np.testing.assert_allclose(psnr_per_picture(other, image), wanted)
    assert mean_psnr(image, other) == pytest.approx(np.mean(wanted))


def test_psnr_wants_bytes_of_one_shape():
    image = np.zeros((2, 4, 4, 3), np.uint8)
    for other in (image.astype(np.float32), image[:1], image[:, :2]):
        with pytest.raises(REFUSED):
            mean_psnr(image, other)


def pictures(count, size=16):
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


def holds(sheet, picture):
    """Whether the enlarged picture stands somewhere on the sheet, pixel for pixel."""
    h, w = picture.shape[:2]
    corners = np.argwhere((sheet == picture[0, 0]).all(axis=-1))
    return any(np.array_equal(sheet[y : y + h, x : x + w], picture) for y, x in corners)


def test_a_sheet_holds_every_picture_in_full(tmp_path):
    images = pictures(5)
    path = tmp_path / "new" / "sheet.png"
    captions = ["red heart", "", "x" * 300, "Côte d\u2019Ivoire " * 30, "dog"]
    sheets.picture_sheet(images, captions, path, columns=3, scale=3, title="Samples", footer="CC BY-SA 4.0")
    sheet = np.asarray(Image.open(path))
    assert (sheet[0] == 255).all() and (sheet[:, 0] == 255).all()
    assert all(holds(sheet, image.repeat(3, 0).repeat(3, 1)) for image in images)
    assert [file.name for file in path.parent.iterdir()] == ["sheet.png"]


def test_pictures_of_a_sheet_may_differ_in_size(tmp_path):
    images = [pictures(1)[0], pictures(1, 24)[0, :10], pictures(1, 9)[0]]
    sheets.picture_sheet(images, ["square", "wide", "small"], tmp_path / "s.png", columns=2, scale=1)
    sheet = np.asarray(Image.open(tmp_path / "s.png"))
    assert all(holds(sheet, image) for image in images)


def test_a_comparison_sheet_holds_both_rows(tmp_path):
    real, made = pictures(4)[:2], pictures(4)[2:]
    sheets.comparison_sheet([real, made], ["real", "made"], tmp_path / "c.png", captions=["a", "b"], scale=1)
    sheet = np.asarray(Image.open(tmp_path / "c.png"))
    assert all(holds(sheet, image) for image in (*real, *made))


@pytest.mark.parametrize("text", ["one two three four five six seven", "w" * 200, "a " * 100, ""])
def test_wrapped_lines_fit_and_keep_the_words(text):
    font = sheets._style("DejaVuSans.ttf", 13, (0, 0, 0)).font
    lines = sheets._wrapped(text, 90, font, 100)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    short = sheets._wrapped(text, 90, font, 2)
    assert len(short) <= 2 and (len(lines) <= 2 or short[-1].endswith("…"))
    assert all(font.getlength(line) <= 90 for line in [*lines, *short])


def test_a_failed_save_keeps_the_old_sheet(tmp_path):
    path = tmp_path / "sheet.png"
    sheets.picture_sheet(pictures(1), ["old"], path)
    before = path.read_bytes()

    with full_disk(100), pytest.raises(OSError, match=f"File too large.*{path.name}"):
        sheets.picture_sheet(pictures(1), ["new"], path)
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_sheets_refuse_captions_that_do_not_fit(tmp_path):
    for images, captions in ((pictures(2), ["one"]), (pictures(2)[:0], [])):
        with pytest.raises(ValueError, match="caption"):
            sheets.picture_sheet(images, captions, tmp_path / "s.png")
    with pytest.raises(ValueError, match="row"):
        sheets.comparison_sheet([pictures(2), pictures(1)], ["a", "b"], tmp_path / "s.png")


def test_an_evaluation_that_could_not_be_written_is_refused_before_it_begins(tmp_path):
    with pytest.raises(UserError, match=r"--json .*its folder does not exist"):
        evaluate_checkpoint.main(tmp_path / "none" / "evaluation.json")
