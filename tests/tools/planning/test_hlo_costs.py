"""Counting in the text of a compiled program: loops, products, memory traffic and collectives."""

import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import Mesh, SingleDeviceSharding

from infinity_jax.cli import compile
from infinity_jax.runtime.sharding import Layout, ShardingRules
from infinity_jax.tools.planning import hlo_costs
from infinity_jax.transformer.kernels import attention_splash

needs_libtpu = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None, reason="libtpu is not installed: pip install -e '.[tpu]'"
)

LOOP = """HloModule example

%body (s: (s32[], f32[4,8])) -> (s32[], f32[4,8]) {
  %s = (s32[], f32[4,8]{1,0}, s32[]) parameter(0)
  %i = s32[] get-tuple-element(%s), index=0
  %x = f32[4,8]{1,0} get-tuple-element(%s), index=1
  %n = s32[] get-tuple-element(%s), index=2
  %w = f32[8,8]{1,0} constant({...})
  %y = f32[4,8]{1,0} dot(%x, %w), lhs_contracting_dims={1}, rhs_contracting_dims={0}
  %z = f32[4,8]{1,0} all-reduce(%y), channel_id=1, replica_groups=[2,4]<=[8], to_apply=%sum
  %one = s32[] constant(1)
  %i1 = s32[]{:T(128)} add(%i, %one)
  %i2 = s32[]{:T(128)} add(%one, %i1)
  %i3 = s32[]{:T(128)} fusion(%i), kind=kLoop, calls=%three_more
  ROOT %t = (s32[], f32[4,8]{1,0}, s32[]) tuple(NEXT, %z, %n)
}

%three_more (p: s32[]) -> s32[] {
  %p = s32[] parameter(0)
  %three = s32[] constant(3)
  ROOT %sum3 = s32[] add(%p, %three)
}

%condition (s: (s32[], f32[4,8])) -> pred[] {
  %s.1 = (s32[], f32[4,8]{1,0}, s32[]) parameter(0)
  %bound = s32[]{:T(128)} constant(7)
  %carried = s32[] get-tuple-element(%s.1), index=2
  %i.1 = s32[] get-tuple-element(%s.1), index=0
  ROOT %less = pred[] compare(COMPARED
}

%taken (p0: f32[5,4,8]) -> f32[4,8] {
  %p0 = f32[5,4,8]{2,1,0} parameter(0)
  %zero = s32[] constant(0)
  %slice = f32[1,4,8]{2,1,0} dynamic-slice(%p0, %zero, %zero, %zero), dynamic_slice_sizes={1,4,8}
  ROOT %flat = f32[4,8]{1,0} bitcast(%slice)
}

ENTRY %main (stack: f32[5,4,8]) -> f32[4,8] {
  %stack = f32[5,4,8]{2,1,0} parameter(0)
  %first = f32[4,8]{1,0} fusion(%stack), kind=kLoop, calls=%taken
  %start = s32[] constant(START)
  %copied = s32[] copy(%start)
  %end = s32[] constant(9)
  %init = (s32[], f32[4,8]{1,0}, s32[]) tuple(%copied, %first, %end)
  %loop = (s32[], f32[4,8]{1,0}, s32[]) while(%init), condition=%condition, body=%bodyKNOWN
  ROOT %last = f32[4,8]{1,0} get-tuple-element(%loop), index=1
}
"""


def loop(start="0", step="%i1", compared="%i.1, %bound), direction=LT", known="") -> str:
    """A program whose loop counts in a certain way."""
    text = LOOP.replace("START", start).replace("NEXT", step).replace("COMPARED", compared)
    return text.replace("KNOWN", known)


