"""`finetune.py --eval-only`: the score of a checkpoint, or of a file of weights from elsewhere."""

from dataclasses import replace

import torch

from configs.schema import FinetuneConfig
from models.trunk import make_trunk, trunk_children
from models.weights import load_weights, read_weights
from utils.errors import UserError, printable
from utils.run.job import open_job, to_device
from utils.scoring.evaluation import EvaluationData, evaluate_models
from utils.training.evaluation import results_table


def evaluate_checkpoint(config: FinetuneConfig) -> int:
    """--eval-only: model, classes and normalisation are the file's where it tells them, sizes the command line's."""
    path = config.run.weights
    job = open_job(config, writes_checkpoints=False)
    file = read_weights(path, config.model.name, config.run.use_ema, job.world)
    if file.config is not None and file.classes is None:
        raise UserError(
            f"{path}: not a finetuned checkpoint (it names no classes); finetune from it with --weights first"
        )
    if config.run.select_val_resize_size and not file.holdout_fraction:
        raise UserError(f"{path}: was trained on all of train (data.holdout_fraction 0): nothing to choose a size on")
    if file.mean is not None:
        config = replace(config, data=replace(config.data, mean=tuple(file.mean), std=tuple(file.std)))
    data = EvaluationData.open(config, job, file.classes, file.holdout_fraction)
    job.check_files_agree(data.identities(), path)
    name = printable(file.model_name or config.model.name)
    network = make_trunk(name, len(data.val.classes)).classifier
    account = load_weights(network, file.weights, path, trunk_children(name), whole=True)
    job.say(f"{path}: layout: {file.layout}; {account}")
    job.say(file.evaluated_with(data.val.classes, config.data.mean, config.data.std))
    network = to_device(network, job.world.device, config.model, torch.float32)
    result = evaluate_models(config, job, {"ema" if config.run.use_ema else "model": network}, data)
    job.say(results_table(result["results"]))
    file_name = "frequency_sweep.json" if config.run.frequency_sweep else "evaluation.json"
    source = {"checkpoint": path, "step": file.step, "val_crop_size": config.data.val_crop_size}
    job.write_result(file_name, {**source, **result})
    return 0
