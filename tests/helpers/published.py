"""Small random state dicts with the published names, and the files that hold them."""

import json

import numpy as np
from safetensors.numpy import save_file

from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.files.lazy_tensor import TORCH_STORAGES, dtype_named
from infinity_jax.files.tensors import open_tensors
from infinity_jax.files.torch_writer import write_torch_file
from infinity_jax.tools.convert.links import Buffer
from infinity_jax.tools.convert.tokenizer_names import tokenizer_links
from infinity_jax.tools.convert.transformer_names import transformer_links

SMALL = TransformerConfig(layers=4, width=64, heads=4, bits=6, text_channels=128, text_length=8)
SMALL_SECTION = {"layers": 4, "width": 64, "heads": 4, "bits": 6, "text_channels": 128, "text_length": 8}
TOKENIZER = TokenizerConfig(bits=6, base_width=32, multipliers=(1, 2), encoder_blocks=1, decoder_blocks=2)
TOKENIZER_SECTION = {
    "bits": 6,
    "base_width": 32,
    "multipliers": [1, 2],
    "encoder_blocks": 1,
    "decoder_blocks": 2,
}


def random_state(links, dtype="float32", seed=0):
    """Published name -> array, in the order of `links`; buffers hold what they must."""
    random = np.random.default_rng(seed)
    return {
        link.published: (
            link.values if link.values.dtype == np.int64 else link.values.astype(dtype_named(dtype))
        )
        if isinstance(link, Buffer)
        else random.standard_normal(link.published_shape).astype(dtype_named(dtype))
        for link in links
    }


def state_of_all_dtypes():
    """One array of each dtype that weights may have, and the shapes () and (0, 3)."""
    random = np.random.default_rng(0)
    names = [dtype.name for dtype in TORCH_STORAGES.values()]
    values = {name: (4 * random.standard_normal((3, 5))).astype(dtype_named(name)) for name in names}
    return values | {"scalar": np.array(3.5, np.float32), "empty": np.zeros((0, 3), np.float16)}


def transformer_state(dtype="float32", chunks=2, config=SMALL, **layout):
    return random_state(transformer_links(config, chunks, **layout), dtype)


def tokenizer_state(dtype="float32", config=TOKENIZER, inner_names=True):
    return random_state(tokenizer_links(config, inner_names), dtype)


def shapes_of(state):
    return {name: (array.dtype, array.shape) for name, array in state.items()}


def write_pth(path, state, nesting=()):
    write_torch_file(path, shapes_of(state), state.values(), nesting)
    return path


def write_shards(folder, state, save, suffix, count=3):
    """`count` shards and their index."""
    folder.mkdir()
    names, weight_map = list(state), {}
    for i in range(count):
        shard = f"model-{i + 1:05}-of-{count:05}{suffix}"
        part = {name: state[name] for name in names[i::count]}
        save(part, folder / shard)
        weight_map |= dict.fromkeys(part, shard)
    (folder / f"model{suffix}.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


def save_safetensors(state, path):
    save_file({name: array.copy() for name, array in state.items()}, path)


def write_config(path, **sections):
    path.write_text(json.dumps(sections))
    return str(path)


def assert_same(tensors, state, ordered=True):
    """Names, dtypes, shapes and values; and the order."""
    assert list(tensors) == list(state) if ordered else set(tensors) == set(state)
    for name, tensor in tensors.items():
        found = tensor if isinstance(tensor, np.ndarray) else tensor.read()
        assert found.dtype == state[name].dtype and found.shape == state[name].shape, name
        assert found.tobytes() == np.ascontiguousarray(state[name]).tobytes(), name


def assert_file_holds(path, state, kind, ordered=True):
    assert_same(open_tensors(path, kind), state, ordered)
