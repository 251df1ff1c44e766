"""`infinity-jax compile`: what it reports, and its exit codes."""

import os
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from helpers.compiling import command, needs_libtpu
from helpers.full_disks import full_disk
from helpers.paths import CONFIGS
from jax.experimental import topologies
from ml_collections import ConfigDict

from infinity_jax.checkpoints import trained
from infinity_jax.cli.main import main
from infinity_jax.config import TransformerConfig
from infinity_jax.runtime.chips import CHIPS
from infinity_jax.runtime.mesh import parse_mesh
from infinity_jax.runtime.sharding import layout_of
from infinity_jax.sampling import sampler
from infinity_jax.scales import make_schedule
from infinity_jax.tools.planning import compile_ahead as compile_module
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.tools.planning.chips import Target
from infinity_jax.tools.planning.lowering import Program, lower_sampler

T2I = CONFIGS / "t2i.py"
KEYS = {
    "parameters",
    "devices",
    "peak_bytes_per_device",
    "device_memory_bytes",
    "fits",
    "compiled_flops",
    "model_flops",
    "collective_bytes",
    "estimated_step_seconds",
    "estimated_mfu",
    "compile_seconds",
}
CONFIG = """
import dataclasses
from ml_collections import ConfigDict
from infinity_jax.config import TokenizerConfig, TransformerConfig
from infinity_jax.config_files import from_dict, load

def get_config(argument):
    model = TransformerConfig(layers=2, width=128, heads=2, bits=4, text_channels=128, text_length=8)
    return ConfigDict(dict(
        model=dataclasses.asdict(model), text=dict(max_length=8), correction={}, loss={}, optim={},
        train=dict(steps=2, seed=0, batch_size=8, microbatches=1), sample=dict(guidance="logits"),
    ))
"""


def of_tiny_model(folder: Path, *arguments):
    """As `command`, of a model that compiles in seconds."""
    config = folder / "tiny.py"
    config.write_text(CONFIG)
    return command("--config", str(config), "--size", "tiny", "--budget", "32px", *arguments, folder=folder)


@pytest.mark.long
def test_a_train_step_on_virtual_devices(tmp_path):
    code, numbers, text = of_tiny_model(
        tmp_path, "--topology", "cpu:8", "--mesh", "data=4,fsdp=2", "--remat", "none"
    )
    assert code == 0 and numbers is not None, text
    assert numbers.keys() >= KEYS
    assert numbers["fits"] and numbers["devices"] == 8 and numbers["batch"] == 8
    assert numbers["estimated_step_seconds"] is None  # of a CPU nothing is known
    assert 0.9 < numbers["compiled_over_model_flops"] <= 1.1
    assert numbers["collective_bytes"] > 4 * numbers["parameters"] / 2  # gradients are summed
    assert "devices (1 x cpu:8) as data=4,fsdp=2 with rules fsdp" in text


def test_a_full_disk_leaves_the_report_of_last_time(tmp_path, monkeypatch, capsys):
    file, config = tmp_path / "numbers.json", tmp_path / "tiny.py"
    file.write_text("old")
    config.write_text(CONFIG)
    monkeypatch.setattr(compile_module, "compile_and_count", lambda *_: {})
    monkeypatch.setattr(compile_module, "combine", lambda *_: {"fits": True})
    monkeypatch.setattr(compile_module, "in_words", lambda _: "")
    words = [
        "--config",
        config,
        "--size",
        "tiny",
        "--budget",
        "32px",
        "--topology",
        "cpu:1",
        "--mesh",
        "fsdp=1",
    ]
    with full_disk(0):
        assert main(["compile", "--json", str(file), *map(str, words)]) == 1
    assert f"File too large: {file}" in capsys.readouterr().err
    assert file.read_text() == "old" and {path.name for path in tmp_path.iterdir()} == {
        file.name,
        config.name,
    }


@pytest.mark.long
@needs_libtpu
def test_a_train_step_for_a_tpu(tmp_path):
    code, numbers, text = of_tiny_model(tmp_path, "--topology", "v5e:2x2", "--mesh", "fsdp=4")
    assert code == 0 and numbers is not None, text
    assert numbers["fits"] and numbers["device_memory_bytes"] == CHIPS["v5e"].memory
    assert 0 < numbers["peak_bytes_per_device"] < 2**30
    assert 0.9 < numbers["compiled_over_model_flops"] <= 1.1
    assert numbers["estimated_step_seconds"] == max(numbers["estimated_bounds_seconds"].values()) > 0
    assert 0 < numbers["estimated_mfu"] < 1


