"""The meshes of configs/pods/: every entry divides its model and batch, and fits by the memory formula."""

import dataclasses
import runpy

import pytest

from infinity_jax import config_files, scales
from infinity_jax.config import TransformerConfig
from infinity_jax.config_files import from_dict
from infinity_jax.errors import UserError
from infinity_jax.presets import preset
from infinity_jax.runtime.chips import CHIPS
from infinity_jax.runtime.mesh import MeshConfig, axis_sizes, parse_mesh
from infinity_jax.tools.planning import memory

PODS = sorted((config_files.PACKED / "pods").glob("*_[0-9]*.py"))


@pytest.mark.parametrize("pod", PODS, ids=lambda path: path.stem)
def test_every_entry_divides_and_fits(pod):
    table = runpy.run_path(str(pod))
    chip = CHIPS[table.get("CHIP") or table["TOPOLOGY"].split(":")[0]]
    for stage, sizes in table["MESHES"].items():
        assert list(sizes) == ["125m", "361m", "940m", "2.2b", "4.7b"]
        for size in sizes:
            config = config_files.load(f"{pod}:{size},{stage}")
            model, mesh = from_dict(TransformerConfig, config.model, "model"), parse_mesh(config.mesh.shape)
            assert model.layers == preset(size).transformer.layers
            assert config.train.batch_size == {"0.06M": 4096, "0.25M": 4096, "1M": 2048}[stage]
            axis_sizes(mesh, model)
            assert config.train.batch_size % (config.train.microbatches * mesh.data * mesh.fsdp) == 0
            assert config.train.sample_every == 0
            if model.remat == "block":
                schedule, parts = scales.make_schedule(stage), config.train.microbatches
                used = memory.train_memory(model, schedule, 512, config.train.batch_size, parts, mesh)
                assert used.total < 0.85 * chip.memory, (size, stage)


def test_an_entry_that_is_not_there_is_named():
    with pytest.raises(UserError, match=r"no mesh for '2.2b,2M' on this pod; there are: 125m,0.06M"):
        config_files.load(f"{PODS[0]}:2.2b,2M")


def test_memory_follows_what_is_split():
    model = dataclasses.replace(preset("125m").transformer, remat="block")
    schedule = scales.make_schedule("0.06M")

    def used(batch=64, microbatches=1, **mesh):
        return memory.train_memory(model, schedule, 512, batch, microbatches, MeshConfig(**mesh))

    assert used(fsdp=8).state * 8 == used(data=8).state == 16 * 125_185_696
    assert used(fsdp=8).saved == used(data=8).saved == used(fsdp=8, batch=128, microbatches=2).saved
    assert used(fsdp=8).saved == used(fsdp=4, sequence=2).saved
    assert used(fsdp=8, microbatches=2).gradients == 2 * used(fsdp=8).gradients
    with pytest.raises(UserError, match="no formula for remat 'dots'"):
        dots = dataclasses.replace(model, remat="dots")
        memory.train_memory(dots, schedule, 512, 64, 1, MeshConfig())


def test_memory_without_remat_is_near_what_compilers_plan():
    """XLA:TPU's plan for 125m on v5p (33.9 GiB) and v5e (4.4), XLA:CPU's for two of configs/sweeps/emoji.py."""
    large, gib = preset("125m").transformer, 2**30
    for pictures, microbatches, mesh, planned in (
        (4096, 2, MeshConfig(fsdp=64), 33.9 * gib),
        (4096, 4, MeshConfig(fsdp=256), 4.4 * gib),
    ):
        used = memory.train_memory(large, scales.make_schedule("0.06M"), 512, pictures, microbatches, mesh)
        assert used.total == pytest.approx(planned, rel=0.25)
    for layers, width, heads, planned in ((2, 64, 2, 96.3e6), (4, 128, 2, 343.8e6)):
        model = TransformerConfig(layers, width, heads, bits=32, text_channels=384, text_length=32)
        used = memory.train_memory(model, scales.make_schedule("64px"), 32, 32, 1, MeshConfig())
        assert used.total == pytest.approx(planned, rel=0.15)
