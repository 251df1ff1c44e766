"""Programs compiled before a run: told apart by what they were compiled from, and not trusted when damaged."""

import logging
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest

from infinity_jax.runtime.compiled_step import CompiledStep
from infinity_jax.runtime.kept_programs import KeptPrograms

SHAPE = jax.ShapeDtypeStruct((4,), jnp.float32)
# Another process compiles: what is compiled here might be found in this process's own memory.
KEEP = """
import sys, jax, jax.numpy as jnp
from pathlib import Path
from infinity_jax.runtime.kept_programs import KeptPrograms
programs = KeptPrograms(Path(sys.argv[1]), tuple(jax.devices()[:1]))
lowered = jax.jit(lambda x: jnp.sin(x) * 2).lower(jax.ShapeDtypeStruct((4,), jnp.float32))
assert programs.keep(lowered) is not None and programs.keep(lowered) is None and programs.count() == 1
"""


def lowered(factor: float = 2) -> jax.stages.Lowered:
    return jax.jit(lambda x: jnp.sin(x) * factor).lower(SHAPE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("programs")
    subprocess.run([sys.executable, "-c", KEEP, str(folder)], check=True)
    return folder


def test_a_program_of_another_process_is_run_without_compiling(folder, monkeypatch):
    programs = KeptPrograms(folder, tuple(jax.devices()[:1]))
    x = jnp.arange(4.0)
    expected = lowered().compile()(x)

    def refuse(*_):
        raise AssertionError("compiled, though its program was kept")

    monkeypatch.setattr(jax.stages.Lowered, "compile", refuse)
    loaded = programs.load(lowered())
    assert jnp.array_equal(loaded(x), expected)
    assert loaded.memory_analysis() is not None


def test_another_program_or_another_number_of_devices_is_compiled(folder):
    programs = KeptPrograms(folder, tuple(jax.devices()[:1]))
    x = jnp.arange(4.0)
    assert jnp.allclose(programs.load(lowered(3.0))(x), jnp.sin(x) * 3)
    more = KeptPrograms(folder, tuple(jax.devices()[:1]) * 2)
    assert more.path(lowered()) != programs.path(lowered())


def test_a_damaged_program_is_compiled_anew_and_said(folder, tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("absl"), "propagate", True)
    programs = KeptPrograms(tmp_path, tuple(jax.devices()[:1]))
    whole = KeptPrograms(folder, programs.devices).path(lowered()).read_bytes()
    programs.path(lowered()).write_bytes(whole[:-5] + b"wrong")
    x = jnp.arange(4.0)
    assert jnp.allclose(programs.load(lowered())(x), jnp.sin(x) * 2)
    assert "is damaged: compiling anew" in caplog.text


def test_programs_are_prepared_side_by_side_and_not_traced_again():
    traced = []

    def add(state, batch, key):
        traced.append(batch["x"].shape)
        return state + batch["x"].sum(), {}

    step, zero = CompiledStep(jax.jit(add)), jax.ShapeDtypeStruct((), jnp.float32)
    shapes = [(2, 3), (3, 2), (2, 3)]
    step.prepare(zero, [{"x": jax.ShapeDtypeStruct(shape, jnp.float32)} for shape in shapes], None)
    assert traced == [(2, 3), (3, 2)]
    total, _ = step(jnp.zeros(()), {"x": jnp.ones((3, 2))}, None)
    assert float(total) == 6 and len(traced) == 2


def test_a_program_that_cannot_be_compiled_stops_the_preparation():
    def wrong(lowered):
        raise RuntimeError("out of memory")

    step = CompiledStep(jax.jit(lambda state, batch, key: (state, {})), wrong)
    with pytest.raises(RuntimeError, match="out of memory"):
        step.prepare(SHAPE, [{"x": SHAPE}], None)
