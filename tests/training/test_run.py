# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The training loop: exact resume, diverged losses, logs, the best model and what is exported."""

import json
import math
import os
import shutil
import signal
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import accelerate
import datasets
import pytest
import torch
import transformers
from accelerate.state import AcceleratorState, GradientState
from conftest import random_picture, tiny_config
from safetensors.torch import load_file
from timm.utils import ModelEmaV3

from transformers_nim import NIMForPreTraining, NIMForRobustImageClassification, NIMImageProcessor
from transformers_nim.data.augmentation import LabelMixer, pretraining_transform
from transformers_nim.data.images import training_batches
from transformers_nim.data.loading import ImageData
from transformers_nim.model.noise import draw_noise, parse_sigma
from transformers_nim.training.mae import MaskedAutoencoder
from transformers_nim.training.optimization import make_optimizer, make_schedule, parameter_groups
from transformers_nim.training.run import RunOptions, TrainingDivergedError, TrainingRun
from transformers_nim.training.stop import StopVote
from transformers_nim.utils.interruption import Interrupted, raise_if_signaled
from transformers_nim.utils.seeding import image_generators


NUM_IMAGES, BATCH_SIZE, RATE = 20, 8, 1e-2


class Killed(BaseException):
    """No Exception, so that nothing can handle it."""


@dataclass
class Recipe:
    """A way to train; everything but the place where it happens."""

    task: str = "nim"
    total_steps: int = 9
    accumulation: int = 1
    ema_decay: float | None = None
    mixed_precision: str = "no"
    rate: float = RATE
    weight_decay: float = 0.05
    config: dict = field(default_factory=dict)
    options: dict = field(default_factory=dict)


RECIPES = {
    "plain": Recipe(),
    "accumulation": Recipe(accumulation=2, options={"max_grad_norm": 0.1}),
    "average": Recipe(ema_decay=0.9),
    "masked": Recipe("mae"),
    "bfloat16": Recipe(mixed_precision="bf16"),
    "fine-tuning": Recipe(
        "classifier",
        accumulation=2,
        ema_decay=0.5,
        config={"drop_path_rate": 0.5, "hidden_dropout_prob": 0.2, "attention_probs_dropout_prob": 0.1},
    ),
}


@cache
def image_data() -> ImageData:
    features = datasets.Features(
        {"image": datasets.Image(decode=False), "label": datasets.ClassLabel(names=list("abcde"))}
    )
    rows = {
        "image": [random_picture(seed) for seed in range(NUM_IMAGES)],
        "label": [seed % 5 for seed in range(NUM_IMAGES)],
    }
    images = datasets.Dataset.from_dict(rows, features=features)
    return ImageData("blocks", images, images, "image", "label", list("abcde"))


@pytest.fixture(autouse=True)
def _accelerate():
    yield
    AcceleratorState._reset_state(True)
    GradientState._reset_state()


