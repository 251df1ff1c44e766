"""How far bfloat16 moves the features of Flan-T5: `python experiments/text_dtype.py [--config small] [--tokens 64]`.

The encoder's size is a published one; its weights are random ones of its initialisers, since the real ones are not in
this package. Prints the root mean square of the differences of features by that of the features, with linear maps and
operands of products in bfloat16, over texts of random tokens; and the same of features that are only rounded at the
end, as training reads them in either case.
"""

import argparse

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.text.t5 import NAMES, T5


def rms(x: np.ndarray) -> float:
    """Returns the root of the mean square."""
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64))))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--config", choices=[*NAMES], default="small")
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--texts", type=int, default=8)
    args = parser.parse_args()
    config = NAMES[args.config]
    ids = jnp.asarray(np.random.default_rng(0).integers(2, 32000, (args.texts, args.tokens)), jnp.int32)
    mask = jnp.ones(ids.shape, bool)
    params = nn.meta.unbox(jax.jit(T5(config).init)(jax.random.key(0), ids[:1], mask[:1])["params"])
    exact, low = (
        np.asarray(jax.jit(T5(config, dtype).apply)({"params": params}, ids, mask))
        for dtype in ("float32", "bfloat16")
    )
    rounded = np.asarray(jnp.asarray(exact).astype(jnp.bfloat16), np.float32)
    print(
        f"{args.config}: bfloat16 {rms(low - exact) / rms(exact):.2e}, largest {np.abs(low - exact).max():.3g}"
    )
    print(f"{args.config}: rounded at the end {rms(rounded - exact) / rms(exact):.2e}")


if __name__ == "__main__":
    main()
