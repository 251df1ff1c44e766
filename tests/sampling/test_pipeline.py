"""One folder in, pictures out: what the pipeline draws, saves and refuses."""

import dataclasses
import functools
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import published, t5
from helpers.paths import PROGRAMS
from helpers.systems import MODEL, TOKENIZER, write_system

import infinity_jax
from infinity_jax import presets, scales
from infinity_jax.checkpoints import folder as checkpoint_folder
from infinity_jax.checkpoints import pretrained
from infinity_jax.cli.main import main
from infinity_jax.errors import UserError
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import layout_of
from infinity_jax.sampling import batches, sampler
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs
from infinity_jax.sampling.request import SampleRequest


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("system")
    write_system(path)
    return path


@pytest.fixture(scope="module")
def system(folder):
    return infinity_jax.InfinityPipeline.from_pretrained(folder)


@pytest.mark.long
def test_prompts_become_pictures(system):
    images = system(["a red heart", "a blue ball"], seeds=[3, 4])
    assert [image.size for image in images] == [(16, 16), (16, 16)] and images[0].mode == "RGB"
    arrays = system.arrays(SampleRequest(["a red heart", "a blue ball"], [3, 4]))
    np.testing.assert_array_equal(np.stack([np.asarray(image) for image in images]), arrays)
    assert (arrays[0] != arrays[1]).any()
    default = system(["a red heart"])[0]
    np.testing.assert_array_equal(default, system(["a red heart"], seeds=[0])[0])
    steered = system(
        ["a red heart"], negative_prompts=["a square"], cfg=(1.0, 2.0, 3.0, 4.0), tau=0.5, top_p=0.9
    )
    assert (np.asarray(steered[0]) != np.asarray(default)).any()
    settings = system.settings.changed(cfg=3.0, unguided_scales=[3])
    chosen = system(["a red heart"], settings=settings, tau=0.5)[0]
    np.testing.assert_array_equal(
        chosen, system(["a red heart"], cfg=[3.0], unguided_scales=(3,), tau=0.5)[0]
    )


@pytest.mark.long
def test_a_mesh_draws_the_same(folder, tmp_path):
    # There are eight devices; the first mesh uses four of them.
    cases = [
        "data=8",
        "dp",
        "fsdp=4,tensor=2",
        "fsdp_tp",
        "data=2,fsdp=2,sequence=2",
        "fsdp_tp_sp",
        "data=2",
        "dp",
    ]
    command = [sys.executable, PROGRAMS / "mesh_sample.py", folder, tmp_path / "out.npz", *cases]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    with np.load(tmp_path / "out.npz") as pictures:
        for mesh in cases[::2]:
            np.testing.assert_array_equal(pictures[mesh], pictures["one"], err_msg=mesh)
        np.testing.assert_array_equal(pictures["search"], pictures["search one"])


@pytest.mark.long
def test_a_saved_system_draws_the_same(system, tmp_path):
    system.save_pretrained(tmp_path / "copy")
    copy = infinity_jax.InfinityPipeline.from_pretrained(tmp_path / "copy")
    np.testing.assert_array_equal(copy(["a red heart"])[0], system(["a red heart"])[0])
    # In the place of a system with a text encoder of its own, nothing of which may stay.
    (tmp_path / "copy" / "text_encoder").mkdir()
    system.save_pretrained(tmp_path / "copy")
    assert not (tmp_path / "copy" / "text_encoder").exists()
    with pytest.raises(UserError, match="unknown dtype of weights 'int32'"):
        system.save_pretrained(tmp_path / "copy", "int32")
    copy = infinity_jax.InfinityPipeline.from_pretrained(tmp_path / "copy")
    assert copy.model.config == MODEL and copy.model.tokenizer.config == TOKENIZER


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"budget": "1M"}, "it can draw: 32px"),
        ({"aspect_ratio": "3:2"}, "square"),
        ({"negative_prompts": ["a", "b"]}, "1 prompts and 2 negative"),
        ({"seeds": [1, 2]}, "1 prompts and 2 seeds"),
        ({"cfg": (1.0, 2.0), "guidance": "pyramid"}, "takes one cfg"),
        ({"top_p": 0.0}, "top_p"),
        ({"cfg": (1.0, 2.0)}, "4 scales"),
        ({"guidance": "loud"}, "loud"),
        ({"pruning": "fast"}, "fastvar"),
        ({"pruning": "4:0.5"}, "scale 4"),
        ({"temperature": 1.0}, "unknown setting 'temperature'; did you mean tau"),
        ({"unguided_scale": [3]}, "did you mean unguided_scales"),
    ],
)
def test_bad_values_are_named(system, arguments, message):
    with pytest.raises(UserError, match=message):
        system(["a red heart"], **arguments)