class Training:
    """A run in a new process, as far as a process can be new twice."""

    def __init__(self, recipe: Recipe, output_dir: Path, resume: str | None = None, **options):
        AcceleratorState._reset_state(True)
        GradientState._reset_state()
        self.recipe = recipe
        self.accelerator = accelerate.Accelerator(
            cpu=True, gradient_accumulation_steps=recipe.accumulation, mixed_precision=recipe.mixed_precision
        )
        self.config = tiny_config(**recipe.config)
        # Always the same weights, and then whatever state a process may be in.
        torch.manual_seed(0)
        cls = NIMForRobustImageClassification if recipe.task == "classifier" else NIMForPreTraining
        model = cls(self.config)
        model = MaskedAutoencoder(model) if recipe.task == "mae" else model
        torch.seed()
        layer_decay = 0.5 if recipe.task == "classifier" else 1.0
        groups = parameter_groups(model, recipe.rate, recipe.weight_decay, layer_decay)
        optimizer = make_optimizer(groups, (0.9, 0.95))
        schedule = make_schedule(optimizer, "cosine", 2, recipe.total_steps)
        ema = ModelEmaV3(model, decay=recipe.ema_decay) if recipe.ema_decay is not None else None
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        defaults = {
            "output_dir": output_dir,
            "total_steps": recipe.total_steps,
            "total_batch_size": BATCH_SIZE,
            "steps_per_epoch": NUM_IMAGES / BATCH_SIZE,
            "seed": 3,
            "data_identity": "blocks, 20 images",
            "checkpointing_steps": 4,
            "resume_from_checkpoint": resume,
            "logging_steps": 3,
            "eval_steps": 3,
            "best_metric": "loss",
            "greater_is_better": False,
        }
        self.run = TrainingRun(
            self.accelerator,
            RunOptions(**{**defaults, **recipe.options, **options}),
            self.model,
            self.optimizer,
            schedule,
            NIMImageProcessor.from_config(self.config),
            ema,
        )

    def batches(self, first_batch: int):
        return training_batches(
            image_data(),
            3,
            pretraining_transform(self.config),
            BATCH_SIZE // self.recipe.accumulation,
            self.run.options.seed,
            first_batch=first_batch,
        )

    def compute_loss(self, batch) -> torch.Tensor:
        pixel_values = batch["pixel_values"]
        generators = image_generators(batch["noise_seed"], device="cpu")
        if self.recipe.task == "mae":
            return self.model(pixel_values, torch.stack([torch.rand(16, generator=g) for g in generators])).loss
        drawn, noise = draw_noise(pixel_values, parse_sigma(50), generator=generators)
        if self.recipe.task == "nim":
            return self.model(pixel_values, sigma=drawn[:, 0], pixel_noise=noise[:, 0]).loss
        pixel_values, labels = LabelMixer(5)(pixel_values, batch["labels"])
        return self.model(pixel_values, labels=labels, sigma=drawn[:, 0], pixel_noise=noise[:, 0]).loss

    def evaluate(self, model) -> dict[str, float]:
        # What a validation draws has no effect on the training that follows.
        torch.rand(5)
        weights = [parameter.double().norm().item() for parameter in model.parameters()]
        return {"loss": math.sin(1e3 * sum(weights)), "norm": sum(weights)}

    def fit(self, compute_loss=None, evaluate=None, kill_in: int | None = None, **options) -> dict[str, float]:
        compute_loss, evaluate = compute_loss or self.compute_loss, evaluate or self.evaluate

        def loss_or_death(batch):
            loss = compute_loss(batch)
            if kill_in is not None and self.run.step == kill_in - 1:
                raise Killed
            return loss

        return self.run.fit(self.batches, loss_or_death, evaluate, **options)

    def state(self) -> dict[str, object]:
        """Everything that the next step depends on."""
        found: dict[str, object] = {f"model {k}": v.clone() for k, v in self.model.state_dict().items()}
        optimizer = self.optimizer.state_dict()
        for index, state in optimizer["state"].items():
            found |= {f"optimizer {index} {k}": v.clone() for k, v in state.items()}
        found["groups"] = [{k: v for k, v in group.items() if k != "params"} for group in optimizer["param_groups"]]
        if self.run.ema is not None:
            found |= {f"average {k}": v.clone() for k, v in self.run.ema.module.state_dict().items()}
        schedule = self.run.scheduler.state_dict()
        found["schedule"] = [schedule[name] for name in ("last_epoch", "_step_count", "base_lrs", "_last_lr")]
        return found


def assert_same(actual: dict, expected: dict) -> None:
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        same = torch.equal(actual[name], value) if isinstance(value, torch.Tensor) else actual[name] == value
        assert same, name


def log(output_dir: Path) -> list[dict]:
    """Rows of the log without what is a matter of time."""
    if not (output_dir / "log.jsonl").exists():
        return []
    rows = [json.loads(line) for line in (output_dir / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "images_per_second"} for row in rows]


@pytest.mark.parametrize("name", RECIPES)
def test_killed_and_resumed_is_bit_for_bit_the_same(name, tmp_path):
    """In the midst of an epoch, of a window of the log, and after lines that will be written again."""
    recipe = RECIPES[name]
    whole = Training(recipe, tmp_path / "whole")
    whole_metrics = whole.fit()
    expected = whole.state()

    killed = Training(recipe, tmp_path / "killed")
    with pytest.raises(Killed):
        killed.fit(kill_in=8)
    assert killed.run.step == 7
    with open(tmp_path / "killed" / "log.jsonl", "a") as file:
        file.write('{"step": 7, "ep')
    resumed = Training(recipe, tmp_path / "killed", "latest")
    # 1.6 epochs; the window of the log began at step 3, and the log went on to step 6.
    assert resumed.run.step == 4
    assert [row["step"] for row in log(tmp_path / "killed")] == [3, 3]
    assert resumed.fit() == whole_metrics
    assert_same(resumed.state(), expected)
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    assert [row["step"] for row in log(tmp_path / "whole")] == [3, 3, 6, 6, 9, 9]
    assert resumed.run.best == whole.run.best
    best = [load_file(tmp_path / name / "best" / "model.safetensors") for name in ("killed", "whole")]
    assert_same(*best)


