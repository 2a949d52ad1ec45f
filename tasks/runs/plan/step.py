"""One training step on fake tensors: what it computes and what it holds.

Nothing is computed, so any network fits any machine. Fake tensors here are a CPU's; a GPU holds the
same tensors, but for what `tasks.runs.plan.cards` sets aside.
"""

import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import cast

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from lcn.convert import named_norm_layers
from tasks.config import plain
from tasks.errors import InputError
from tasks.models import build_model, one_image, scaled_norm, training_size
from tasks.modules.module import TaskModule
from tasks.modules.optimization import make_optimizer
from tasks.runs.plan.meter import Meter
from tasks.runs.plan.regions import positive_regions, training_loss


@dataclass(frozen=True)
class Step:
    """A training step of one device.

    Attributes:
        flops, costs: as of `tasks.runs.plan.meter.Meter`.
        forward_flops, forward_costs: of the forward pass and the loss alone.
        activations_peak: most bytes during forward and backward pass, weights, gradients and the
            optimizer's state included.
        update_peak: most bytes while the optimizer steps, which no batch size changes.
    """

    flops: int
    costs: Counter[tuple[int, int]]
    forward_flops: int
    forward_costs: Counter[tuple[int, int]]
    activations_peak: int
    update_peak: int


@dataclass(frozen=True)
class Network:
    """What is known of a network before any step.

    Attributes:
        parameters: how many numbers are learned or frozen.
        trained_bytes: of the parameters that have a gradient.
        checkpoint_bytes: of weights, buffers and the optimizer's state.
        positives: regions of an image that a detector's mask head is planned for; None for other
            networks.
    """

    parameters: int
    trained_bytes: int
    checkpoint_bytes: int
    positives: int | None


def network(cfg: DictConfig) -> Network:
    """Builds the network without weights.

    Raises:
        InputError: the configuration has none.
    """
    model = _meta_model(cfg)
    tensors = [*model.parameters(), *model.buffers()]
    trained = sum(_bytes(p) for p in model.parameters() if p.requires_grad)
    states = {"adam": 2, "sgd": 1 if cfg.task.optimizer.get("momentum") else 0}
    positives = None
    if cfg.task.kind == "detection":
        positives = cfg.plan.positives or positive_regions(model)
    return Network(
        sum(parameter.numel() for parameter in model.parameters()),
        trained,
        sum(map(_bytes, tensors)) + states[cfg.task.optimizer.name] * trained,
        positives,
    )


def fake_step(cfg: DictConfig, batch_size: int, on_gpu: bool) -> Step:
    """The second step of a training, with the gradients and the state that the first one left.

    Args:
        cfg: the configuration, with a number of classes.
        batch_size: samples of the device.
        on_gpu: whether norms run in float32 under autocast, as they do there.

    Raises:
        InputError: the network does not run at this size.
    """
    key = _key(cfg, batch_size, on_gpu)
    if key not in _known:
        try:
            _known[key] = _measure(cfg, batch_size, on_gpu)
        except (RuntimeError, ValueError) as error:
            height, width = training_size(cfg)
            raise InputError(
                f"{cfg.task.model.name} with {cfg.norm.name} does not run on {batch_size} x "
                f"{height} x {width}: {str(error).splitlines()[0]}"
            ) from None
    return _known[key]


_known: dict[str, Step] = {}


def _key(cfg: DictConfig, batch_size: int, on_gpu: bool) -> str:
    """What a step follows from. Windows and groups are no part of it: whatever they are, a layer is
    one operator on the same map (statistics of a map, the only difference, are a few numbers)."""
    task = {
        key: value for key, value in plain(cfg.task).items()
        if key not in ("facts", "schedule", "epochs", "steps")
    }  # fmt: skip
    kind = "gn" if cfg.norm.name in ("gn", "in", "ln") else cfg.norm.name
    data = [str(cfg.data[key]) for key in ("crop", "resize", "width", "sampling")]
    regions = [cfg.plan.objects, cfg.plan.positives]
    return json.dumps([task, kind, data, cfg.trainer.precision, regions, batch_size, on_gpu])


