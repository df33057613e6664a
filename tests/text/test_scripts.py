import unicodedata

import pytest

from tfm_cli.text.scripts import belongs_without_spaces, count_scripts, script_without_spaces

WITHOUT = {
    "Han": "中漢々〇𠀀",
    "kana": "あアｱー゚"[:4],
    "other": "กกກཀကខកꀀㄅ",
}


@pytest.mark.parametrize("script", WITHOUT)
def test_scripts_without_spaces_are_known(script: str) -> None:
    assert {script_without_spaces(character) for character in WITHOUT[script]} == {script}


@pytest.mark.parametrize("character", "aéяωאبहதአ한1 .,、。！？")
def test_other_characters_have_no_such_script(character: str) -> None:
    assert script_without_spaces(character) is None


@pytest.mark.parametrize("character", "、。！？「」（）　")
def test_their_punctuation_belongs_to_them(character: str) -> None:
    assert belongs_without_spaces(character)


@pytest.mark.parametrize("character", "a.! -”한")
def test_characters_of_other_scripts_do_not_belong_to_them(character: str) -> None:
    assert not belongs_without_spaces(character)


def test_every_letter_that_unicode_names_so_is_known() -> None:
    names = ("CJK UNIFIED", "HIRAGANA LETTER", "KATAKANA LETTER", "THAI CHARACTER", "LAO LETTER",
             "TIBETAN LETTER", "MYANMAR LETTER", "KHMER LETTER")  # fmt: skip
    missing = [
        character
        for character in map(chr, range(0x323B0))
        if unicodedata.name(character, "").startswith(names)
        and script_without_spaces(character) is None
        and not 0x16A00 <= ord(character) < 0x17000
    ]

    assert missing == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("我们今天去学校。", True),
        ("使用 Python 的 print 函数", True),
        ("The capital of 中国 is called Beijing", False),
        ("강가의 집은 漢字", False),
        ("ผมไปโรงเรียน", True),
        ("12:30", False),
        ("", False),
    ],
)
def test_most_of_a_text_decides(line: str, expected: bool) -> None:
    assert count_scripts([line]).is_without_spaces == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("我们今天去学校，然后去图书馆。", True),
        ("東京大学総長選挙は行われた。", False),
        ("他们喜欢读日本的漫画，也学习假名、汉字、文法与发音，例如の。", True),
        ("ผมไปโรงเรียน", False),
    ],
)
def test_chinese_is_distinguished_from_japanese_by_kana(line: str, expected: bool) -> None:
    assert count_scripts([line]).is_chinese == expected
