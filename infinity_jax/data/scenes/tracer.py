"""Draws scenes on the device: rays are followed to the nearest solid by distances (sphere tracing), then lit.

Source: Hart, Sphere tracing, The Visual Computer 12 (1996); soft shadows from the least ratio of distance and way.
"""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from infinity_jax.data.scenes.description import MOST_OBJECTS, OF_OBJECT
from infinity_jax.data.scenes.solids import Solids, distance, nearest, solids
from infinity_jax.data.scenes.vocabulary import FLOORS, MATERIALS

# A picture's shorter side shows so much of the floor around the middle, seen from a distance of 1.
FIELD = 0.8
LOOKS_AT = (0.0, 0.45, 0.1)
_FAR = 40.0
_TOUCHES = 2e-3
_HIGHEST = 2.2


@dataclasses.dataclass(frozen=True)
class Quality:
    """How carefully pictures are drawn.

    Attributes:
      rays: along a side of each pixel, so that rays * rays are averaged.
      steps: at most so many to the nearest solid.
      shadow_steps, mirror_steps: likewise of the way to the light, and of a reflection.
    """

    rays: int = 2
    steps: int = 24
    shadow_steps: int = 12
    mirror_steps: int = 12


class _World(NamedTuple):
    solids: Solids
    colour_N3: Array
    material_N: Array
    floor: Array
    light_3: Array
    shift: Array


class _Hits(NamedTuple):
    """Where rays end: the point, the solid (the number after the last is the floor), its distance."""

    point_R3: Array
    solid_R: Array
    far_R: Array


def render(
    numbers_BP: Float[Array, "B P"], height: int, width: int, quality: Quality | None = None
) -> UInt8[Array, "B height width 3"]:
    """Draws scenes (`description.Scene.numbers`, float32 [B,NUMBERS]) as uint8 RGB [B,height,width,3].

    One picture after the other, so that the rays of one are in memory at a time.
    """
    return jax.lax.map(lambda numbers: draw(numbers, height, width, quality), numbers_BP)


def draw(
    numbers_P: Float[Array, " P"], height: int, width: int, quality: Quality | None = None
) -> UInt8[Array, "height width 3"]:
    """Draws one scene (`description.Scene.numbers`, float32 [NUMBERS]) as uint8 RGB [height,width,3]."""
    quality = quality or Quality()
    world, (eye_3, rays_R3) = _world(numbers_P), _rays(numbers_P, height, width, quality.rays)
    hits = _follow(world, jnp.broadcast_to(eye_3, rays_R3.shape), rays_R3, quality.steps)
    colour_R3 = _lit(world, hits, rays_R3, quality.shadow_steps)
    normal_R3 = _normals(world, hits)
    towards_R3 = rays_R3 - 2 * jnp.sum(rays_R3 * normal_R3, -1, keepdims=True) * normal_R3
    seen = _follow(world, hits.point_R3 + 0.02 * normal_R3, towards_R3, quality.mirror_steps)
    mirrored_R3 = _lit(world, seen, towards_R3, 0)
    colour_R3 = _with_mirror(world, hits, rays_R3, normal_R3, colour_R3, mirrored_R3)
    n = quality.rays
    linear = colour_R3.reshape(height, n, width, n, 3).mean((1, 3))
    return jnp.round(255 * jnp.clip(linear, 0.0, 1.0) ** (1 / 2.2)).astype(jnp.uint8)


def _world(numbers_P: Array) -> _World:
    rows = numbers_P[: MOST_OBJECTS * OF_OBJECT].reshape(MOST_OBJECTS, OF_OBJECT)
    floor, around, above, *_, shift = numbers_P[MOST_OBJECTS * OF_OBJECT :]
    light = jnp.stack([jnp.sin(around) * jnp.cos(above), jnp.sin(above), jnp.cos(around) * jnp.cos(above)])
    stand = solids(rows[:, 0], rows[:, 5], rows[:, 6], jnp.maximum(rows[:, 7], 1e-3), rows[:, 8])
    # Colours are as they are seen; light is added up before that.
    return _World(stand, jnp.maximum(rows[:, 1:4], 0.0) ** 2.2, rows[:, 4], floor, light, shift)