def _measure(cfg: DictConfig, batch_size: int, on_gpu: bool) -> Step:
    model = _meta_model(cfg)
    loss_of = _loss(cfg, model)
    with _quiet(), FakeTensorMode(allow_non_fake_inputs=True):
        model._apply(lambda tensor: torch.empty(tensor.shape, dtype=tensor.dtype))
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = make_optimizer(model, cfg, total_batch=batch_size, steps=2)["optimizer"]
        for parameter in trained:
            parameter.grad = torch.empty_like(parameter)
        optimizer.step()
        meter = Meter()
        meter.hold([*model.parameters(), *model.buffers()])
        meter.hold(p.grad for p in trained if p.grad is not None)
        meter.hold(
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        )
        batch = random_batch(cfg, batch_size, torch.device("cpu"))
        meter.hold(batch.values())
        with _float32_norms(model, on_gpu and "mixed" in cfg.trainer.precision), meter:
            with autocast(cfg.trainer.precision, "cpu"):
                loss = loss_of(batch)
            forward_flops, forward_costs = meter.flops, meter.costs.copy()
            optimizer.zero_grad()  # where Lightning does it
            loss.backward()
            activations_peak, meter.peak = meter.peak, meter.live
            optimizer.step()
        return Step(
            meter.flops, meter.costs, forward_flops, forward_costs, activations_peak, meter.peak
        )


def _meta_model(cfg: DictConfig) -> nn.Module:
    with _quiet(), torch.device("meta"):
        model = build_model(cfg, read_weights=False)
    return model.double() if cfg.trainer.precision == "64-true" else model


def _loss(cfg: DictConfig, model: nn.Module) -> Callable[[dict], Tensor]:
    """From a batch to the loss, as the task's module computes it."""
    if cfg.task.kind == "detection":
        positives = cfg.plan.positives or positive_regions(model)
        return lambda batch: training_loss(model, batch["image"], batch["masks"], positives)
    module = make_module(cfg, model)
    module.finite = lambda loss: loss  # type: ignore[method-assign]  # there are no values to look at
    return lambda batch: cast(Tensor, module.training_step(batch, 0))


def make_module(cfg: DictConfig, model: nn.Module) -> TaskModule:
    """The module of a segmentation or classification, in training, without a trainer."""
    from tasks.modules.classification import Classification
    from tasks.modules.segmentation import Segmentation

    kind = Segmentation if cfg.task.kind == "segmentation" else Classification
    module: TaskModule = kind(model, cfg, scaled_norm(cfg))
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    return module.train()


def random_batch(cfg: DictConfig, batch_size: int, device: torch.device) -> dict[str, Tensor]:
    """Images and labels of a training batch as one device gets them; a detector's are padded."""
    (_, bands, height, width), _ = one_image(cfg, training_size(cfg))
    dtype = torch.float64 if cfg.trainer.precision == "64-true" else torch.float32
    shape = (batch_size, bands, height, width)
    batch = {"image": torch.randn(shape, device=device, dtype=dtype)}
    if cfg.task.kind == "detection":
        masks = (batch_size, cfg.plan.objects, height, width)
        batch["masks"] = torch.zeros(masks, device=device, dtype=torch.uint8)
    else:
        sizes = shape[2:] if cfg.task.kind == "segmentation" else ()
        labels = torch.randint(cfg.task.num_classes, (batch_size, *sizes), device=device)
        batch["label"] = labels
    return batch


def autocast(precision: str, device: str) -> AbstractContextManager[object]:
    """The context in which Lightning runs the forward pass."""
    dtypes = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
    return torch.autocast(device, dtypes[precision]) if precision in dtypes else nullcontext()


@contextmanager
def _float32_norms(model: nn.Module, on: bool) -> Iterator[None]:
    """Norms that look at no batch get float32, as autocast gives them on a GPU but not on a CPU."""
    layers = [layer for _, layer in named_norm_layers(model) if on and not _is_batch_norm(layer)]
    handles = [
        layer.register_forward_pre_hook(lambda _, inputs: (inputs[0].float(), *inputs[1:]))
        for layer in layers
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _is_batch_norm(layer: nn.Module) -> bool:
    return isinstance(layer, nn.modules.batchnorm._BatchNorm)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silences messages: on weights that are not loaded, of fake tensors before they raise."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    silenced = log.disabled
    try:
        log.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.disabled = silenced


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.itemsize
