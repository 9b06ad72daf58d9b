"""Batches: padding, pieces, splits and orders, each against its definition."""

import itertools

import numpy as np
import pytest

from rmtjax import InputError
from rmtjax.finetune.data import Batches, Layout, Sequences, choose_lengths, split_off

PAD = 7


def sequences(lengths, regression=False):
    """Examples of given lengths, each of which begins with its own number and repeats no token of another."""
    ids = [np.arange(n, dtype=np.int32) + 1000 * (i + 1) for i, n in enumerate(lengths)]
    types = [(np.arange(n) >= n // 2).astype(np.int32) for n in lengths]
    labels = np.arange(len(lengths)) % 3
    return Sequences(ids, types, (labels / 2).astype(np.float32) if regression else labels.astype(np.int32))


def numbers(batch):
    """Return the indices of the examples in a batch of `sequences`, in the order of the request."""
    real = batch.weight > 0
    return (batch.ids[real][:, 0] // 1000 - 1)[np.argsort(batch.number[real])].tolist()


def same(batch, other):
    if batch is None or other is None:
        return batch is other
    return all(np.array_equal(a, b) and a.dtype == b.dtype for a, b in zip(batch, other, strict=True))


# --- lengths ------------------------------------------------------------------------------------------------------


def padded(lengths, to):
    """Tokens in all when each sequence is padded to the shortest that holds it."""
    return sum(min(x for x in to if x >= n) for n in lengths)


def best_by_trying(lengths, most, step, longest):
    top = -(-max(lengths) // step) * step
    grid = {n for n in range(step, top + 1, step) if longest is None or n < longest}
    grid |= {longest} if longest is not None and longest <= top else set()
    choices = itertools.chain.from_iterable(itertools.combinations(sorted(grid), k) for k in range(1, most + 1))
    return min(padded(lengths, to) for to in choices if max(to) >= max(lengths))


def test_lengths_pad_least():
    rng = np.random.default_rng(0)
    for _ in range(300):
        step, most = int(rng.integers(1, 6)), int(rng.integers(1, 5))
        lengths = rng.integers(1, 8 * step, rng.integers(1, 12))
        longest = None if rng.random() < 0.3 else int(rng.integers(lengths.max(), lengths.max() + 2 * step))
        found = choose_lengths(lengths, most, step, longest)
        case = (lengths.tolist(), most, step, longest, found)
        assert list(found) == sorted(set(found)) and len(found) <= most, case
        assert found[-1] >= lengths.max() and all(type(x) is int for x in found), case
        assert all(x % step == 0 or x == longest for x in found), case
        assert longest is None or found[-1] <= longest, case
        assert padded(lengths, found) == best_by_trying(lengths.tolist(), most, step, longest), case


def test_lengths_by_hand():
    assert choose_lengths(np.array([3, 3, 3, 60])) == (16, 64)
    assert choose_lengths(np.array([16, 17])) == (16, 32)
    assert choose_lengths(np.array([5, 50]), most=1) == (64,)
    assert choose_lengths(np.array([5, 50]), longest=50) == (16, 50)  # the model has no 64 positions
    assert choose_lengths(np.full(9, 12)) == (16,)  # a length that nothing needs is not compiled
    assert choose_lengths(np.arange(1, 129)) == (32, 64, 96, 128)


# --- pieces -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("regression", [False, True])
def test_a_batch_holds_every_example_once_as_it_is(regression):
    rng = np.random.default_rng(2)
    for _ in range(60):
        lengths = (4, 9, 16)
        data = sequences(rng.integers(1, 17, 40), regression)
        layout = Layout(lengths, int(rng.integers(1, 6)), int(rng.integers(1, 5)), PAD)
        which = rng.choice(40, rng.integers(1, 25), replace=False)
        least = layout.pieces(len(which))
        rows = least + layout.devices * int(rng.integers(3))
        batch = layout.arrange(data, which, None if rows == least else rows)
        assert batch.ids.shape == batch.mask.shape == batch.types.shape == (rows, layout.size, 16)
        assert batch.labels.shape == batch.weight.shape == batch.number.shape == (rows, layout.size)
        assert [x.dtype.name for x in batch] == [
            *["int32"] * 3, "float32" if regression else "int32", "float32", "int32", "int32",
        ]  # fmt: skip
        seen = []
        for row, column in itertools.product(range(rows), range(layout.size)):
            if batch.weight[row, column] == 0:  # fills up
                assert (batch.ids[row, column] == PAD).all()
                assert not batch.mask[row, column].any() and not batch.types[row, column].any()
                continue
            assert batch.weight[row, column] == 1
            k = int(batch.number[row, column])
            i = which[k]
            n = len(data.ids[i])
            seen.append(k)
            assert np.array_equal(batch.ids[row, column, :n], data.ids[i])
            assert np.array_equal(batch.types[row, column, :n], data.types[i])
            assert batch.mask[row, column].tolist() == [1] * n + [0] * (16 - n)
            assert (batch.ids[row, column, n:] == PAD).all() and not batch.types[row, column, n:].any()
            assert batch.labels[row, column] == data.labels[i]
        assert sorted(seen) == list(range(len(which)))
        # A piece is computed at the shortest length that holds all of it, and not at all if it is empty.
        for row in range(rows):
            held = batch.mask[row].sum(-1).max()
            wanted = 0 if held == 0 else 1 + next(k for k, n in enumerate(lengths) if n >= held)
            assert batch.bucket[row] == wanted


def test_devices_get_alike_shares():
    rng = np.random.default_rng(3)
    data = sequences(rng.integers(1, 33, 50))
    layout = Layout((8, 16, 32), 3, 4, PAD)
    which = rng.permutation(50)[:45]
    batch = layout.arrange(data, which)
    assert len(batch.bucket) == layout.pieces(45) == 16  # 45 of 12 a round: 4 pieces each
    shares = []
    for rows in np.split(np.arange(16), 4):
        real = batch.weight[rows] > 0
        shares.append(batch.mask[rows].sum(-1)[real].tolist())
        assert shares[-1] == sorted(shares[-1], reverse=True)  # so pieces are alike within
        assert (np.diff(batch.bucket[rows]) <= 0).all()
    assert [len(x) for x in shares] == [12, 11, 11, 11]
    # Dealt out like cards from the longest on: each round goes down from device to device.
    rounds = [x[k] for k in range(12) for x in shares if k < len(x)]
    assert rounds == sorted(rounds, reverse=True)


def test_batches_of_any_size_have_one_shape():
    data = sequences(np.full(20, 3))
    layout = Layout((4,), 2, 3, PAD)
    shapes = {layout.arrange(data, np.arange(n), layout.pieces(20)).ids.shape for n in range(1, 21)}
    assert shapes == {(12, 2, 4)}
    assert [layout.pieces(n) for n in (1, 6, 7, 12, 13)] == [3, 3, 6, 6, 9]
    assert [layout.arrange(data, np.arange(n)).bucket.sum() for n in (1, 3, 4, 6, 7)] == [1, 3, 3, 3, 4]


# --- the split for α ----------------------------------------------------------------------------------------------


def test_split_off_is_disjoint_and_complete():
    for count, share in ((2, 0.5), (10, 0.2), (11, 0.2), (1000, 0.333), (7, 0.99)):
        if round(share * count) in (0, count):
            continue
        own, kept = split_off(count, share, 0)
        assert len(kept) == round(share * count)
        assert sorted([*own, *kept]) == list(range(count))
        assert list(own) == sorted(own) and list(kept) == sorted(kept)
    drawn = [tuple(split_off(100, 0.2, seed)[1]) for seed in range(20)]
    assert len(set(drawn)) == 20 and drawn[3] == tuple(split_off(100, 0.2, 3)[1])
    assert len({i for kept in drawn for i in kept}) > 80  # from everywhere: a given example stays out with 0.8²⁰


def test_a_share_of_one_gives_all_to_both():
    own, kept = split_off(9, 1, 5)
    assert own.tolist() == kept.tolist() == list(range(9))


@pytest.mark.parametrize(
    ("count", "share", "says"),
    [
        (10, 0.0, r"val_split = 0.0: must be a finite number in \(0, 1\]"),
        (10, -0.1, "val_split = -0.1: must be"),
        (10, 1.01, "val_split = 1.01: must be"),
        (10, float("nan"), "val_split = nan: must be"),
        (4, 0.1, "val_split = 0.1: leaves none of the 4 examples for α"),
        (4, 0.9, "val_split = 0.9: leaves none of the 4 examples for the adapters"),
        (1, 0.5, "val_split = 0.5: leaves"),
    ],
)
def test_splits_that_cannot_be(count, share, says):
    with pytest.raises(InputError, match=says):
        split_off(count, share, 0)


# --- the batches of a run -----------------------------------------------------------------------------------------

LAYOUT = Layout((8, 16), 2, 2, PAD)
DATA = sequences(np.random.default_rng(4).integers(1, 17, 23))


def made(seed=0, alpha=None, batch_size=5, epochs=4):
    return Batches(DATA, LAYOUT, batch_size, epochs, seed, alpha)


def epoch(batches, k):
    """The examples of each batch of an epoch."""
    return [numbers(batches[k * batches.steps_per_epoch + i][0]) for i in range(batches.steps_per_epoch)]


def test_each_epoch_has_every_example_once_in_an_order_of_its_own():
    batches = made()
    assert (batches.steps_per_epoch, batches.steps) == (5, 20)
    orders = []
    for k in range(4):
        found = epoch(batches, k)
        assert [len(x) for x in found] == [5, 5, 5, 5, 3]  # the last is ragged, and nothing is dropped
        orders.append(tuple(itertools.chain.from_iterable(found)))
        assert sorted(orders[-1]) == list(range(23))
    others = [tuple(itertools.chain.from_iterable(epoch(made(seed), 0))) for seed in range(1, 10)]
    assert len({*orders, *others}) == 13
    assert tuple(range(23)) not in orders
    assert all(same(batches[step][0], made()[step][0]) for step in range(20))


def test_batch_larger_than_the_data():
    batches = made(batch_size=100)
    assert (batches.steps_per_epoch, batches.steps) == (1, 4)
    assert sorted(numbers(batches[3][0])) == list(range(23))


@pytest.mark.parametrize("alpha", [None, (3, 4, 0.3)])
def test_a_batch_does_not_depend_on_what_was_asked_before(alpha):
    asked = made(alpha=alpha)
    wanted = {step: asked[step] for step in np.random.default_rng(0).permutation(20).tolist()}
    forward = made(alpha=alpha)
    for step in range(asked.steps):
        for one, other in zip(wanted[step], forward[step], strict=True):
            assert same(one, other)
    shapes = {b.ids.shape for pair in wanted.values() for b in pair[:1]}
    assert shapes == {asked[0][0].ids.shape}


@pytest.mark.parametrize("alpha", [None, (3, 2, 0.3)])
def test_iterating_is_indexing(alpha):
    batches = made(alpha=alpha)
    for start, stop in ((0, batches.steps), (3, 11), (batches.steps - 1, batches.steps), (6, 6)):
        found = list(batches.iterate(start, stop))
        assert len(found) == stop - start
        for step, pair in zip(range(start, stop), found, strict=True):
            assert all(same(a, b) for a, b in zip(pair, batches[step], strict=True))


def test_alpha_has_fresh_batches_of_its_own_split():
    size, every = 4, 3
    for seed in range(3):
        batches = made(seed, (size, every, 0.4), epochs=12)
        own, kept = (set(x.tolist()) for x in split_off(23, 0.4, seed))
        assert len(kept) == 9
        adapters, moves, like = set(), [], [(x.shape, x.dtype) for x in batches[every - 1][1]]
        for step in range(batches.steps):
            batch, fresh = batches[step]
            adapters |= set(numbers(batch))
            if (step + 1) % every:
                assert not any(x.any() for x in fresh)  # zeros, of one shape and type
            else:
                moves.append(numbers(fresh))
            assert [(x.shape, x.dtype) for x in fresh] == like
        assert adapters == own
        assert all(len(x) == size for x in moves)
        drawn = list(itertools.chain.from_iterable(moves))
        assert len(drawn) > 27
        rounds = [drawn[k : k + 9] for k in range(0, len(drawn) - 8, 9)]
        assert all(set(x) == kept for x in rounds)  # none comes again before all were used
        assert len({tuple(x) for x in rounds}) == len(rounds)


def test_alpha_batches_are_no_larger_than_its_split():
    batches = made(alpha=(50, 1, 0.2))
    kept = split_off(23, 0.2, 0)[1]
    assert sorted(numbers(batches[0][1])) == kept.tolist()


def test_a_split_of_one_shares_all_the_data():
    batches = made(alpha=(5, 1, 1.0))
    assert sorted(itertools.chain.from_iterable(epoch(batches, 0))) == list(range(23))
    drawn = [i for step in range(batches.steps) for i in numbers(batches[step][1])]
    assert set(drawn[:20]) <= set(range(23)) and len(set(drawn[:20])) == 20
    assert set(drawn) == set(range(23))
    assert sorted(numbers(batches[0][0])) != sorted(numbers(batches[0][1]))  # fresh, not the batch of the adapters


def test_a_split_that_leaves_nothing():
    with pytest.raises(InputError, match=r"val_split = 0.01: leaves none of the 23 examples for α"):
        made(alpha=(5, 1, 0.01))
