# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Show the metric's Space. (evaluate's own widget needs Gradio 3.)"""

import json
from pathlib import Path

import evaluate
import gradio


metric = evaluate.load(str(Path(__file__).with_name("certified_accuracy.py")), keep_in_memory=True)


def compute(predictions: str, certified_radii: str, references: str, radii: str, confidence: float) -> dict:
    try:
        return metric.compute(
            predictions=json.loads(predictions),
            certified_radii=json.loads(certified_radii),
            references=json.loads(references),
            radii=json.loads(radii),
            confidence=confidence,
        )
    except (ValueError, TypeError) as error:
        raise gradio.Error(str(error)) from error


demo = gradio.Interface(
    compute,
    inputs=[
        gradio.Textbox("[3, 1, -1, 2]", label="predictions: for each image its class, -1 for abstaining"),
        gradio.Textbox("[0.6, 0.3, 0.0, 0.9]", label="certified_radii: how far each class is proven to hold"),
        gradio.Textbox("[3, 1, 4, 5]", label="references: the true classes"),
        gradio.Textbox("[0, 0.25, 0.5]", label="radii: where to tell the accuracy"),
        gradio.Slider(0.5, 0.999, value=0.95, label="confidence"),
    ],
    outputs=gradio.JSON(label="results"),
    title="Certified accuracy",
    description=metric.description,
)

if __name__ == "__main__":
    demo.launch()
