import pytest

from tfm_cli.text.scripts import join_texts


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ([], ""),
        (["One.", "Two."], "One. Two."),
        (["One.", "", "Two."], "One. Two."),
        (["私は学校に", "行った。"], "私は学校に行った。"),
        (["行った。", "", "「はい」"], "行った。「はい」"),
        (["我们去了。", "Python 很有用。"], "我们去了。Python 很有用。"),
        (["他用 Visual", "Studio 写程序。"], "他用 Visual Studio 写程序。"),
        (["The city of 北京", "is large and has many parks."],
         "The city of 北京 is large and has many parks."),
        (["ผมไป", "โรงเรียน"], "ผมไปโรงเรียน"),
        (["ខ្ញុំទៅ", "សាលារៀន"], "ខ្ញុំទៅសាលារៀន"),
        (["ຂ້ອຍໄປ", "ໂຮງຮຽນ"], "ຂ້ອຍໄປໂຮງຮຽນ"),
        (["ကျောင်း", "သွားတယ်။"], "ကျောင်းသွားတယ်။"),
        (["བཀྲ་ཤིས་", "བདེ་ལེགས།"], "བཀྲ་ཤིས་བདེ་ལེགས།"),
        (["집은", "팔렸다."], "집은 팔렸다."),
        (["वह गया।", "वह आया।"], "वह गया। वह आया।"),
    ],
)  # fmt: skip
def test_parts_are_joined_as_their_script_is_written(texts: list[str], expected: str) -> None:
    assert join_texts(texts, [False] * len(texts)) == expected


def test_word_of_several_parts_is_one() -> None:
    assert join_texts(["see https://a", ".org/b", "now"], [False, True, False]) == (
        "see https://a.org/b now"
    )
