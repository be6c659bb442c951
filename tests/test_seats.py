"""Seats: which slot a prompt takes, what of it is known there, and that nothing wanted is thrown away."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from listening import Chain

from nomoat.sampling.seats import Seats, agree

A, B = list(range(20)), [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 30, 31, 32, 33, 34, 35]


def seats(count=3, states=False, spare=16):
    model = Chain.random(40, context_length=200)
    model.states = states
    return Seats(model, count, 200, 16, spare)


def read(found, tokens, **more):
    """Take a seat, read all of the text and leave; where it was and how much was known."""
    seat = found.take(tokens, **more)
    known, common = seat.read, seat.parted
    found.feed([seat], [seat.tokens[seat.read :]])
    assert found.memory.rows[seat.number] == list(tokens) == seat.tokens
    found.remember(seat)
    found.leave(seat)
    return seat.number, known, common


def test_a_text_goes_on_in_its_seat():
    found = seats()
    assert read(found, A) == (0, 0, 0)
    assert read(found, [*A, 21, 22]) == (0, 20, 20)
    assert read(found, [*A, 21, 23]) == (0, 21, 21)
    assert read(found, [*A, 21, 23]) == (0, 21, 21)  # the last token is left, for its logits
    assert read(found, [5, 6, 7]) == (1, 0, 0)
    assert read(found, [5, 6, 9]) == (2, 0, 0)  # two tokens in common are not worth looking for


def test_a_text_that_loses_much_is_copied_while_there_is_room():
    found = seats()
    read(found, A * 3)
    assert read(found, B) == (1, 10, 10)
    assert found.memory.rows[0] == A * 3
    assert read(found, A * 3) == (0, 59, 59)
    assert read(found, [*A, 39]) == (2, 20, 20)
    # No seat is empty now: a text is copied only if it would lose much ...
    found.spare = 20
    assert read(found, [*B[:10], 38]) == (1, 10, 10)
    assert read(found, [*A * 2, 37]) == (0, 40, 40)  # loses 20
    assert read(found, A * 3) == (0, 40, 40)
    assert read(found, [*A, *A[:19], 37]) == (2, 39, 39)  # would lose 21, and is copied over the one left longest ago
    assert found.memory.rows[0] == A * 3


def test_the_seat_left_longest_ago_is_written_over():
    found = seats()
    for first in (10, 20, 30):
        read(found, [first] * 9)
    read(found, [10] * 9)
    assert read(found, [1] * 9)[0] == 1
    assert read(found, [2] * 9)[0] == 2
    assert read(found, [3] * 9)[0] == 0


def test_a_busy_text_is_copied_not_cut():
    found = seats(2)
    seat = found.take(A)
    found.feed([seat], [A])
    assert read(found, [*A[:12], 39]) == (1, 12, 12)
    assert found.memory.rows[0] == A and seat.busy
    fork = found.fork(seat)
    assert fork.number == 1 and fork.tokens == A and fork.read == 20 and fork.busy
    found.rewind(fork, 25)
    assert fork.read == 20
    found.rewind(fork, 9)
    assert (fork.read, fork.waiting) == (9, 11)


def test_what_a_state_cannot_be_rewound_to_is_read_again():
    found = seats(states=True)
    seat = found.take(A)
    for start in (0, 8, 16):
        found.feed([seat], [A[start : start + 8]])
        found.remember(seat)
    found.leave(seat)
    assert read(found, [*A[:12], 39]) == (0, 8, 12)
    assert read(found, A, fresh=True) == (1, 0, 0)


def test_the_memory_grows_by_blocks():
    found = seats(1)
    assert found.memory.length == 16
    read(found, [1] * 20)
    assert found.memory.length == 32
    read(found, [2] * 190)
    assert found.memory.length == 190
    read(found, [2] * 200)
    assert found.memory.length == 200


@given(st.lists(st.integers(0, 2), max_size=40), st.lists(st.integers(0, 2), max_size=40), st.integers(0, 40))
def test_agree(one, other, same):
    other = one[:same] + other
    wanted = 0
    while wanted < min(len(one), len(other)) and one[wanted] == other[wanted]:
        wanted += 1
    assert agree(one, other) == wanted