@pytest.mark.parametrize(("step", "where"), [(5, "update"), (6, "validation"), (9, "plot")])
def test_a_signal_saves_the_next_step_and_what_follows_is_bit_for_bit_the_same(tmp_path, step, where):
    """Also where the signal comes before or in the midst of what is due after a step."""
    recipe, plotted = RECIPES["average"], {"whole": [], "stopped": []}
    whole = Training(recipe, tmp_path / "whole")
    whole_metrics = whole.fit(draw=lambda model, at: plotted["whole"].append(at), image_steps=6)

    stopped = Training(recipe, tmp_path / "stopped")

    def signal_in(place):
        if place == where and stopped.run.step == (step - 1 if where == "update" else step):
            os.kill(os.getpid(), signal.SIGTERM)
            if where != "update":
                raise_if_signaled(stopped.accelerator)

    def compute_loss(batch):
        signal_in("update")
        return stopped.compute_loss(batch)

    def evaluate(model):
        signal_in("validation")
        return stopped.evaluate(model)

    def draw(model, at):
        signal_in("plot")
        plotted["stopped"].append(at)

    with pytest.raises(Interrupted) as interrupted:
        stopped.fit(compute_loss, evaluate, draw=draw, image_steps=6)
    path = tmp_path / "stopped" / f"checkpoint-{step}"
    assert interrupted.value.kept == f"step {step} of 9 is saved in {path}"
    assert interrupted.value.options == ("--resume_from_checkpoint", "latest")
    assert not [*(tmp_path / "stopped").glob("*.partial")]
    resumed = Training(recipe, tmp_path / "stopped", "latest")
    assert resumed.run.step == step
    assert resumed.fit(draw=lambda model, at: plotted["stopped"].append(at), image_steps=6) == whole_metrics
    assert_same(resumed.state(), whole.state())
    assert log(tmp_path / "stopped") == log(tmp_path / "whole")
    assert resumed.run.best == whole.run.best
    assert plotted["stopped"] == plotted["whole"] == [6, 9]


def test_a_signal_and_an_error_that_follows_from_it(tmp_path):
    """As where another process has ended before this one."""
    training = Training(RECIPES["plain"], tmp_path)

    def compute_loss(batch):
        if training.run.step == 6:
            os.kill(os.getpid(), signal.SIGTERM)
            raise RuntimeError("Connection closed by peer")
        return training.compute_loss(batch)

    with pytest.raises(
        Interrupted, match=r"the last complete checkpoint is .*checkpoint-4 .Connection closed by peer."
    ):
        training.fit(compute_loss)


def test_all_processes_stop_after_the_same_update():
    """On an accelerator the answer is read when it is there, by all after the same number of updates."""
    vote = StopVote(SimpleNamespace(num_processes=2, device=torch.device("cuda")))
    vote.add(torch.tensor(0.0))
    assert not vote.is_stop()
    # Told by the other process.
    vote.add(torch.tensor(0.5))
    assert not vote.is_stop()
    for expected in (False, True):
        vote.add(torch.tensor(1.0))
        assert vote.is_stop() == expected


def test_every_kind_of_randomness_is_at_work(tmp_path):
    """Or the test above would be an easy one: other seeds make other runs, in order, noise, dropout and mixup."""
    recipe = RECIPES["fine-tuning"]
    found = []
    for seed in (0, 1, 0):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        training = Training(recipe, tmp_path / "run", seed=seed, total_steps=2)
        training.fit()
        found.append(log(tmp_path / "run"))
    assert found[0] == found[2] != found[1]

    training = Training(recipe, tmp_path / "step", seed=0, total_steps=2)
    batch = next(training.batches(0))
    training.model.train()
    torch.manual_seed(0)
    losses = {training.compute_loss(batch).item() for _ in range(3)}
    assert len(losses) == 3


