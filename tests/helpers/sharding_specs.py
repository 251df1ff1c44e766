"""How every parameter of the published sizes lies on several meshes, as text; no device and no number is needed.

`python tests/helpers/sharding_specs.py` writes the files in tests/golden/sharding again: look at the difference before
you keep it.
"""

import json

import jax
from jax.sharding import AbstractMesh

from helpers.paths import GOLDEN
from infinity_jax import presets
from infinity_jax.config import TransformerConfig
from infinity_jax.runtime import mesh, sharding
from infinity_jax.scales import ScaleSchedule
from infinity_jax.transformer.transformer import init_variables

FOLDER = GOLDEN / "sharding"
MESHES = {"data=8": "dp", "fsdp=256": "fsdp", "data=2,fsdp=64": "fsdp", "fsdp=64,tensor=4": "fsdp_tp"}


def specs(model: TransformerConfig) -> dict[str, dict[str, str]]:
    """Name of a parameter -> its shape, dtype, logical axes, and the mesh axes of each dimension on every mesh."""
    schedule = ScaleSchedule(((1, 1), (2, 2)), (2, 2))
    variables = jax.eval_shape(lambda: init_variables(model, jax.random.key(0), schedule))["params"]
    result: dict[str, dict[str, str]] = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables, is_leaf=lambda x: hasattr(x, "names")):
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        value = leaf.value
        result[name] = {"shape": str(value.shape), "dtype": value.dtype.name, "axes": str(leaf.names)}
        for text, rules in MESHES.items():
            sizes = mesh.axis_sizes(mesh.parse_mesh(text), model)
            abstract = AbstractMesh(sizes, mesh.MESH_AXES)
            spec = sharding.partition_spec(name, leaf.names, value.shape, abstract, sharding.PRESETS[rules])
            result[name][f"{text} ({rules})"] = str(tuple(spec))
    return result


if __name__ == "__main__":
    for size, preset in presets.PRESETS.items():
        (FOLDER / f"{size}.json").write_text(json.dumps(specs(preset.transformer), indent=0) + "\n")
