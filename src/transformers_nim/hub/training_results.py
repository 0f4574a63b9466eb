# Copyright 2026 the transformers-nim authors. Licensed under the Apache License, Version 2.0.
"""Save a finished run: model, image processor, results and card, and push them to the Hub."""

import argparse
import glob
import json
import re
import shlex
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi

from ..data.loading import ImageData
from ..training.arguments import public_arguments
from ..training.compute import compute_record
from ..training.launch import Plan
from ..training.run import TrainingRun
from ..training.start import Start
from ..utils.interruption import Interrupted, raise_if_signaled
from ..utils.output_folder import check_there
from ..utils.records import replace_file
from ..utils.text_table import plural
from ..utils.versions import package_versions
from .model_card import write_card
from .publication import LOCAL_FILES, check_repository, prepare


def create_repository(args: argparse.Namespace) -> str | None:
    """Make the repository before training, so that a wrong name or token shows at once.

    Returns:
        Its name, or None if nothing is to be pushed.

    Raises:
        ValueError: It can be no name of a repository.
    """
    if not args.push_to_hub:
        return None
    name = args.hub_model_id or Path(args.output_dir).resolve().name
    check_repository(name)
    return HfApi(token=args.hub_token).create_repo(name, private=args.hub_private_repo, exist_ok=True).repo_id


def save(
    run: TrainingRun,
    args: argparse.Namespace,
    plan: Plan,
    data: ImageData,
    task: str,
    summary: str,
    repository: str | None = None,
    start: Start | None = None,
) -> dict[str, Any]:
    """Write model, image processor, `all_results.json` and card; all processes call this, in [`deferred_signals`].

    Args:
        run: The run, trained.
        args: The command's arguments.
        plan: Its plan.
        data: Its data.
        task: `"pretraining"` or `"finetuning"`.
        summary: A sentence for the card that says what the model is.
        repository: Where it will be pushed to, or None.
        start: Checkpoint that the run began with, or None for a new model.

    Returns:
        What `all_results.json` holds.

    Raises:
        Interrupted: A signal has come to one of the processes since the last step. All is written first.
    """
    accelerator, output_dir = run.accelerator, Path(args.output_dir)
    if accelerator.is_main_process:
        # It alone writes here.
        check_there(output_dir)
    run.export(output_dir)
    run.gather_undecodable()
    results = _results(run, args, plan, data, task, start)
    if accelerator.is_main_process:
        replace_file(output_dir / "all_results.json", json.dumps(results, indent=2) + "\n")
        name = repository or output_dir.resolve().name
        files = _result_files(output_dir)
        write_card(output_dir, name=name, summary=summary, results=files, **_origin(output_dir, start))
        _print_undecodable(run, results)
        accelerator.print(f"model, image processor, card, all_results.json, log.jsonl: {output_dir}")
    try:
        raise_if_signaled(accelerator)
    except Interrupted as error:
        accelerator.end_training()
        raise Interrupted.of(error, _describe_saved(output_dir, repository), ()) from None
    return results


def push(run: TrainingRun, args: argparse.Namespace, task: str, repository: str | None) -> None:
    """Push what [`save`] has written, and end the processes' work together; all of them call this.

    Args:
        run: The run, saved.
        args: The command's arguments.
        task: `"pretraining"` or `"finetuning"`.
        repository: Where to push to, or None.

    Raises:
        ValueError: The folder is saved, but holds what must not be published, and nothing was pushed.
        Interrupted: A signal has come to this process.
    """
    accelerator, output_dir = run.accelerator, Path(args.output_dir)
    refused: list[str] = []
    try:
        if repository is not None and accelerator.is_main_process:
            refused = _push(run, output_dir, repository, f"NIM {task}, {plural(run.step, 'step')}", args.hub_token)
    except KeyboardInterrupt as error:
        raise Interrupted.of(error, _describe_saved(output_dir, repository), ()) from None
    accelerator.wait_for_everyone()
    accelerator.end_training()
    if refused:
        # Only now, so that no process waits for this one; the run can be continued and the folder pushed by hand.
        raise ValueError(
            f"{output_dir} is saved but was not pushed. Put right what follows, and push it with"
            f" python -m transformers_nim.commands.push {output_dir} --repo_id {repository} --push:\n- "
            + "\n- ".join(refused)
        )