def test_resumed_twice_and_again_after_the_end(tmp_path):
    recipe = RECIPES["plain"]
    whole = Training(recipe, tmp_path / "whole", total_steps=8)
    metrics = whole.fit()
    expected, folder = whole.state(), tmp_path / "killed"
    for kill_in, resume, step in ((6, None, 0), (7, "latest", 4)):
        training = Training(recipe, folder, resume, total_steps=8)
        assert training.run.step == step
        with pytest.raises(Killed):
            training.fit(kill_in=kill_in)
    training = Training(recipe, folder, str(folder / "checkpoint-4"), total_steps=8)
    training.fit()
    assert_same(training.state(), expected)
    assert log(folder) == log(tmp_path / "whole")

    # Nothing is left to train. The figures are there all the same, and the log has them once.
    done = Training(recipe, folder, "latest", total_steps=8)
    assert done.run.step == 8
    assert done.fit(compute_loss=lambda batch: pytest.fail("a step too many")) == metrics
    assert_same(done.state(), expected)
    assert log(folder) == log(tmp_path / "whole")


def test_latest_begins_where_there_is_nothing(tmp_path, capsys):
    training = Training(Recipe(), tmp_path / "new", "latest")
    assert training.run.step == 0
    assert f"no checkpoint in {tmp_path / 'new'} yet: beginning at step 0" in capsys.readouterr().out


def test_validation_does_not_disturb_training(tmp_path):
    often = Training(RECIPES["fine-tuning"], tmp_path / "often", eval_steps=1, logging_steps=1, checkpointing_steps=1)
    often.fit(draw=lambda model, step: torch.rand(1), image_steps=1)
    expected = often.state()
    never = Training(RECIPES["fine-tuning"], tmp_path / "never", eval_steps=None)
    never.run.fit(never.batches, never.compute_loss)
    assert_same(never.state(), expected)


def test_trains_in_train_mode(tmp_path):
    """`from_pretrained` leaves models in eval mode."""
    training = Training(RECIPES["fine-tuning"], tmp_path, total_steps=2)
    training.model.eval()
    modes = []

    def compute_loss(batch):
        modes.append((training.model.training, training.model.denoiser.training))
        return training.compute_loss(batch)

    training.fit(compute_loss)
    assert modes == [(True, False)] * 4


def test_accumulated_passes_make_the_same_step(tmp_path):
    once = Training(Recipe(), tmp_path / "once", logging_steps=1)
    once.fit()
    expected, expected_log = once.state(), log(tmp_path / "once")
    twice = Training(Recipe(accumulation=2), tmp_path / "twice", logging_steps=1)
    twice.fit()
    for name, tensor in twice.model.state_dict().items():
        torch.testing.assert_close(tensor, expected[f"model {name}"], rtol=0, atol=2e-4)
    losses = [[row["loss"] for row in rows if "loss" in row] for rows in (log(tmp_path / "twice"), expected_log)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-6)


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite(tmp_path, accumulation, value):
    training = Training(Recipe(accumulation=accumulation), tmp_path, checkpointing_steps=2)
    states = []

    def compute_loss(batch):
        # The first pass of step 4.
        is_first = len(states) <= training.run.step
        states.extend([training.state()] if is_first else [])
        return training.compute_loss(batch) * (value if is_first and training.run.step == 3 else 1.0)

    with pytest.raises(TrainingDivergedError) as error:
        training.fit(compute_loss)
    message = str(error.value)
    assert message.startswith(f"the loss is {value} in step 4. Lower the learning rate")
    assert message.endswith(f"The last complete checkpoint is {tmp_path / 'checkpoint-2'}")
    assert_same(training.state(), states[3])
    # On with a lower rate, from the weights of step 2.
    gentle = Training(Recipe(accumulation=accumulation, rate=1e-3), tmp_path, "latest")
    assert_same(
        {k: v for k, v in gentle.state().items() if k.startswith(("model", "optimizer"))},
        {k: v for k, v in states[2].items() if k.startswith(("model", "optimizer"))},
    )
    gentle.fit()
    assert gentle.run.step == 9


@pytest.mark.parametrize("max_grad_norm", [None, 1.0])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite(tmp_path, max_grad_norm, value):
    """Of a finite loss: without a look at it, the weights of checkpoint-4 would be lost."""
    training = Training(
        Recipe(), tmp_path, checkpointing_steps=1, checkpoints_total_limit=2, max_grad_norm=max_grad_norm
    )
    bias = training.model.decoder.embed.bias
    bias.register_hook(lambda gradient: torch.full_like(gradient, value) if training.run.step == 3 else gradient)
    states = []

    def compute_loss(batch):
        states.append(training.state())
        return training.compute_loss(batch)

    with pytest.raises(TrainingDivergedError, match=rf"the gradient norm is {value} in step 4\..*checkpoint-3$"):
        training.fit(compute_loss)
    assert_same(training.state(), states[3])
    assert sorted(path.name for path in tmp_path.glob("checkpoint-*")) == ["checkpoint-2", "checkpoint-3"]


