"""The kernels that draw bits against plain jax, and where they compile."""

import dataclasses
import functools
import importlib.util
import json
import subprocess
import sys

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.drawing import draw_settings
from helpers.paths import PROGRAMS
from jax.experimental import pallas as pl

from infinity_jax.config import TransformerConfig
from infinity_jax.sampling import bits, bits_pallas, guidance, head_bits
from infinity_jax.transformer.heads import BitHead

NEAR = 1e-5  # Closer to its threshold a logit difference may fall on either side: sums have another order.
plain = jax.jit(head_bits.draw_head_bits)
thresholds = jax.jit(bits.thresholds, static_argnames="shape_BNd")
logit_difference = jax.jit(head_bits.guided_logits)
interpreted = {
    kernel: jax.jit(functools.partial(kernel, interpret=True), static_argnames="token_block")
    for kernel in (bits_pallas.draw_on_tpu, bits_pallas.draw_on_gpu)
}
each_kernel = pytest.mark.parametrize("kernel", interpreted, ids=["tpu", "gpu"])


def arrays(batch, tokens, width, d, rows=2, hidden_type="float32", dtype="float32"):
    """The stream before the head, and a head whose logit differences have a deviation of about 2."""
    rng = np.random.default_rng(tokens)

    def normal(*shape, over=1.0):
        return jnp.asarray(rng.standard_normal(shape) / over, jnp.float32)

    hidden_GBNC = (3 * normal(rows, batch, tokens, width) + 1).astype(hidden_type)
    weight_Cd = (normal(width, d, over=np.sqrt(width / 2))).astype(dtype)
    return hidden_GBNC, head_bits.LinearHead(normal(batch, rows, 2, width, over=3), weight_Cd, normal(d))


def settings(batch, cfg=3.0, scale=4, tau=1.0, top_p=1.0):
    """cfg, and how bits are drawn."""
    return jnp.full(batch, jnp.asarray(cfg), jnp.float32), draw_settings(
        np.arange(batch) * 7919 + 5, tau, top_p, scale
    )


def drawn_by(kernel, given, chosen, first_token=0, token_block=None) -> jax.Array:
    """The kernel's bits, interpreted; int8."""
    hidden_GBNC, head = given
    more = {"first_token": jnp.uint32(first_token), "token_block": token_block}
    return interpreted[kernel](hidden_GBNC.swapaxes(0, 1), head, *chosen, **more)


def assert_kernel_is_plain(kernel, given, chosen, token_block=None):
    cfg, drawing = chosen
    difference_BNd = logit_difference(*given, cfg)
    sure = np.abs(difference_BNd - thresholds(difference_BNd.shape, drawing)) > NEAR
    drawn = drawn_by(kernel, given, chosen, token_block=token_block)
    assert drawn.dtype == jnp.int8
    assert sure.mean() > 0.999
    np.testing.assert_array_equal(np.asarray(drawn)[sure], np.asarray(plain(*given, *chosen))[sure])


@each_kernel
@pytest.mark.parametrize(
    "size",
    # Tokens that are no multiple of a block, channels that are none of 128, one token, many bits.
    [(2, 45, 200, 8), (3, 1, 64, 32), (1, 70, 130, 64), (2, 16, 256, 12)],
    ids=str,
)
def test_kernel_draws_the_bits_of_plain_jax(kernel, size):
    assert_kernel_is_plain(kernel, arrays(*size), settings(size[0]))


@each_kernel
@pytest.mark.parametrize(
    "changes",
    [
        {"tau": 0.0},
        {"tau": 0.5, "top_p": 0.9},
        {"top_p": 0.97},
        {"top_p": 0.3},
        {"cfg": 1.0},
        {"scale": 0},
        {"cfg": [1.0, 4.0], "tau": [0.0, 0.7], "top_p": [1.0, 0.9]},
    ],
    ids=str,
)
def test_kernel_has_the_settings_of_plain_jax(kernel, changes):
    assert_kernel_is_plain(kernel, arrays(2, 33, 96, 10), settings(2, **changes))


