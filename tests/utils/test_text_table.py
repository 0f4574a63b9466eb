# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
import pytest

from transformers_nim.utils.text_table import bullets, percent, plural, render_table, sigma_key, sigma_label


def test_numbers_are_right_aligned():
    assert render_table(["a", "bb"], [["long", "1"], ["c", "100"]]) == (
        "| a    |  bb |\n| ---- | --: |\n| long |   1 |\n| c    | 100 |"
    )


def test_words_are_left_aligned_and_the_last_column_is_not_padded():
    assert render_table(["a", "b", "c"], [["x", "yy", "a sentence"]], numbers=False) == (
        "| a | b  | c |\n| - | -- | --- |\n| x | yy | a sentence |"
    )


def test_percent():
    assert percent(0.71) == "71.0"
    assert percent(0.71, 0.647, 0.774) == "71.0 [64.7, 77.4]"


def test_names_of_sigma():
    assert [sigma_key(s) for s in (None, 0, 25.0, 2.5)] == ["off", "0", "25", "2.5"]
    assert [sigma_label(s) for s in (None, 25.0)] == ["off", "sigma 25"]


@pytest.mark.parametrize(
    ("number", "noun", "expected"),
    [
        (1, "process", "1 process"),
        (2, "process", "2 processes"),
        (1000, "image", "1,000 images"),
        (0, "pass", "0 passes"),
    ],
)
def test_plural(number, noun, expected):
    assert plural(number, noun) == expected
    assert plural(2, "index", "indices") == "2 indices"


def test_bullets_are_indented():
    text = bullets(["word " * 40, "short"])
    assert text.splitlines()[1].startswith("  word")
    assert text.splitlines()[-1] == "- short"
