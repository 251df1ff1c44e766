"""The Flan-T5 encoder's layers: against PyTorch, in bfloat16, over several devices."""

import json
import math
import subprocess
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
from helpers import paths
from helpers.published_params import params_from
from helpers.t5 import CONFIG, GOLDEN
from safetensors.numpy import load_file

from infinity_jax.errors import UserError
from infinity_jax.text.t5 import NAMES, T5, T5Config, param_shapes, param_variables, position_bucket
from infinity_jax.tools.convert.t5 import EMBEDDING_ALIAS, t5_links

LENGTHS = (200, 40, 5, 1)


@pytest.fixture(scope="module")
def params():
    return params_from(load_file(GOLDEN / "model.safetensors"), t5_links(CONFIG))


@pytest.fixture(scope="module")
def outputs():
    """ids int32 [4,200], mask bool [4,200] and the reference's features float32 [valid tokens, C]."""
    return load_file(GOLDEN / "outputs.safetensors")


def features_of(params, ids, mask, dtype="float32", config=CONFIG) -> np.ndarray:
    """Of the tokens that exist, text after text."""
    return np.asarray(jax.jit(T5(config, dtype).apply)({"params": params}, ids, mask))[mask]


def relative_error(ours, reference) -> float:
    return float(np.abs(ours - reference).max() / np.abs(reference).max())


def test_reference_with_padding(params, outputs):
    """PyTorch's float32 features; 1.1e-6 was measured."""
    features = features_of(params, outputs["ids"], outputs["mask"])
    assert relative_error(features, outputs["features"]) < 1e-5


@pytest.mark.parametrize("row", range(len(LENGTHS)), ids=[f"{n} tokens" for n in LENGTHS])
def test_reference_without_padding(params, outputs, row):
    start = sum(LENGTHS[:row])
    ids = outputs["ids"][row : row + 1, : LENGTHS[row]]
    ours = features_of(params, ids, np.ones(ids.shape, bool))
    assert relative_error(ours, outputs["features"][start : start + LENGTHS[row]]) < 1e-5


def test_live_reference():
    """Other sizes and the published bucket boundaries, against the PyTorch model that is installed here."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")

    config = T5Config(
        32, 16, 40, 5, 2, vocabulary=50, position_buckets=16, position_distance=50, norm_eps=1e-5
    )
    torch.manual_seed(0)
    model = transformers.T5EncoderModel(transformers.T5Config(**config.to_hf())).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
        state = {name: value.numpy() for name, value in model.state_dict().items() if name != EMBEDDING_ALIAS}
        ids = torch.randint(2, 50, (3, 130))
        mask = torch.arange(130)[None] < torch.tensor([130, 17, 2])[:, None]
        expected = model(input_ids=ids, attention_mask=mask.long()).last_hidden_state[mask].numpy()
    params = params_from(state, t5_links(config))
    ours = features_of(params, ids.numpy().astype(np.int32), mask.numpy(), config=config)
    assert relative_error(ours, expected) < 1e-5


def test_position_buckets():
    """Raffel et al. 2020: single distances up to 7, then ranges that grow, one class from 128 on; sides differ."""
    buckets = position_bucket(300, CONFIG)
    assert buckets[0, :12].tolist() == [0, 17, 18, 19, 20, 21, 22, 23, 24, 24, 24, 24]
    back = buckets[-1, ::-1]  # by distance, to tokens before
    assert back[:8].tolist() == list(range(8)) and (np.diff(back) >= 0).all() and back.max() == 15
    first = [int(np.argmax(back == bucket)) for bucket in range(8, 16)]
    assert first == [8, 12, 16, 23, 32, 46, 64, 91]


def test_padding_changes_nothing(params, outputs):
    ids, mask = outputs["ids"][1:2, :16].copy(), np.arange(16)[None] < 9
    apply = jax.jit(T5(CONFIG).apply)
    one = np.asarray(apply({"params": params}, ids, mask))
    ids[:, 9:] = 7
    other = np.asarray(apply({"params": params}, ids, mask))
    np.testing.assert_array_equal(one[:, :9], other[:, :9])
    assert np.isfinite(np.asarray(apply({"params": params}, ids, np.zeros_like(mask)))).all()


def test_bfloat16(params, outputs):
    """1 % was measured."""
    error = features_of(params, outputs["ids"], outputs["mask"], "bfloat16") - outputs["features"]
    assert np.sqrt(np.square(error).mean() / np.square(outputs["features"]).mean()) < 0.03


def test_bfloat16_with_large_activations(params, outputs):
    """Hidden values above 1e6 and a residual stream of about 1e8, far beyond float16's 65504."""
    large = jax.tree.map(np.copy, params)
    for name, factor in (("gate", 300), ("up", 300), ("down", 100)):
        large["blocks"]["ffn"][name]["kernel"] *= factor
    ids, mask = outputs["ids"], outputs["mask"]
    exact, rounded = (features_of(large, ids, mask, dtype) for dtype in ("float32", "bfloat16"))
    assert np.isfinite(exact).all() and np.isfinite(rounded).all()
    assert np.sqrt(np.square(rounded - exact).mean() / np.square(exact).mean()) < 0.05