@pytest.mark.long
@pytest.mark.parametrize(
    "topology", [pytest.param("cpu:4", marks=pytest.mark.slow), pytest.param("v5e:2x2", marks=needs_libtpu)]
)
def test_quick_is_known_to_the_compiler(tmp_path, topology):
    code, numbers, text = of_tiny_model(tmp_path, "--topology", topology, "--mesh", "fsdp=4", "--quick")
    assert code == 0 and numbers is not None, text
    assert numbers["quick"] and numbers["fits"]
    assert 0.9 < numbers["compiled_over_model_flops"] <= 1.1


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize(
    "arguments",
    [
        ["--topology", "v5e:2x2", "--mesh", "data=2,fsdp=4", "--slices", "2"],
        ["--topology", "v4:2x2x1", "--mesh", "data=2,tensor=2", "--microbatches", "2"],
        ["--topology", "v5p:2x2x1", "--mesh", "fsdp=2,sequence=2", "--remat", "dots"],
        ["--topology", "v6e:2x2", "--mesh", "fsdp=4", "--remat", "offload"],
        ["--topology", "tpu7x:2x2x1", "--mesh", "fsdp=8", "--remat", "block"],
        ["--topology", "v5e:2x2", "--mesh", "fsdp=4", "--sampler"],
        ["--topology", "v5e:2x2", "--mesh", "fsdp=4", "--budget", "0.06M", "--aspects", "1:1,3:2=0.5"],
    ],
    ids=lambda arguments: " ".join(arguments),
)
def test_every_chip_and_option(tmp_path, arguments):
    code, numbers, text = of_tiny_model(tmp_path, *arguments)
    assert code == 0 and numbers is not None, text
    assert 0.9 < numbers["compiled_over_model_flops"] < 1.5
    assert ("between-slices" in numbers["collective_bytes_by_kind"]) == ("--slices" in arguments)


@pytest.mark.slow
@needs_libtpu
@pytest.mark.parametrize("size", ["2.2b", "4.7b"])
@pytest.mark.parametrize(
    "where",
    [
        "0.06M v5e:16x16 fsdp=256 256 none",
        "0.06M v5p:4x4x4 fsdp=64 64 none",
        "1M v5e:16x16 fsdp=64,sequence=4 64 block",
        "1M v5p:4x4x4 fsdp=16,sequence=4 16 none",
    ],
)
def test_published_sizes_on_pods(tmp_path, size, where):
    budget, topology, mesh, batch, remat = where.split()
    arguments = ["--config", str(T2I), "--size", size, "--budget", budget, "--topology", topology, "--quick"]
    code, numbers, text = command(
        *arguments, "--mesh", mesh, "--batch", batch, "--remat", remat, folder=tmp_path
    )
    assert code == 0 and numbers is not None and numbers["fits"], text
    # A rematerialised block runs forward once more, 4 passes instead of 3. Backward, the attention's kernel computes
    # its scores again: a sixth of attention's model FLOP, which are up to a third of all at 1M.
    passes = (1 if remat == "none" else 4 / 3) + (1 / 18 if budget == "1M" else 0)
    assert numbers["compiled_over_model_flops"] <= 1.1 * passes