def test_one_text_instead_of_a_list_is_refused(system):
    with pytest.raises(UserError, match="give a list"):
        system("a red heart")


def test_a_folder_without_a_part_is_refused_by_name(folder, tmp_path):
    values = json.loads((folder / "config.json").read_text())
    for part in ("tokenizer", "transformer"):
        checkpoint_folder.write_config(tmp_path, {k: v for k, v in values.items() if k != part})
        with pytest.raises(UserError, match=f"holds no {part}"):
            pretrained.load_model(tmp_path)


def test_parts_that_do_not_belong_together_are_refused_in_any_order(tmp_path):
    transformer = {"transformer": dataclasses.asdict(presets.preset("2b").transformer)}
    parts = {
        "tokenizer": {"tokenizer": dataclasses.asdict(presets.TOKENIZERS["d24"]), "scales": "1M"},
        "transformer": transformer | presets.preset("2b").sections(),
    }
    for order in (list(parts), list(parts)[::-1]):
        out = tmp_path / order[0]
        checkpoint_folder.add_part(
            out, order[0], parts[order[0]], {}, lambda path: path.write_bytes(b"first")
        )
        before = sorted(path.read_bytes() for path in out.iterdir())
        with pytest.raises(UserError, match=r"24 bits a token.*transformer has 32.*d=32"):
            checkpoint_folder.add_part(
                out, order[1], parts[order[1]], {}, lambda path: path.write_bytes(b"second")
            )
        assert sorted(path.read_bytes() for path in out.iterdir()) == before


def test_a_text_encoder_of_another_width_is_refused(tmp_path):
    transformer = {"transformer": dataclasses.asdict(presets.preset("2b").transformer)}
    values = transformer | presets.preset("2b").sections()
    (tmp_path / "text_encoder").mkdir()
    (tmp_path / "text_encoder" / "config.json").write_text(json.dumps({"d_model": 1024}))
    with pytest.raises(UserError, match="1024 channels, the transformer reads 2048"):
        checkpoint_folder.check_fit(tmp_path, values)
    minilm = {"text": {"encoder": "minilm", "max_length": 32}}
    with pytest.raises(UserError, match="384 channels, the transformer reads 2048"):
        checkpoint_folder.check_fit(tmp_path, values | minilm)
    with pytest.raises(UserError, match=r"600 tokens.*text_length is 512"):
        checkpoint_folder.check_fit(tmp_path, transformer | {"text": {"encoder": "t5", "max_length": 600}})


def test_a_released_model_without_its_text_encoder_says_how_to_get_it(folder, tmp_path):
    values = json.loads((folder / "config.json").read_text())
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    checkpoint_folder.write_config(tmp_path, values | {"text": {"encoder": "t5", "max_length": 8}})
    with pytest.raises(UserError, match="--kind t5"):
        infinity_jax.InfinityPipeline.from_pretrained(tmp_path)


@pytest.mark.long
def test_published_parts_become_one_system(tmp_path):
    """As a user does it: three files are converted into one folder, which then draws."""
    transformer = dataclasses.replace(published.SMALL, text_channels=48)
    published.write_pth(tmp_path / "gpt.pth", published.transformer_state(config=transformer))
    published.write_pth(tmp_path / "vae.pth", published.tokenizer_state(), ("vae",))
    t5.write_published(tmp_path / "t5")
    config = tmp_path / "config.json"
    section = published.SMALL_SECTION | {"text_channels": 48}
    config.write_text(
        json.dumps({"transformer": section, "tokenizer": published.TOKENIZER_SECTION, "scales": "32px"})
    )
    sources = {"transformer": ("gpt.pth", config), "tokenizer": ("vae.pth", config), "t5": ("t5", "")}
    for kind, (source, its_config) in sources.items():
        its_config = its_config or tmp_path / "t5" / "config.json"
        arguments = [
            "--from",
            tmp_path / source,
            "--kind",
            kind,
            "--config",
            its_config,
            "--out",
            tmp_path / "all",
        ]
        assert main(["convert", *map(str, arguments)]) == 0
    system = infinity_jax.InfinityPipeline.from_pretrained(tmp_path / "all")
    (image,) = system(["a red heart"])
    assert image.size == (8, 8)
    system.save_pretrained(tmp_path / "saved")
    system.save_pretrained(tmp_path / "all")  # into its own folder
    for name in ("saved", "all"):
        copy = infinity_jax.InfinityPipeline.from_pretrained(tmp_path / name)
        np.testing.assert_array_equal(copy(["a red heart"])[0], image)


