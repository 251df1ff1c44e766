"""Captions of training batches, encoded on the devices that train on them."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paths
from helpers.paths import PROGRAMS
from helpers.processes import free_port

from infinity_jax.runtime import global_batch
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.runtime.sharding import layout_of
from infinity_jax.text import on_device
from infinity_jax.text.encoder import load_text_encoder
from infinity_jax.text.on_device import TextOnDevice, padded_ids

TEXTS = ["red heart", "woman astronaut", "a dog", "flag of Côte d’Ivoire"]


@pytest.fixture(scope="module")
def encoder():
    return load_text_encoder("minilm", 40)


def one_device():
    return layout_of(MeshConfig(), devices=jax.devices()[:1])


def test_few_lengths():
    assert [on_device.padded_length(n, 512) for n in (1, 32, 33, 100, 257, 512)] == [
        32,
        32,
        64,
        128,
        512,
        512,
    ]
    assert on_device.padded_length(3, 20) == 20
    batch = padded_ids([[7, 8, 1], [9, 1]], 40)
    assert batch["text_ids"].shape == (2, 32) and batch["text_ids"][0, :4].tolist() == [7, 8, 1, 0]
    assert batch["text_mask"].shape == (2, 40) and batch["text_mask"].sum(1).tolist() == [3, 2]


def test_parts_of_a_batch():
    assert [
        on_device._parts(rows, length) for rows, length in ((256, 512), (256, 32), (6, 1 << 14), (5, 1 << 13))
    ] == [*(8, 1, 6, 5)]


def test_features_are_those_of_the_encoder_and_nothing_comes_back_to_the_host(encoder, monkeypatch):
    monkeypatch.setattr(on_device, "_TOKENS", 64)  # two parts
    layout = one_device()
    place = TextOnDevice(encoder, layout)
    encoder.place(place.layout)
    batch = {**padded_ids(encoder.tokens(TEXTS), 40), "image": np.arange(4)}
    args = batch, np.arange(4), 4, layout.batch(4)
    with jax.transfer_guard_device_to_host("disallow"):
        placed = place(*args)
        jax.block_until_ready(placed)
    assert placed.keys() == {"image", "text", "text_mask"}
    assert placed["text"].shape == (4, 40, 384) and placed["text"].dtype == jnp.bfloat16
    features, mask = encoder.encode(TEXTS)
    text = np.asarray(placed["text"], np.float32)
    # The encoder pads to 8 or 16, and is rounded here at the end: float32 sums in another order, then bfloat16.
    np.testing.assert_allclose(text[:, : mask.shape[1]][mask], features[mask], rtol=2**-7, atol=1e-5)
    assert not text[~np.asarray(placed["text_mask"])].any()
    np.testing.assert_array_equal(np.asarray(place(*args)["text"]), placed["text"])
    without = {"text": features, "text_mask": mask}
    assert place(without, *args[1:])["text"].dtype == np.float32, "features that are there stay"


def test_a_part_of_the_rows_and_a_short_batch(encoder):
    """Validation reads all rows; a long text among those of another process lengthens nothing here."""
    layout = one_device()
    place = TextOnDevice(encoder, layout)
    encoder.place(place.layout)
    batch = padded_ids(encoder.tokens(TEXTS), 40)
    whole = place(batch, np.arange(4), 4, layout.batch(4))
    rows = global_batch.rows_here(layout.batch(2), 2)
    part = place({name: array[:3] for name, array in batch.items()}, np.arange(3), 2, layout.batch(2))
    assert len(rows) == 2
    np.testing.assert_allclose(
        np.asarray(part["text"], np.float32), np.asarray(whole["text"][:2], np.float32), rtol=2**-7, atol=1e-5
    )


@pytest.mark.parametrize("processes", [1, 2])
def test_on_meshes(processes):
    """Each device holds the features of its own rows, whatever the mesh and the number of processes."""
    port = str(free_port())
    more = [[]] if processes == 1 else [[port, "0"], [port, "1"]]
    environment = {**os.environ, "PYTHONPATH": paths.PYTHONPATH}
    runs = [
        subprocess.Popen(
            [sys.executable, PROGRAMS / "text_on_mesh.py", *arguments],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for arguments in more
    ]
    for run in runs:
        out, errors = run.communicate()
        assert run.returncode == 0, errors[-2000:]
        assert out.count("agrees") == 5