@each_kernel
@pytest.mark.parametrize(
    "kind",
    [(1, "float32", "float32"), (2, "float32", "bfloat16"), (2, "bfloat16", "bfloat16")],
    ids=str,
)
def test_kernel_without_guidance_and_in_low_precision(kernel, kind):
    assert_kernel_is_plain(kernel, arrays(2, 40, 160, 16, *kind), settings(2))


@each_kernel
def test_blocks_and_order_of_pictures_change_no_bit(kernel):
    hidden, head = arrays(3, 70, 96, 8)
    chosen = settings(3)
    for block in (16, 64):
        assert_kernel_is_plain(kernel, (hidden, head), chosen, block)
    order = np.array([2, 0, 1])
    permuted = head._replace(modulation_BG2C=head.modulation_BG2C[order])
    cfg, drawing = chosen
    reordered = cfg, dataclasses.replace(drawing, seeds_B=drawing.seeds_B[order])
    np.testing.assert_array_equal(
        drawn_by(kernel, (hidden[:, order], permuted), reordered),
        drawn_by(kernel, (hidden, head), chosen)[order],
    )


@each_kernel
def test_a_part_of_the_tokens_is_drawn_as_in_the_whole(kernel):
    hidden, head = arrays(2, 40, 96, 8)
    chosen = settings(2)
    later = drawn_by(kernel, (hidden[:, :, 24:], head), chosen, first_token=24)
    np.testing.assert_array_equal(later, plain(hidden, head, *chosen)[:, 24:])


def test_mixing_before_the_linear_map_is_mixing_logits():
    config = TransformerConfig(layers=1, width=96, heads=2, bits=8, compute_dtype="float32")
    rng = np.random.default_rng(0)
    x_NLC = jnp.asarray(rng.standard_normal((4, 5, 96)), jnp.float32)
    vector_NC = jnp.asarray(rng.standard_normal((4, 96)), jnp.float32)
    shapes = jax.eval_shape(lambda: nn.meta.unbox(BitHead(config).init(jax.random.key(0), x_NLC, vector_NC)))
    variables = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32) / 5, shapes)

    @jax.jit
    def both(variables, x_NLC, vector_NC, cfg_B):
        conditional, unconditional = jnp.split(
            jnp.asarray(BitHead(config).apply(variables, x_NLC, vector_NC)), 2
        )
        head = head_bits.difference_head(config, {"bit_head": variables["params"]}, vector_NC, 2)
        logits = guidance.mix(conditional, unconditional, cfg_B[:, None, None, None]), conditional
        hidden = x_NLC.reshape(2, 2, 5, 96), x_NLC[None, :2]
        return logits, [head_bits.guided_logits(x, head, cfg_B) for x in hidden]

    for logits, difference in zip(*both(variables, x_NLC, vector_NC, jnp.full(2, 4.0)), strict=True):
        np.testing.assert_allclose(difference, logits[..., 1] - logits[..., 0], atol=1e-4)


def test_one_row_needs_no_head_of_its_own():
    hidden, head = arrays(2, 7, 64, 8)
    both = plain(hidden, head, *settings(2, cfg=1.0))
    np.testing.assert_array_equal(plain(hidden[:1], head, *settings(2)), both)


@pytest.mark.long
def test_bits_do_not_depend_on_the_mesh():
    script = PROGRAMS / "bits_on_mesh.py"
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


class InsideOnly:
    """A kernel's reference to an array that lets nothing beyond the array's end be read or written."""

    def __init__(self, array):
        self.array, self.shape, self.dtype = array, array.shape, array.dtype

    def __getitem__(self, index):
        return jnp.asarray(self.array[self.inside(index)])

    def __setitem__(self, index, value):
        self.array[self.inside(index)] = value

    @property
    def at(self):
        return self  # For loads and stores with a mask, which leave out an index's values but not the index.

    def inside(self, index):
        """The index as NumPy has it."""
        index = index if isinstance(index, tuple) else (index,)
        if index[0] is ...:
            return index
        return tuple(self.of_axis(i, size) for i, size in zip(index, self.shape, strict=True))

    @staticmethod
    def of_axis(i, size):
        if isinstance(i, slice):
            assert i == slice(None)
            return i
        start, length = (int(i.start), i.size) if isinstance(i, pl.Slice) else (int(i), 1)
        assert start >= 0 and start + length <= size, f"{start} to {start + length} of {size}"
        return slice(start, start + length) if isinstance(i, pl.Slice) else start


