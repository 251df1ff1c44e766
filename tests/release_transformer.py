"""The small transformer of the public release that the goldens were made with, and their arrays."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from infinity_jax.config import TransformerConfig
from infinity_jax.convert.torch_transformer import transformer_from_torch
from infinity_jax.scales import make_schedule

FOLDER = Path(__file__).parent / "golden" / "transformer"
CONFIG = TransformerConfig(
    layers=4, width=64, heads=4, bits=16, text_channels=128, text_length=64, compute_dtype="float32"
)
SCHEDULE = make_schedule("0.06M")


def arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of one golden file; bits come back as uint8 [B,L,d]."""
    with np.load(FOLDER / f"{name}.npz") as file:
        values = {key: file[key] for key in file.files}
    if "bits_shape" in values:
        shape = tuple(values.pop("bits_shape"))
        values["bits"] = np.unpackbits(values["bits"])[: np.prod(shape)].reshape(shape)
    return values


def params():
    """Our parameters; the weights were rounded to half precision when the goldens were made."""
    return jax.tree.map(jnp.asarray, transformer_from_torch(arrays("weights_fp16"), CONFIG))
