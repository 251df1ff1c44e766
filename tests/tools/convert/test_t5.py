"""A published Flan-T5 -> the text encoder of a checkpoint."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.t5 import CONFIG, GOLDEN, small_tokenizer, write_published
from safetensors.numpy import load_file, save_file

from infinity_jax.checkpoints import folder as checkpoint_folder
from infinity_jax.errors import UserError
from infinity_jax.files.torch_writer import write_torch_file
from infinity_jax.text.t5 import T5Config
from infinity_jax.tools.convert.t5 import EMBEDDING, EMBEDDING_ALIAS, convert_t5

NORM = "encoder.final_layer_norm.weight"


@pytest.fixture
def published(tmp_path):
    write_published(tmp_path / "published")
    return tmp_path / "published"


@pytest.fixture
def converted(published, tmp_path):
    convert_t5(str(published), str(published / "config.json"), str(tmp_path / "out"))
    return tmp_path / "out" / "text_encoder"


def stored(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "weights.safetensors")


def test_conversion(published, converted):
    ours = stored(converted)
    weights = load_file(published / "model.safetensors")
    assert {array.dtype for array in ours.values()} == {np.dtype(np.float16)}
    np.testing.assert_array_equal(ours["embedding"], weights[EMBEDDING])
    query = weights["encoder.block.2.layer.0.SelfAttention.q.weight"]
    np.testing.assert_array_equal(ours["blocks/attention/query/kernel"][2].reshape(48, 36), query.T)
    assert T5Config.from_hf(json.loads((converted / "config.json").read_text())) == CONFIG
    text = json.loads((converted.parent / "config.json").read_text())["text"]
    assert text == {"encoder": "t5", "max_length": 512}
    assert sorted(path.name for path in converted.iterdir()) == [
        "checksums.json", "config.json", "sha256", "tokenizer.json", "weights.safetensors"
    ]  # fmt: skip


def test_conversion_of_shards_and_of_an_encoder_alone(published, converted, tmp_path):
    """Two shards with an index, the embedding under its other name, gives the same file."""
    weights = load_file(GOLDEN / "model.safetensors")
    weights[EMBEDDING_ALIAS] = weights.pop(EMBEDDING)
    (published / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"model-1.safetensors": names[:12], "model-2.safetensors": names[12:]}
    for shard, held in shards.items():
        save_file({name: weights[name] for name in held}, published / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    (published / "model.safetensors.index.json").write_text(json.dumps(index))
    convert_t5(str(published), str(published / "config.json"), str(tmp_path / "again"))
    again = tmp_path / "again" / "text_encoder"
    assert (again / "sha256").read_text() == (converted / "sha256").read_text()


def test_conversion_of_a_torch_file(published, converted, tmp_path):
    """The .bin of a whole model has the embedding under three names."""
    weights = load_file(published / "model.safetensors")
    for alias in (EMBEDDING_ALIAS, "decoder.embed_tokens.weight"):
        weights[alias] = weights[EMBEDDING]
    shapes = {name: (value.dtype, value.shape) for name, value in weights.items()}
    write_torch_file(published / "pytorch_model.bin", shapes, weights.values())
    (published / "model.safetensors").unlink()
    for i, source in enumerate((published, published / "pytorch_model.bin")):
        convert_t5(str(source), str(published / "config.json"), str(tmp_path / f"again{i}"))
        again = tmp_path / f"again{i}" / "text_encoder"
        assert (again / "sha256").read_text() == (converted / "sha256").read_text()


def change_weights(published: Path, change) -> None:
    weights = load_file(published / "model.safetensors")
    change(weights)
    save_file(weights, published / "model.safetensors")


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda w: w.pop(NORM), f"1 tensors are missing: {NORM}"),
        (lambda w: w.update(other=np.ones(3, np.float16)), "1 tensors are unknown: other"),
        (lambda w: w.update({NORM: np.ones(7, np.float16)}), rf"{NORM} has \[7\], expected \[48\]"),
        (lambda w: w.update({NORM: np.ones(48, np.int8)}), f"{NORM} is int8, but weights are"),
        (lambda w: w.update({EMBEDDING_ALIAS: w[EMBEDDING] * 2}), "differ; in T5 they are one table"),
    ],
)
def test_mistakes_of_weights(published, tmp_path, change, message):
    change_weights(published, change)
    with pytest.raises(UserError, match=message):
        convert_t5(str(published), str(published / "config.json"), str(tmp_path / "out"))
    assert not list(tmp_path.glob("out/**/*.safetensors")) and not (tmp_path / "out" / "config.json").exists()


def test_mistakes_of_conversion(published, tmp_path):
    out = str(tmp_path / "out")
    with pytest.raises(
        UserError, match="unknown T5 config 'huge'; known: small, base, large, xl, xxl, or the path"
    ):
        convert_t5(str(published), "huge", out)
    with pytest.raises(UserError, match=r"no config file .*none\.json"):
        convert_t5(str(published), "none.json", out)
    with pytest.raises(
        UserError, match=r"another model than the config 'flan-t5-xl': d_model is 48 there and 2048"
    ):
        convert_t5(str(published), "flan-t5-xl", out)
    (published / "config.json").unlink()
    small = small_tokenizer()
    small.save(str(published / "tokenizer.json"))
    with pytest.raises(
        UserError, match=r"do not fit the T5 config 'small': .*SelfAttention.q.weight has \[36, 48\]"
    ):
        convert_t5(str(published), "small", out)
    (published / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"tokenizer\.json is missing; take it from the same T5 model"):
        convert_t5(str(published), "small", out)
    with pytest.raises(UserError, match=r"no file or folder .*nowhere; give the folder of a Flan-T5"):
        convert_t5(str(tmp_path / "nowhere"), "small", out)
    assert not Path(out).exists()


def test_a_transformer_of_another_width_is_not_joined(published, tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    transformer = {"layers": 1, "width": 64, "heads": 2, "bits": 8, "text_channels": 2048}
    checkpoint_folder.write_config(
        out, {"transformer": transformer, "text": {"encoder": "t5", "max_length": 64}}
    )
    with pytest.raises(UserError, match="the text encoder has 48 channels, the transformer reads 2048"):
        convert_t5(str(published), str(published / "config.json"), str(out))
    assert not (out / "text_encoder").exists()
    transformer["text_channels"] = CONFIG.width
    checkpoint_folder.write_config(
        out, {"transformer": transformer, "text": {"encoder": "t5", "max_length": 64}}
    )
    convert_t5(str(published), str(published / "config.json"), str(out))
    values = checkpoint_folder.read_config(out)
    assert values["text"] == {"encoder": "t5", "max_length": 64}, "the transformer's own length"
    assert values["transformer"] == transformer
