# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""The training loop that both scripts share: updates, logs, validation, checkpoints, exact resume."""

import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.utils import logging

from ..data.images import Batch
from ..utils.extras import require
from ..utils.seeding import seed_step
from .checkpoints import find_checkpoint, load_checkpoint, replace_folder, require_empty_or_resumed, save_checkpoint
from .mae import MaskedAutoencoder


logger = logging.get_logger(__name__)


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient is no longer finite; checkpoints on disk are from before that."""


@dataclass(frozen=True)
class RunOptions:
    """What a run is asked to do.

    Attributes:
        output_dir: Folder of the run, which all processes share.
        total_steps: Updates in all.
        total_batch_size: Images per update, over all processes.
        steps_per_epoch: Updates in one pass over the images; 0 if their number is not known.
        seed: Seed of everything.
        data_identity: What has to be the same when a run is resumed, besides seed and batch.
        checkpointing_steps: Updates between checkpoints.
        checkpoints_total_limit: How many checkpoints to keep.
        resume_from_checkpoint: `"latest"`, the path of a checkpoint, or None to begin.
        eval_steps: Updates between validations; None for one at the end.
        logging_steps: Updates between lines of `log.jsonl`.
        max_grad_norm: Norm to which gradients are clipped, or None.
        best_metric: The figure by which the best model is chosen; None to keep none.
        greater_is_better: Whether a larger figure is the better one.
    """

    output_dir: Path
    total_steps: int
    total_batch_size: int
    steps_per_epoch: float
    seed: int
    data_identity: str
    checkpointing_steps: int
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    eval_steps: int | None = None
    logging_steps: int = 10
    max_grad_norm: float | None = None
    best_metric: str | None = None
    greater_is_better: bool = True


class TrainingRun:
    """Trains a model and keeps everything that is needed to go on after an interruption.

    Args:
        accelerator: From `accelerate`, with gradient accumulation set.
        options: What to do.
        model: The prepared model.
        optimizer: The prepared optimizer.
        scheduler: The schedule of the learning rate, not prepared.
        image_processor: Saved beside the model.
        ema: timm's `ModelEmaV3` of the model, or None. With it, averaged weights are validated and exported.

    Raises:
        ValueError: The folder holds checkpoints of another run, or the checkpoint to resume from is not whole.
    """

    def __init__(
        self,
        accelerator: Any,
        options: RunOptions,
        model: nn.Module,
        optimizer: Any,
        scheduler: Any,
        image_processor: Any,
        ema: Any = None,
    ):
        self.accelerator, self.options = accelerator, options
        self.model, self.optimizer, self.scheduler, self.ema = model, optimizer, scheduler, ema
        self.image_processor = image_processor
        self.step = 0
        self.seconds = 0.0
        self.best: dict[str, Any] | None = None
        self.metrics: dict[str, float] = {}
        # Of the updates since the last line of the log.
        self.losses: list[float] = []
        self.undecodable: set[str] = set()
        require_empty_or_resumed(options.output_dir, options.resume_from_checkpoint)
        if options.resume_from_checkpoint is not None:
            self._resume(options.resume_from_checkpoint)
        if accelerator.is_main_process:
            options.output_dir.mkdir(parents=True, exist_ok=True)
            self._cut_log()

    @property
    def inner_model(self) -> nn.Module:
        """The model without what Accelerate has wrapped around it."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def evaluation_model(self) -> nn.Module:
        """The model to validate with: averaged weights if there are any."""
        return self.ema.module if self.ema is not None else self.inner_model

    def fit(
        self,
        batches: Callable[[int], Iterator[Batch]],
        compute_loss: Callable[[Batch], torch.Tensor],
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        draw: Callable[[nn.Module, int], object] | None = None,
        image_steps: int | None = None,
    ) -> dict[str, float]:
        """Trains to the last step.

        Args:
            batches: From the number of batches that this process has had to those that follow.
            compute_loss: From a batch to the mean loss of its images.
            evaluate: From a model to figures by name; called by all processes.
            draw: Draws pictures of what a model does at a step; called by all processes.
            image_steps: Updates between drawings; None for one at the end.

        Returns:
            The figures of the last validation.

        Raises:
            TrainingDivergedError: The loss or the gradient is not finite.
            CheckpointError: A checkpoint cannot be written.
        """
        options, accelerator = self.options, self.accelerator
        stream = batches(self.step * accelerator.gradient_accumulation_steps)
        bar = require("tqdm.auto").tqdm(
            total=options.total_steps,
            initial=self.step,
            desc="training",
            unit="step",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
            smoothing=0.05,
        )
        window, first = time.monotonic(), self.step
        self.model.train()
        with bar:
            while self.step < options.total_steps:
                started, rate_of_step = time.monotonic(), max(self.scheduler.get_last_lr())
                self.losses.append(self._update(stream, compute_loss))
                self.seconds += time.monotonic() - started
                is_last = self.step == options.total_steps
                if is_last or self.step % options.logging_steps == 0:
                    rate = (self.step - first) * options.total_batch_size / (time.monotonic() - window)
                    row = {
                        "loss": sum(self.losses) / len(self.losses),
                        "learning_rate": rate_of_step,
                        "images_per_second": rate,
                    }
                    self._log(row)
                    bar.set_postfix(loss=f"{row['loss']:.4f}", images_per_s=f"{rate:.0f}")
                    self.losses, window, first = [], time.monotonic(), self.step
                bar.update()
                pause = time.monotonic()
                if evaluate is not None and (is_last or _is_due(self.step, options.eval_steps)):
                    self._evaluate(evaluate, bar)
                if draw is not None and (is_last or _is_due(self.step, image_steps)):
                    # A part of the model may draw, and FSDP2 gathers weights when the whole is called.
                    getattr(self.evaluation_model, "unshard", lambda: None)()
                    draw(self.evaluation_model, self.step)
                if self.step % options.checkpointing_steps == 0:
                    self._save_checkpoint()
                # What was done since is not training.
                window += time.monotonic() - pause
            if evaluate is not None and not self.metrics:
                # A run that was resumed after its last step.
                self._evaluate(evaluate, bar)
        return self.metrics

    def _update(self, stream: Iterator[Batch], compute_loss: Callable[[Batch], torch.Tensor]) -> float:
        """One step of the optimizer; returns the mean loss over all processes."""
        accelerator, options = self.accelerator, self.options
        seed_step(options.seed, self.step, accelerator.process_index)
        total = torch.zeros((), device=accelerator.device)
        mean_loss = math.nan
        for _ in range(accelerator.gradient_accumulation_steps):
            batch = next(stream)
            self.undecodable.update(batch.pop("undecodable"))
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
            with accelerator.accumulate(self.model):
                loss = compute_loss(batch)
                accelerator.backward(loss)
                total += loss.detach().float()
                if accelerator.sync_gradients:
                    # Before the weights change: what is in memory and on disk stays usable.
                    mean_loss = accelerator.reduce(total, "mean").item() / accelerator.gradient_accumulation_steps
                    self._check_finite("loss", mean_loss)
                    # Without a limit too: a finite loss can have a gradient that is not.
                    limit = math.inf if options.max_grad_norm is None else options.max_grad_norm
                    norm = accelerator.clip_grad_norm_(self.model.parameters(), limit)
                    # Mixed precision in fp16 skips steps with an overflow by itself.
                    if norm is not None and accelerator.mixed_precision != "fp16":
                        # Sharded by FSDP2, it can be one that each process holds a part of.
                        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
                        self._check_finite("gradient norm", float(norm))
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.step += 1
        if self.ema is not None and not accelerator.optimizer_step_was_skipped:
            self.ema.update(self.inner_model)
        self.scheduler.step()
        return mean_loss

    def _check_finite(self, what: str, value: float) -> None:
        if not math.isfinite(value):
            last = find_checkpoint(self.options.output_dir)
            raise TrainingDivergedError(
                f"the {what} is {value} in step {self.step + 1}. Lower the learning rate, warm up for longer or clip"
                f" gradients (--max_grad_norm 1). The last whole checkpoint is {last or 'none'}"
            )

    def _evaluate(self, evaluate: Callable[[nn.Module], dict[str, float]], bar: Any) -> None:
        self.metrics = evaluate(self.evaluation_model)
        self._log({f"eval_{name}": value for name, value in self.metrics.items()})
        if self.accelerator.is_main_process:
            hidden = ("_low", "_high", "num_images")
            shown = {name: value for name, value in self.metrics.items() if not name.endswith(hidden)}
            bar.write(f"step {self.step}: " + ", ".join(f"{name} {value:.4g}" for name, value in shown.items()))
        key = self.options.best_metric
        if key is None:
            return
        if key not in self.metrics:
            raise ValueError(f"best_metric must be one of {sorted(self.metrics)}, got {key!r}")
        value = self.metrics[key]
        sign = 1 if self.options.greater_is_better else -1
        # Nothing would ever be better than nan.
        if math.isfinite(value) and (self.best is None or sign * value > sign * self.best["value"]):
            self.best = {"step": self.step, "metric": key, "value": value, "metrics": self.metrics}
            replace_folder(self.accelerator, self.options.output_dir / "best", self._export_best)

    def export(self, folder: Path) -> None:
        """Writes model and image processor for `from_pretrained`; to be called by all processes."""
        accelerator = self.accelerator
        inner: Any = self.inner_model
        weights = self.ema.module.state_dict() if self.ema is not None else accelerator.get_state_dict(self.model)
        if isinstance(inner, MaskedAutoencoder):
            # The mask token has done its work.
            inner = inner.model
            weights = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
        if accelerator.is_main_process:
            # Its bar would tear the one of the training.
            has_bars = logging.is_progress_bar_enabled()
            logging.disable_progress_bar()
            inner.save_pretrained(folder, state_dict=weights)
            if has_bars:
                logging.enable_progress_bar()
            self.image_processor.save_pretrained(folder)

    def _export_best(self, folder: Path) -> None:
        self.export(folder)
        if self.accelerator.is_main_process:
            (folder / "best.json").write_text(json.dumps(self.best, indent=2) + "\n")

    def _save_checkpoint(self) -> None:
        self.gather_undecodable()
        state = {
            "seconds": self.seconds,
            "losses": self.losses,
            "best": self.best,
            "undecodable": sorted(self.undecodable),
            "identity": self._identity(),
            "mixed_precision": self.accelerator.mixed_precision,
        }
        ema = self.ema.module.state_dict() if self.ema is not None else None
        save_checkpoint(
            self.accelerator, self.options.output_dir, self.step, state, ema, self.options.checkpoints_total_limit
        )

    def gather_undecodable(self) -> None:
        """Gives every process the undecodable rows of all of them; to be called by all processes."""
        self.undecodable = set(require("accelerate.utils").gather_object(sorted(self.undecodable)))

    def _identity(self) -> dict[str, Any]:
        options = self.options
        return {"seed": options.seed, "total_batch_size": options.total_batch_size, "data": options.data_identity}

    def _resume(self, which: str) -> None:
        path = find_checkpoint(self.options.output_dir, which)
        if path is None:
            self.accelerator.print(f"no checkpoint in {self.options.output_dir} yet: beginning at step 0")
            return
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        state, ema = load_checkpoint(self.accelerator, path)
        # Checkpoints lie between updates. Counted in passes, an update can have begun when it now has more of them.
        self.accelerator.step = 0
        different = [
            f"{name} was {state['identity'][name]} and is {value}"
            for name, value in self._identity().items()
            if state["identity"][name] != value
        ]
        if different:
            raise ValueError(f"{path} belongs to another run: {'; '.join(different)}")
        precision = self.accelerator.mixed_precision
        # Earlier versions did not write it down.
        saved = state.get("mixed_precision", precision)
        if saved != precision and self.accelerator.is_main_process:
            logger.warning(
                f"{path} was saved by a run with mixed precision {saved}, and this one goes on with {precision}: it"
                f" will not learn exactly the same. Pass --mixed_precision {saved} if it should"
            )
        if (ema is None) != (self.ema is None):
            raise ValueError(f"{path} was saved {'without' if ema is None else 'with'} averaged weights (--ema_decay)")
        if ema is not None:
            self.ema.module.load_state_dict(ema)
        self.step, self.seconds, self.best = state["step"], state["seconds"], state["best"]
        self.losses, self.undecodable = state["losses"], set(state["undecodable"])
        best = self.options.output_dir / "best" / "best.json"
        if best.is_file() and json.loads(best.read_text())["step"] > self.step:
            # What is there is better than all before, but from steps that will be done again, maybe otherwise.
            self.best = None
        # Learning rate, schedule and weight decay are those of this run's arguments: who goes on with a lower rate,
        # after a loss that diverged for example, gets it.
        for group, own in zip(self.optimizer.param_groups, settings):
            group.update(own)
        # The schedule is a function of the step alone. It takes the last step again, to set the rates.
        place = {"last_epoch": self.step - 1, "_step_count": self.step}
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), **place})
        self.scheduler.step()
        self.accelerator.print(f"going on from {path} at step {self.step}")

    def _log(self, figures: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            row: dict[str, Any] = {"step": self.step}
            if self.options.steps_per_epoch:
                row["epoch"] = round(self.step / self.options.steps_per_epoch, 4)
            with open(self.options.output_dir / "log.jsonl", "a") as file:
                file.write(json.dumps(row | figures) + "\n")
        self.accelerator.log(figures, step=self.step)

    def _cut_log(self) -> None:
        """Drops lines of what will be done again, and one that was cut off."""
        path = self.options.output_dir / "log.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            # A run that has nothing left to train still validates once more.
            is_validation = any(name.startswith("eval_") for name in row)
            is_repeated = is_validation and row["step"] == self.step >= self.options.total_steps
            if row["step"] <= self.step and not is_repeated:
                kept.append(line)
        partial = path.with_suffix(".partial")
        partial.write_text("".join(f"{line}\n" for line in kept))
        os.replace(partial, path)


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