def run_inside_only(monkeypatch, draw):
    """What `draw` gives where each program of its kernel runs in Python, on arrays as `InsideOnly`."""

    def pallas_call(kernel, out_shape, grid, **_):
        def run(*operands):
            out = np.full(out_shape.shape, -1, out_shape.dtype)
            references = [InsideOnly(np.asarray(x)) for x in operands]
            for programs in np.ndindex(*grid):
                monkeypatch.setattr(bits_pallas.pl, "program_id", programs.__getitem__)
                kernel(*references, InsideOnly(out))
            return jnp.asarray(out)

        return run

    monkeypatch.setattr(bits_pallas.pl, "pallas_call", pallas_call)
    with jax.disable_jit():
        return draw()


ODD_SIZES = [(1, 1, 24, 3), (2, 17, 48, 16), (1, 33, 128, 20), (2, 45, 200, 12), (1, 70, 336, 56)]


@pytest.mark.parametrize("size", ODD_SIZES, ids=str)
def test_gpu_kernel_reads_and_writes_inside_its_arrays(size, monkeypatch):
    given, chosen = arrays(*size), settings(size[0])
    assert_kernel_is_plain(bits_pallas.draw_on_gpu, given, chosen)
    interpreted_bits = drawn_by(bits_pallas.draw_on_gpu, given, chosen)
    hidden_GBNC, head = given

    def draw():
        return bits_pallas.draw_on_gpu(hidden_GBNC.swapaxes(0, 1), head, *chosen, first_token=jnp.uint32(0))

    drawn = run_inside_only(monkeypatch, draw)
    assert drawn.shape == interpreted_bits.shape
    assert (np.asarray(drawn) == interpreted_bits).mean() > 0.999


def lowered_for_gpu(size: tuple[int, int, int, int], rows: int, dtype: str) -> str:
    """The program that draws bits, for a GPU that need not be here."""
    (hidden_GBNC, head), (cfg, drawing) = arrays(*size, rows, dtype=dtype), settings(size[0])

    def draw(hidden_GBNC, head, cfg, seeds_B):  # a new function each time, for jit's cache
        return head_bits.draw_head_bits(hidden_GBNC, head, cfg, dataclasses.replace(drawing, seeds_B=seeds_B))

    arguments = hidden_GBNC, head, cfg, drawing.seeds_B
    gpu = jax.sharding.AbstractDevice(device_kind="NVIDIA H100", num_cores=None, platform="gpu")
    # Newer Pallas asks for the kind of GPU, which it takes from here where the process has none.
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((), (), abstract_device=gpu)):
        return jax.jit(draw).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_kernel_is_lowered_for_gpu(rows, dtype, monkeypatch):
    monkeypatch.setattr(head_bits, "platform", lambda: "gpu")
    for size in ODD_SIZES:
        program = lowered_for_gpu(size, rows, dtype)
        assert "draw_bits_gpu" in program and "triton" in program
        assert "stablehlo.dot_general" not in program and "stablehlo.rsqrt" not in program


@pytest.mark.parametrize("width", [768, 1152, 2048, 2080])
def test_published_widths_are_not_copied_for_the_gpu_kernel(width, monkeypatch):
    monkeypatch.setattr(head_bits, "platform", lambda: "gpu")
    assert "stablehlo.pad" not in lowered_for_gpu((1, 36, width, 32), 2, "bfloat16")


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)
@pytest.mark.parametrize("topology", ["v5e:2x2", "v5p:2x2x1", "v6e:2x2"])
def test_kernel_compiles_for_tpu(topology):
    script = PROGRAMS / "bits_on_tpu.py"
    done = subprocess.run([sys.executable, str(script), topology], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    cases = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(cases) == 24
    for case in cases:
        assert case["kernel"] and not case["large"], case
