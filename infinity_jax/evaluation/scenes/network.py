"""The judge's network: a picture of a scene -> what stands in each cell of a grid over it.

In the manner of Zhou et al., Objects as Points, arXiv 1904.07850: an object is the peak of a map at its middle, and
what it is is read off the maps there.
"""

import itertools
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from infinity_jax.data.scenes.vocabulary import COLOURS, FLOORS, MATERIALS, OBJECTS

# Pixels along a side of what it sees, and cells along a side of what it says.
SIDE, GRID = 64, 16
_STEM, _WIDTH, _BLOCKS = 24, 64, 5
_MAPS = {"presence": 1, "kind": len(OBJECTS), "colour": len(COLOURS), "material": len(MATERIALS), "place": 2}


class Maps(NamedTuple):
    """What the network says of a picture, logits but for `place`.

    Attributes:
      presence: whether the middle of an object is in the cell, [B,GRID,GRID].
      kind, colour, material: of that object, [B,GRID,GRID,n], in the order of the vocabulary.
      place: where it stands, to the right and towards the camera (`Thing.x`, `Thing.z`), [B,GRID,GRID,2].
      floor: [B,n].
    """

    presence: Float[Array, "B G G"]
    kind: Float[Array, "B G G n"]
    colour: Float[Array, "B G G m"]
    material: Float[Array, "B G G k"]
    place: Float[Array, "B G G 2"]
    floor: Float[Array, "B f"]


class JudgeNetwork(nn.Module):
    """Looks at pictures float [B,SIDE,SIDE,3] in [-1, 1] and says `Maps`."""

    @nn.compact
    def __call__(self, image_BHW3: Float[Array, "B H W 3"]) -> Maps:
        x = nn.relu(nn.Conv(_STEM, (4, 4), strides=2, name="stem")(image_BHW3))
        x = nn.Conv(_WIDTH, (4, 4), strides=2, name="halve")(x)
        for block in range(_BLOCKS):
            inside = nn.relu(nn.Conv(_WIDTH, (3, 3), name=f"first_{block}")(nn.relu(x)))
            # Blocks begin as the identity, so that no norm is needed.
            x += nn.Conv(_WIDTH, (3, 3), kernel_init=nn.initializers.zeros, name=f"second_{block}")(inside)
        x = nn.relu(x)
        said = nn.Dense(sum(_MAPS.values()), name="maps")(x)
        *ends, _ = itertools.accumulate(_MAPS.values())
        presence, kind, colour, material, place = jnp.split(said, ends, axis=-1)
        floor = nn.Dense(len(FLOORS), name="floor")(x.mean((1, 2)))
        return Maps(presence[..., 0], kind, colour, material, place, floor)


def seen(image_BHW3: Float[Array, "B H W 3"]) -> Float[Array, "B SIDE SIDE 3"]:
    """Brings square pictures of any size, float in [-1, 1], to the size that the network sees."""
    shape = (len(image_BHW3), SIDE, SIDE, 3)
    return jax.image.resize(image_BHW3, shape, "linear", antialias=True)
