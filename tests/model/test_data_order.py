"""The order of the data is a pure function; every sequence comes once an epoch, skipped samples never."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.data import (
    END_OF_DOCUMENT,
    Corpus,
    find_documents,
    merge,
    next_samples,
    permute,
    sequence_of,
    split,
)

spans = st.lists(st.tuples(st.integers(0, 200), st.integers(1, 40)).map(lambda s: (s[0], s[0] + s[1])), max_size=6)


@given(size=st.integers(1, 700), key=st.integers(0, 2**64 - 1))
def test_a_permutation_hits_every_place_once(size, key):
    assert sorted(permute(index, size, key) for index in range(size)) == list(range(size))


@given(sequences=st.integers(2, 200), seed=st.integers(0, 2**32))
def test_each_sequence_comes_exactly_once_in_each_epoch(sequences, seed):
    for epoch in (0, 1, 5):
        span = range(epoch * sequences, (epoch + 1) * sequences)
        assert sorted(sequence_of(sample, sequences, seed) for sample in span) == list(range(sequences))


def test_epochs_and_seeds_have_orders_of_their_own():
    orders = {tuple(sequence_of(epoch * 100 + i, 100, seed) for i in range(100)) for epoch in (0, 1) for seed in (1, 2)}
    assert len(orders) == 4


def test_a_permutation_of_a_trillion_needs_no_table():
    assert 0 <= permute(10**12 - 1, 10**12, 7) < 10**12


@given(position=st.integers(0, 100), counts=st.lists(st.integers(0, 30), min_size=1, max_size=6), skip=spans)
def test_skipped_samples_are_never_used_and_the_next_ones_move_up(position, counts, skip):
    def free(sample):
        return not any(first <= sample < end for first, end in skip)

    used, at = [], position
    for count in counts:
        samples, at = next_samples(at, count, skip)
        used += samples
        assert len(samples) == count
        assert all(sample < at for sample in samples)
    expected = [sample for sample in range(position, position + 1000) if free(sample)][: len(used)]
    assert used == expected


@given(first=spans, second=spans)
def test_merged_ranges_hold_the_same_samples_and_do_not_touch(first, second):
    merged = merge(first, second)
    assert {s for a, b in merged for s in range(a, b)} == {s for a, b in first + second for s in range(a, b)}
    assert all(left[1] < right[0] for left, right in pairwise(merged))


def test_sequences_are_the_stream_of_all_documents(tmp_path):
    texts = [b"one", b"a longer text", b"", b"\xff\x00 bytes", b"last"]
    for number, text in enumerate(texts):
        (tmp_path / f"{number}.txt").write_bytes(text)
    stream = [token for text in texts if text for token in [*text, END_OF_DOCUMENT]]
    corpus = Corpus(find_documents([str(tmp_path / "*.txt")]), seq_len=5)
    assert corpus.sequences == (len(stream) - 1) // 5
    for index in range(corpus.sequences):
        assert corpus.sequence(index).tolist() == stream[index * 5 : index * 5 + 6]


def test_the_held_out_part_shares_nothing_with_the_training_part(tmp_path):
    for number in range(50):
        (tmp_path / f"{number:02}").write_text("text")
    documents = find_documents([str(tmp_path / "*")])
    train, held_out = split(documents, 0.1)
    assert len(held_out) == 5
    assert sorted(train + held_out) == documents
    assert split(documents, 0.0) == (documents, [])


def test_of_a_single_file_the_last_part_is_held_out(tmp_path):
    (tmp_path / "only").write_text("x" * 1000)
    ((kept,), (held,)) = split(find_documents([str(tmp_path / "only")]), 0.05)
    assert (kept.start, kept.length, held.start, held.length) == (0, 950, 950, 50)


def test_the_python_corpus_is_found_fast_and_always_the_same():
    began = time.monotonic()
    documents = find_documents(["python"])
    corpus = Corpus(split(documents, 0.05)[0], 128)
    assert time.monotonic() - began < 0.5
    assert corpus.sequences > 20_000
    assert corpus.fingerprint == Corpus(split(find_documents(["python"]), 0.05)[0], 128).fingerprint


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda folder: [str(folder / "nothing*")], "no file matches"),
        (lambda folder: [str(folder / "empty")], "empty"),
    ],
)
def test_missing_and_empty_data_is_an_error_that_says_where(tmp_path, make, word):
    (tmp_path / "empty").touch()
    with pytest.raises(ValueError, match=word) as caught:
        find_documents(make(tmp_path))
    assert str(tmp_path) in str(caught.value)


def test_less_than_one_sequence_is_an_error(tmp_path):
    (tmp_path / "short").write_text("abc")
    with pytest.raises(ValueError, match="less than one sequence"):
        Corpus(find_documents([str(tmp_path / "short")]), 100)
    assert Corpus([], 100, may_be_empty=True).sequences == 0


def test_a_file_cut_short_during_the_run_is_an_error(tmp_path):
    (tmp_path / "a").write_text("x" * 100)
    corpus = Corpus(find_documents([str(tmp_path / "a")]), 10)
    (tmp_path / "a").write_text("x" * 50)
    with pytest.raises(OSError, match="must not change"):
        corpus.sequence(8)