@pytest.mark.parametrize(
    ("turns", "counting"),
    [
        (7, {}),
        (5, {"start": "2"}),
        (8, {"compared": "%i.1, %bound), direction=LE"}),
        (7, {"compared": "%i.1, %bound), direction=NE"}),
        (7, {"compared": "%bound, %i.1), direction=GT"}),
        (9, {"compared": "%i.1, %carried), direction=LT"}),
        (4, {"step": "%i2"}),  # unrolled by the compiler: 0 2 4 6
        (3, {"step": "%i3", "start": "1", "compared": "%i.1, %carried), direction=LT"}),  # 1 4 7
        (11, {"known": ', backend_config={"known_trip_count":{"n":"11"}}'}),
        (1, {"step": "%n"}),  # nobody knows
    ],
)
def test_the_body_of_a_loop_counts_as_often_as_it_runs(turns, counting):
    counted = hlo_costs.costs(loop(**counting))
    assert counted.flops == turns * 2 * 4 * 8 * 8
    assert counted.collectives == {"all-reduce": turns * 2 * 128 * 3 / 4}  # a ring of 4, sent twice around


def test_memory_traffic_is_what_kernels_read_and_write():
    once = 128 + 128 + 8  # of the stack the slice alone is read; the counter is copied
    product, sums = 128 + 256 + 128, 3 * 4 + 3 * 4 + 2 * 4
    assert hlo_costs.costs(loop()).memory_bytes == once + 7 * (product + sums)


def test_only_main_memory_counts():
    """S(1) marks a TPU's fast memory."""
    text = """
ENTRY %main (x: bf16[8,16]) -> bf16[8,16] {
  %x = bf16[8,16]{1,0:T(8,128)(2,1)} parameter(0)
  %begun = (bf16[8,16]{1,0:T(8,128)(2,1)S(1)}, bf16[8,16]{1,0:T(8,128)(2,1)}, u32[]{:S(2)}) copy-start(%x)
  %near = bf16[8,16]{1,0:T(8,128)(2,1)S(1)} copy-done(%begun)
  %row = ((bf16[8,16]{1,0:T(8,128)(2,1)}), bf16[1,16]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%x), slice={[0:1], [0:16]}
  %first = bf16[1,16]{1,0:S(1)} slice-done(%row)
  ROOT %far = bf16[8,16]{1,0:T(8,128)(2,1)} add(%near, %near)
}
"""
    assert hlo_costs.costs(text).memory_bytes == 256 + 32 + 256


PIECES = """HloModule example

%begin (p: f32[8,16]) -> (f32[8,16], f32[32,16]) {
  %p = f32[8,16]{1,0} parameter(0)
  %g = f32[32,16]{1,0} all-gather(%p), channel_id=5, replica_groups={{0,1,2,3}}, dimensions={0}
  ROOT %started = (f32[8,16]{1,0}, f32[32,16]{1,0}) custom-call(%g), custom_call_target="AsyncCollectiveStart"
}

%beside (a: f32[8,16], q: f32[8,16], r: f32[32,16]) -> (f32[8,16], f32[8,16], f32[32,16]) {
  %a = f32[8,16]{1,0} parameter(0)
  %q = f32[8,16]{1,0} parameter(1)
  %r = f32[32,16]{1,0} parameter(2)
  %g.1 = f32[32,16]{1,0} all-gather(%q), channel_id=5, replica_groups={{0,1,2,3}}, dimensions={0}
  %twice = f32[8,16]{1,0} add(%a, %a)
  ROOT %all = (f32[8,16]{1,0}, f32[8,16]{1,0}, f32[32,16]{1,0}) tuple(%twice, %q, %r)
}

ENTRY %main (x: f32[8,16]) -> f32[8,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %s = (f32[8,16]{1,0}, f32[32,16]{1,0}) fusion(%x), kind=kCustom, calls=%begin
  %o = f32[8,16]{1,0} get-tuple-element(%s), index=0
  %f = f32[32,16]{1,0} get-tuple-element(%s), index=1
  %b = (f32[8,16]{1,0}, f32[8,16]{1,0}, f32[32,16]{1,0}) fusion(%x, %o, %f), kind=kOutput, calls=%beside
  %y = f32[8,16]{1,0} get-tuple-element(%b), index=0
  %moved = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) collective-permute-start(%y), channel_id=5
  %arrived = f32[8,16]{1,0} collective-permute-done(%moved)
  %again = (f32[8,16]{1,0}, f32[8,16]{1,0}, u32[], u32[]) collective-permute-start(%arrived), channel_id=5
  %there = f32[8,16]{1,0} collective-permute-done(%again)
  %token = token[] after-all()
  %abroad = (f32[8,16]{1,0}, u32[], token[]) send(%there, %token), channel_id=6, is_host_transfer=true
  ROOT %sent = token[] send-done(%abroad), channel_id=6, is_host_transfer=true
}
"""