def test_weights_of_half_precision(params, outputs):
    half = jax.tree.map(lambda leaf: leaf.astype(np.float16), params)
    ids, mask = outputs["ids"][2:], outputs["mask"][2:]
    np.testing.assert_array_equal(features_of(half, ids, mask), features_of(params, ids, mask))


def test_published_sizes():
    """Parameters of the published encoders, in millions, the embedding among them."""
    expected = {"small": 35.3, "base": 109.6, "large": 341.2, "xl": 1223.5, "xxl": 4762.3}
    for name, config in NAMES.items():
        shapes, links = param_shapes(config), t5_links(config)
        count = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes))
        assert round(count / 1e6, 1) == expected[name]
        assert sum(math.prod(link.published_shape) for link in links) == count
        assert T5Config.from_hf(config.to_hf()) == config


SHARDED = """
import json, sys
from pathlib import Path
import jax, numpy as np
from safetensors.numpy import load_file
sys.path.insert(0, "tests")
from helpers.published_params import params_from
from infinity_jax.tools.convert.t5 import t5_links
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import layout_of, put
from infinity_jax.text.t5 import T5, T5Config, param_variables

folder = Path(sys.argv[1])
values = json.loads((folder / "config.json").read_text()) | {"num_heads": 4}
config = T5Config.from_hf(values)
random = np.random.default_rng(0)
tensors = {link.published: random.standard_normal(link.published_shape, np.float32) / 5 for link in t5_links(config)}
params = params_from(tensors, t5_links(config))
outputs = load_file(folder / "outputs.safetensors")
ids, mask = outputs["ids"][:2, :40], outputs["mask"][:2, :40]
apply = jax.jit(T5(config).apply)
expected = np.asarray(apply({"params": params}, ids, mask))

layout = layout_of(parse_mesh("data=2,tensor=4"), "fsdp_tp")
params = jax.tree.map(put, params, layout.of(param_variables(config)))
kernel = params["blocks"]["attention"]["query"]["kernel"]
assert kernel.addressable_shards[0].data.shape[2] == 1, "one head a device"
assert params["blocks"]["ffn"]["down"]["kernel"].addressable_shards[0].data.shape[1] == 16
rows = layout.batch(2)
ours = apply({"params": params}, jax.device_put(ids, rows), jax.device_put(mask, rows))
assert not ours.is_fully_replicated
print(np.abs(np.asarray(ours) - expected).max() / np.abs(expected).max())
"""


def test_sharded_over_devices():
    """Heads and hidden channels over 4 devices, texts over 2."""
    environment = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    result = subprocess.run(
        [sys.executable, "-c", SHARDED, GOLDEN],
        env={**environment, "PATH": "", "HOME": "/nonexistent"},
        cwd=paths.ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    assert float(result.stdout.splitlines()[-1]) < 1e-5


def test_every_parameter_has_axis_names():
    boxes = jax.tree.leaves(param_variables(CONFIG), is_leaf=lambda x: isinstance(x, nn.Partitioned))
    assert all(isinstance(box, nn.Partitioned) and None not in box.names for box in boxes)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"feed_forward_proj": "relu"}, "feed_forward_proj is 'relu', only T5 v1.1"),
        ({"feed_forward_proj": None}, "feed_forward_proj is None, only T5 v1.1"),
        ({"num_heads": 0}, "num_heads is 0; it must be a positive int"),
        ({"d_model": "48"}, "d_model is '48'; it must be a positive int"),
        ({"relative_attention_num_buckets": 30}, "num_buckets is 30; use a multiple of 4"),
        ({"relative_attention_max_distance": 8}, "max_distance 8 must be larger"),
    ],
)
def test_mistakes_of_config(change, message):
    with pytest.raises(UserError, match=message):
        T5Config.from_hf(json.loads((GOLDEN / "config.json").read_text()) | change)


def test_config_without_a_size():
    with pytest.raises(UserError, match="d_ff missing"):
        T5Config.from_hf(
            {"feed_forward_proj": "gated-gelu", "d_model": 8, "d_kv": 8, "num_heads": 1, "num_layers": 1}
        )
