"""Better pictures by search: several candidates of each prompt, of which a reward keeps the best.

Best of N draws all candidates to the end. Since a scale costs as much as its tokens, and coarse scales have few,
search inside the scales looks at many candidates early and goes on with fewer (TTS-VAR, arXiv 2507.18537): after a
scale, those that stay are the ones with the highest reward, or one of each group of pictures that are alike. What is
kept can be copied, to be drawn on with other random numbers.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, UInt8, UInt32

from infinity_jax.errors import UserError
from infinity_jax.runtime.sharding import Layout
from infinity_jax.sampling import batches, guidance, kv_cache
from infinity_jax.sampling.coarse_to_fine import Programs, programs_of
from infinity_jax.sampling.config import SamplerConfig, SamplerInputs, placed
from infinity_jax.sampling.prepared import prepare
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.sampling.sampler import compiler_options
from infinity_jax.sampling.search_plan import Cut, Judges, SearchPlan


class Found(NamedTuple):
    """The best candidate of each prompt.

    Attributes:
      images: uint8 [N,H,W,3].
      rewards_N: float64.
      seeds_NK: uint32, which random numbers drew each scale. Where a row is one number, `__call__` with it as seed
        draws the same picture.
    """

    images: UInt8[np.ndarray, "N H W 3"]
    rewards_N: Float[np.ndarray, " N"]
    seeds_NK: UInt32[np.ndarray, "N K"]


def candidate_seeds(seed: int, count: int, *others: int) -> UInt32[np.ndarray, " n"]:
    """Makes seeds from one: itself, then others that depend on it and on `others` alone."""
    more = [np.random.SeedSequence([seed, i, *others]).generate_state(1)[0] for i in range(1, count)]
    return np.array([seed, *more], np.uint32)


@functools.lru_cache(maxsize=32)
def _going_on(config: SamplerConfig, layout: Layout | None) -> Callable[..., Any]:
    """Makes the jitted step from all candidates to some: (..., state, rows of a batch) -> their text, their state."""

    def go_on(params: Any, tokenizer_params: Any, inputs: SamplerInputs, state: Any, row_B: jax.Array) -> Any:
        row_N = guidance.interleave(*(row_B * config.rows + row for row in range(config.rows)))
        part = state.replace(
            running_sum_BHWd=state.running_sum_BHWd[row_B],
            caches=kv_cache.rows_of(config.model, state.caches, row_N),
            carried=jax.tree.map(lambda x: x[row_B], state.carried),
        )
        return prepare(config, params, inputs, config.quantizer(tokenizer_params)), part

    traced = go_on if layout is None else layout.traced(go_on)
    return jax.jit(traced, compiler_options=compiler_options(layout))


class System(NamedTuple):
    """What draws: what is compiled, the mesh (None is one device), and the parameters of `sampler.make_sampler`."""

    config: SamplerConfig
    layout: Layout | None
    weights: tuple[Any, Any]

    def going_on(self, inputs: SamplerInputs, state: Any, row_B: np.ndarray) -> tuple[Any, Any]:
        """Goes on with some rows of a batch: what is read of their text, and their state."""
        return _going_on(self.config, self.layout)(*self.weights, inputs, state, row_B)

    def placed(self, inputs: SamplerInputs) -> SamplerInputs:
        """Brings a batch's arguments to the devices of a mesh."""
        return inputs if self.layout is None else placed(inputs, self.layout)

    def pictures(self, programs: Programs, state: Any) -> UInt8[np.ndarray, "B H W 3"]:
        """Decodes what is drawn so far, at full size."""
        size = self.config.schedule.times(self.config.tokenizer.patchify).last
        return np.asarray(programs.show(self.weights[1], state.running_sum_BHWd, size))


def candidates_of(request: SampleRequest, plan: SearchPlan) -> SampleRequest:
    """Asks for all candidates of each prompt, side by side.

    Raises:
      UserError: parts of the pictures are given, or texts or seeds cannot be drawn.
    """
    if request.given is not None:
        raise UserError("search draws whole pictures; edit them without it")
    request = request.checked()
    every = request.part(np.repeat(np.arange(len(request.prompts)), plan.candidates).tolist())
    seeds = [candidate_seeds(int(seed), plan.candidates) for seed in request.seeds]
    return dataclasses.replace(every, seeds=np.concatenate(seeds).tolist())


