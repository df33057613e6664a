from collections import Counter

from tfm_cli.text.repairs import Repairs


def test_counts_of_later_parts_are_added_and_the_first_line_stays() -> None:
    first, later = Repairs(), Repairs()
    for line in (3, 5):
        first.add("nul", line)
    later.add("nul", 9)
    later.add("clipped", 11)

    first.merge(later)

    assert first.notes(7) == [
        "lines with NUL characters, removed: 3 (first: line 3)",
        "lines cut at 7 bytes: 1 (first: line 11)",
    ]
    assert Repairs().notes(7) == []


def test_lines_may_be_counted_together_and_called_by_another_name() -> None:
    repairs = Repairs()

    repairs.add("invalid", 7, 3)
    repairs.add("invalid", 9)
    repairs.count_as("invalid", "left_out")

    assert repairs == Repairs(Counter(left_out=4), {"left_out": 7})
    assert repairs.notes(9) == [
        "lines with invalid UTF-8, left out together with their pair: 4 (first: line 7)"
    ]