def _describe_saved(output_dir: Path, repository: str | None) -> str:
    """Say that the run is at its end, and what is missing, as a sentence without a full stop."""
    text = f"training has ended, and the model in {output_dir} is whole"
    if repository is not None:
        words = shlex.join(["transformers-nim", "push", str(output_dir), "--repo_id", repository, "--push"])
        text += f"; only the push is missing: {words}"
    return text


def _results(
    run: TrainingRun, args: argparse.Namespace, plan: Plan, data: ImageData, task: str, start: Start | None
) -> dict[str, Any]:
    """Return what `all_results.json` holds."""
    images = run.step * plan.total_batch_size
    metrics = dict(run.metrics)
    num_validation = len(data.validation) if data.validation is not None else 0
    # Those that could be decoded.
    num_eval_images = metrics.pop("num_images", num_validation)
    return {
        "task": task,
        "dataset": data.name,
        "start": {"name": start.name, "license": start.license} if start is not None else None,
        "steps": run.step,
        "epochs": round(run.step / plan.steps_per_epoch, 4) if plan.steps_per_epoch else None,
        "total_batch_size": plan.total_batch_size,
        "learning_rate": plan.learning_rate,
        "compute": compute_record(task, args, run.inner_model.config, images),
        "metrics": metrics,
        "best": run.best,
        "validation_split": args.validation_split_name or "validation",
        "num_eval_images": num_eval_images,
        "undecodable_eval_images": num_validation - num_eval_images,
        "undecodable_images": len(run.undecodable),
        "seconds": round(run.seconds, 1),
        "images_per_second": round(images / run.seconds, 2) if run.seconds else None,
        "num_processes": run.accelerator.num_processes,
        "device": run.accelerator.device.type,
        "mixed_precision": run.accelerator.mixed_precision,
        # As of the last step.
        "arguments": public_arguments(args),
        "changes": run.changes,
        "settings_from": run.settings_from,
        "versions": package_versions("accelerate"),
    }


def _print_undecodable(run: TrainingRun, results: dict[str, Any]) -> None:
    if run.undecodable:
        # By the numbers in their names.
        rows = sorted(run.undecodable, key=lambda row: [int(number) for number in re.findall(r"\d+", row)])
        shown = ", ".join(rows[:10]) + (", ..." if len(rows) > 10 else "")
        run.accelerator.print(f"{plural(len(rows), 'image')} could not be decoded (replaced by others): rows {shown}")
    if results["undecodable_eval_images"]:
        left_out = plural(results["undecodable_eval_images"], "validation image")
        run.accelerator.print(f"{left_out} could not be decoded (left out)")


def _push(run: TrainingRun, output_dir: Path, repository: str, message: str, token: str | None) -> list[str]:
    """Push a folder; return what must be put right before, if anything."""
    publication = prepare(output_dir, repository, token=token)
    for note in publication.notes:
        run.accelerator.print(f"not checked: {note}")
    if publication.problems:
        return publication.problems
    try:
        url = HfApi(token=token).upload_folder(
            repo_id=repository,
            folder_path=output_dir,
            commit_message=message,
            # What was looked at, and nothing else.
            allow_patterns=[glob.escape(name) for name in publication.files],
            ignore_patterns=LOCAL_FILES,
        )
    # Of the Hub or of the way there. Other processes wait for this one, so it is told as what refuses a push is.
    except (OSError, ValueError) as error:
        return [f"the Hub did not take it: {error}"]
    run.accelerator.print(f"pushed: {url}")
    return []


def _origin(output_dir: Path, start: Start | None) -> dict[str, str | None]:
    """Return what a card says of license and start, unless somebody has written it there.

    Nobody but the owner of the training images can choose a license. That of a classifier from elsewhere is unknown
    until somebody has looked it up.
    """
    path = output_dir / "card.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    config = json.loads((output_dir / "config.json").read_text(encoding="utf-8"))
    found = {"license": "unknown" if config.get("classifier_config") else None}
    found |= {"base_model": start.name} if start is not None else {}
    return {name: value for name, value in found.items() if name not in known}


def _result_files(output_dir: Path) -> list[str]:
    """Return the result files that the card of a folder names already, such as evaluations, and this run's."""
    path = output_dir / "card.json"
    named = json.loads(path.read_text(encoding="utf-8")).get("results", []) if path.is_file() else []
    # A card cannot be made from files that are gone.
    there = [name for name in named if (output_dir / name).is_file()]
    return list(dict.fromkeys([*there, "all_results.json"]))