def whole_prompts(
    every: SampleRequest, config: SamplerConfig, layout: Layout | None, plan: SearchPlan
) -> SampleRequest:
    """Changes the batch of `candidates_of` to one with all candidates of its prompts: at most as many, if it can be.

    Raises:
      UserError: a plan that does not fit the schedule; candidates that memory cannot hold or a mesh cannot split.
    """
    counts, prompts = plan.counts(config.schedule.n_scales), len(every.prompts) // plan.candidates
    if skipped := [cut.after for cut in plan.cuts if cut.after not in config.drawn_scales]:
        raise UserError(f"cut after scale {skipped[0]}: pruning leaves it out; cut after another one")
    most = max(1, (every.batch or len(every.prompts)) // max(counts))
    at_once = -(-prompts // -(-prompts // most))  # all batches alike
    for count in counts:
        batches.check(at_once * count, config, layout)
    return dataclasses.replace(every, batch=at_once * plan.candidates)


def search(
    system: System,
    every: Iterable[tuple[Sequence[int], SamplerInputs]],
    prompts: Sequence[str],
    plan: SearchPlan,
    judges: Judges,
) -> Found:
    """Searches for the best pictures, batch by batch.

    Args:
      every: those of `inputs.in_batches`, in the host's memory, of `candidates_of` in batches of `whole_prompts`.
      prompts: of all candidates.
    Raises:
      UserError: the reward fails, or is not finite; features that a plan needs are not there.
    """
    judges.check(plan)
    found = []
    for part, inputs in every:
        rows = [*part, *[part[-1]] * (len(inputs.seeds_B) - len(part))]
        of_batch = _of_batch(system, inputs, [prompts[row] for row in rows], plan, judges)
        found.append([x[: len(part) // plan.candidates] for x in of_batch])
    return Found(*map(np.concatenate, zip(*found, strict=True)))


def _of_batch(
    system: System, inputs: SamplerInputs, prompts: list[str], plan: SearchPlan, judges: Judges
) -> Found:
    config, (params, _) = system.config, system.weights
    programs, cuts = programs_of(config, system.layout), {cut.after: cut for cut in plan.cuts}
    n_prompts = len(prompts) // plan.candidates
    seeds_BK = np.zeros((len(prompts), config.schedule.n_scales), np.uint32)
    on_devices = system.placed(inputs)
    prepared, state = programs.start(*system.weights, on_devices)
    for k in config.drawn_scales:
        seeds_BK[:, k] = inputs.seeds_B
        state = programs.scale(params, on_devices, prepared, state, k)
        if k not in cuts:
            continue
        images = system.pictures(programs, state)
        row_B, seeds_B = _kept(cuts[k], judges, images, prompts, np.asarray(inputs.seeds_B), n_prompts)
        inputs = jax.tree.map(lambda x, rows=row_B: np.asarray(x)[rows], inputs)._replace(seeds_B=seeds_B)
        prompts, seeds_BK = [prompts[row] for row in row_B], seeds_BK[row_B]
        on_devices = system.placed(inputs)
        prepared, state = system.going_on(on_devices, state, row_B)
    images = system.pictures(programs, state)
    rewards_PC = judges.rewards(images, prompts).reshape(n_prompts, -1)
    best_P = rewards_PC.argmax(1) + np.arange(n_prompts) * rewards_PC.shape[1]
    return Found(images[best_P], rewards_PC.max(1), seeds_BK[best_P])


def _kept(
    cut: Cut, judges: Judges, images: np.ndarray, prompts: list[str], seeds_B: np.ndarray, n_prompts: int
) -> tuple[np.ndarray, np.ndarray]:
    """Chooses the rows that go on, those of a prompt together, and the seeds that they go on with."""
    rows, seeds = [], []
    values = judges.values(cut, images, prompts)
    for own in np.arange(len(images)).reshape(n_prompts, -1):
        for place in cut.chosen(values[own]):
            rows += [own[place]] * cut.copies
            seeds.append(candidate_seeds(int(seeds_B[own[place]]), cut.copies, cut.after + 1))
    return np.array(rows), np.concatenate(seeds)
