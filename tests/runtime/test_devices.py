"""For which devices a program is traced."""

from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, Mesh

from infinity_jax.runtime.devices import multiplies_bfloat16, on_each_device, platform
from infinity_jax.runtime.mesh import MESH_AXES
from infinity_jax.runtime.sharding import Layout, rules_named


def traced_for(mesh):
    return Layout(mesh, rules_named("dp")).traced(platform)()


@pytest.mark.parametrize(
    ("device", "name"), [("cpu", "cpu"), ("cuda", "gpu"), ("gpu", "gpu"), ("tpu", "tpu")]
)
def test_platform_is_that_of_the_mesh(device, name):
    devices = np.array([SimpleNamespace(platform=device, id=0)], object).reshape([1] * len(MESH_AXES))
    # jax makes no mesh of devices that it does not have; only their names are looked at.
    mesh = object.__new__(Mesh)
    object.__setattr__(mesh, "devices", devices)
    assert traced_for(mesh) == name


def test_platform_without_devices_is_that_of_the_process():
    sizes, types = (1,) * len(MESH_AXES), (AxisType.Auto,) * len(MESH_AXES)
    assert platform() == traced_for(AbstractMesh(sizes, MESH_AXES, axis_types=types)) == jax.default_backend()


def test_a_kernel_is_left_alone_outside_a_mesh():
    assert on_each_device(np.negative, [("batch",)], ("batch",)) is np.negative


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("processor : 0\nflags\t\t: fpu avx2 avx512_bf16 fsrm\n", True),
        ("processor : 0\nflags\t\t: fpu avx2 avx512f\nbugs : bf16\n", False),
        ("processor : 0\nFeatures\t: fp asimd bf16\n", True),
        ("processor : 0\n", False),
    ],
)
def test_a_processor_that_multiplies_bfloat16_says_so(text, expected, tmp_path):
    (tmp_path / "cpuinfo").write_text(text)
    assert multiplies_bfloat16(tmp_path / "cpuinfo") == expected
    assert not multiplies_bfloat16(tmp_path / "missing")
