"""Sharding rules: strict, and without effect on the numbers."""

import ast
import functools
import json
import subprocess
import sys

import numpy as np
import pytest
from helpers import sharding_specs
from helpers.paths import PROGRAMS
from jax.sharding import AbstractMesh

from infinity_jax import presets
from infinity_jax.config import TransformerConfig
from infinity_jax.errors import UserError
from infinity_jax.runtime import mesh, sharding
from infinity_jax.runtime.mesh import MeshConfig
from infinity_jax.runtime.sharding import Layout, ShardingRules


def mesh_of(**sizes: int) -> AbstractMesh:
    """A mesh without devices."""
    return AbstractMesh(tuple(sizes.get(axis, 1) for axis in mesh.MESH_AXES), mesh.MESH_AXES)


def spec(axes, shape, rules="fsdp_tp", **sizes):
    rules = sharding.PRESETS[rules] if isinstance(rules, str) else rules
    return tuple(sharding.partition_spec("w", axes, shape, mesh_of(**sizes), rules))


def test_dimensions_lie_where_the_rules_say():
    assert spec(("layers", "embed", "mlp"), (2, 64, 256), fsdp=4, tensor=2) == (None, "fsdp", "tensor")
    both = spec(("embed", "mlp"), (2080, 8192), fsdp=32, fsdp_inner=8, tensor=2)
    assert both == ("fsdp", ("tensor", "fsdp_inner"))
    assert spec(("embed", "mlp"), (64, 256), "dp", data=8) == (None, None)
    assert spec((None, None, "conv_in", "conv_out"), (3, 3, 8, 12), fsdp=4) == (None, None, None, "fsdp")
    # What does not divide stays whole where it is small.
    assert spec(("embed",), (6,), fsdp=4) == (None,)


def test_mistakes_in_rules_are_named():
    with pytest.raises(UserError, match="unknown logical axis 'wings'"):
        spec(("wings",), (4,), fsdp=2)
    with pytest.raises(UserError, match=r"two of its dimensions .* 'fsdp'"):
        spec(("embed", "text"), (4, 4), fsdp=2)
    with pytest.raises(UserError, match="would lie whole on every device"):
        spec(("embed", "bits"), (1027, 1024), fsdp=2)
    with pytest.raises(UserError, match="unknown mesh axis 'mars'"):
        ShardingRules(embed=("mars",))
    with pytest.raises(UserError, match=r"'fsdp' do not use the mesh's axis 'tensor'; take 'fsdp_tp'"):
        sharding.layout_of(MeshConfig(tensor=2), "fsdp")
    with pytest.raises(UserError, match="known: dp, fsdp, fsdp_tp, fsdp_tp_sp"):
        sharding.rules_named("zero")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fsdp", "AXIS=NUMBER"),
        ("pipe=2", "pipe"),
        ("fsdp=2,fsdp=2", "at most once"),
        ("data=0", "at least 1"),
    ],
)
def test_a_mesh_that_cannot_be_read_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        mesh.parse_mesh(text)


def test_a_mesh_says_how_many_devices_it_needs():
    assert mesh.parse_mesh("data=2, fsdp=4,tensor=2") == MeshConfig(2, 4, 2)
    with pytest.raises(UserError, match=r"needs 4096 devices, there are"):
        mesh.device_mesh(MeshConfig(fsdp=4096))
    with pytest.raises(UserError, match="multiple of 3"):
        MeshConfig(data=4, slices=3)
    with pytest.raises(UserError, match="nearest: 8, 16"):
        Layout(mesh_of(fsdp=8), sharding.PRESETS["fsdp"]).batch(12)
    with pytest.raises(UserError, match=r"divisible by 32: 8 devices .* times 4 microbatches; nearest: 32$"):
        Layout(mesh_of(fsdp=8), sharding.PRESETS["fsdp"]).batch(8, 4)


def test_a_mesh_that_cannot_split_the_model_says_what_can():
    model = presets.preset("2.2b").transformer
    with pytest.raises(UserError, match=r"heads 20 cannot be split into 8 .*1, 2, 4, 5, 10"):
        mesh._check_model(MeshConfig(tensor=8), 1, model)
    mesh._check_model(MeshConfig(fsdp=256), 8, model)  # 2080 = 32 x 65, so 256 becomes 32 x 8


