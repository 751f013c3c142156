from rvqlm.metrics.speech_faults import (
    behind_end,
    coverage,
    doubled,
    longest_insertion,
    stutters,
)

SAID = [1, 2, 3, 4, 5, 6]


def test_what_is_right_has_no_fault():
    assert stutters(SAID, SAID) == behind_end(SAID, SAID) == longest_insertion(SAID, SAID) == 0
    assert coverage(SAID, SAID) == [1.0, 1.0, 1.0]


def test_each_fault_is_seen_and_others_are_not():
    stutter, ending, word = [1, 2, 1, 2, *SAID[2:]], [*SAID, 5, 6], [*SAID[:3], 7, 8, 9, *SAID[3:]]
    assert [stutters(SAID, h) for h in (stutter, ending, word)] == [1, 1, 0]
    assert [behind_end(SAID, h) for h in (stutter, ending, word)] == [0, 2, 0]
    assert [longest_insertion(SAID, h) for h in (stutter, ending, word)] == [2, 2, 3]


def test_a_wrong_sound_is_no_stutter():
    assert stutters(SAID, [1, 2, 2, 4, 5, 6]) == 0
    assert doubled([3, 3, 3, 3]) == 0  # a long sound
    assert behind_end(SAID, SAID[:4]) == 0


def test_what_is_lost_is_where_it_is():
    assert coverage(SAID, [1, 2, 3, 4]) == [1.0, 1.0, 0.0]
    assert coverage(SAID, []) == [0.0, 0.0, 0.0]
    assert coverage([], [1], parts=2) == [0.0, 0.0]
