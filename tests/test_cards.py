# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
from huggingface_hub import ModelCard

from transformers_nim.cards import render_table, write_model_card


RESULTS = {
    "protocol": "Measured somehow.",
    "rows": [
        {
            "model": "De^3, sigma 50",
            "sigma": 50,
            "attack": "EOT-PGD",
            "mean": 41.5,
            "low": 33.0,
            "high": 50.25,
            "settings": {"norm": "Linf", "eps_255": 8, "steps": 40, "num_draws": 10},
        }
    ],
}


def test_table_is_aligned_markdown():
    table = render_table(["model", "clean", "attacked"], [["a", "99.0", "1.5"], ["longer name", "98.5", "40.0"]])
    assert table.splitlines() == [
        "| model       | clean | attacked |",
        "| ----------- | ----: | -------: |",
        "| a           |  99.0 |      1.5 |",
        "| longer name |  98.5 |     40.0 |",
    ]


def test_card_holds_the_results(tmp_path):
    table = render_table(["model", "EOT-PGD"], [["De^3, sigma 50", "41.5"]])
    path = write_model_card(tmp_path, "nim-digits", RESULTS, table, "A model.", "Much.", "digits", sigma=50)
    card = ModelCard.load(path)
    (result,) = card.data.eval_results
    assert result.metric_value == 41.5
    assert result.metric_args == {
        "sigma": 50,
        "low": 33.0,
        "high": 50.25,
        "norm": "Linf",
        "eps_255": 8,
        "steps": 40,
        "num_draws": 10,
    }
    assert card.data.pipeline_tag == "image-classification"
    for text in (table, "Measured somehow.", "A model.", "Much.", "sigma=50", "arxiv.org/abs/2302.01056"):
        assert text in card.text
