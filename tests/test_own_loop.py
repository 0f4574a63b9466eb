# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The page about training in one's own loop: its snippets run, from top to bottom as in a notebook."""

import json
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from conftest import random_picture, save_with_processor, tiny_model
from training_runs import environment


ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "own_loop.md").read_text(encoding="utf-8")
SNIPPETS = {
    part.split("\n", 1)[0]: re.findall(r"```python\n(.*?)```", part, re.DOTALL) for part in PAGE.split("\n## ")[1:]
}
# What a snippet needs besides the first.
AFTER = {
    "Adversarial training in a Trainer": ["transformers' Trainer"],
    "Pretraining in a Trainer": ["transformers' Trainer"],
    "LoRA of the classifier alone": ["transformers' Trainer"],
    "int8": ["torch.export", "ONNX"],
}
NEEDS = {"LoRA of the classifier alone": "peft", "int8": "onnxruntime"}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A clone with pictures in it."""
    for split, number in (("train", 8), ("validation", 32)):
        for name in ("cat", "dog"):
            (tmp_path / "pictures" / split / name).mkdir(parents=True)
        for seed in range(number):
            random_picture(seed).save(tmp_path / "pictures" / split / ("cat", "dog")[seed % 2] / f"{seed}.png")
    (tmp_path / "model_cards").symlink_to(ROOT / "model_cards")
    (tmp_path / "outputs").mkdir()
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_section_has_one_snippet():
    assert all(len(snippets) == 1 for snippets in SNIPPETS.values())
    assert len(SNIPPETS) == 9
    assert SNIPPETS.keys() >= AFTER.keys() | NEEDS.keys()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("section", [name for name in list(SNIPPETS)[1:] if name not in ("torch.export", "ONNX")])
def test_snippet(section, folder, monkeypatch):
    pytest.importorskip(NEEDS.get(section, "torch"))
    # tests/model/test_modeling_nim.py compares the default backend, which compiles for minutes.
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    names: dict = {}
    for part in ("A model and pictures", *AFTER.get(section, []), section):
        text = SNIPPETS[part][0]
        if part != section and "trainer.train()" in text:
            # Its functions alone.
            text = text.split("\noptions = ")[0]
        exec(compile(text, f"docs/own_loop.md: {part}", "exec"), names)
    if section == "LoRA of the classifier alone":
        assert not [n for n, p in names["adapted"].named_parameters() if p.requires_grad and "denoiser" in n]
        assert (folder / "outputs" / "merged" / "model.safetensors").exists()
    if "options" in names:
        assert (folder / names["options"].output_dir / "checkpoint-2").exists()
    if section == "transformers' Trainer":
        assert names["model"].config.id2label == {0: "cat", 1: "dog"}


IN_PROCESSES = """
import json, sys, torch
import peft
from transformers import Trainer, TrainingArguments
from transformers_nim import NIMForRobustImageClassification
from transformers_nim.training import TrainingAttack, perturb_batch

class AdversarialTrainer(Trainer):
    def compute_loss(self, model, inputs, *args, **kwargs):
        if model.training:
            inputs = perturb_batch(model, inputs, TrainingAttack(eps=8 / 255, steps=2))
        return super().compute_loss(model, inputs, *args, **kwargs)

def data(size):
    images = torch.randn(size, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    return [{"pixel_values": image, "labels": row % 5, "generator": row} for row, image in enumerate(images)]

torch.manual_seed(0)
lora = peft.LoraConfig(target_modules=["q_proj", "v_proj"])
model = peft.get_peft_model(NIMForRobustImageClassification.from_pretrained("model"), lora)
options = TrainingArguments(
    sys.argv[1], max_steps=3, per_device_train_batch_size=4, per_device_eval_batch_size=int(sys.argv[2]),
    use_cpu=True, report_to=[], save_strategy="no", learning_rate=1e-2,
)
trainer = AdversarialTrainer(
    model, options, train_dataset=[{k: v for k, v in row.items() if k != "generator"} for row in data(24)],
    eval_dataset=data(36), compute_metrics=lambda p: {"accuracy": (p.predictions.argmax(-1) == p.label_ids).mean()},
)
before = trainer.evaluate()
trainer.train()
moved = [n for n, p in model.named_parameters() if p.requires_grad and "lora_B" in n and p.detach().any()]
if trainer.is_world_process_zero():
    print("RESULT", json.dumps([before["eval_accuracy"], before["eval_loss"], len(moved)]))
"""


@pytest.mark.slow
def test_in_two_processes(tmp_path):
    """All adapters are trained for several steps, also those in the denoiser; an evaluation is that of one process."""
    pytest.importorskip("peft")
    save_with_processor(tiny_model(), tmp_path / "model")
    (tmp_path / "train.py").write_text(IN_PROCESSES)
    results = []
    for num_processes, batch_size in ((1, 8), (2, 3)):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node"]
        done = subprocess.run(
            [*launcher, str(num_processes), "train.py", str(tmp_path / "out"), str(batch_size)],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        results.append(json.loads(done.stdout.split("RESULT ")[1].splitlines()[0]))
    (accuracy, loss, moved), (other_accuracy, other_loss, other_moved) = results
    assert accuracy == other_accuracy
    assert loss == pytest.approx(other_loss, rel=1e-4)
    # Query and value in two layers of the classifier, two of the denoiser and one of its decoder.
    assert moved == other_moved == 2 * (2 + 2 + 1)


def test_links():
    anchors = {re.sub(r"[^\w -]", "", name.lower()).replace(" ", "-") for name in SNIPPETS}
    for target in re.findall(r"\]\(#([^)]+)\)", PAGE):
        assert target in anchors
    for target in re.findall(r"\]\((?!https?:|#)([^)#]+)\)", PAGE):
        assert (ROOT / "docs" / target).exists(), target
