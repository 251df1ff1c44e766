"""How a tokenizer uses its bits: how often each is set, their entropy, and how many different codes there are."""

from typing import Any

import numpy as np
from jaxtyping import Float


class BitUsage:
    """Counts over pictures that arrive batch by batch; memory grows only with the number of different codes."""

    def __init__(self, bits: int, n_scales: int):
        """Begins with nothing counted; `bits` is d, of one token, `n_scales` is K."""
        self._ones = np.zeros((n_scales, bits), np.int64)
        self._tokens = np.zeros(n_scales, np.int64)
        self._codes = [np.zeros((0, -(-bits // 8)), np.uint8) for _ in range(n_scales)]

    def add(self, bits: tuple[np.ndarray, ...]) -> None:
        """Counts K arrays of bits, bool [N,h_k,w_k,d]."""
        for k, bits_NhwD in enumerate(bits):
            bits_Td = bits_NhwD.reshape(-1, bits_NhwD.shape[-1])
            self._ones[k] += bits_Td.sum(axis=0)
            self._tokens[k] += len(bits_Td)
            together = np.concatenate([self._codes[k], np.packbits(bits_Td, axis=-1)])
            self._codes[k] = np.unique(together, axis=0)

    def numbers(self) -> dict[str, Any]:
        """Returns what was counted, as plain values of JSON.

        bits: d. used_bits: those that are neither 0 nor 1 everywhere, over all scales; dead_bits: the others;
        dead_bits_per_scale: [K], the same of each scale for itself.
        bit_frequency: [d], how often each bit is set, over all scales. bit_entropy: [K][d], the entropy of each bit at
        each scale, in bits, 0 to 1. entropy_per_scale: [K], its mean over the bits. tokens_per_scale: [K], tokens
        seen. codes_per_scale: [K], how many different ones. code_usage_per_scale: [K], one over the other; near 1
        says no more than that there are more codes than tokens.
        """
        bits = self._ones.shape[1]
        ones, tokens = self._ones.sum(axis=0), self._tokens.sum()
        used = int(((ones > 0) & (ones < tokens)).sum())
        entropy_Kd = binary_entropy(self._ones / np.maximum(self._tokens, 1)[:, None])
        codes = np.array([len(codes) for codes in self._codes])
        return {
            "bits": bits,
            "used_bits": used,
            "dead_bits": bits - used,
            "dead_bits_per_scale": (entropy_Kd == 0).sum(axis=1).tolist(),
            "bit_frequency": (ones / max(tokens, 1)).tolist(),
            "entropy_per_scale": entropy_Kd.mean(axis=1).tolist(),
            "bit_entropy": entropy_Kd.tolist(),
            "tokens_per_scale": self._tokens.tolist(),
            "codes_per_scale": codes.tolist(),
            "code_usage_per_scale": (codes / np.maximum(self._tokens, 1)).tolist(),
        }


def binary_entropy(p: Float[np.ndarray, "..."]) -> Float[np.ndarray, "..."]:
    """Computes the entropy in bits of a bit that is set with probability p: 1 at a half, 0 at 0 and 1."""
    q = 1.0 - p
    return -p * np.log2(np.where(p > 0, p, 1.0)) - q * np.log2(np.where(q > 0, q, 1.0)) + 0.0
