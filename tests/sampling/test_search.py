"""Search: candidates are pictures of plain sampling, the best are kept, and what cannot be judged is refused."""

from typing import Any

import numpy as np
import pytest
from helpers import systems

from infinity_jax import scales
from infinity_jax.config import SampleConfig
from infinity_jax.errors import UserError
from infinity_jax.sampling.pipeline import InfinityPipeline
from infinity_jax.sampling.request import SampleRequest
from infinity_jax.sampling.search import candidate_seeds
from infinity_jax.sampling.search_plan import Cut, SearchPlan, one_of_each

SETTINGS = SampleConfig(cfg=2.0, decoder_dtype="float32")
REQUEST = SampleRequest(["cat", "a small dog", "cow"], [3, 4, 5], batch=8)


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    folder = tmp_path_factory.mktemp("system")
    systems.write_system(folder)
    return InfinityPipeline.from_pretrained(folder)


def redness(images, prompts):
    assert len(images) == len(prompts)
    return images[..., 0].mean((1, 2)) - images[..., 1].mean((1, 2))


def drawn(pipeline, seeds, batch=8):
    """Pictures of plain sampling of all prompts with these seeds each, [prompts, seeds, H, W, 3]."""
    count = len(seeds[0])
    prompts = [prompt for prompt in REQUEST.prompts for _ in range(count)]
    request = SampleRequest(prompts, np.concatenate(seeds).tolist(), batch=batch)
    images = pipeline.arrays(request, SETTINGS)
    return images.reshape(len(seeds), count, *images.shape[1:])


def test_best_of_n_is_the_best_of_plain_pictures(pipeline):
    found = pipeline.search(REQUEST, SearchPlan(4), redness, settings=SETTINGS)
    seeds = [candidate_seeds(seed, 4) for seed in REQUEST.seeds]
    assert [own[0] for own in seeds] == [3, 4, 5] and len(np.unique(seeds)) == 12
    plain = drawn(pipeline, seeds)
    for i, images in enumerate(plain):
        rewards = redness(images, ["x"] * 4)
        best = int(np.argmax(rewards))
        np.testing.assert_array_equal(found.images[i], images[best])
        assert found.rewards_N[i] == rewards[best]
        assert (found.seeds_NK[i] == seeds[i][best]).all()


def test_one_candidate_is_plain_sampling(pipeline):
    found = pipeline.search(REQUEST, SearchPlan(1), redness, settings=SETTINGS)
    np.testing.assert_allclose(found.images, pipeline.arrays(REQUEST, SETTINGS), atol=1)


def test_what_survives_cuts_is_drawn_as_if_alone(pipeline):
    plan = SearchPlan(8, (Cut(0, 4), Cut(1, 2, by="clusters")))
    seen = []

    def watching(images, prompts):
        seen.append(len(images))
        return redness(images, prompts)

    def features(images):
        return images.mean((1, 2))

    found = pipeline.search(REQUEST, plan, watching, features, SETTINGS)
    assert seen == [8, 2] * 3  # a batch of 8 has one prompt
    for i in range(3):
        (seed,) = set(found.seeds_NK[i].tolist())
        assert seed in candidate_seeds(REQUEST.seeds[i], 8)
        (alone,) = drawn(pipeline, [[seed]] * 3, batch=2)[i]
        # Rounding may differ in another batch.
        assert np.abs(alone.astype(int) - found.images[i]).max() <= 1


def test_copies_go_on_with_other_random_numbers(pipeline):
    counts = []

    def first_half(images, prompts):
        counts.append(len(np.unique(images.reshape(len(images), -1), axis=0)))
        return np.arange(len(images), 0, -1)

    plan = SearchPlan(2, (Cut(0, 1, copies=4),))
    found = pipeline.search(REQUEST, plan, first_half, settings=SETTINGS)
    assert counts[-1] > 4  # of eight, drawn from two prompts' first scales
    assert (
        found.seeds_NK == np.array(REQUEST.seeds)[:, None]
    ).all()  # the first copy has the seed that it had


def test_cost_counts_tokens():
    schedule = scales.make_schedule("32px")
    tokens = schedule.tokens
    assert SearchPlan(4).cost(schedule) == 4
    plan = SearchPlan(8, (Cut(0, 2), Cut(1, 1, copies=3)))
    expected = 8 * tokens[0] + 2 * tokens[1] + 3 * sum(tokens[2:])
    assert plan.cost(schedule) == pytest.approx(expected / sum(tokens))


def test_groups_give_one_each_and_equal_rows_are_no_trouble():
    groups = np.array([[0.0, 0], [0.1, 0], [5, 5], [5.1, 5], [0, 9], [0.2, 0]])
    chosen = one_of_each(groups, 3)
    assert len(chosen) == 3 and 4 in chosen and len({0, 1, 5} & set(chosen)) == 1
    assert len(set(one_of_each(np.zeros((5, 2)), 3))) == 3
    assert one_of_each(groups, 6) == list(range(6))


def raising(images, prompts):
    raise ValueError("no model here")


@pytest.mark.parametrize(
    "plan, reward, said",
    [
        (SearchPlan(2), raising, "the reward failed on .*no model here"),
        (SearchPlan(2), lambda images, _: np.full(len(images), np.nan), "'cat' is nan; give finite"),
        (SearchPlan(2), lambda *_: 1.0, r"shape \(\); give a number each"),
        (SearchPlan(2, (Cut(0, 1, by="clusters"),)), redness, "needs features"),
        (SearchPlan(2, (Cut(0, 3),)), redness, "keep is 3, and there are 2"),
        (SearchPlan(4, (Cut(1, 2), Cut(0, 1))), redness, "order of their scales"),
        (SearchPlan(4, (Cut(1, 2), Cut(1, 1))), redness, "at most one after each"),
        (SearchPlan(4, (Cut(40, 2),)), redness, "cut earlier"),
    ],
)
def test_what_cannot_be_judged_is_refused(pipeline, plan, reward, said):
    with pytest.raises(UserError, match=said):
        pipeline.search(REQUEST, plan, reward, settings=SETTINGS)


def test_wrong_numbers_and_names_are_refused():
    for count in (0, 2000):
        with pytest.raises(UserError):
            SearchPlan(count)
    changes: list[dict[str, Any]] = [
        {"after": -1, "keep": 1},
        {"after": 1, "keep": 0},
        {"after": 1, "keep": 1, "by": "luck"},
    ]
    for wrong in changes:
        with pytest.raises(UserError):
            Cut(**wrong)
