"""The quantiser's loss against sums over all codes, and the loss of features, written out in NumPy."""

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from infinity_jax.training import tokenizer_losses
from infinity_jax.training.tokenizer_losses import (
    QuantizerWeights,
    bsq_entropies,
    lfq_entropies,
    quantizer_loss,
)

BITS = 4
CODES = np.array(list(itertools.product([-1.0, 1.0], repeat=BITS)))
SHARE = {"bsq": BITS**-0.5, "lfq": 1.0}


@pytest.fixture(scope="module")
def z_BhwD():
    """Near zero, where soft bits are undecided; and off centre, so that some codes are used more than others."""
    return np.random.default_rng(0).standard_normal((3, 2, 2, BITS)) * 0.004 + 0.001


def entropies(z_ND, quantizer, group=BITS):
    """(mean over tokens of the codes' entropy, entropy of their mean over tokens, of groups of bits, summed)."""
    logits = 2 * 100 * z_ND @ CODES.T * SHARE[quantizer]
    p_NV = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    of_groups = 0.0
    for first in range(0, BITS, group):
        bits = CODES[:, first : first + group]
        mean = [p_NV[:, (bits == own).all(-1)].sum(-1).mean() for own in np.unique(bits, axis=0)]
        of_groups -= np.sum(mean * np.log(mean))
    return -(p_NV * np.log(p_NV)).sum(-1).mean(), of_groups


def loss(z_BhwD, quantizer, gamma=1.0, group=BITS):
    """0.25 * squared distance to the code + 0.1 / 100 * (entropy of a token - gamma * entropy of the codebook)."""
    z_ND = z_BhwD.reshape(-1, BITS)
    code = np.where(z_ND > 0, 1, -1) * SHARE[quantizer]
    of_token, of_codebook = entropies(z_ND, quantizer, group)
    return 0.25 * ((z_ND - code) ** 2).mean() + 0.1 / 100 * (of_token - gamma * of_codebook)


@pytest.mark.parametrize("group", [1, 2, 4])
def test_entropies_of_bsq(z_BhwD, group):
    found = bsq_entropies(jnp.float32(z_BhwD), group=group)
    np.testing.assert_allclose(found, entropies(z_BhwD.reshape(-1, BITS), "bsq", group), rtol=1e-5)


def test_entropies_of_lfq(z_BhwD):
    found = lfq_entropies(jnp.float32(z_BhwD))
    np.testing.assert_allclose(found, entropies(z_BhwD.reshape(-1, BITS), "lfq"), rtol=1e-5)


@pytest.mark.parametrize(("quantizer", "group"), [("bsq", 1), ("bsq", 2), ("bsq", 4), ("lfq", 1)])
@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_the_loss_is_commitment_and_entropy(z_BhwD, quantizer, group, gamma):
    found = quantizer_loss(jnp.float32(z_BhwD), quantizer, QuantizerWeights(gamma=gamma, group=group))
    expected = loss(z_BhwD, quantizer, gamma, BITS if quantizer == "lfq" else group)
    # The entropies' part is about 0.001 of 0.06 (bsq) or 0.25 (lfq).
    np.testing.assert_allclose(found, expected, rtol=3e-6)


@pytest.mark.parametrize("quantizer", ["bsq", "lfq"])
def test_only_kept_pictures_count(z_BhwD, quantizer):
    kept = np.array([True, False, True])
    found = quantizer_loss(jnp.float32(z_BhwD), quantizer, kept_B=jnp.asarray(kept))
    expected = loss(z_BhwD[kept], quantizer, group=BITS if quantizer == "lfq" else 1)
    np.testing.assert_allclose(found, expected, rtol=3e-6)


class ThreeLayers:
    """Stands in for the network: its layers are the picture, twice, and a function of every other row."""

    activations = None

    def apply(self, params, image, last_stride, method):
        return [image, image, 2 * image[:, ::2] + 1]


def test_the_feature_loss_compares_directions_at_every_place(monkeypatch):
    monkeypatch.setattr(tokenizer_losses, "EfficientNetLite0", ThreeLayers)
    image, made = np.random.default_rng(0).uniform(-1, 1, (2, 2, 4, 6, 3)).astype(np.float32)
    expected = 0.0
    for weight, a, b in zip(
        (1, 0.5, 0.25), *(ThreeLayers().apply(0, x, 8, None) for x in (image, made)), strict=True
    ):
        a, b = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (a, b))
        expected += weight * ((a - b) ** 2).sum(-1).mean()
    found = tokenizer_losses.efficientnet_feature_loss({}, jnp.asarray(image), jnp.asarray(made))
    np.testing.assert_allclose(found, expected, rtol=1e-4)
