"""Distances from points to the solids of a scene.

Three formulas: solids of revolution (a rounded, capped cone in the plane of radius and height, moved outwards for the
ring), rounded boxes, and the gem. Source of the formulas: the distance of a point to a convex figure in the plane; that
of the gem is a lower bound, which tracing may use.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from infinity_jax.data.scenes.vocabulary import OBJECTS

# Of each kind, in units of its size: radius of the ring's circle, radii at the bottom and at the top, half of the
# height, radius of the rounding, and the height of its middle above the floor.
_REVOLVED = {
    "ball": (0.0, 0.0, 0.0, 0.0, 1.0, 1.0),
    "cylinder": (0.0, 0.70, 0.70, 0.83, 0.06, 0.89),
    "cone": (0.0, 0.88, 0.0, 0.92, 0.06, 0.98),
    "ring": (0.78, 0.0, 0.0, 0.0, 0.30, 0.30),
    "capsule": (0.0, 0.0, 0.0, 0.65, 0.48, 1.13),
}
_BOX_HALF, _BOX_ROUND = 0.72, 0.07
_GEM_REACH = 1.15
_NONE = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0)
_TABLE = np.array([_REVOLVED.get(kind, _NONE) for kind in OBJECTS], np.float32)
_CUBE, _GEM = OBJECTS.index("cube"), OBJECTS.index("gem")
_TABLE[_CUBE, 5], _TABLE[_GEM, 5] = _BOX_HALF + _BOX_ROUND, _GEM_REACH
_FAR = 1e3


class Solids(NamedTuple):
    """The objects of a scene, one entry each; or one of them, without the axis N.

    Attributes:
      kind: number of its kind, -1 where there is none.
      place: of its middle, [N,3]: to the right, up, towards the camera.
      size, turn: see `description.Thing`.
      figure: the row of its kind in the table of figures, [N,6].
    """

    kind: Float[Array, "*N"]
    place: Float[Array, "*N 3"]
    size: Float[Array, "*N"]
    turn: Float[Array, "*N"]
    figure: Float[Array, "*N 6"]


def solids(
    kind_N: Float[Array, " N"],
    x_N: Float[Array, " N"],
    z_N: Float[Array, " N"],
    size_N: Float[Array, " N"],
    turn_N: Float[Array, " N"],
) -> Solids:
    """Stands objects on the floor."""
    figure = jnp.asarray(_TABLE)[jnp.maximum(kind_N, 0).astype(jnp.int32)]
    place = jnp.stack([x_N, figure[:, 5] * size_N, z_N], -1)
    return Solids(kind_N, place, size_N, turn_N, figure)


def height_of_middle(kind: str) -> float:
    """Tells how high the middle of a solid of size 1 is above the floor."""
    return float(_TABLE[OBJECTS.index(kind), 5])


def nearest(of: Solids, points_R3: Float[Array, "R 3"]) -> Float[Array, " R"]:
    """Computes the distance of each point to the nearest solid, negative inside; far where there is none.

    Of each solid the formula of its kind alone runs, unless a batch of scenes is traced together.
    """
    near_R = jnp.full(len(points_R3), _FAR)
    for i in range(len(of.kind)):
        near_R = jnp.minimum(near_R, distance(jax.tree.map(lambda x, i=i: x[i], of), points_R3))
    return near_R


def distance(one: Solids, points_R3: Float[Array, "R 3"]) -> Float[Array, " R"]:
    """Computes the distance of each point to one solid, negative inside; far if it is none."""
    x, y, z = (((points_R3[:, axis] - one.place[axis]) / one.size) for axis in range(3))
    cos, sin = jnp.cos(one.turn), jnp.sin(one.turn)
    across, along = cos * x + sin * z, cos * z - sin * x
    formulas = (
        lambda: jnp.full_like(x, _FAR),
        lambda: _capped_cone(jnp.sqrt(x * x + z * z), y, one.figure),
        lambda: _box(across, y, along),
        lambda: (jnp.abs(across) + jnp.abs(y) + jnp.abs(along) - _GEM_REACH) * 3**-0.5,
    )
    which = jnp.where(one.kind == _CUBE, 2, jnp.where(one.kind == _GEM, 3, 1))
    return one.size * jax.lax.switch(jnp.where(one.kind < 0, 0, which), formulas)


def _box(across: Array, y: Array, along: Array) -> Array:
    """Computes the distance to a cube with rounded edges."""
    outside = [jnp.abs(v) - _BOX_HALF for v in (across, y, along)]
    a, b, c = (jnp.maximum(v, 0.0) for v in outside)
    deepest = jnp.maximum(jnp.maximum(outside[0], outside[1]), outside[2])
    return jnp.sqrt(a * a + b * b + c * c) + jnp.minimum(deepest, 0.0) - _BOX_ROUND


def _capped_cone(radius: Array, y: Array, figure_6: Float[Array, "6"]) -> Array:
    """Computes the distance to a capped cone with rounded edges around the vertical, or around a circle."""
    circle, bottom, top, half, rounding, _ = figure_6
    r = jnp.abs(radius - circle)
    # To the cap on this point's side, and to the slope.
    cap_r, cap_y = jnp.maximum(r - jnp.where(y < 0, bottom, top), 0.0), jnp.abs(y) - half
    slope_r, slope_y = top - bottom, 2 * half
    share = ((top - r) * slope_r + (half - y) * slope_y) / (slope_r**2 + slope_y**2 + 1e-9)
    share = jnp.clip(share, 0.0, 1.0)
    side_r, side_y = r - top + slope_r * share, y - half + slope_y * share
    inside = (side_r < 0) & (cap_y < 0)
    squared = jnp.minimum(cap_r**2 + cap_y**2, side_r**2 + side_y**2)
    return jnp.where(inside, -1.0, 1.0) * jnp.sqrt(squared) - rounding