@pytest.mark.parametrize("is_fused", [True, False])
def test_diverged_between_two_looks(is_fused, tmp_path):
    """Nothing is learned after it, though what follows is finite, and the step is named."""
    training = Training(Recipe(), tmp_path, checkpointing_steps=6, eval_steps=6, logging_steps=6)
    for options in (training.optimizer.defaults, *training.optimizer.param_groups):
        options["fused"] = is_fused
    states = []

    def compute_loss(batch):
        states.append(training.state())
        return training.compute_loss(batch) * (math.nan if training.run.step == 3 else 1.0)

    with pytest.raises(TrainingDivergedError, match=r"the loss is nan in step 4\."):
        training.fit(compute_loss)
    # Where a step cannot be taken back, each is looked at.
    assert len(states) == (6 if is_fused else 4)
    assert_same(training.state(), states[3])
    assert log(tmp_path) == []


def test_diverged_without_a_checkpoint(tmp_path):
    training = Training(Recipe(), tmp_path)
    with pytest.raises(TrainingDivergedError, match=r"in step 1\..*The last complete checkpoint is none"):
        training.fit(lambda batch: training.compute_loss(batch) * math.nan)


def test_gradients_are_clipped(tmp_path):
    """By the norm over all parameters, after the passes of a step were added up."""
    training = Training(Recipe(accumulation=2), tmp_path, total_steps=1, max_grad_norm=1e-3)
    norms = []

    def watch(*args):
        gradients = [p.grad for p in training.model.parameters() if p.grad is not None]
        norms.append(torch.stack([gradient.norm() for gradient in gradients]).norm().item())

    training.optimizer.optimizer.register_step_pre_hook(watch)
    training.fit()
    assert norms == pytest.approx([1e-3], rel=1e-3)


def test_a_new_run_keeps_off_an_old_one(tmp_path):
    Training(Recipe(), tmp_path, total_steps=4).fit()
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    with pytest.raises(ValueError, match=r"holds the checkpoints of an earlier run \(checkpoint-4\)"):
        Training(Recipe(), tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 4}, "seed was 3 and is 4"),
        ({"total_batch_size": 16}, r"total_batch_size was 8 and is 16 \(per_device_train_batch_size x .*\)"),
        ({"data_identity": "blocks, 19 images"}, "data was 'blocks, 20 images' and is 'blocks, 19 images'"),
        ({"seed": 4, "total_batch_size": 16}, r"seed was 3 and is 4; total_batch_size was 8 and is 16 \(.*\)"),
    ],
)
def test_another_run_is_not_resumed(tmp_path, options, message):
    Training(Recipe(), tmp_path, total_steps=4).fit()
    rows = log(tmp_path)
    with pytest.raises(
        ValueError, match=f"checkpoint-4 belongs to another run: {message}. Pass what this run began with"
    ):
        Training(Recipe(), tmp_path, "latest", **options)
    assert log(tmp_path) == rows


@pytest.mark.parametrize(("before", "after", "word"), [(0.9, None, "with"), (None, 0.9, "without")])
def test_averages_do_not_come_and_go(tmp_path, before, after, word):
    Training(Recipe(ema_decay=before), tmp_path, total_steps=4).fit()
    with pytest.raises(ValueError, match=rf"checkpoint-4 was saved {word} averaged weights \(--ema_decay\)"):
        Training(Recipe(ema_decay=after), tmp_path, "latest")


def test_damaged_checkpoints(tmp_path):
    Training(Recipe(), tmp_path, total_steps=8).fit()
    (tmp_path / "checkpoint-8" / "optimizer.bin").unlink()
    with pytest.raises(ValueError, match=r"cannot resume from .*checkpoint-8: the file optimizer.bin is missing"):
        Training(Recipe(), tmp_path, str(tmp_path / "checkpoint-8"))
    assert Training(Recipe(), tmp_path, "latest").run.step == 4


