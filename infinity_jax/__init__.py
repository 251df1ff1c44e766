"""Infinity in JAX: bitwise autoregressive text-to-image models, from tokenizer to sampler."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infinity_jax.sampling.pipeline import InfinityPipeline

__all__ = ["InfinityPipeline"]


def __getattr__(name: str) -> Any:
    """`infinity_jax.InfinityPipeline`, imported when it is asked for: jax takes seconds to load."""
    if name == "InfinityPipeline":
        from infinity_jax.sampling.pipeline import InfinityPipeline

        return InfinityPipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
