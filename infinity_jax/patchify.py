"""Space-to-depth between the tokenizer's tokens and the transformer's ("patchify", spec section 7)."""

import einops
from jaxtyping import Array, Shaped


def to_transformer(x_BHWd: Shaped[Array, "B H W d"], patchify: int) -> Shaped[Array, "B h w D"]:
    """Tokens of the tokenizer [B,H,W,d] -> of the transformer [B,H/p,W/p,d*p*p]; channel = c*p*p + dy*p + dx."""
    return einops.rearrange(x_BHWd, "b (h p) (w q) d -> b h w (d p q)", p=patchify, q=patchify)


def to_tokenizer(x_BhwD: Shaped[Array, "B h w D"], patchify: int) -> Shaped[Array, "B H W d"]:
    """The inverse of `to_transformer`."""
    return einops.rearrange(x_BhwD, "b h w (d p q) -> b (h p) (w q) d", p=patchify, q=patchify)