def test_a_collective_in_several_pieces_counts_once():
    counted = hlo_costs.costs(PIECES)
    size = 8 * 16 * 4
    assert counted.collectives == {
        "all-gather": 3 * size,
        "between-slices": size,
        "collective-permute": 2 * size,
    }
    assert counted.memory_bytes == 2 * size  # the addition; what is only handed on is not touched


def test_collectives_on_a_core_of_their_own_count(caplog):
    text = """
%aside (p: f32[8,16]) -> f32[2,16] {
  %p = f32[8,16]{1,0} parameter(0)
  ROOT %r = f32[2,16]{1,0} reduce-scatter(%p), channel_id=5, replica_groups={{0,1,2,3}}, dimensions={0}, to_apply=%sum
}, execution_thread="sparsecore"

ENTRY %main (x: f32[8,16]) -> f32[2,16] {
  %x = f32[8,16]{1,0} parameter(0)
  %begun = ((f32[8,16]{1,0}), f32[2,16]{1,0}) call-start(%x), async_execution_thread="sparsecore", to_apply=%aside
  ROOT %done = f32[2,16]{1,0} call-done(%begun)
}
"""
    assert hlo_costs.costs(text).collectives == {"reduce-scatter": 8 * 16 * 4 * 3 / 4}
    assert not caplog.records
    unknown = hlo_costs.costs(text.replace("call-start", "new-kind-of-call"))
    assert not unknown.collectives and "aside: nothing says how" in caplog.text


@pytest.mark.parametrize(
    ("groups", "share"),
    [
        ("{{0,1,2,3},{4,5,6,7}}", 3 / 4),
        ("[4,2]<=[2,4]T(1,0)", 1 / 2),
        ("mesh['a'=2,'b'=4,'c'=2] {'b','c'}", 7 / 8),
    ],
)
def test_how_many_devices_take_part(groups, share):
    text = (
        "ENTRY %main (a: bf16[16]) -> bf16[16] {\n"
        "  %a = bf16[16]{0} parameter(0)\n"
        f"  ROOT %r = bf16[16]{{0}} all-to-all(%a), channel_id=1, replica_groups={groups}, dimensions={{0}}\n"
        "}\n"
    )
    assert hlo_costs.costs(text).collectives == {"all-to-all": 32 * share}


def test_only_real_products_of_a_convolution_count():
    line = (
        "ENTRY %main (a: f32[1,6,6,3], b: f32[3,3,3,7]) -> f32[1,6,6,7] {\n"
        "  %a = f32[1,6,6,3]{3,2,1,0} parameter(0)\n"
        "  %b = f32[3,3,3,7]{3,2,1,0} parameter(1)\n"
        "  ROOT %c = f32[1,6,6,7]{3,2,1,0} convolution(%a, %b), window={size=3x3 pad=1_1x1_1}, "
        "dim_labels=b01f_01io->b01f\n"
        "}\n"
    )
    inside = 3 * 6 - 2  # along one axis: two of them fall onto the padding
    assert hlo_costs.costs(line).flops == 2 * 3 * 7 * inside**2


