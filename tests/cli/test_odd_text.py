"""What every command does with odd text: it is counted and said, and line i stays line i."""

from pathlib import Path

import pytest

from tests.text import text_faults as faults


def _cases(
    number: int, commands: tuple[faults.Command, ...], *, leave: str = ""
) -> pytest.MarkDecorator:
    """Parametrize by each text of a promise with each command.

    `make check` reads every text with one command, `make test` one text with every command.
    """
    texts = faults.FAULTS[number]
    return pytest.mark.parametrize(
        ("fault", "command"),
        [
            pytest.param(
                fault, command, id=f"{fault}-{command.__name__}",
                marks=() if command in faults.FAST
                else pytest.mark.slow if fault is texts[0] else pytest.mark.torture,
            )
            for fault in texts
            for command in commands
            if f"{command.__name__.partition('_')[0]}: {fault}" != leave  # a blank line is a line
        ],
    )  # fmt: skip


answered = faults.assert_answered
judged = faults.assert_judged


@_cases(21, faults.LENIENT)
def test_r21_invalid_utf8_is_replaced_and_line_i_stays_line_i(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(21, faults.STRICT)
def test_r21_invalid_utf8_is_refused_with_file_line_and_byte(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@_cases(22, faults.LENIENT)
def test_r22_nul_is_removed_and_counted(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(22, faults.STRICT)
def test_r22_nul_is_removed_and_counted_in_text_that_is_learned_from(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@_cases(23, faults.LENIENT)
def test_r23_line_ends_of_either_kind_end_lines(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(23, faults.STRICT)
def test_r23_mixed_line_ends_are_told_where_text_is_learned_from(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@_cases(24, faults.LENIENT)
def test_r24_byte_order_mark_is_dropped_and_other_encodings_are_refused(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(24, faults.STRICT)
def test_r24_byte_order_mark_is_no_text_to_learn_from(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@_cases(25, faults.LENIENT)
def test_r25_only_a_line_feed_ends_a_line(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(25, faults.STRICT)
def test_r25_only_a_line_feed_ends_a_line_of_a_corpus(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@_cases(26, faults.LENIENT)
def test_r26_blank_lines_are_lines(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(26, faults.STRICT)
def test_r26_blank_lines_of_a_corpus_are_no_fault(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@_cases(27, faults.LENIENT)
def test_r27_empty_text_has_no_lines(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(27, faults.STRICT, leave="evaluate: one line feed")
def test_r27_empty_text_is_nothing_to_learn_from(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@_cases(28, faults.LENIENT)
def test_r28_last_line_needs_no_line_feed(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(28, faults.STRICT)
def test_r28_last_line_of_a_corpus_needs_no_line_feed(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@_cases(31, faults.LENIENT)
def test_r31_compression_is_told_by_the_first_bytes_and_damage_by_name(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(31, faults.STRICT)
def test_r31_damaged_compression_is_never_a_short_corpus(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@_cases(32, faults.LENIENT)
def test_r32_binary_input_is_answered_line_by_line(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    answered(fault, command, tiny_model, tmp_path)


@_cases(32, faults.STRICT)
def test_r32_binary_input_is_refused_where_text_is_learned_from(
    fault: faults.Fault, command: faults.Command, tiny_model: Path, tmp_path: Path
) -> None:
    judged(fault, command, tiny_model, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fault", [fault for result in faults.FAULTS.values() for fault in result], ids=str
)
def test_r32_check_finds_what_is_the_matter(fault: faults.Fault, tmp_path: Path) -> None:
    faults.assert_reported(fault, tmp_path)