def _rays(numbers_P: Array, height: int, width: int, rays: int) -> tuple[Array, Array]:
    """Computes the eye [3] and the directions [R,3] through all pixels, `rays` x `rays` each, row by row."""
    around, above, distance = numbers_P[MOST_OBJECTS * OF_OBJECT + 3 : MOST_OBJECTS * OF_OBJECT + 6]
    back = jnp.stack([jnp.sin(around) * jnp.cos(above), jnp.sin(above), jnp.cos(around) * jnp.cos(above)])
    right = jnp.stack([jnp.cos(around), jnp.zeros_like(around), -jnp.sin(around)])
    up = jnp.cross(back, right)
    scale = FIELD / min(height, width) / rays
    x = (jnp.arange(width * rays) + 0.5 - width * rays / 2) * scale
    y = (height * rays / 2 - jnp.arange(height * rays) - 0.5) * scale
    directions = -back + x[None, :, None] * right + y[:, None, None] * up
    directions /= jnp.linalg.norm(directions, axis=-1, keepdims=True)
    return jnp.array(LOOKS_AT) + distance * back, directions.reshape(-1, 3)


def _follow(world: _World, start_R3: Array, rays_R3: Array, steps: int) -> _Hits:
    """Follows rays to the nearest solid or the floor."""

    def step(_: Array, far_R: Array) -> Array:
        near = nearest(world.solids, start_R3 + far_R[:, None] * rays_R3)
        return jnp.minimum(far_R + near, _FAR)

    # From where a ray comes below the highest solid.
    sinks_R = jnp.minimum(rays_R3[:, 1], -1e-4)
    begin_R = jnp.clip((_HIGHEST - start_R3[:, 1]) / sinks_R, 0.0, _FAR)
    far_R = jax.lax.fori_loop(0, steps, step, begin_R)
    ends_R3 = start_R3 + far_R[:, None] * rays_R3
    by_solid = [
        distance(jax.tree.map(lambda x, i=i: x[i], world.solids), ends_R3) for i in range(MOST_OBJECTS)
    ]
    near_RN = jnp.stack(by_solid, -1)
    touches = (near_RN.min(-1) < 10 * _TOUCHES) & (far_R < _FAR)
    down = jnp.where(rays_R3[:, 1] < -1e-4, -start_R3[:, 1] / rays_R3[:, 1], _FAR)
    floor_R = jnp.where(down > 0, jnp.minimum(down, _FAR), _FAR)
    on_solid = touches & (far_R < floor_R)
    far_R = jnp.where(on_solid, far_R, floor_R)
    solid_R = jnp.where(on_solid, near_RN.argmin(-1), MOST_OBJECTS)
    return _Hits(start_R3 + far_R[:, None] * rays_R3, solid_R, far_R)


def _normals(world: _World, hits: _Hits) -> Array:
    """Computes the directions away from the surfaces, [R,3]."""
    corners = jnp.array([(1, -1, -1), (-1, -1, 1), (-1, 1, -1), (1, 1, 1)], jnp.float32)
    normal_R3 = sum(
        corner * nearest(world.solids, hits.point_R3 + _TOUCHES * corner)[:, None] for corner in corners
    )
    length = jnp.sqrt(jnp.sum(jnp.square(normal_R3), -1, keepdims=True) + 1e-12)
    on_floor = hits.solid_R == MOST_OBJECTS
    return jnp.where(on_floor[:, None], jnp.array([0.0, 1.0, 0.0]), normal_R3 / length)


def _lit(world: _World, hits: _Hits, rays_R3: Array, shadow_steps: int) -> Array:
    """Computes the light from where rays end, [R,3]: of the lamp, unless something is before it, and of the sky."""
    normal_R3 = _normals(world, hits)
    on_floor = hits.solid_R == MOST_OBJECTS
    own_R3 = jnp.where(
        on_floor[:, None],
        _floor(world, hits.point_R3),
        world.colour_N3[jnp.minimum(hits.solid_R, MOST_OBJECTS - 1)],
    )
    facing_R = jnp.maximum(jnp.sum(normal_R3 * world.light_3, -1), 0.0)
    if shadow_steps:
        facing_R *= _shadow(world, hits.point_R3 + 0.01 * normal_R3, shadow_steps)
    near_R = nearest(world.solids, hits.point_R3 + 0.25 * normal_R3)
    open_R = jnp.clip(near_R / 0.25, 0.35, 1.0)
    sky_R = (0.42 + 0.12 * normal_R3[:, 1]) * open_R
    colour_R3 = own_R3 * (0.95 * facing_R + sky_R)[:, None]
    faded_R = jnp.clip((hits.far_R - 9.0) / 9.0, 0.0, 1.0)[:, None]
    return colour_R3 + faded_R * (_sky(rays_R3) - colour_R3)


