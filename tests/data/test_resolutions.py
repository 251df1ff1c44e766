"""Training batches of one resolution each: which one a step has, and which pictures."""

import dataclasses

import numpy as np

from infinity_jax.data.resolutions import ResolutionMix, batches


def test_resolutions_are_drawn_alike_by_all_and_by_a_longer_run():
    mix = ResolutionMix((32, 64, 96), (8, 4, 2), seed=3, steps=300)
    assert (np.bincount(mix.draws) > 70).all()
    longer = dataclasses.replace(mix, steps=500)
    assert np.array_equal(longer.draws[:300], mix.draws)
    assert not np.array_equal(dataclasses.replace(mix, seed=4).draws, mix.draws)
    assert mix.starts[-1] == sum(mix.batch_size_at(step) for step in range(300))


def test_mixed_batches_give_every_picture_once_an_epoch_wherever_they_start_and_however_they_are_shared():
    mix = ResolutionMix((32, 64), (4, 2), seed=0, steps=20)
    source = [{"id": i} for i in range(10)]

    def given(first_step, rows_of):
        made = batches(source, mix, first_step, lambda record, side: {**record, "side": side}, rows_of)
        return [(b["id"].tolist(), set(b["side"].tolist())) for b in made]

    whole = given(0, range)
    assert [len(ids) for ids, _ in whole] == [mix.batch_size_at(step) for step in range(20)]
    assert [sides for _, sides in whole] == [{mix.side_at(step)} for step in range(20)]
    read = [i for ids, _ in whole for i in ids]
    for epoch in range(len(read) // 10):
        assert sorted(read[10 * epoch : 10 * epoch + 10]) == list(range(10))
    assert given(7, range) == whole[7:]
    first, second = given(0, lambda size: range(size // 2)), given(0, lambda size: range(size // 2, size))
    assert [a + b for (a, _), (b, _) in zip(first, second, strict=True)] == [ids for ids, _ in whole]
