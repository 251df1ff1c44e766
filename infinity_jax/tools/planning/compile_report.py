"""The report of `infinity-jax compile` in words."""

from collections.abc import Mapping
from typing import Any

from infinity_jax.runtime.devices import GIB


def in_words(report: Mapping[str, Any]) -> str:
    """Writes the report of `compile_ahead.main` for people."""
    peak, memory = report["peak_bytes_per_device"], report["device_memory_bytes"]
    used = "more than that" if peak is None else f"{peak / GIB:.3g} GiB"
    lines = [
        f"{report['program']} of {report['size']} ({report['parameters']:,} parameters) at {report['budget']}, "
        f"batch {report['batch']} in {report['microbatches']} parts, remat {report['remat']}, on {report['devices']} "
        f"devices ({report['slices']} x {report['topology']}) as {report['mesh']} with rules {report['rules']}",
        f"memory per device: {used} of {memory / GIB:.4g} GiB: {'fits' if report['fits'] else 'DOES NOT FIT'}",
    ]
    if report["compiled_flops"] is not None:
        sent = report["collective_bytes_by_kind"]
        lines += [
            f"  arguments {report['argument_bytes_per_device'] / GIB:.3g} GiB, "
            f"temporaries {report['temporary_bytes_per_device'] / GIB:.3g} GiB",
            f"FLOP: {report['compiled_flops']:.3e} compiled, {report['model_flops']:.3e} of the model by formula, "
            f"ratio {report['compiled_over_model_flops']:.2f}",
            f"sent per device: {report['collective_bytes'] / 1e9:.3g} GB: "
            + ", ".join(f"{kind} {size / 1e9:.3g}" for kind, size in sent.items()),
        ]
    if report["estimated_step_seconds"] is not None:
        bounds = ", ".join(f"{name} {s:.3g}" for name, s in report["estimated_bounds_seconds"].items())
        lines.append(
            f"estimate from peak rates, not a measurement: at least {report['estimated_step_seconds']:.3g} s a step "
            f"({bounds}), at most {report['estimated_mfu']:.0%} MFU"
        )
    return "\n".join([*lines, f"compiled in {report['compile_seconds']:.1f} s"])
