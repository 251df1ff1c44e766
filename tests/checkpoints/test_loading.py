"""Weights are rounded to what drawing reads as they are loaded, one array after the other."""

import json
import math
import weakref

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.systems import MODEL, write_system
from jax.sharding import NamedSharding

from infinity_jax import presets
from infinity_jax.checkpoints import pretrained, trained
from infinity_jax.checkpoints.opened import open_checkpoint
from infinity_jax.files.lazy_tensor import LazyTensor
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.runtime.sharding import layout_of
from infinity_jax.runtime.trees import parameter_name
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.text import t5
from infinity_jax.transformer import layers
from infinity_jax.transformer.kernels.storage import from_storage


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A system whose products are computed in bfloat16, stored in float32."""
    path = tmp_path_factory.mktemp("system") / "system"
    write_system(path)
    config = json.loads((path / "config.json").read_text())
    config["transformer"]["compute_dtype"] = "bfloat16"
    (path / "config.json").write_text(json.dumps(config))
    return path


def named(params):
    return {parameter_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(params)}


def test_only_what_products_alone_read_is_rounded(folder):
    whole = pretrained.load_model(folder)
    assert {leaf.dtype for leaf in named(whole.params).values()} == {jnp.dtype("float32")}
    rounded = open_checkpoint(folder).model(rounded=True)
    dtypes, wanted = named(trained.stored_dtypes(whole.config)), named(whole.params)
    for name, leaf in named(rounded.params).items():
        value = from_storage(leaf)
        assert value.dtype == dtypes[name], name
        np.testing.assert_array_equal(value, wanted[name].astype(dtypes[name]), err_msg=name)
    low = {name for name, dtype in dtypes.items() if dtype == "bfloat16"}
    assert low and {name.rpartition("/")[2] for name in low} == {"kernel"}
    # The sampler computes the difference of both classes from the head's kernel, in float32.
    assert "bit_head/logits/kernel" in dtypes.keys() - low
    exact = set(named(trained.stored_dtypes(MODEL)).values())
    assert exact == {"float32"}, "a model that computes in float32 is kept so"


@pytest.mark.parametrize("on_mesh", [False, True], ids=["one device", "mesh"])
def test_no_more_than_one_array_beside_what_is_kept(folder, monkeypatch, on_mesh):
    """Counted: bytes on devices whenever an array has been placed, and arrays as they are stored that still live."""
    opened = open_checkpoint(folder)
    layout = layout_of(MeshConfig(), devices=jax.devices()[:1]) if on_mesh else None
    before = {id(x) for x in jax.live_arrays()}
    read, seen, alive = [], [], []
    plain_read, plain_call = LazyTensor.read, trained.Placing.__call__

    def reading(self):
        # A rounded array no longer needs what was read; one that stays float32 may be kept as it is.
        alive.append(sum(ref() is not None for ref, rounded in read if rounded))
        array = plain_read(self)
        read.append((weakref.ref(array), False))
        return array

    def placing(self, name, array):
        read[-1] = (read[-1][0], self._by_name[name][0] != "float32")
        placed = plain_call(self, name, array)
        seen.append(sum(x.nbytes for x in jax.live_arrays() if id(x) not in before))
        return placed

    monkeypatch.setattr(LazyTensor, "read", reading)
    monkeypatch.setattr(trained.Placing, "__call__", placing)
    model = opened.model(layout, rounded=True)
    kept = [*jax.tree.leaves(model.params), *jax.tree.leaves(model.tokenizer.params)]
    final, largest = sum(x.nbytes for x in kept), max(x.nbytes for x in kept)
    assert max(seen) <= final + largest, "never two copies on the devices"
    in_float32 = 4 * sum(math.prod(x.shape) for x in jax.tree.leaves(model.params))
    in_float32 += sum(x.nbytes for x in jax.tree.leaves(model.tokenizer.params))
    assert max(seen) < in_float32
    assert max(alive) <= 1, "of what was read only the array that is being placed"
    if layout is not None:
        assert all(isinstance(x.sharding, NamedSharding) for x in kept)


@pytest.mark.long
def test_the_same_pictures_and_weights_as_rounded_late(folder, tmp_path):
    early = InfinityPipeline.from_pretrained(folder)
    late = InfinityPipeline(pretrained.load_model(folder))
    for one, other in zip(early(["a red heart"]), late(["a red heart"]), strict=True):
        np.testing.assert_array_equal(np.asarray(one), np.asarray(other))
    early.save_pretrained(tmp_path / "saved")
    saved, wanted = (named(pretrained.load_model(path).params) for path in (tmp_path / "saved", folder))
    for name, leaf in wanted.items():
        np.testing.assert_array_equal(saved[name], leaf, err_msg=name)


def test_the_published_2b_is_loaded_in_half_of_a_chip_of_16_gb():
    """By shapes: bytes of the transformer, of Flan-T5-XL and of the tokenizer, and the largest array beside them."""

    def sizes(shapes, dtypes):
        sizes = jax.tree.map(lambda x, dtype: math.prod(x.shape) * jnp.dtype(dtype).itemsize, shapes, dtypes)
        return jax.tree.leaves(sizes)

    model = presets.PRESETS["2b"].transformer
    xl = t5.param_variables(t5.NAMES["xl"], "bfloat16")
    transformer = sizes(trained.transformer_shapes(model), trained.stored_dtypes(model))
    text = sizes(nn.meta.unbox(xl), layers.stored_dtypes(xl))
    tokenizer = trained.tokenizer_shapes(presets.TOKENIZERS["d32"])
    whole = sizes(tokenizer, jax.tree.map(lambda _: "float32", tokenizer))
    assert [round(sum(part) / 1e9, 2) for part in (transformer, text, whole)] == [4.47, 2.58, 0.44]
    assert sum(transformer) + sum(text) + sum(whole) + max(transformer) < 0.55 * 16e9
