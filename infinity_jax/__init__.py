"""Infinity in JAX: bitwise autoregressive text-to-image models, from tokenizer to sampler."""