CALL = 'f32[8,256,128]{2,1,0} custom-call(%q, %k), custom_call_target="tpu_custom_call"'
ESTIMATE = '"cost_estimate":{"flops":"700","transcendentals":"5","bytes_accessed":"90"}'
KERNELS = f"""
ENTRY %main (q: bf16[8,256,128], k: bf16[8,256,128]) -> f32[8,256,128] {{
  %q = bf16[8,256,128]{{2,1,0}} parameter(0)
  %k = bf16[8,256,128]{{2,1,0:S(1)}} parameter(1)
  %fast = {CALL}, backend_config={{"custom_call_config":{{"body":"TUzv",{ESTIMATE}}}}}
  ROOT %splash_mha_dkv_no_residuals.1 = {CALL}, frontend_attributes={{kernel_metadata={{
"xprof_metadata":"{{\\"block_q\\": 256}}"
}}NOTED}}, metadata={{op_name="jit(step)/transpose(jvp(splash_mha_dkv_no_residuals))/pallas_call"}}
}}
"""


def test_kernels_count_by_what_is_written_beside_them(caplog):
    """Operands and results once, of splash attention also what it reads again for each block."""
    arrays = 8 * 256 * 128 * (2 + 4)  # k is in the fast memory
    noted = 'splash_dkv_flops="5000",splash_fwd_flops="1400",splash_streamed_bytes="30"'
    counted = hlo_costs.costs(KERNELS.replace("}NOTED}", f"}},{noted}}}"))
    assert counted.flops == 700 + 5 * 1000
    assert counted.memory_bytes == 90 + arrays + 30
    assert not caplog.records
    assert hlo_costs.costs(KERNELS.replace("NOTED", "")).flops == 700
    assert "splash_mha_dkv_no_residuals.1: this kernel has no estimate of its costs" in caplog.text


@pytest.fixture
def nothing_is_kept():
    """No program goes into the cache: one for a TPU cannot be read from there where there is none."""
    name = "jax_persistent_cache_min_compile_time_secs"
    before = getattr(jax.config, name)
    jax.config.update(name, float("inf"))
    yield
    jax.config.update(name, before)


@needs_libtpu
def test_splash_attention_notes_its_costs(monkeypatch, nothing_is_kept):
    """Also in the backward pass, where the block is recomputed."""
    device = tpu(monkeypatch)
    layout = Layout(Mesh(np.array([device]), ("data",)), ShardingRules())

    def loss(q, k, v):
        seen = ((256, 256), (768, 1024))
        attend = lambda q, k, v: attention_splash.attend_splash(q, k, v, "bfloat16", seen)  # noqa: E731
        return jax.checkpoint(attend)(q, k, v).sum()

    shape = jax.ShapeDtypeStruct((2, 2, 1024, 96), "float32", sharding=SingleDeviceSharding(device))
    lowered = jax.jit(jax.grad(layout.traced(loss), (0, 1, 2))).lower(shape, shape, shape)
    counted = hlo_costs.costs(lowered.compile().as_text() or "")
    pairs = 2 * 2 * 1024 * 1024  # both blocks of 512 queries have some that see all
    assert counted.flops == (2 + 5) * 2 * pairs * 96


def tpu(monkeypatch):
    """A description of one device."""
    for name, value in compile.LIBTPU.items():
        monkeypatch.setenv(name, value)
    return topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2").devices[0]


def gradient(x, w):
    """Of three layers, each a product and something between."""
    for matrix in w:
        x = jnp.tanh(x @ matrix)
    return x.sum()


@pytest.mark.parametrize("chip", ["cpu", pytest.param("tpu", marks=needs_libtpu)])
def test_without_loops_the_count_is_that_of_xla(chip, monkeypatch):
    devices = jax.devices()[:1]
    if chip == "tpu":
        devices = [tpu(monkeypatch)]
    where = SingleDeviceSharding(devices[0])
    shapes = [jax.ShapeDtypeStruct(shape, "float32", sharding=where) for shape in ((64, 256), (3, 256, 256))]
    compiled = jax.jit(jax.grad(gradient, (0, 1))).lower(*shapes).compile()
    counted, analysis = hlo_costs.costs(compiled.as_text() or ""), compiled.cost_analysis()
    assert counted.flops == 3 * 3 * 2 * 64 * 256 * 256
    assert isinstance(analysis, dict)
    assert counted.flops <= analysis["flops"] <= 1.03 * counted.flops  # which has additions and tanh too
