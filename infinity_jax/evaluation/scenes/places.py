"""Where an object of a scene is seen in its picture."""

import numpy as np
from jaxtyping import Float

from infinity_jax.data.scenes.description import Scene
from infinity_jax.data.scenes.solids import height_of_middle
from infinity_jax.data.scenes.tracer import FIELD, LOOKS_AT


def middles(scene: Scene) -> Float[np.ndarray, "n 2"]:
    """Computes where the middles of a scene's objects are in a square picture: shares of its side, from left and top.

    The camera is that of `tracer`.
    """
    around, above, distance = scene.camera
    back = np.array(
        [np.sin(around) * np.cos(above), np.sin(above), np.cos(around) * np.cos(above)], np.float64
    )
    right = np.array([np.cos(around), 0.0, -np.sin(around)])
    up = np.cross(back, right)
    eye = np.array(LOOKS_AT) + distance * back
    points = np.array(
        [[thing.x, height_of_middle(thing.kind) * thing.size, thing.z] for thing in scene.things]
    )
    ways = points - eye
    depth = -ways @ back
    return np.stack([0.5 + ways @ right / depth / FIELD, 0.5 - ways @ up / depth / FIELD], -1)
