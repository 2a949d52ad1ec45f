"""What still stands between the user and a run. Nothing here imports torch."""

import shutil
from pathlib import Path

from omegaconf import DictConfig

from tasks.protocol import protocol_batch
from tasks.runs.plan.cards import GIB
from tasks.runs.plan.plan import Check, Plan


def checks(cfg: DictConfig, plan: Plan, data: Check) -> list[Check]:
    """The checklist of a plan.

    Args:
        cfg: the configuration.
        plan: for it, without its checks.
        data: whether the dataset is there.
    """
    return [data, _disk(cfg, plan, data.ok), _memory(plan), _batch(cfg, plan), _precision(plan)]


def _disk(cfg: DictConfig, plan: Plan, has_data: bool) -> Check:
    """Checkpoints where runs are written, the archives where the data will be."""
    needs = [(Path(cfg.runs), 2 * plan.checkpoint)]
    if not has_data:
        needs.append((Path(cfg.data.root), int(2e9 * (plan.download_gb or 0))))
    by_device: dict[int, tuple[Path, int]] = {}
    for path, size in needs:
        place = _existing(path.expanduser())
        device = place.stat().st_dev
        by_device[device] = (place, by_device.get(device, (place, 0))[1] + size)
    notes, ok = [], True
    for place, size in by_device.values():
        free = shutil.disk_usage(place).free
        ok &= free >= size
        notes.append(f"{free / 1e9:,.1f} GB free, {size / 1e9:,.1f} needed")
    unknown = not has_data and plan.download_gb is None and cfg.data.name == "full"
    return Check("disk", ok, "; ".join(notes) + (" and the dataset's" if unknown else ""))


def _existing(path: Path) -> Path:
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.is_dir())


def _memory(plan: Plan) -> Check:
    note = f"{plan.memory / GIB:.2f} GiB of the {plan.room / GIB:.1f} GiB for tensors"
    return Check("memory", plan.memory <= plan.room, f"{note} on {plan.where}")


def _batch(cfg: DictConfig, plan: Plan) -> Check:
    total, wanted = plan.total_batch, cfg.data.total_batch
    made = f"{plan.made_of} x {plan.batch_size} = {total}"
    if total == wanted:
        return Check("batch", True, f"{made}, the protocol's total batch")
    if cfg.task.scale_lr and cfg.data.name == "full":
        wanted = protocol_batch(cfg.task)
        note = f"{made}; the protocol's is {wanted}, the learning rate goes in proportion"
        return Check("batch", False, note)
    return Check("batch", False, f"{made}, but the protocol's total batch is {wanted}")


def _precision(plan: Plan) -> Check:
    note = f"{plan.precision} on {plan.where}"
    lacking = "" if plan.has_precision else ": it has no units for it"
    return Check("precision", plan.has_precision, note + lacking)
