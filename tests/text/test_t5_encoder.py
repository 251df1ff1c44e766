"""Flan-T5 as a text encoder."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from absl import logging
from helpers.published_params import params_from
from helpers.t5 import CONFIG, GOLDEN, small_tokenizer, write_published
from safetensors.numpy import load_file, save_file

from infinity_jax.errors import UserError
from infinity_jax.text.encoder import TextEncoder, load_text_encoder
from infinity_jax.text.t5 import T5
from infinity_jax.text.t5_encoder import T5Encoder, load_t5
from infinity_jax.tools.convert.t5 import convert_t5, t5_links
from infinity_jax.transformer.kernels.storage import from_storage


@pytest.fixture
def converted(tmp_path):
    """The folder text_encoder/ of a converted model."""
    published = tmp_path / "published"
    write_published(published)
    convert_t5(str(published), str(published / "config.json"), str(tmp_path / "out"))
    return tmp_path / "out" / "text_encoder"


@pytest.fixture
def log(monkeypatch):
    lines: list[str] = []
    monkeypatch.setattr(logging, "warning", lambda message, *args: lines.append(message % args))
    return lines


def test_encoder(converted):
    encoder = load_text_encoder("t5", 12, str(converted), "float32")
    assert isinstance(encoder, TextEncoder)
    assert (encoder.name, encoder.channels, encoder.max_length) == ("t5", CONFIG.width, 12)
    features, mask = encoder.encode(["a red heart", "a dog"])
    assert features.shape == (2, 8, CONFIG.width) and features.dtype == np.float32
    assert mask.sum(1).tolist() == [4, 3] == encoder.token_counts(["a red heart", "a dog"]).tolist()
    assert not features[~mask].any()
    ids = jnp.array([[4, 5, 6, 1]])
    params = params_from(load_file(GOLDEN / "model.safetensors"), t5_links(CONFIG))
    expected = np.asarray(jax.jit(T5(CONFIG).apply)({"params": params}, ids, jnp.ones((1, 4), bool)))[0]
    np.testing.assert_allclose(features[0, :4], expected, atol=1e-5)
    alone = encoder.encode(["a dog"])[0]
    np.testing.assert_array_equal(alone[0], features[1])


@pytest.mark.parametrize("end", [True, False], ids=["file adds the end", "file does not"])
def test_one_end_token(converted, log, monkeypatch, end):
    (converted / "checksums.json").unlink()
    small_tokenizer(end).save(str(converted / "tokenizer.json"))
    encoder = load_t5(6, converted)
    seen: list[np.ndarray] = []
    apply = encoder._apply
    monkeypatch.setattr(encoder, "_apply", lambda p, ids, mask: seen.append(ids) or apply(p, ids, mask))
    encoder.encode(["a dog", "a dog</s>", "a very very very very very very red dog"])
    assert seen[0][:3].tolist() == [[4, 7, 1, 0, 0, 0], [4, 7, 1, 0, 0, 0], [4, 8, 8, 8, 8, 1]]
    assert len(log) == 1 and "has 10 tokens, the text encoder takes 6" in log[0]


def test_bfloat16_is_the_default_and_rounds_only_what_products_read(converted):
    exact, encoder = load_t5(12, converted, "float32"), load_t5(12, converted)
    assert encoder.fingerprint != exact.fingerprint, "a cache of one is none of the other"
    kernels = {
        jax.tree_util.keystr(path): (leaf, other)
        for (path, leaf), other in zip(
            jax.tree_util.tree_leaves_with_path(encoder.params), jax.tree.leaves(exact.params), strict=True
        )
    }
    for name, (leaf, wide) in kernels.items():
        rounded = "kernel" in name
        assert leaf.itemsize == (2 if rounded else wide.itemsize), name
        values = from_storage(leaf) if rounded else leaf
        np.testing.assert_array_equal(values, wide.astype(jnp.bfloat16) if rounded else wide, err_msg=name)
    texts = ["a red heart", "a very very red dog"]
    features, mask = encoder.encode(texts)
    wanted = exact.encode(texts)[0]
    assert 0 < np.abs(features - wanted).max() < 0.05 * np.abs(wanted[mask]).max()
    # The same numbers as with weights that are rounded where they enter a product.
    late = T5Encoder(12, T5(CONFIG, "bfloat16"), exact.params, small_tokenizer(), "")
    np.testing.assert_array_equal(late.encode(texts)[0], features)


def test_unknown_characters_are_said(converted, log):
    load_t5(8, converted).encode(["\U0001f642", "a dog"])
    assert len(log) == 1 and "use words" in log[0]


def test_fingerprint(converted):
    first = load_t5(8, converted).fingerprint
    assert load_t5(16, converted).fingerprint == first
    written = (converted / "sha256").read_text()
    (converted / "sha256").unlink()
    assert load_t5(8, converted).fingerprint == first, "the file only saves time"
    (converted / "sha256").write_text(written.replace(written[:4], "0000"))
    with pytest.raises(UserError, match=r"text_encoder/sha256 is damaged.*copy the folder again"):
        load_t5(8, converted)
    (converted / "checksums.json").unlink()  # as an earlier version left it
    with pytest.raises(UserError, match=r"weights.safetensors is not what .*/sha256 was written for"):
        load_t5(8, converted)
    (converted / "sha256").write_text("what?")
    with pytest.raises(UserError, match="does not hold a sha256; delete it"):
        load_t5(8, converted)
    (converted / "sha256").write_text(written)
    assert load_t5(8, converted).fingerprint == first
    small_tokenizer(pieces=("▁cat",)).save(str(converted / "tokenizer.json"))
    assert load_t5(8, converted).fingerprint != first


def test_weights_of_another_encoder_beside_the_files_of_this_one_are_refused(converted, monkeypatch):
    """The file sha256 is not asked which weights these are."""
    weights = load_file(converted / "weights.safetensors")
    changed = {name: np.array(array) for name, array in weights.items()}
    changed["final_norm_scale"][0] += 1
    save_file(changed, converted / "weights.safetensors")
    with pytest.raises(UserError, match=r"weights.safetensors is damaged: it has .*; copy the folder again"):
        load_t5(8, converted)


def test_parameters_can_be_replaced_by_sharded_ones(converted):
    encoder = load_t5(8, converted)
    expected = encoder.encode(["a dog"])[0]
    mesh = jax.make_mesh((1,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    replicated = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    encoder.params = jax.device_put(encoder.params, replicated)
    np.testing.assert_allclose(encoder.encode(["a dog"])[0], expected, atol=1e-6)


def test_mistakes_of_loading(converted, tmp_path):
    with pytest.raises(UserError, match=r"'t5' needs the path .* infinity-jax convert --from .* --kind t5"):
        load_text_encoder("t5", 8)
    with pytest.raises(
        UserError, match=r"nowhere lacks config.json, weights.safetensors, tokenizer.json; make it"
    ):
        load_text_encoder("t5", 8, str(tmp_path / "nowhere"))
    with pytest.raises(UserError, match="'minilm' takes no path, got 'x'"):
        load_text_encoder("minilm", 8, "x")
    for length in (1, 513):
        with pytest.raises(UserError, match=f"text length {length} .* choose 2 to 512"):
            load_text_encoder("t5", length, str(converted))
    (converted / "checksums.json").unlink()
    small_tokenizer(pieces=tuple(f"piece{i}" for i in range(80))).save(str(converted / "tokenizer.json"))
    with pytest.raises(UserError, match=r"tokenizer.json has 115 tokens but the model only 100"):
        load_t5(8, converted)
    no_unknown = small_tokenizer().to_str().replace('"unk_id":2', '"unk_id":9999')
    for text in ("{}", "[" * 100_000, '{"model": {"type": "WordPiece", "vocab": {}}}', no_unknown):
        (converted / "tokenizer.json").write_text(text)
        with pytest.raises(UserError, match="cannot read the tokenizer") as error:
            load_t5(8, converted)
        assert "\n" not in str(error.value) and len(str(error.value)) < 500
    values = json.loads((converted / "config.json").read_text())
    (converted / "config.json").write_text(json.dumps(values | {"d_ff": 32}))
    small_tokenizer().save(str(converted / "tokenizer.json"))
    with pytest.raises(
        UserError, match=r"blocks/ffn/down/kernel is \(3, 64, 48\) there and \(3, 32, 48\) by"
    ):
        load_t5(8, converted)
    (converted / "config.json").write_text("[]")
    with pytest.raises(UserError, match="holds a list"):
        load_t5(8, converted)
