"""Names of the arrays of a tree."""

import jax


def parameter_name(path: jax.tree_util.KeyPath) -> str:
    """Writes a parameter's path as text, "block/attention/kernel"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")