def test_a_resumed_run_learns_at_the_rate_it_is_given(tmp_path):
    """Learning rate, weight decay and length are this run's, as its header and its results say."""
    Training(Recipe(), tmp_path, total_steps=4).fit()
    recipe = Recipe(rate=RATE / 10, weight_decay=0.5, total_steps=12)
    training = Training(recipe, tmp_path, "latest", logging_steps=1)
    # 2 steps of warm-up, 2 of 10 of the cosine.
    rate = RATE / 10 * (1 + math.cos(0.2 * math.pi)) / 2
    assert [(group["lr"], group["weight_decay"]) for group in training.optimizer.param_groups] == [
        (pytest.approx(rate), 0.0),
        (pytest.approx(rate), 0.5),
    ]
    training.fit()
    logged = {row["step"]: row["learning_rate"] for row in log(tmp_path) if "learning_rate" in row}
    assert logged[5] == pytest.approx(rate)
    assert logged[12] == pytest.approx(RATE / 10 * (1 + math.cos(0.9 * math.pi)) / 2)


@pytest.mark.parametrize(("before", "after"), [("no", "bf16"), ("bf16", "no"), ("no", "no"), (None, "bf16")])
def test_precision_that_changes_is_told(tmp_path, caplog, before, after):
    Training(Recipe(mixed_precision=before or "no"), tmp_path, total_steps=4).fit()
    manifest = tmp_path / "checkpoint-4" / "checkpoint.json"
    saved = json.loads(manifest.read_text())
    assert saved["state"]["mixed_precision"] == (before or "no")
    if before is None:
        # As earlier versions left it.
        del saved["state"]["mixed_precision"]
        manifest.write_text(json.dumps({name: saved[name] for name in ("files", "state")}))
    assert Training(Recipe(mixed_precision=after), tmp_path, "latest").run.step == 4
    told = [record.getMessage() for record in caplog.records if "mixed precision" in record.getMessage()]
    if before in (None, after):
        assert not told
    else:
        (message,) = told
        assert f"with mixed precision {before}, and this one goes on with {after}" in message
        assert f"Pass --mixed_precision {before}" in message


@pytest.mark.parametrize("is_old", [True, False])
def test_noise_that_is_drawn_otherwise_is_told(tmp_path, caplog, is_old):
    Training(Recipe(), tmp_path, total_steps=4).fit()
    manifest = tmp_path / "checkpoint-4" / "checkpoint.json"
    saved = json.loads(manifest.read_text())
    if is_old:
        # As earlier versions left it.
        del saved["state"]["noise"]
        manifest.write_text(json.dumps({name: saved[name] for name in ("files", "state")}))
    assert Training(Recipe(), tmp_path, "latest").run.step == 4
    told = [record.getMessage() for record in caplog.records if "which drew the noise" in record.getMessage()]
    assert len(told) == is_old


def test_a_run_that_goes_back_forgets_what_came_later(tmp_path):
    Training(Recipe(), tmp_path, total_steps=8, checkpointing_steps=2, checkpoints_total_limit=4).fit()
    options = {"checkpointing_steps": 1, "checkpoints_total_limit": 1}
    training = Training(Recipe(rate=1e-3), tmp_path, str(tmp_path / "checkpoint-2"), **options)
    with pytest.raises(Killed):
        training.fit(kill_in=4)
    assert [path.name for path in tmp_path.glob("checkpoint-*")] == ["checkpoint-3"]
    resumed = Training(Recipe(rate=1e-3), tmp_path, "latest", **options)
    assert resumed.run.step == 3
    assert_same(resumed.state(), training.state())


@pytest.mark.parametrize("accumulation", [1, 2])
def test_log_holds_means_over_its_windows(tmp_path, accumulation):
    training = Training(Recipe(accumulation=accumulation, total_steps=8), tmp_path)
    values = iter(range(1, 100))

    def compute_loss(batch):
        return training.compute_loss(batch) * 0.0 + next(values)

    training.fit(compute_loss)
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "loss" in row]
    assert [row["step"] for row in rows] == [3, 6, 8]
    # Losses 1, 2, 3 | 4, 5, 6 | 7, 8, or pairs of them.
    expected = {1: [2, 5, 7.5], 2: [3.5, 9.5, 14.5]}[accumulation]
    assert [row["loss"] for row in rows] == pytest.approx(expected)
    assert [row["epoch"] for row in rows] == [1.2, 2.4, 3.2]
    # The rate at which the step learned.
    assert [row["learning_rate"] for row in rows] == pytest.approx(
        [RATE * (1 + math.cos(math.pi * k / 6)) / 2 for k in (0, 3, 5)]
    )
    assert all(row["images_per_second"] > 0 for row in rows)


