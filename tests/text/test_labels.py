"""Labels in the place of captions: names and numbers of classes, and the features that carry them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.config import TextConfig
from infinity_jax.errors import UserError
from infinity_jax.text.encoder import TextEncoder, text_encoder_of
from infinity_jax.text.labels import LabelEncoder
from infinity_jax.transformer.conditions import digits, of_digits

NAMES = ("tench", "goldfish", "great white shark")


def test_names_and_numbers_are_labels():
    encoder = LabelEncoder(3, NAMES)
    assert encoder.tokens(["goldfish", "2", " tench "]) == [[1], [2], [0]]
    features, mask = encoder.encode(["great white shark", "1"])
    assert isinstance(encoder, TextEncoder) and features.shape == (2, 1, encoder.channels) and mask.all()
    np.testing.assert_array_equal(of_digits(jnp.asarray(features))[:, 0], [2, 1])


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (NAMES, "3", "class 3 is unknown; this model has the classes 0 to 2"),
        (NAMES, "gold fish", "class 'gold fish' is unknown; did you mean 'goldfish'?"),
        ((), "a cat", "class 'a cat' is unknown; give a number from 0 to 2"),
    ],
)
def test_other_texts_are_refused(names, text, message):
    with pytest.raises(UserError) as refused:
        LabelEncoder(3, names).encode([text])
    assert message in str(refused.value)


def test_as_many_names_as_classes():
    with pytest.raises(UserError, match=r"2 different names for text\.classes 3"):
        LabelEncoder(3, ("a", "b", "a"))


def test_a_config_names_the_encoder():
    section = {"encoder": "labels", "max_length": 1, "classes": 3, "labels": list(NAMES)}
    encoder = text_encoder_of(section)
    assert isinstance(encoder, LabelEncoder) and encoder.names == NAMES
    assert encoder.fingerprint != LabelEncoder(3).fingerprint
    assert TextConfig("labels", 1, classes=3).labels == ()


def test_every_label_survives_every_type_of_features():
    labels = jnp.arange(65_535)
    for dtype in ("float32", "float16", "bfloat16"):
        there_and_back = jax.jit(lambda x, dtype=dtype: of_digits(digits(x).astype(dtype)))(labels)
        np.testing.assert_array_equal(there_and_back, labels)