def _shadow(world: _World, start_R3: Array, steps: int) -> Array:
    """Computes which share of the lamp is seen from points, [R]."""

    def step(_: Array, carried: tuple[Array, Array]) -> tuple[Array, Array]:
        way_R, seen_R = carried
        near_R = nearest(world.solids, start_R3 + way_R[:, None] * world.light_3)
        return way_R + jnp.clip(near_R, 0.03, 0.6), jnp.minimum(seen_R, 9 * near_R / way_R)

    begin = jnp.full(len(start_R3), 0.04), jnp.ones(len(start_R3))
    return jnp.clip(jax.lax.fori_loop(0, steps, step, begin)[1], 0.0, 1.0)


def _with_mirror(
    world: _World, hits: _Hits, rays_R3: Array, normal_R3: Array, colour_R3: Array, mirrored_R3: Array
) -> Array:
    """Adds what materials mirror: the lamp in shiny and metal ones, the scene in metal ones in their own colour."""
    solid_R = jnp.minimum(hits.solid_R, MOST_OBJECTS - 1)
    material_R = jnp.where(hits.solid_R == MOST_OBJECTS, -1.0, world.material_N[solid_R])
    metal = (material_R == MATERIALS.index("metal"))[:, None]
    shiny = (material_R == MATERIALS.index("shiny"))[:, None]
    half_R3 = world.light_3 - rays_R3
    half_R3 /= jnp.linalg.norm(half_R3, axis=-1, keepdims=True)
    glint_R1 = jnp.maximum(jnp.sum(normal_R3 * half_R3, -1, keepdims=True), 0.0)
    own_R3 = world.colour_N3[solid_R]
    edge_R1 = (1.0 - jnp.abs(jnp.sum(rays_R3 * normal_R3, -1, keepdims=True))) ** 4
    of_metal = 0.35 * colour_R3 + own_R3 * (1.1 * mirrored_R3 + 0.9 * glint_R1**40) + 0.06 * mirrored_R3
    of_shiny = colour_R3 + (0.04 + 0.3 * edge_R1) * mirrored_R3 + 0.75 * glint_R1**90
    return jnp.where(metal, of_metal, jnp.where(shiny, of_shiny, colour_R3))


def _sky(rays_R3: Array) -> Array:
    up_R1 = jnp.clip(rays_R3[:, 1:2], -0.3, 1.0)
    return jnp.array([0.62, 0.68, 0.74]) + up_R1 * jnp.array([0.05, 0.12, 0.22])


def _floor(world: _World, points_R3: Array) -> Array:
    """Computes the floor's own colour, [R,3]."""
    x, z = points_R3[:, 0] + world.shift, points_R3[:, 2] + world.shift
    checks = (jnp.floor(1.2 * x) + jnp.floor(1.2 * z)) % 2
    plank = jnp.floor(1.6 * z)
    grain = 0.5 + 0.25 * jnp.sin(3.0 * x + 2.1 * plank) + 0.25 * jnp.sin(17.0 * z + jnp.sin(2.0 * x))
    groove = jnp.minimum(jnp.abs(x - jnp.round(x)), jnp.abs(z - jnp.round(z))) < 0.025
    ripple = 0.5 + 0.5 * jnp.sin(9.0 * z + 1.5 * jnp.sin(2.0 * x))

    def between(share: Array, first: tuple[float, ...], second: tuple[float, ...]) -> Array:
        return jnp.array(first) + share[:, None] * (jnp.array(second) - jnp.array(first))

    of_floor = {
        "stone": between(jnp.zeros_like(x), (0.40, 0.41, 0.42), (0.40, 0.41, 0.42)),
        "wooden": between(grain, (0.30, 0.16, 0.07), (0.45, 0.26, 0.12)),
        "checkered": between(checks, (0.10, 0.11, 0.13), (0.72, 0.72, 0.70)),
        "sand": between(ripple, (0.60, 0.48, 0.28), (0.70, 0.58, 0.36)),
        "tiled": between(groove.astype(jnp.float32), (0.50, 0.60, 0.62), (0.16, 0.20, 0.22)),
    }
    return jnp.select([world.floor == FLOORS.index(name) for name in FLOORS], [of_floor[n] for n in FLOORS])
