"""`infinity-jax fid` on small folders, with random weights: numbers, sizes, what is kept, and mistakes."""

import json

import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import random_features, random_pictures, random_state
from PIL import Image

from infinity_jax.cli.main import main
from infinity_jax.evaluation import inception_statistics
from infinity_jax.files.torch_writer import write_torch_file
from infinity_jax.metrics import inception, kid
from infinity_jax.metrics.fid import fid
from infinity_jax.metrics.inception import inception_features, load_inception
from infinity_jax.tokenizer import resize

D = 32  # features; the root of a covariance of 2048 takes seconds


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    state = random_state(inception.torch_shapes())
    file = tmp_path_factory.mktemp("inception") / "inception.pth"
    write_torch_file(file, {name: (x.dtype, x.shape) for name, x in state.items()}, state.values())
    return file


def generated():
    return list(random_pictures(5, 40, 40, seed=1))


def real():
    return [*random_pictures(3, 60, 30, seed=2), *random_pictures(2, 30, 30, seed=3)]


def write(folder, images):
    """Pictures in folders below, beside what is none."""
    for i, image in enumerate(images):
        file = folder / f"category{i % 2}" / f"{i}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(file)
    (folder / "card.json").write_text("{}")
    (folder / ".1.png.7.unfinished").write_text("half")


@pytest.fixture
def run(weights, monkeypatch, tmp_path):
    """The command on these pictures: (exit code, numbers), and the list of how many pictures it took features of.

    The features are colours of places, which are quicker than the network.
    """
    seen: list[int] = []

    def colours(_, images):
        seen.append(len(images))
        return images[:, 20:280:80, 20:280:100].reshape(len(images), -1)[:, :D] / 255

    monkeypatch.setattr(inception_statistics, "inception_features", colours)
    monkeypatch.setattr(inception_statistics, "FEATURES", D)
    monkeypatch.setattr("infinity_jax.cli.main._prepare_process", lambda: None)
    monkeypatch.setenv("INFINITY_DATA", str(tmp_path / "data"))
    write(tmp_path / "generated", generated())
    write(tmp_path / "real", real())

    def measure(real=tmp_path / "real", generated=tmp_path / "generated", inception=weights):
        file = tmp_path / "fid.json"
        file.unlink(missing_ok=True)
        words = ("--generated", generated, "--real", real, "--inception", inception, "--json", file)
        code = main(["fid", *map(str, words)])
        return code, json.loads(file.read_text()) if file.exists() else None

    return measure, seen


def kept(tmp_path):
    (file,) = (tmp_path / "data" / "features").iterdir()
    return file


@pytest.mark.long
def test_numbers_are_those_of_the_networks_features(run, weights, monkeypatch, tmp_path):
    monkeypatch.setattr(inception, "_BATCH", 5)
    first = lambda *arguments: inception_features(*arguments)[:, :D]  # noqa: E731
    monkeypatch.setattr(inception_statistics, "inception_features", first)
    others = random_pictures(5, 60, 30, seed=2)
    write(tmp_path / "others", others)
    code, numbers = run[0](real=tmp_path / "others")
    variables = load_inception(weights)
    a, b = (first(variables, images) for images in (np.stack(generated()), others))
    assert code == 0 and numbers["generated"]["pictures"] == numbers["real"]["pictures"] == 5
    assert numbers["fid"] == pytest.approx(fid(a, b), rel=1e-3)
    assert numbers["kid"] == pytest.approx(kid.kid(a, b)[0], rel=1e-3) and numbers["kid_error"] > 0


def test_real_pictures_are_measured_once(run, tmp_path):
    measure, seen = run
    write(tmp_path / "generated", [*generated(), *generated()])
    found = [measure()[1], measure()[1], measure(real=kept(tmp_path))[1]]
    assert seen == [5, 10, 10, 10]
    kept(tmp_path).write_bytes(kept(tmp_path).read_bytes()[:1000])
    found.append(measure()[1])
    assert seen[4:] == [5, 10], "damaged, so measured again"
    assert len({(numbers["fid"], numbers["kid"], numbers["kid_error"]) for numbers in found}) == 1
    (tmp_path / "real" / "category0" / "0.png").unlink()
    assert measure()[1]["real"]["pictures"] == 4 and seen[6:] == [4, 10]


def test_statistics_of_pytorch_fid_give_fid_alone(run, tmp_path):
    measure, _ = run
    _, whole = measure()
    with np.load(kept(tmp_path)) as file:
        np.savez(tmp_path / "stats.npz", mu=file["mu"], sigma=file["sigma"])
    code, numbers = measure(real=tmp_path / "stats.npz")
    assert code == 0 and numbers["fid"] == whole["fid"]
    assert numbers["kid"] is None and numbers["kid_error"] is None and numbers["real"]["pictures"] is None


def test_mistakes_are_named_with_a_remedy(run, tmp_path, capsys):
    measure, _ = run
    measure()
    with np.load(kept(tmp_path)) as file:
        np.savez(tmp_path / "other.npz", **{**file, "inception": np.array("of others")})
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(20_000_000), sigma=np.eye(3))
    np.savez(tmp_path / "small.npz", mu=np.zeros(3), sigma=np.eye(3))
    (tmp_path / "few").mkdir()
    (tmp_path / "broken" / "a").mkdir(parents=True)
    whole = (tmp_path / "real" / "category0" / "0.png").read_bytes()
    for i in range(4):
        (tmp_path / "broken" / "a" / f"{i}.png").write_bytes(whole[: len(whole) // 2])
    for options, message in (
        ({"real": tmp_path / "nowhere"}, "nowhere"),
        ({"generated": tmp_path / "nowhere"}, "no folder"),
        ({"generated": tmp_path / "few"}, "has 0 pictures"),
        ({"generated": tmp_path / "broken"}, "0.png: truncated picture"),
        ({"real": tmp_path / "small.npz"}, "of Inception they have"),
        ({"real": tmp_path / "bomb.npz"}, "would be unpacked to 160000128"),
        ({"real": tmp_path / "other.npz"}, "other weights"),
        ({"inception": tmp_path / "no.pth"}, "pt_inception-2015-12-05-6726825d.pth"),
    ):
        code, numbers = measure(**options)
        assert code == 2 and numbers is None
        assert message in capsys.readouterr().err


def test_pictures_are_resized_as_the_network_does(tmp_path):
    (image,) = random_pictures(1, 70, 310)
    Image.fromarray(image).save(tmp_path / "a.png")
    made = inception_statistics._resized(tmp_path / "a.png")
    wanted = resize.bilinear(jnp.asarray(image[None], jnp.float32), (299, 299))[0]
    np.testing.assert_allclose(made, np.asarray(wanted), atol=1e-3)


def test_the_kernel_in_parts_is_the_whole(monkeypatch):
    a, b = random_features(23, 8, 0), random_features(31, 8, 1)
    whole = kid.kid(a, b)
    monkeypatch.setattr(kid, "_ROWS", 7)
    assert kid.kid(a, b) == pytest.approx(whole, rel=1e-10)