def test_speed_is_that_of_training(tmp_path, monkeypatch):
    """With a clock on which a step takes a second and a validation a minute."""
    clock = [0.0]
    monkeypatch.setattr("transformers_nim.training.run.time.monotonic", lambda: clock[0])

    def run(resume, kill_in=None):
        training = Training(Recipe(total_steps=8), tmp_path, resume, checkpointing_steps=2)

        def compute_loss(batch):
            clock[0] += 1
            return training.compute_loss(batch)

        def evaluate(model):
            clock[0] += 60
            return {"loss": 0.0}

        training.fit(compute_loss, evaluate, kill_in=kill_in)
        return training

    with pytest.raises(Killed):
        run(None, kill_in=6)
    assert run("latest").run.seconds == 8
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [row["images_per_second"] for row in rows if "loss" in row] == [BATCH_SIZE] * 3


@pytest.mark.parametrize(
    ("values", "greater", "best_step"),
    [
        ([0.5, 0.3, 0.4, 0.3], False, 2),
        ([0.5, 0.3, 0.4, 0.3], True, 1),
        ([0.1, 0.3, 0.4, 0.2], True, 3),
        ([math.nan, 0.5, math.nan, 0.6], False, 2),
        ([-math.inf, 0.5, math.inf, 0.4], False, 4),
    ],
)
def test_the_best_model_is_kept(tmp_path, values, greater, best_step):
    weights = []

    def evaluate(model):
        weights.append({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return {"accuracy": values[len(weights) - 1], "other": float(len(weights))}

    options = {"eval_steps": 1, "best_metric": "accuracy", "greater_is_better": greater, "checkpointing_steps": 2}
    training = Training(Recipe(total_steps=4), tmp_path, **options)
    assert training.fit(evaluate=evaluate)["other"] == 4
    value = values[best_step - 1]
    assert training.run.best == {
        "step": best_step,
        "metric": "accuracy",
        "value": value,
        "metrics": {"accuracy": value, "other": float(best_step)},
    }
    model = NIMForPreTraining.from_pretrained(tmp_path / "best")
    assert_same(dict(model.state_dict()), weights[best_step - 1])
    processor = NIMImageProcessor.from_pretrained(tmp_path / "best")
    assert processor(random_picture(0), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert not list(tmp_path.glob("best.*"))


def test_a_best_model_of_steps_that_are_done_again_is_forgotten(tmp_path):
    recipe, options = Recipe(total_steps=6), {"eval_steps": 1, "checkpointing_steps": 2}
    killed = Training(recipe, tmp_path, **options)
    with pytest.raises(Killed):
        killed.fit(evaluate=lambda model: {"loss": {1: 0.5, 2: 0.4, 3: 0.1}[killed.run.step]}, kill_in=4)
    assert json.loads((tmp_path / "best" / "best.json").read_text())["step"] == 3
    # This time it gets worse than it was at step 2, of which there are no weights any more.
    resumed = Training(recipe, tmp_path, "latest", **options)
    assert (resumed.run.step, resumed.run.best) == (2, None)
    resumed.fit(evaluate=lambda model: {"loss": 0.45})
    assert resumed.run.best == {"step": 3, "metric": "loss", "value": 0.45, "metrics": {"loss": 0.45}}
    assert json.loads((tmp_path / "best" / "best.json").read_text()) == resumed.run.best


def test_the_best_model_survives_a_resume(tmp_path):
    recipe, options = Recipe(total_steps=6), {"eval_steps": 1, "checkpointing_steps": 2}
    killed = Training(recipe, tmp_path, **options)
    losses = {1: 0.5, 2: 0.1, 3: 0.3, 4: 0.2, 5: 0.4, 6: 0.2}
    with pytest.raises(Killed):
        killed.fit(evaluate=lambda model: {"loss": losses[killed.run.step]}, kill_in=4)
    weights = load_file(tmp_path / "best" / "model.safetensors")
    resumed = Training(recipe, tmp_path, "latest", **options)
    assert resumed.run.step == 2
    resumed.fit(evaluate=lambda model: {"loss": losses[resumed.run.step]})
    assert resumed.run.best == {"step": 2, "metric": "loss", "value": 0.1, "metrics": {"loss": 0.1}}
    assert_same(load_file(tmp_path / "best" / "model.safetensors"), weights)


def test_an_unknown_metric(tmp_path):
    training = Training(Recipe(total_steps=2), tmp_path, best_metric="acuracy")
    with pytest.raises(ValueError, match=r"best_metric must be one of \['loss', 'norm'\], got 'acuracy'"):
        training.fit()


def test_without_validation(tmp_path):
    training = Training(Recipe(total_steps=2), tmp_path)
    assert training.run.fit(training.batches, training.compute_loss) == {}
    assert training.run.best is None
    assert not (tmp_path / "best").exists()


def test_pictures_are_drawn_when_they_are_due(tmp_path):
    training = Training(Recipe(total_steps=5), tmp_path)
    steps = []
    training.fit(draw=lambda model, step: steps.append((model is training.run.inner_model, step)), image_steps=2)
    assert steps == [(True, 2), (True, 4), (True, 5)]


def test_undecodable_images_are_remembered(tmp_path):
    def batches(first_batch):
        for number, batch in enumerate(training.batches(first_batch), start=first_batch):
            yield {**batch, "undecodable": [str(number)]}

    options = {"checkpointing_steps": 2, "total_steps": 4}
    training = Training(Recipe(), tmp_path, **options)
    training.run.fit(batches, training.compute_loss)
    training = Training(Recipe(), tmp_path, str(tmp_path / "checkpoint-2"), **options)
    assert training.run.undecodable == {"0", "1"}
    training.run.fit(batches, training.compute_loss)
    assert training.run.undecodable == {"0", "1", "2", "3"}


def test_averaged_weights_are_validated_and_exported(tmp_path):
    decay = 0.7
    training = Training(Recipe(ema_decay=decay), tmp_path, eval_steps=1)
    average = {name: tensor.double() for name, tensor in training.model.state_dict().items()}

    def evaluate(model):
        for name, tensor in training.model.state_dict().items():
            average[name] = decay * average[name] + (1 - decay) * tensor
        for name, tensor in model.state_dict().items():
            torch.testing.assert_close(tensor.double(), average[name], rtol=0, atol=1e-6)
        return {"loss": 0.0}

    training.fit(evaluate=evaluate)
    training.run.export(tmp_path / "exported")
    exported = NIMForPreTraining.from_pretrained(tmp_path / "exported")
    for name, tensor in exported.state_dict().items():
        torch.testing.assert_close(tensor.double(), average[name], rtol=0, atol=1e-6)
    weights = training.model.state_dict()
    assert (weights["decoder.embed.weight"] - average["decoder.embed.weight"]).abs().max() > 1e-3


def test_export_of_a_masked_autoencoder_is_a_nim_model(tmp_path):
    training = Training(Recipe("mae", total_steps=2), tmp_path)
    training.fit()
    for folder in (tmp_path / "exported", tmp_path / "best"):
        training.run.export(folder)
        assert "mask_token" not in "".join(load_file(folder / "model.safetensors"))
        model, info = NIMForPreTraining.from_pretrained(folder, output_loading_info=True)
        assert not info["missing_keys"]
        assert not info["unexpected_keys"]
        assert_same(dict(model.state_dict()), dict(training.run.inner_model.model.state_dict()))


@pytest.mark.parametrize("has_bars", [True, False])
def test_export_leaves_progress_bars_as_they_are(tmp_path, has_bars):
    (transformers.logging.enable_progress_bar if has_bars else transformers.logging.disable_progress_bar)()
    Training(Recipe(), tmp_path).run.export(tmp_path / "exported")
    assert transformers.logging.is_progress_bar_enabled() == has_bars


def test_what_is_exported_can_be_used(tmp_path):
    training = Training(RECIPES["fine-tuning"], tmp_path, total_steps=2)
    training.fit()
    training.run.export(tmp_path)
    pipe = transformers.pipeline("image-classification", model=str(tmp_path), sigma=None)
    scores = pipe(random_picture(0), top_k=5)
    pixel_values = pipe.image_processor(random_picture(0), return_tensors="pt")["pixel_values"]
    expected = training.run.ema.module(pixel_values, sigma=None).logits.softmax(-1)[0]
    assert [score["score"] for score in scores] == pytest.approx(expected.sort(descending=True).values.tolist())