def test_each_picture_has_settings_of_its_own(system):
    prompts = ["a red heart", "a blue ball", "cat"]
    own = [system.settings.changed(**changes) for changes in ({"cfg": 1.0}, {"tau": 0.0}, {"top_p": 0.6})]
    together = system(prompts, settings=own)
    for i, settings in enumerate(own):
        np.testing.assert_array_equal(together[i], system(prompts, settings=settings)[i])
    np.testing.assert_array_equal(system(prompts, settings=own, tau=0.0)[1], together[1])
    with pytest.raises(UserError, match="3 prompts and 2 settings"):
        system(prompts, settings=own[:2])
    with pytest.raises(UserError, match=r"cfg, tau and top_p alone.*2 programs"):
        system(prompts[:2], settings=[own[0], own[1].changed(guidance="none")])


@pytest.mark.parametrize(("preset", "rows"), [("64px", 16), ("0.06M", 8), ("0.25M", 2), ("1M", 1)])
def test_large_pictures_are_drawn_in_smaller_batches(preset, rows):
    assert batches.largest(scales.make_schedule(preset), None) == rows


def test_a_batch_has_one_of_few_sizes_and_is_cut_to_what_is_drawn(system):
    sizes = {1: 1, 2: 4, 4: 4, 5: 16, 16: 16, 17: 16, 1000: 16}
    assert {n: system.batch_of(SampleRequest(["a"] * n, range(n))) for n in sizes} == sizes
    cut = {(2, 10**6): 4, (2, 3): 3, (40, 10**6): 40, (40, 32): 32}
    assert {(n, b): system.batch_of(SampleRequest(["a"] * n, range(n), batch=b)) for n, b in cut} == cut
    pair = layout_of(parse_mesh("data=2"), devices=jax.devices() * 2)
    assert [batches.fitting(n, 16, pair) for n in (1, 2, 3, 9)] == [2, 4, 4, 16]


def test_a_batch_that_memory_cannot_hold_is_refused(system, monkeypatch):
    request = SampleRequest(["a"], [0], batch=10**9)
    with pytest.raises(UserError, match=r"batch 1000000000: .* MiB each .* use a batch of at most \d+"):
        system.stream(request)
    # What is refused is less than what the compiled program takes.
    config = SamplerConfig(MODEL, TOKENIZER, scales.make_schedule("32px"))
    params = jax.tree.map(jnp.shape, system.model.params)
    assert jax.tree.leaves(params)
    draw = jax.jit(functools.partial(sampler.draw, config))
    numbers = jnp.ones((16, 4))
    text = jnp.ones((16, 8, MODEL.text_channels)), jnp.ones((16, 8), bool), jnp.arange(16, dtype=jnp.uint32)
    inputs = SamplerInputs(*text, numbers, numbers, jnp.ones(16))
    planned: Any = draw.lower(system.model.params, inputs).compile().memory_analysis()
    taken = planned.temp_size_in_bytes
    assert 0.1 * taken < 16 * batches.least_bytes(config) < taken


PROGRAM = """
import sys, time, jax
if sys.argv[2] == "used before":
    jax.jit(lambda x: x + 1)(1)
from infinity_jax import InfinityPipeline
hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if "cache_hits" in event else None)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
InfinityPipeline.from_pretrained(sys.argv[1])(["a red heart"])
print(jax.config.jax_compilation_cache_dir, len(hits))
"""


@pytest.mark.long
def test_python_keeps_compiled_programs_as_the_commands_do(folder, tmp_path):
    environment = os.environ | {"INFINITY_DATA": str(tmp_path)}
    del environment["JAX_COMPILATION_CACHE_DIR"]

    def run(kind, **more):
        command = [sys.executable, "-c", PROGRAM, folder, kind]
        done = subprocess.run(command, env=environment | more, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        return done.stdout.split()

    (where, _), (_, again) = run("used before"), run("fresh")
    assert Path(where).parent == tmp_path / "compiled" and int(again) > 0
    assert run("fresh", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))[0] == str(tmp_path / "own")
