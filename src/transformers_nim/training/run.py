# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Train: updates, logs, validation, checkpoints, exact resume."""

import json
import math
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn
from transformers.utils import logging

from ..data.images import Batch
from ..utils.extras import require
from ..utils.interruption import Interrupted, deferred_signals, raise_if_signaled, signaled
from ..utils.output_folder import OutputFolderError, check_there
from ..utils.records import describe_change, replace_file
from ..utils.seeding import seed_step
from .checkpoints import (
    CheckpointError,
    agree_on_checkpoint,
    check_output_dir,
    last_checkpoint,
    load_checkpoint,
    read_state,
    replace_folder,
    save_checkpoint,
)
from .evaluation import gather_weights
from .identity import check_identity, setting_changes, uncompared
from .mae import MaskedAutoencoder
from .stop import StopVote


logger = logging.get_logger(__name__)

# Where noise comes from: the DataLoader's workers, one stream per image on the CPU (data/draws.py).
_NOISE = "workers"


class TrainingDivergedError(RuntimeError):
    """The loss or the gradient is no longer finite; the checkpoints on disk are from before."""


# They say more than a signal that has come at the same time.
_OWN_ERRORS = (TrainingDivergedError, CheckpointError, OutputFolderError)


@dataclass(frozen=True)
class RunOptions:
    """Options of a [`TrainingRun`].

    Attributes:
        output_dir: Folder of the run, which all processes share.
        total_steps: Number of updates.
        total_batch_size: Images per update, over all processes.
        steps_per_epoch: Updates per pass over the images; 0 if their number is unknown.
        seed: Seed of every draw.
        data_identity: Name and number of the images. A run resumes with the same ones, seed and batch size only.
        checkpointing_steps: Updates between checkpoints.
        task: What else must stay the same when the run is resumed, see [`identity`](identity.py).
        settings: What may change then; the steps after which it did are recorded.
        checkpoints_total_limit: Number of checkpoints to keep; None for all.
        resume_from_checkpoint: `"latest"`, the path of a checkpoint, or None for a new run.
        eval_steps: Updates between validations; None for a single one at the end.
        logging_steps: Updates between lines of `log.jsonl`, at which a diverged run stops.
        max_grad_norm: Norm to clip gradients to; None for no clipping.
        best_metric: Figure that chooses the best model; None to keep none.
        greater_is_better: Whether a larger figure is better.
    """

    output_dir: Path
    total_steps: int
    total_batch_size: int
    steps_per_epoch: float
    seed: int
    data_identity: str
    checkpointing_steps: int
    task: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    checkpoints_total_limit: int | None = None
    resume_from_checkpoint: str | None = None
    eval_steps: int | None = None
    logging_steps: int = 10
    max_grad_norm: float | None = None
    best_metric: str | None = None
    greater_is_better: bool = True