@pytest.fixture
def in_this_process(monkeypatch, tmp_path):
    """Runs the command here, with the environment and the logging of the test run untouched."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    monkeypatch.setattr("infinity_jax.cli.main._prepare_process", lambda: None)
    config = tmp_path / "tiny.py"
    config.write_text(CONFIG)
    required = ["--config", str(config), "--size", "tiny", "--budget", "32px", "--mesh", "fsdp=4"]
    return lambda *more: main(["compile", *required, "--json", str(tmp_path / "unused"), *more])


@pytest.mark.parametrize(("fits", "code"), [(True, 0), (False, 3)])
def test_what_does_not_fit_ends_with_code_3(in_this_process, monkeypatch, fits, code):
    monkeypatch.setattr(compile_module, "main", lambda *_, **__: fits)
    assert in_this_process("--topology", "v5e:2x2") == code


@pytest.mark.long
def test_the_sampler_reads_the_rounded_weights_that_the_pipeline_draws_with():
    model = TransformerConfig(layers=2, width=128, heads=2, bits=4, text_channels=128, text_length=8)
    config = ConfigDict({"text": {"max_length": 8}, "sample": {"guidance": "logits"}})
    layout = layout_of(parse_mesh("fsdp=1"), "", model, jax.devices()[:1])
    program = lower_sampler(config, "tiny", model, make_schedule("32px"), 1, layout)
    (params, *_), _ = program.lowered.args_info
    drawn_with = sampler.rounded(
        model, jax.tree.map(lambda x: jnp.zeros(x.shape), trained.transformer_shapes(model))
    )
    assert jax.tree.map(lambda x: x.dtype, params) == jax.tree.map(lambda x: x.dtype, drawn_with)
    assert params["blocks"]["self_attention"]["query_key_value"]["kernel"].dtype.itemsize == 2


def test_memory_decides_what_fits():
    lowered = jax.jit(lambda x: x @ x).lower(jax.ShapeDtypeStruct((64, 64), "float32"))
    program = Program(lowered, model_flops=2 * 64**3)
    small, large = (
        compile_module.compile_and_count(program, Target(jax.devices()[:1], memory, None), False)
        for memory in (2 * 64 * 64 * 4 - 1, 2**20)
    )
    assert not small["fits"] and large["fits"]
    assert large["compiled_flops"] == large["model_flops"] == 2 * 64**3
    message = "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 40.5G of 15.75G hbm."
    refused = compile_module._did_not_fit(message, 2 * 64**3, 1.0)
    assert refused.keys() == large.keys() and not refused["fits"]
    assert refused["peak_bytes_per_device"] == 40.5 * 2**30


def test_of_a_mix_of_shapes_the_largest_counts_for_memory_and_the_mean_for_time():
    chip = CHIPS["v5e"]
    target = Target(jax.devices()[:1], chip.memory, chip)

    def shape(share, peak, flops, sent):
        counted = hlo_costs.Costs(flops, 0.0, sent)
        return dict.fromkeys((*compile_module._LARGEST, *compile_module._MEANS), 0) | {
            "share": share,
            "fits": peak <= chip.memory,
            "peak_bytes_per_device": peak,
            "compiled_flops": flops,
            "model_flops": flops / 2,
            "collective_bytes_by_kind": sent,
            **compile_module.estimate(counted, chip),
            "compile_seconds": 1.0,
        }

    fast, slow = shape(3.0, 10, 197e12, {"all-gather": 8.0}), shape(1.0, chip.memory + 1, 5 * 197e12, {})
    mixed = compile_module.combine([fast, slow], target)
    assert not mixed["fits"] and mixed["peak_bytes_per_device"] == chip.memory + 1
    assert mixed["estimated_step_seconds"] == pytest.approx(0.75 * 1 + 0.25 * 5)
    assert mixed["collective_bytes_by_kind"] == {"all-gather": 6.0}
    assert mixed["compiled_over_model_flops"] == pytest.approx(2)
    assert mixed["estimated_mfu"] == pytest.approx(0.5)
    assert mixed["compile_seconds"] == 2
    refused = slow | compile_module._did_not_fit("Used 17.5G of 15.75G hbm.", 1, 1.0)
    mixed = compile_module.combine([fast, refused], target)
    assert mixed["estimated_mfu"] is None and mixed["peak_bytes_per_device"] == 17.5 * 2**30


def test_between_slices_another_network_sets_the_time():
    chip = CHIPS["v5p"]
    sent = {"all-reduce": chip.link_bandwidth, hlo_costs.BETWEEN_SLICES: 2 * (chip.network_bandwidth or 0)}
    bounds = compile_module.estimate(hlo_costs.Costs(0.0, 0.0, sent), chip)["estimated_bounds_seconds"]
    assert bounds == {"compute": 0, "memory": 0, "collectives": 1, "between slices": 2}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--topology", "v9:2x2"],
            "unknown topology 'v9:2x2'; use cpu:8 or CHIP:SHAPE with a chip of v4, v5e",
        ),
        (["--topology", "h100:8"], "unknown topology 'h100:8'"),
        (["--topology", "cpu:1000"], "virtual CPU devices; write cpu:NUMBER"),
        (["--topology", "cpu:9999"], "use cpu:1 to cpu:1024"),
        (["--topology", "cpu:1", "--slices", "2"], "only a TPU topology can have several"),
    ],
)
def test_mistakes_end_with_code_2(in_this_process, capsys, arguments, message):
    assert in_this_process(*arguments) == 2
    assert message in capsys.readouterr().err


@pytest.mark.long
@pytest.mark.parametrize("program", ["train step", "sampler"])
def test_a_model_of_labels_and_codes_by_its_config_alone(tmp_path, program):
    """Without --size and --budget: the scales are the config's, codes are as many as the model's."""
    which = ["--sampler"] if program == "sampler" else []
    words = ["--config", "var:debug", "--topology", "cpu:2", "--mesh", "fsdp=2", "--batch", "2", "--quick"]
    code, numbers, text = command(*words, *which, folder=tmp_path)
    assert code == 0 and numbers is not None, text
    assert (numbers["program"], numbers["size"], numbers["budget"]) == (program, "var:debug", "64px")
    # The formula counts the zeros around the tokenizer's maps, which are most of so small a program.
    assert numbers["fits"] and 0.9 < numbers["compiled_over_model_flops"] < 2.5


@pytest.mark.parametrize("mix", ["1:1=x", "1:1=0", "3:2=-1"])
def test_shares_of_aspect_ratios_are_positive_numbers(in_this_process, capsys, mix):
    with pytest.raises(SystemExit) as end:
        in_this_process("--topology", "cpu:1", "--aspects", mix)
    assert end.value.code == 2 and "SHARE above 0" in capsys.readouterr().err


def test_without_libtpu_the_message_says_what_to_install(in_this_process, capsys, monkeypatch):
    def missing(**_):
        raise RuntimeError("libtpu.so cannot be opened")

    monkeypatch.setattr(topologies, "get_topology_desc", missing)
    assert in_this_process("--topology", "v5e:2x2") == 2
    assert "pip install 'infinity-jax[tpu]'" in capsys.readouterr().err
