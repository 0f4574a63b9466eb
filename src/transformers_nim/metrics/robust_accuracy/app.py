# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Show the metric's Space. (evaluate's own widget needs Gradio 3.)"""

import json
from pathlib import Path

import evaluate
import gradio


metric = evaluate.load(str(Path(__file__).with_name("robust_accuracy.py")), keep_in_memory=True)


def compute(predictions: str, references: str, confidence: float) -> dict:
    try:
        return metric.compute(
            predictions=json.loads(predictions), references=json.loads(references), confidence=confidence
        )
    except (ValueError, TypeError) as error:
        raise gradio.Error(str(error)) from error


demo = gradio.Interface(
    compute,
    inputs=[
        gradio.Textbox("[[3, 3, 3], [1, 1, 0], [2, 0, 1]]", label="predictions: for each image, one class per draw"),
        gradio.Textbox("[3, 1, 2]", label="references: the true classes"),
        gradio.Slider(0.5, 0.999, value=0.95, label="confidence"),
    ],
    outputs=gradio.JSON(label="results"),
    title="Robust accuracy",
    description=metric.description,
)

if __name__ == "__main__":
    demo.launch()
