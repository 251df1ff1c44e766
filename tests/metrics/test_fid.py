"""Inception-v3 and FID against pytorch-fid, with random weights and features (tests/golden/fid/make.py)."""

from pathlib import Path

import jax
import numpy as np
import pytest
from helpers import paths
from helpers.networks import random_features, random_pictures, random_state

from infinity_jax.errors import UserError
from infinity_jax.files.torch_writer import write_torch_file
from infinity_jax.metrics import inception
from infinity_jax.metrics.fid import fid
from infinity_jax.metrics.inception import inception_features, load_inception

GOLDEN = paths.GOLDEN / "fid" / "reference.npz"


def write(path: Path, state: dict[str, np.ndarray]) -> Path:
    write_torch_file(path, {name: (x.dtype, x.shape) for name, x in state.items()}, state.values())
    return path


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN) as file:
        return dict(file)


@pytest.fixture(scope="module")
def state():
    return random_state(inception.torch_shapes())


@pytest.fixture(scope="module")
def variables(state, tmp_path_factory):
    more: dict[str, np.ndarray] = {"fc.weight": np.zeros((8, 2048), np.float32)}
    more["Mixed_5b.branch1x1.bn.num_batches_tracked"] = np.zeros((), np.int64)
    return load_inception(write(tmp_path_factory.mktemp("inception") / "inception.pth", state | more))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (310, 330)])
def test_features_equal_pytorch_fid(variables, golden, monkeypatch, height, width):
    monkeypatch.setattr(inception, "_BATCH", 2)
    found = inception_features(variables, random_pictures(2, height, width))[:, ::8]
    wanted = golden[f"features_{height}"]
    # Measured by how much the two pictures differ, which is less than the features are large.
    assert np.abs(found - wanted).max() < 1e-3 * np.abs(wanted[0] - wanted[1]).max()


def test_the_weights_have_the_structure_of_the_network(variables):
    image = jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)
    wanted = jax.eval_shape(inception.InceptionV3().init, jax.random.key(0), image)
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, wanted)
    assert inception_features(variables, random_pictures(2, 8, 8)[:0]).shape == (0, 2048)


@pytest.mark.parametrize("count", [300, 20])
def test_distances_equal_pytorch_fid_also_where_covariances_are_singular(golden, count):
    a, b = (random_features(count + 5 * seed, 48, seed) for seed in (0, 1))
    assert fid(a, b) == pytest.approx(float(golden[f"distance_{count}"]), rel=1e-5)
    assert fid(b, a) == pytest.approx(fid(a, b))
    assert abs(fid(a, a)) < 1e-5


def test_one_picture_is_no_set():
    with pytest.raises(ValueError, match="2 pictures or more"):
        fid(random_features(1, 8, 0), random_features(5, 8, 0))


def test_other_files_are_refused(state, tmp_path):
    with pytest.raises(UserError, match=r"no file .*pt_inception-2015-12-05"):
        load_inception(tmp_path / "nowhere.pth")
    # As torchvision's inception_v3, which has an auxiliary classifier.
    other = state | {"AuxLogits.conv0.conv.weight": np.zeros((128, 768, 1, 1), np.float32)}
    with pytest.raises(UserError, match=r"has no AuxLogits.*torchvision's inception_v3 is another"):
        load_inception(write(tmp_path / "torchvision.pth", other))
