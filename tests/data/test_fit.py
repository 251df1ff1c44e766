"""`data.fit` from the config to the pictures of training, of its cache and of evaluation."""

import numpy as np
import pytest
from helpers import systems
from PIL import Image

from infinity_jax.checkpoints.trained import TrainedTokenizer
from infinity_jax.data import encoded, sources
from infinity_jax.data.prepared.config import DataConfig
from infinity_jax.data.resolutions import PictureConfig
from infinity_jax.errors import UserError
from infinity_jax.evaluation import generation
from infinity_jax.text.encoder import load_text_encoder
from infinity_jax.tokenizer.model import Tokenizer


@pytest.fixture
def source(tmp_path, monkeypatch):
    monkeypatch.setenv("INFINITY_DATA", str(tmp_path / "data"))
    (tmp_path / "own" / "wide").mkdir(parents=True)
    noise = np.random.default_rng(0).integers(0, 256, (20, 60, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "own" / "wide" / "0.png")
    return f"folder:{tmp_path / 'own'}"


def test_features_are_those_of_the_fit_and_kept_apart(source, tmp_path):
    params = systems.initial_params(Tokenizer(systems.TOKENIZER), 16, 0)
    tokenizer = TrainedTokenizer(systems.TOKENIZER, params, "32px", {})
    split, text = sources.open_source(source, "train"), load_text_encoder("minilm", 8, "")

    def features(*fit):
        return np.array(encoded.encode_split(split, tokenizer, text, *fit)[0]["features"])

    crop, pad, again = features(), features("pad"), features("crop")
    np.testing.assert_array_equal(crop, again)
    assert (crop != pad).any()
    assert len(list((tmp_path / "data" / "features").glob("pictures-*.npy"))) == 2


def test_evaluation_fits_pictures_as_the_run_did(source):
    fit = sources.fit_of({"data": {"source": source, "fit": "pad"}})
    assert (fit, sources.fit_of({}), sources.fit_of({"data": {"source": source}})) == ("pad", "crop", "crop")
    image = generation.real_pictures(source, 32, fit).train.images[0]
    assert (image[:8] == 255).all() and not (image[12:20] == 255).all()


@pytest.mark.parametrize("config", [DataConfig, PictureConfig])
def test_another_fit_is_refused(config):
    with pytest.raises(UserError, match=r"fit.*squeeze.*crop"):
        config("folder:x", "64px", fit="squeeze")


def test_prepared_shards_are_only_cropped():
    with pytest.raises(UserError, match=r"data\.fit is 'pad', and prepared shards are cropped"):
        DataConfig("records:x", "64px", fit="pad")


def test_a_folder_without_a_name_is_refused():
    with pytest.raises(UserError, match="names no folder"):
        sources.open_source("folder:", "train")
