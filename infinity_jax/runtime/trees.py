"""Names and shapes of the arrays of a tree."""

import jax
from jaxtyping import PyTree


def parameter_name(path: jax.tree_util.KeyPath) -> str:
    """Writes a parameter's path as text, "block/attention/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def shapes(tree: PyTree) -> dict[str, tuple[int, ...]]:
    """Tells the shape of every array, by its name."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {parameter_name(path): tuple(leaf.shape) for path, leaf in leaves}
