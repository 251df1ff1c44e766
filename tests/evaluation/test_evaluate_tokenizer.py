"""`infinity-jax evaluate-tokenizer` on a tiny random tokenizer, and the measures behind its numbers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import evaluations
from helpers.networks import random_pictures
from helpers.systems import TOKENIZER, initial_params

from infinity_jax.checkpoints import pretrained, trained
from infinity_jax.data import pictures
from infinity_jax.data.through_bits import ThroughBits
from infinity_jax.evaluation import evaluate_tokenizer
from infinity_jax.metrics import inception
from infinity_jax.metrics.bit_usage import BitUsage, binary_entropy
from infinity_jax.metrics.bootstrap import kid_interval, mean_interval
from infinity_jax.metrics.kid import effnet_kid
from infinity_jax.tokenizer.model import Tokenizer, reconstruct

PROMISED = """psnr psnr_interval ssim lpips kid kid_error kid_interval real_kid real_kid_error kid_pictures bits
used_bits dead_bits bit_frequency entropy_per_scale bit_entropy tokens_per_scale codes_per_scale code_usage_per_scale
fid pictures checkpoint data split seconds"""


@pytest.fixture(scope="module")
def tokenizer():
    params = initial_params(Tokenizer(TOKENIZER), 16, seed=0)
    return trained.TrainedTokenizer(TOKENIZER, params, "32px", {})


@pytest.fixture(scope="module")
def run(tokenizer, tmp_path_factory):
    """A function that evaluates on a folder of so many pictures: (exit code, numbers), and the folder of its files."""
    root = tmp_path_factory.mktemp("evaluate_tokenizer")
    pretrained.save_tokenizer(root / "tokenizer", tokenizer)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("INFINITY_DATA", str(root / "data"))

        yield functools.partial(evaluations.evaluate, "evaluate-tokenizer", root / "tokenizer", root), root


def test_the_promised_numbers_are_there_and_agree_with_each_other(run):
    evaluate, root = run
    code, numbers = evaluate(24, "--sheet", root / "sheet.png")
    assert code == 0 and set(PROMISED.split()) <= numbers.keys()
    assert numbers["bits"] == 3 == numbers["used_bits"] + numbers["dead_bits"]
    assert numbers["split"] == "validation"
    assert numbers["pictures"] + numbers["kid_pictures"] + numbers["kid_others"] == 24
    assert numbers["lpips"] is None and numbers["fid"] is None
    seen = numbers["pictures"] + numbers["kid_pictures"]
    assert numbers["tokens_per_scale"] == [seen * n * n for n in (2, 4, 6, 8)]
    assert all(0 <= entropy <= 1 for entropy in numbers["entropy_per_scale"])
    assert len(numbers["bit_entropy"]) == 4 and len(numbers["bit_frequency"]) == 3
    assert all(1 <= codes <= 2**3 for codes in numbers["codes_per_scale"])
    for name in ("psnr", "kid"):
        low, high = numbers[f"{name}_interval"]
        assert low <= numbers[name] <= high
    assert (root / "sheet.png").is_file()


@pytest.mark.long
def test_lpips_and_fid_are_measured_where_their_weights_are_named(run, monkeypatch):
    monkeypatch.setattr(inception, "_BATCH", 5)  # all that there are
    few = lambda *arguments: inception.inception_features(*arguments)[:, :64]  # noqa: E731
    monkeypatch.setattr(evaluate_tokenizer, "inception_features", few)  # the root of 2048x2048 takes seconds
    evaluate, root = run
    vgg, heads = evaluations.write_lpips(root)
    of_fid = evaluations.write_weights(root / "inception.pth", inception.torch_shapes())
    code, numbers = evaluate(10, "--lpips-weights", f"{vgg},{heads}", "--inception-weights", of_fid)
    assert code == 0 and numbers["lpips"] > 0 and numbers["fid"] > 0


def test_few_pictures_fall_back_on_training_pictures_and_fewer_are_refused(run, capsys):
    evaluate, _ = run
    code, numbers = evaluate(10, "--pictures", 4)
    assert code == 0 and numbers["split"] == "train"
    assert numbers["pictures"] == numbers["kid_pictures"] == 4 and numbers["kid_others"] == 6
    code, numbers = evaluate(7)
    assert code == 2 and numbers is None
    assert "7 training pictures" in capsys.readouterr().err


def test_mistakes_are_named_with_a_remedy(run, capsys):
    evaluate, root = run
    for arguments, remedy in (
        (("--lpips-weights", f"{root / 'no.pth'},{root / 'no.pth'}"), "vgg16-397923af.pth"),
        (("--inception-weights", root / "no.pth"), "pt_inception-2015-12-05-6726825d.pth"),
        (("--json", root / "nowhere" / "n.json"), "its folder does not exist"),
        (("--checkpoint", root / "nowhere"), "no checkpoint folder"),
        (("--data", "emojis"), "unknown data source"),
    ):
        assert evaluate(24, *arguments)[0] == 2
        assert remedy in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        evaluate(24, "--lpips-weights", "one.pth")
    assert "two files with a comma" in capsys.readouterr().err


def test_reconstructions_do_not_depend_on_the_batch_and_the_last_scale_completes_them(tokenizer):
    images = random_pictures(35, 16, 16)  # more than a batch
    through_bits = ThroughBits(tokenizer)
    made = through_bits(images)
    image = jnp.asarray(pictures.to_float(images))
    wanted = jax.jit(lambda x: reconstruct(Tokenizer(TOKENIZER), tokenizer.params, x, through_bits.schedule))(
        image
    )
    off_by = np.abs(made.astype(int) - pictures.to_uint8(np.asarray(wanted)))
    assert off_by.max() <= 1 and off_by.mean() < 0.01
    steps = through_bits.after_each_scale(images)
    assert len(steps) == 4 and np.abs(steps[-1].astype(int) - made).mean() < 0.01
    assert all(np.abs(step.astype(int) - made).mean() > 0.01 for step in steps[:-1])
    assert through_bits(images[:0]).shape == (0, 16, 16, 3)


def test_use_of_bits_whose_numbers_are_known():
    usage = BitUsage(4, 2)
    first = np.zeros((2, 1, 1, 4), bool)
    first[0, ..., 1] = True  # bit 0 is never set, bit 1 half of the time
    second = np.zeros((2, 2, 2, 4), bool)
    second[..., 2] = True  # always at this scale, never at the other
    usage.add((first[:1], second[:1]))
    usage.add((first[1:], second[1:]))
    numbers = usage.numbers()
    assert (numbers["bits"], numbers["used_bits"], numbers["dead_bits"]) == (4, 2, 2)
    assert numbers["entropy_per_scale"] == [0.25, 0.0]
    assert numbers["bit_entropy"] == [[0, 1, 0, 0], [0, 0, 0, 0]]
    assert numbers["bit_frequency"] == [0, 0.1, 0.8, 0]
    assert numbers["codes_per_scale"] == [2, 1] and numbers["code_usage_per_scale"] == [1.0, 0.125]


def test_codes_of_64_bits_are_told_apart():
    bits = np.zeros((64, 1, 1, 64), bool)
    bits[np.arange(64), 0, 0, np.arange(64)] = True
    usage = BitUsage(64, 1)
    for _ in range(2):
        usage.add((bits,))
    assert usage.numbers()["codes_per_scale"] == [64] and usage.numbers()["dead_bits"] == 0


def test_entropy_of_a_bit():
    np.testing.assert_allclose(binary_entropy(np.array([0, 0.5, 1, 0.11])), [0, 1, 0, 0.4999], atol=1e-4)


def test_the_interval_of_a_mean_is_that_of_the_normal_law():
    values = np.random.default_rng(0).normal(20.0, 2.0, 400)
    low, high = mean_interval(values)
    assert low < values.mean() < high
    assert high - low == pytest.approx(2 * 1.96 * values.std() / 20, rel=0.15)
    assert mean_interval(values) == (low, high)


def test_the_interval_of_kid_lies_around_it_as_wide_as_its_error_says():
    random = np.random.default_rng(0)
    a, b = random.normal(0.3, 1, (150, 16)), random.normal(0, 1, (200, 16))
    value, error = effnet_kid(a, b)
    low, high = kid_interval(a, b)
    assert abs((low + high) / 2 - value) < error
    assert high - low == pytest.approx(2 * 1.96 * error, rel=0.4)
