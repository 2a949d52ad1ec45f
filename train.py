"""One command = one run = one row of a table: ``python train.py --help``."""

from pathlib import Path

import hydra
from omegaconf import DictConfig

from tasks.config import with_home
from tasks.data import open_datasets, with_classes
from tasks.errors import InputError, say
from tasks.miniatures import exists_for_task
from tasks.protocol import accumulated_batches, check_facts, stand_in
from tasks.runs import launch
from tasks.runs.directory import Run
from tasks.runs.plan.plan import Plan
from tasks.schema import check_config, names_weights


@hydra.main(str(Path(__file__).parent / "configs"), "train", version_base="1.3")
@launch.one_run
def train(cfg: DictConfig) -> Run | Plan | None:
    check_config(cfg)
    check_facts(cfg)
    cfg = with_home(cfg)
    if cfg.mode == "plan":
        from tasks.runs.plan.making import make_plan

        return make_plan(cfg)
    generates = bool(stand_in(cfg.data)) and not exists_for_task(cfg.task.name, cfg.data.root)
    if generates or names_weights(cfg):
        from tasks.models import check_network

        check_network(cfg)  # before data are generated or opened, which takes longer
    if generates and cfg.checkpoint is not None and cfg.checkpoint.endswith(".ckpt"):
        from tasks.models.checkpoint import read_checkpoint

        read_checkpoint(cfg.checkpoint)  # for what is wrong with the file itself
    datasets = open_datasets(cfg)
    cfg = with_classes(cfg, datasets.train.class_names)

    # torch only from here on: a mistake in the configuration or missing data is answered at once.
    import pytorch_lightning as pl

    from tasks.data.loading import DataModule
    from tasks.models import build_model, check_training_size, scaled_norm
    from tasks.models.checkpoint import load_weights
    from tasks.prediction.consistency import recorded_mismatch
    from tasks.prediction.submission import ARCHIVE, CONVERTED, write_submission
    from tasks.runs import training
    from tasks.runs.loggers import finish_loggers
    from tasks.runs.result import Outcome, final_outcome, make_result, print_row

    pl.seed_everything(cfg.seed, workers=True, verbose=False)
    model = build_model(cfg)
    check_training_size(model, cfg)
    convert = bool(cfg.get("convert"))
    if cfg.checkpoint is not None:
        norm = scaled_norm(cfg) if cfg.mode == "test" else None
        categories = getattr(datasets.eval, "category_ids", None)
        load_weights(model, cfg.checkpoint, norm, categories, convert)
    if cfg.mode == "train":
        training.bound_windows(cfg, model)
    module = training.make_module(cfg, model, datasets.eval)
    data = DataModule(cfg, datasets)
    if cfg.mode == "test":
        trainer = training.evaluator(cfg)
        if datasets.eval.labelled:
            training.evaluate(trainer, module, data)
        else:
            folder = Path(cfg.checkpoint).parent
            name = CONVERTED if convert else ARCHIVE  # beside the run's own
            archive = write_submission(module, trainer, data, folder, name)
            if trainer.is_global_zero:
                print(f"{cfg.data.eval_split} has no public labels; to be submitted: {archive}")
        return None

    world_size = training.world_size(cfg.trainer)
    cfg.trainer.accumulate = accumulated_batches(cfg, world_size)
    with Run(cfg, datasets.identity, world_size) as run:
        if run.result is not None:
            say(f"finished already: {run.directory / 'result.json'}")
            print_row(run.result)
            return run
        trainer, history = training.make_trainer(cfg, run, datasets)
        training.describe(cfg, run, model, datasets)
        trainer.fit(module, data, ckpt_path=training.checkpoint_to_continue(run, model))
        if datasets.eval.labelled:
            outcome = final_outcome(cfg, trainer, module, data, history)
        else:
            archive = write_submission(module, trainer, data, run.directory)
            outcome = Outcome(submission=archive)
        if trainer.is_global_zero:
            result = make_result(cfg, run, trainer, datasets, outcome, history)
            if cfg.task.kind == "segmentation":
                split, device = datasets.test or datasets.eval, trainer.strategy.root_device
                try:
                    result["tile_mismatch"] = recorded_mismatch(cfg, model, split, device)
                except InputError as error:  # which is no reason to lose the result
                    say(f"no tile_mismatch: {error}")
            run.write_result(result)
            print_row(result)
            say(f"\nresult, metrics, log, checkpoint: {run.directory}")
        finish_loggers(trainer, outcome.scores | history.cost)
        return run


if __name__ == "__main__":
    launch.main(train)
