"""A training batch's captions through the text encoder, on the devices that train on them and without a way back.

Each process encodes its own rows on its own devices, in one program for each of a few lengths, and the results become
an array over all devices where they lie. Nothing waits: the host may queue the next batch while a step runs.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jaxtyping import Array, Bool, Float, Int, PyTree

from infinity_jax.errors import UserError
from infinity_jax.runtime import global_batch
from infinity_jax.runtime.compiled_step import CompiledStep
from infinity_jax.runtime.mesh import MESH_AXES
from infinity_jax.runtime.sharding import Layout, constrain, rules_named
from infinity_jax.text.batching import bucket_length
from infinity_jax.text.encoder import TextEncoder

IDS, MASK, FEATURES = "text_ids", "text_mask", "text"
# Few lengths make few programs, and a shorter one would save little beside the step.
_SHORTEST = 32
# Tokens of one device at a time, so that scores and hidden layers of a large batch do not lie there all at once.
_TOKENS = 1 << 14


def padded_ids(
    token_ids: Sequence[list[int]], max_length: int
) -> dict[str, Int[np.ndarray, "B T"] | Bool[np.ndarray, "B N"]]:
    """Pads the token ids of a batch: `text_ids` int32 [B,T] and `text_mask` bool [B,N] with N = `max_length`.

    T is 32, 64, 128, ... by the longest text, at most `max_length`.
    """
    counts = np.array([len(ids) for ids in token_ids])
    ids_BT = np.zeros((len(counts), padded_length(int(counts.max()), max_length)), np.int32)
    mask_BN = np.arange(max_length) < counts[:, None]
    ids_BT[mask_BN[:, : ids_BT.shape[1]]] = np.concatenate(token_ids)
    return {IDS: ids_BT, MASK: mask_BN}


def padded_length(tokens: int, max_length: int) -> int:
    """Returns the length that a batch is encoded with whose longest text has so many tokens."""
    return bucket_length(max(tokens, _SHORTEST), max_length)


def local_layout(layout: Layout) -> Layout:
    """Makes the layout of this process's devices alone that splits a batch as `layout` splits it among them.

    Devices that have the same rows of a batch share the work on them by heads and hidden channels.

    Raises:
      UserError: some rows lie on more of this process's devices than others.
    """
    parts = layout.batch_parts
    places = layout.batch(parts).addressable_devices_indices_map((parts,))
    groups: dict[int, list[Any]] = {}
    for device, index in places.items():
        assert index is not None
        groups.setdefault(index[0].indices(parts)[0], []).append(device)
    if len({len(group) for group in groups.values()}) > 1:
        raise UserError(
            f"the devices of process {jax.process_index()} do not share a batch evenly; change config.mesh.shape"
        )
    devices = np.array([sorted(groups[row], key=lambda device: device.id) for row in sorted(groups)])
    shape = {"fsdp": len(devices), "tensor": devices.shape[1]}
    arranged = devices.reshape([shape.get(axis, 1) for axis in MESH_AXES])
    mesh = Mesh(arranged, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))
    # Weights may lie whole on every device where the model's own do.
    return Layout(mesh, layout.rules if devices.shape[1] == 1 else rules_named("fsdp_tp"))


class TextOnDevice:
    """Lays batches out over the devices as `global_batch.put` does, and turns token ids into features there.

    Attributes:
      encoder: whose `place` has laid its weights out by `layout`, before captions are encoded.
    """

    def __init__(self, encoder: TextEncoder, layout: Layout):
        self.encoder, self._whole_layout = encoder, layout

    @functools.cached_property
    def layout(self) -> Layout:
        """The layout of this process's devices, see `local_layout`; not before it is needed."""
        return local_layout(self._whole_layout)

    @functools.cached_property
    def _encode(self) -> CompiledStep:
        out = self.layout.batch(self.layout.batch_parts)
        return CompiledStep(
            jax.jit(self.layout.traced(self._features), out_shardings=out), what="the text encoder"
        )

    def __call__(
        self,
        batch: Mapping[str, np.ndarray],
        rows: Int[np.ndarray, " n"],
        batch_size: int,
        sharding: jax.sharding.Sharding,
    ) -> dict[str, jax.Array]:
        """Lays a batch out; `text_ids` of `padded_ids` become `text`, bfloat16 [batch_size, max_length, C].

        Args:
          batch, rows, batch_size, sharding: as for `global_batch.put`.
        """
        arrays = {name: array for name, array in batch.items() if name != IDS}
        placed = global_batch.put(arrays, rows, batch_size, sharding)
        if IDS not in batch:
            return placed
        here = np.searchsorted(rows, global_batch.rows_here(sharding, batch_size))
        texts = self._shortest(batch[IDS][here], batch[MASK][here])
        local = jax.device_put(texts, self.layout.batch(len(here)))
        features = self._encode(self.encoder.params, local, None)
        parts = [shard.data for shard in features.addressable_shards]
        shape = batch_size, *features.shape[1:]
        return {**placed, FEATURES: jax.make_array_from_single_device_arrays(shape, sharding, parts)}

    def length(self, batch: Mapping[str, np.ndarray]) -> int:
        """Returns the length to which the texts of these rows are padded while they are encoded; 0 for features."""
        if IDS not in batch:
            return 0
        return padded_length(int(batch[MASK].sum(1).max()), self.encoder.max_length)

    def _shortest(
        self, ids_BT: Int[np.ndarray, "B T"], mask_BN: Bool[np.ndarray, "B N"]
    ) -> dict[str, np.ndarray]:
        """Cuts what no text of these rows needs."""
        length = self.length({IDS: ids_BT, MASK: mask_BN})
        return {IDS: ids_BT[:, :length], MASK: mask_BN[:, :length]}

    def _features(self, params: PyTree, texts: Mapping[str, Array], _: None) -> Float[Array, "B N C"]:
        """Computes features bfloat16 [B,N,C], zero at padding, N = `max_length`; not all rows at once."""
        ids_BT, mask_BT = texts[IDS], texts[MASK]
        batch, length = ids_BT.shape
        parts = _parts(batch // self.layout.batch_parts, length)

        def encode(part: Mapping[str, Array]) -> Array:
            part = {name: constrain(array, "batch", None) for name, array in part.items()}
            features_bTC = self.encoder.apply(params, part[IDS], part[MASK]).astype(jnp.bfloat16)
            return constrain(features_bTC * part[MASK][..., None], "batch", None, None)

        # Part i takes every `parts`-th text, so that each device encodes its own.
        split = {
            name: array.reshape(-1, parts, length).swapaxes(0, 1)
            for name, array in {IDS: ids_BT, MASK: mask_BT}.items()
        }
        features_BTC = jax.lax.map(encode, split).swapaxes(0, 1).reshape(batch, length, -1)
        missing = self.encoder.max_length - length
        return jnp.pad(features_BTC, ((0, 0), (0, missing), (0, 0)))


def _parts(rows: int, length: int) -> int:
    """Finds the least number of equal parts of a device's rows that have at most `_TOKENS` tokens, or one row each."""
    return next(
        n for n in range(1, rows + 1) if rows % n == 0 and (rows // n * length <= _TOKENS or n == rows)
    )