class TrainingRun:
    """A training that can be interrupted and resumed exactly.

    Args:
        accelerator: `accelerate.Accelerator` with its gradient accumulation set.
        options: Options.
        model: Prepared model.
        optimizer: Prepared optimizer.
        scheduler: Schedule of the learning rate, not prepared.
        image_processor: Image processor to save beside the model.
        ema: timm's `ModelEmaV3` of the model, or None. With it, averaged weights are validated and exported.

    Raises:
        ValueError: The folder holds checkpoints or the model of another run, or the checkpoint to resume from is not
            complete.
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
        # Losses of the updates since the last line of the log.
        self.losses: list[float] = []
        # Loss and gradient norm of updates by number, where they were computed, not read yet.
        self._unread: dict[int, torch.Tensor] = {}
        # 1 once one of them was not finite.
        self._diverged = torch.zeros((), device=accelerator.device)
        self.undecodable: set[str] = set()
        self._stop_vote = StopVote(accelerator)
        # Whether a signal has stopped the run before what was due after its last update: validation and plots.
        self._owes = False
        # Changed settings by the step after which they hold, and the step from which on they are known.
        self.changes: list[dict[str, Any]] = []
        self.settings_from = 0
        if options.resume_from_checkpoint is None:
            check_output_dir(options.output_dir, None)
        else:
            self._resume(options.resume_from_checkpoint)
        if accelerator.is_main_process:
            options.output_dir.mkdir(parents=True, exist_ok=True)
            self._cut_log()

    @property
    def inner_model(self) -> Any:
        """The model without Accelerate's wrappers."""
        return self.accelerator.unwrap_model(self.model)

    @property
    def evaluation_model(self) -> Any:
        """The model to validate: the averaged one, if there is one."""
        return self.ema.module if self.ema is not None else self.inner_model

    def fit(
        self,
        batches: Callable[[int], Iterator[Batch]],
        compute_loss: Callable[[Batch], torch.Tensor],
        evaluate: Callable[[Any], dict[str, float]] | None = None,
        draw: Callable[[Any, int], object] | None = None,
        image_steps: int | None = None,
    ) -> dict[str, float]:
        """Train to the last step.

        Args:
            batches: Function from the number of batches that this process has seen to the following ones.
            compute_loss: Objective: function from a batch, with `step` added, to the mean loss of its images.
            evaluate: Function from a model to figures by name; called by all processes.
            draw: Plots what a model does at a step; called by all processes.
            image_steps: Updates between plots; None for a single one at the end.

        Returns:
            Figures of the last validation.

        Raises:
            TrainingDivergedError: The loss or the gradient is not finite.
            CheckpointError: A checkpoint cannot be written.
            Interrupted: A signal has come to one of the processes (Ctrl-C, SIGTERM, SIGUSR1). A checkpoint is written
                first, after the same step in all of them, which is the next one for a single process.
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

        def look() -> None:
            is_last = self.step == options.total_steps
            if evaluate is not None and (is_last or _is_due(self.step, options.eval_steps)):
                self._evaluate(evaluate, bar)
            if draw is not None and (is_last or _is_due(self.step, image_steps)):
                # A part of the model may be plotted.
                gather_weights(self.evaluation_model)
                draw(self.evaluation_model, self.step)

        with deferred_signals(), bar:
            try:
                self._train(stream, compute_loss, look, (options.eval_steps, image_steps), bar)
                if evaluate is not None and not self.metrics:
                    # The run was resumed after its last step.
                    self._evaluate(evaluate, bar)
                raise_if_signaled(accelerator)
            except Interrupted as error:
                self._stop(error.number)
            except RuntimeError as error:
                number = signaled()
                if number is None or isinstance(error, _OWN_ERRORS):
                    raise
                # Mostly another process has ended, and cannot be waited for.
                what = " ".join(str(error).split())[:100]
                kept = f"the last complete checkpoint is {last_checkpoint(options.output_dir)} ({what})"
                raise self._interrupted(number, kept) from error
        return self.metrics

    def _train(
        self,
        stream: Iterator[Batch],
        compute_loss: Callable[[Batch], torch.Tensor],
        look: Callable[[], None],
        look_steps: tuple[int | None, ...],
        bar: Any,
    ) -> None:
        """Take all updates that are left, with what is due between them.

        Args:
            stream: Batches.
            compute_loss: Objective.
            look: Validates and plots, if that is due.
            look_steps: Updates between those.
            bar: Bar to advance.

        Raises:
            Interrupted: A signal has come to one of the processes.
        """
        options = self.options
        logged, first = self.seconds, self.step
        reads = (options.logging_steps, *look_steps, options.checkpointing_steps)
        if self._owes:
            look()
            self._owes = False
        self.model.train()
        started = time.monotonic()
        while self.step < options.total_steps:
            rate_of_step = max(self.scheduler.get_last_lr())
            self._update(stream, compute_loss)
            bar.update()
            is_last, is_stop = self.step == options.total_steps, self._stop_vote.is_stop()
            if not (is_last or is_stop or any(_is_due(self.step, every) for every in reads)):
                continue
            # First of all, so that nothing is logged, validated or saved that is not finite.
            self._read_figures()
            self.seconds += time.monotonic() - started
            if is_last or _is_due(self.step, options.logging_steps):
                rate = (self.step - first) * options.total_batch_size / (self.seconds - logged)
                row = {
                    "loss": sum(self.losses) / len(self.losses),
                    "learning_rate": rate_of_step,
                    "images_per_second": rate,
                }
                self._log(row)
                bar.set_postfix(loss=f"{row['loss']:.4f}", images_per_s=f"{rate:.0f}")
                self.losses, logged, first = [], self.seconds, self.step
            self._owes = is_last or any(_is_due(self.step, every) for every in look_steps)
            if is_stop:
                raise Interrupted(signaled() or signal.SIGTERM)
            look()
            self._owes = False
            if _is_due(self.step, options.checkpointing_steps):
                self._save_checkpoint()
            # Validation, plots and checkpoints do not count as training.
            started = time.monotonic()

    def _stop(self, number: int) -> NoReturn:
        """Write a checkpoint because of a signal; called by all processes.

        Raises:
            Interrupted: Says what was saved and how to go on.
        """
        path = self._save_checkpoint()
        self.accelerator.end_training()
        raise self._interrupted(number, f"step {self.step:,} of {self.options.total_steps:,} is saved in {path}")

    def _interrupted(self, number: int, kept: str) -> Interrupted:
        return Interrupted(number, kept, ("--resume_from_checkpoint", "latest"), ("--overwrite_output_dir",))

    def _update(self, stream: Iterator[Batch], compute_loss: Callable[[Batch], torch.Tensor]) -> None:
        """Take one step of the optimizer. Nothing here waits for an accelerator."""
        accelerator, options = self.accelerator, self.options
        seed_step(options.seed, self.step, accelerator.process_index)
        total = torch.zeros((), device=accelerator.device)
        for _ in range(accelerator.gradient_accumulation_steps):
            batch = next(stream)
            self.undecodable.update(batch.pop("undecodable"))
            batch = {name: value.to(accelerator.device, non_blocking=True) for name, value in batch.items()}
            batch["step"] = self.step
            with accelerator.accumulate(self.model):
                loss = compute_loss(batch)
                accelerator.backward(loss)
                total += loss.detach().float()
                if accelerator.sync_gradients:
                    self._guard_step(self._reduce(total))
                self.optimizer.step()
                self.optimizer.zero_grad()
        self.step += 1
        if self.ema is not None and not accelerator.optimizer_step_was_skipped:
            self.ema.update(self.inner_model)
        self.scheduler.step()

    def _reduce(self, loss: torch.Tensor) -> torch.Tensor:
        """Return the mean of a loss over the processes, and ask all whether to stop."""
        if self.accelerator.num_processes == 1:
            return loss
        loss, stop = self.accelerator.reduce(torch.stack([loss, self._stop_vote.own(loss)]), "mean")
        self._stop_vote.add(stop)
        return loss

    def _guard_step(self, loss: torch.Tensor) -> None:
        """Clip gradients, and make the optimizer skip this step and all others once a number is not finite.

        So memory and disk stay usable, though the number is read later. The device decides, because a look at the
        number would make every step wait for it.

        Args:
            loss: Sum of the losses of an update's passes.
        """
        # Without a limit the norm is computed too: a finite loss can have a gradient that is not.
        limit = math.inf if self.options.max_grad_norm is None else self.options.max_grad_norm
        norm = self.accelerator.clip_grad_norm_(self.model.parameters(), limit)
        # With FSDP2 each process may hold a part of the norm.
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        # fp16 skips steps with an overflow by itself. DeepSpeed may have no norm.
        is_fp16 = self.accelerator.mixed_precision == "fp16"
        norm = torch.zeros_like(loss) if norm is None or is_fp16 else torch.as_tensor(norm).to(loss)
        figures = torch.stack([loss, norm])
        self._unread[self.step + 1] = figures
        if is_fp16:
            return
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        if getattr(optimizer, "defaults", {}).get("fused"):
            self._diverged = torch.maximum(self._diverged, (~figures.isfinite().all()).to(self._diverged.dtype))
            # The way in which a gradient scaler tells a fused optimizer of an overflow.
            optimizer.found_inf = self._diverged
        else:
            self._read_figures()

    def _read_figures(self) -> None:
        """Read the losses of the last updates, and stop if one of their numbers is not finite."""
        unread, self._unread = self._unread, {}
        if not unread:
            return
        for step, (total, norm) in zip(unread, torch.stack(list(unread.values())).tolist()):
            loss = total / self.accelerator.gradient_accumulation_steps
            for what, value in (("loss", loss), ("gradient norm", norm)):
                if math.isfinite(value):
                    continue
                self._go_to(step - 1)
                raise TrainingDivergedError(
                    f"the {what} is {value} in step {step}. Lower the learning rate, warm up for longer or clip"
                    f" gradients (--max_grad_norm 1). The last complete checkpoint is"
                    f" {last_checkpoint(self.options.output_dir)}"
                )
            self.losses.append(loss)

    def _go_to(self, step: int) -> None:
        """Set number of updates and learning rates."""
        self.step = step
        # The schedule is a function of the step alone. Repeating its last step sets the rates.
        self.scheduler.load_state_dict({**self.scheduler.state_dict(), "last_epoch": step - 1, "_step_count": step})
        self.scheduler.step()

    def _evaluate(self, evaluate: Callable[[Any], dict[str, float]], bar: Any) -> None:
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
        """Write model and image processor for `from_pretrained`; called by all processes."""
        accelerator, inner = self.accelerator, self.inner_model
        weights = self.ema.module.state_dict() if self.ema is not None else accelerator.get_state_dict(self.model)
        if isinstance(inner, MaskedAutoencoder):
            # NIM classes have no mask token.
            inner = inner.model
            weights = {k.removeprefix("model."): v for k, v in weights.items() if k.startswith("model.")}
        if accelerator.is_main_process:
            # The bar of `save_pretrained` would disturb the one of the training.
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

    def _save_checkpoint(self) -> Path:
        self.gather_undecodable()
        state = {
            "seconds": self.seconds,
            "losses": self.losses,
            "best": self.best,
            "undecodable": sorted(self.undecodable),
            "identity": self._identity(),
            "settings": self.options.settings,
            "changes": self.changes,
            "settings_from": self.settings_from,
            "mixed_precision": self.accelerator.mixed_precision,
            "noise": _NOISE,
            "owes": self._owes,
        }
        ema = self.ema.module.state_dict() if self.ema is not None else None
        return save_checkpoint(
            self.accelerator, self.options.output_dir, self.step, state, ema, self.options.checkpoints_total_limit
        )

    def gather_undecodable(self) -> None:
        """Share the undecodable rows of each process with all; called by all processes."""
        self.undecodable = set(require("accelerate.utils").gather_object(sorted(self.undecodable)))

    def _identity(self) -> dict[str, Any]:
        options = self.options
        own = {"seed": options.seed, "total_batch_size": options.total_batch_size, "data": options.data_identity}
        return own | dict(options.task)

    def _resume(self, which: str) -> None:
        path = agree_on_checkpoint(self.accelerator, self.options.output_dir, which)
        if path is None:
            self.accelerator.print(f"no checkpoint in {self.options.output_dir} yet: beginning at step 0")
            return
        self._check_resumable(path)
        settings = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
        state, ema = load_checkpoint(self.accelerator, path)
        # Accelerate counts passes. Checkpoints lie between updates, also when an update now has more passes.
        self.accelerator.step = 0
        if (ema is None) != (self.ema is None):
            raise ValueError(f"{path} was saved {'without' if ema is None else 'with'} averaged weights (--ema_decay)")
        if ema is not None:
            self.ema.module.load_state_dict(ema)
        self.seconds, self.best = state["seconds"], state["best"]
        self.losses, self.undecodable = state["losses"], set(state["undecodable"])
        # Checkpoints of earlier versions lie behind all that was due.
        self._owes = state.get("owes", False)
        self._go_on_with(state)
        best = self.options.output_dir / "best" / "best.json"
        if best.is_file() and json.loads(best.read_text())["step"] > state["step"]:
            # It is from steps that will be repeated, maybe with other results, and it replaced the one from before.
            self.best = None
        # Learning rate, schedule and weight decay are those of this run's arguments: a user can lower the rate after
        # the loss has diverged.
        for group, own in zip(self.optimizer.param_groups, settings):
            group.update(own)
        self._go_to(state["step"])
        self.accelerator.print(f"going on from {path} at step {self.step}")

    def _go_on_with(self, state: Mapping[str, Any]) -> None:
        """Record the settings that are others than those of the checkpoint."""
        if "settings" not in state:
            self.settings_from = state["step"]
            return
        self.settings_from = state["settings_from"]
        changed = setting_changes(state["step"], state["settings"], self.options.settings)
        self.changes = [*state["changes"], *changed]
        if changed:
            shown = "; ".join(describe_change(one["name"], one["was"], one["is"]) for one in changed)
            self.accelerator.print(f"changed after step {state['step']}: {shown}")

    def _check_resumable(self, path: Path) -> None:
        """Refuse the checkpoint of another run, and warn where precision or the source of noise differ."""
        state = read_state(path)
        check_identity(path, state["identity"], self._identity())
        if not self.accelerator.is_main_process:
            return
        unknown = uncompared(state["identity"], self._identity())
        if "settings" not in state:
            logger.warning(
                f"{path} was saved by an earlier version, without hashes of its files and images and without its"
                " task: whether the files are whole, and whether arguments and images are those that this run began"
                " with, cannot be checked"
            )
        elif unknown:
            logger.warning(
                f"{path} was saved by another version: whether this run began with the same {', '.join(unknown)}"
                " cannot be checked"
            )
        precision = self.accelerator.mixed_precision
        # Checkpoints of earlier versions do not hold it.
        saved = state.get("mixed_precision", precision)
        if saved != precision:
            logger.warning(
                f"{path} was saved by a run with mixed precision {saved}, and this one goes on with {precision}: it"
                f" will not learn exactly the same. Pass --mixed_precision {saved} if it should"
            )
        if state.get("noise") != _NOISE:
            logger.warning(
                f"{path} was saved by an earlier version, which drew the noise of attacks, and on a GPU all noise,"
                " otherwise: a run that needs these goes on, but will not learn exactly what it would have learned"
            )

    def _log(self, figures: dict[str, float]) -> None:
        if self.accelerator.is_main_process:
            row: dict[str, Any] = {"step": self.step}
            if self.options.steps_per_epoch:
                row["epoch"] = round(self.step / self.options.steps_per_epoch, 4)
            check_there(self.options.output_dir)
            with open(self.options.output_dir / "log.jsonl", "a") as file:
                file.write(json.dumps(row | figures) + "\n")
        self.accelerator.log(figures, step=self.step)

    def repeat_last_rows(self) -> None:
        """Give the log's figures of the run's present step to the trackers, which have forgotten them."""
        path = self.options.output_dir / "log.jsonl"
        rows = map(json.loads, path.read_text().splitlines()) if path.exists() else ()
        for row in rows:
            if row["step"] == self.step:
                figures = {name: value for name, value in row.items() if name not in ("step", "epoch")}
                self.accelerator.log(figures, step=self.step)

    def _cut_log(self) -> None:
        """Drop the log's lines of steps that will be repeated, and an incomplete one."""
        path = self.options.output_dir / "log.jsonl"
        if not path.exists():
            return
        kept = []
        for line in path.read_text().splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            # A run with nothing left to train still validates once more.
            is_validation = any(name.startswith("eval_") for name in row)
            is_repeated = is_validation and row["step"] == self.step >= self.options.total_steps
            if row["step"] <= self.step and not is_repeated:
                kept.append(line)
        replace_file(path, "".join(f"{line}\n" for line in kept))


def _is_due(step: int, every: int | None) -> bool:
    return every is not None and step % every == 0