@pytest.mark.parametrize("size", presets.PRESETS)
def test_published_sizes_lie_on_meshes_as_they_did(size):
    stored = json.loads((sharding_specs.FOLDER / f"{size}.json").read_text())
    assert sharding_specs.specs(presets.PRESETS[size].transformer) == stored


def test_a_large_index_head_is_split_over_tensor_by_its_indices():
    model = TransformerConfig(layers=1, width=2048, heads=16, bits=16, head="index")
    kernel = sharding_specs.specs(model)["index_head/logits/kernel"]
    assert kernel["fsdp=64,tensor=4 (fsdp_tp)"] == "('fsdp', 'tensor')"


def test_fsdp_leaves_no_large_parameter_whole():
    for preset in presets.PRESETS.values():
        for name, entry in sharding_specs.specs(preset.transformer).items():
            large = np.prod(ast.literal_eval(entry["shape"])) > sharding.LARGE
            assert "fsdp" in entry["fsdp=256 (fsdp)"] or not large, name


# Mesh, rules, width, microbatches. The first three, on one device, are what the others must be like.
ON_ONE_DEVICE = [("fsdp=1", "dp", 96, 1), ("fsdp=1", "dp", 100, 1), ("fsdp=1", "dp", 80, 1)]
CASES = [
    ("fsdp=8", "fsdp", 100, 1),  # 100 is divisible by 4 only: the columns are split too
    ("data=2,fsdp=2,tensor=2", "fsdp_tp", 96, 1),
    ("fsdp=2,tensor=2,sequence=2", "fsdp_tp_sp", 80, 2),
]
# More of the same kinds, each of which takes as long to compile.
MORE = [
    ("data=8", "dp", 96, 1),
    ("data=2,fsdp=4", "fsdp", 96, 1),
    ("fsdp=4", "fsdp", 96, 2),
    ("fsdp=2,tensor=2,sequence=2", "fsdp_tp_sp", 96, 1),
    ("data=2,sequence=4", "fsdp_tp_sp", 96, 2),  # 30 tokens: not all devices have as many
]


def name_of(case) -> str:
    return " ".join(str(part) for part in case)


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """case -> its numbers; those of all cases of a list are from one process with 8 virtual devices."""

    @functools.cache
    def of_list(cases):
        folder, cases = tmp_path_factory.mktemp("meshes"), [*ON_ONE_DEVICE, *cases]
        words = [str(part) for case in cases for part in case]
        command = [sys.executable, PROGRAMS / "mesh_train.py", folder, *words]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        numbers = {}
        for i, case in enumerate(cases):
            with np.load(folder / f"{i}.npz") as file:
                numbers[case] = {name: file[name] for name in file.files}
        return numbers

    return lambda case: of_list(tuple(CASES if case in CASES else MORE))


WITH_MORE = [*CASES, *(pytest.param(case, marks=pytest.mark.slow) for case in MORE)]


@pytest.mark.long
@pytest.mark.parametrize("case", WITH_MORE, ids=name_of)
def test_steps_on_a_mesh_are_the_steps_on_one_device(results, case):
    numbers = results(case)
    many, single = numbers[case], numbers["fsdp=1", "dp", case[2], 1]
    assert many.keys() >= single.keys()
    np.testing.assert_allclose(many["metrics"], single["metrics"], rtol=1e-5)
    for name, array in single.items():
        np.testing.assert_allclose(many[name], array, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.long
@pytest.mark.parametrize("case", WITH_MORE, ids=name_of)
def test_a_checkpoint_goes_on_on_another_mesh(results, case):
    """The case before of the same width saved after two steps; the third is done on this mesh."""
    numbers = results(case)
    many, single = numbers[case], numbers["fsdp=1", "dp", case[2], 1]
    moved = {name.removeprefix("moved/"): many[name] for name in many if name.startswith("moved/")}
    assert moved.keys() == single.keys() - {"metrics"}
    for name, array in moved.items():
        np.testing.assert_allclose(array, single[name], rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.long
def test_the_tokenizer_s_steps_on_a_mesh_are_those_on_one_device(tmp_path):
    meshes = ["fsdp=1", "data=2,fsdp=4"]
    command = [sys.executable, PROGRAMS / "mesh_tokenizer.py", tmp_path / "out.npz", *meshes]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as file:
        single = {name: file[name] for name in file.files if name.startswith("fsdp=1/")}
        for name, array in single.items():
            many = file[name.replace(*meshes)]
            np.testing.assert_allclose(many, array, rtol=1e-5, atol=1e-5, err_msg=name)
