"""A trained network, ready to be used: out of a run's directory or an export.

network = load_network("runs/inria/unet-bn-mini-seed0-1a2b3c4d")
classes = predict(network, image)          # uint8 [H, W, bands] to uint8 [H, W]
"""

import copy
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import cast

import numpy as np
import safetensors.torch
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.nn import functional as F

from lcn import audit
from lcn.audit import Audit
from tasks.config import compose
from tasks.data.tiles import core_of, round_up
from tasks.errors import InputError
from tasks.models import build_model, scaled_norm
from tasks.models.checkpoint import check_same_norm, load_weights
from tasks.prediction.export import WEIGHTS
from tasks.prediction.masked import refusing, statistics_of
from tasks.prediction.tiling import DEFAULT_MEMORY, Pair, Tile, Tiling, choose_tiling
from tasks.protocol import TaskFacts, norm_label, task_facts
from tasks.runs.plan.meter import Meter
from tasks.runs.record import FinishedRun, Record, read_config, read_run, require_finished
from tasks.schema import check_config

_SCALES = {"uint8": 255.0, "uint16": 65535.0}


class Network(nn.Module):
    """A network in evaluation mode, with everything that is needed to use it.

    Args:
        model: the network itself.
        cfg: the configuration it was trained with.

    Attributes:
        kind: segmentation, classification or detection.
        class_names: in the order of the class ids; of detection, of labels 1, 2, ...
        facts: of the task: titles and colours.
        bands: names of the input's bands, in order.
        norm: its norm layers' configuration.
        crs: coordinate reference systems of the training tiles; empty where they are not known.
        tile_mismatch: that of its evaluation, in percent; None where it is not known.
    """

    def __init__(
        self,
        model: nn.Module,
        cfg: DictConfig,
        crs: Sequence[str] = (),
        tile_mismatch: float | None = None,
    ):
        super().__init__()
        self.crs, self.tile_mismatch = tuple(crs), tile_mismatch
        self.model, self.cfg = model, cfg
        self.kind: str = cfg.task.kind
        self.bands = [str(band) for band in cfg.task.bands]
        self.class_names = [str(name) for name in cfg.task.class_names or ()]
        self.norm = scaled_norm(cfg)
        count = len(self.bands)
        mean, std = cfg.task.mean or [0.0] * count, cfg.task.std or [1.0] * count
        self.register_buffer("mean", torch.tensor(list(mean)).view(-1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(list(std)).view(-1, 1, 1), persistent=False)
        self._audits: dict[tuple[int, int], Audit] = {}
        self._bytes: dict[bool, float] = {}
        self.eval().requires_grad_(False)

    @property
    def facts(self) -> TaskFacts:
        return task_facts(self.cfg.task.name)

    @property
    def label(self) -> str:
        """The norm's short name."""
        return norm_label(self.norm)

    @property
    def device(self) -> torch.device:
        return cast(Tensor, self.mean).device

    def forward(self, images: Tensor) -> Tensor:
        """Normalized images [N, bands, H, W] to logits; of segmentation at the images' own size."""
        logits = self.model(images.to(cast(Tensor, self.mean).dtype))
        if self.kind != "segmentation" or logits.shape[-2:] == images.shape[-2:]:
            return logits
        return F.interpolate(logits, images.shape[-2:], mode="bilinear", align_corners=False)

    def prepare(self, image: np.ndarray, scale: float | None = None) -> Tensor:
        """[H, W, bands] to the network's input, float32 [bands, H, W] on its device.

        Args:
            image: uint8, uint16 or float.
            scale: the value that becomes 1 before mean and standard deviation are applied; by
                default 255 of uint8, 65535 of uint16 and 1 of float.

        Raises:
            InputError: another number of bands, or another dtype.
        """
        if image.ndim != 3 or image.shape[2] != len(self.bands):
            shape = " x ".join(map(str, image.shape))
            raise InputError(
                f"an image of {shape} does not fit: this network takes {len(self.bands)} bands "
                f"({', '.join(self.bands)}), [height, width, {len(self.bands)}]; choose them with "
                "--bands"
            )
        kind = image.dtype.name
        if kind not in _SCALES and not np.issubdtype(image.dtype, np.floating):
            raise InputError(f"{kind} is not supported: give uint8, uint16 or floating point")
        values = torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1).to(self.device)
        values /= scale or _SCALES.get(kind, 1.0)
        values -= cast(Tensor, self.mean)
        values /= cast(Tensor, self.std)
        return values

    def probabilities(self, logits: Tensor) -> Tensor:
        """Logits of a segmentation to probabilities [N, classes, H, W]."""
        if self.cfg.task.outputs == 1:
            yes = logits.sigmoid()
            return torch.cat([1 - yes, yes], dim=1)
        return logits[:, : self.cfg.task.num_classes].softmax(1)

    def decide(self, logits: Tensor) -> Tensor:
        """Logits of a segmentation to class ids, uint8 [N, H, W]."""
        if self.cfg.task.outputs == 1:
            return (logits[:, 0] > 0).to(torch.uint8)
        return logits[:, : self.cfg.task.num_classes].argmax(1).to(torch.uint8)

    @cached_property
    def stride(self) -> Pair:
        """Rows and columns that tiles begin at multiples of: the total stride."""
        for side in (256, 960, 1024):  # HRNet's is known only at a multiple of it
            found = self._audited((side, side)).total_stride
            if found is not None:
                return found
        raise InputError(
            f"{self.cfg.task.model.name} with {self.label} has no total stride that is known: "
            "tiles of it cannot be placed"
        )

    def audit(self, size: Pair) -> Audit:
        """`lcn.audit` of this network on an image of this size, after padding."""
        padded = tuple(round_up(side, of) for side, of in zip(size, self.stride, strict=True))
        return self._audited((padded[0], padded[1]))

    def _audited(self, size: Pair) -> Audit:
        if size not in self._audits:
            self._audits[size] = audit(self, (1, len(self.bands), *size))
        return self._audits[size]

    def bytes_per_pixel(self, masked: bool = False) -> float:
        """Memory of a tile's tensors that live at once, per pixel: measured on a small tile.

        Args:
            masked: some pixels may have no data; the norm layers then need more.
        """
        masked = masked and refusing(self) is None
        if masked not in self._bytes:
            height, width = (max(of, round_up(256, of)) for of in self.stride)
            image = np.zeros((height, width, len(self.bands)), np.uint8)
            (tile,) = Tiling((height, width), None, (0, 0), self.stride)
            with Meter() as meter:
                valid = np.eye(height, width, dtype=bool) if masked else None
                predict_tile(self, image, tile, probabilities=True, valid=valid)
            self._bytes[masked] = (meter.peak + image.nbytes) / (height * width)
        return self._bytes[masked]


def load_network(
    run: str | Path,
    device: str | torch.device = "cpu",
    checkpoint: str | None = None,
    norm: Sequence[str] = (),
    convert: bool = False,
) -> Network:
    """The trained network of a run or of an export, in evaluation mode.

    Args:
        run: a run's directory, or a folder with ``config.yaml`` and ``model.safetensors``.
        device: where it computes.
        checkpoint: ``"last"`` takes a run that has not finished at its last checkpoint.
        norm: the norm layers' configuration as on `train.py`'s command line, such as ``["norm=lcn",
            "norm.groups=16", "norm.window=400"]``, in place of the run's own. Without ``norm=...``
            the other keys change the run's own.
        convert: the norm may be another one than in training: GN, LN, IN into LCN and back; weight
            and bias carry over.

    Raises:
        InputError: no such run, an unfinished or damaged one, or a norm that does not fit.
    """
    folder = Path(run).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give a run's directory or an export")
    if checkpoint not in (None, "last"):
        raise InputError(f"checkpoint {checkpoint}: only last can be chosen")
    exported = folder / WEIGHTS
    if is_export := exported.exists():
        record = Record(folder, read_config(folder))
    else:
        record = read_run(folder)
        require_finished(record, checkpoint)
    cfg = record.cfg
    if cfg.task.num_classes is None:
        raise InputError(f"{folder}/config.yaml does not say the classes: it was never started")
    trained = scaled_norm(cfg)
    if norm:
        cfg.norm = _chosen_norm(cfg, norm)
    model = build_model(cfg, read_weights=False)  # all come from the run
    if is_export:
        used = scaled_norm(cfg)
        check_same_norm(str(exported), trained, used, "--convert" if convert else None)
        _load_exported(model, exported)
    else:
        load_weights(model, str(folder / "last.ckpt"), scaled_norm(cfg), convert=convert)
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise InputError(f"{folder}: {name} is not finite: its training diverged")
    result = record.result if isinstance(record, FinishedRun) else {}
    mismatch = None if norm else result.get("tile_mismatch")
    network = Network(model, cfg, result.get("crs") or (), mismatch).to(device)
    # Of the networks for maps that is faster on a CPU, and their convolutions need no copies.
    if network.device.type == "cpu" and network.kind == "segmentation":
        network.to(memory_format=torch.channels_last)
    return network


def require_finite(images: Tensor) -> Tensor:
    """The network's input, or an InputError: one NaN would spread over a map without a word."""
    if not images.isfinite().all():
        raise InputError(
            "the image has values that are not finite, or --scale makes them so: mark them as "
            "nodata or give another --scale"
        )
    return images


def device_of(name: str) -> torch.device:
    """Raises InputError if this machine has no such device."""
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which a device without data, meta, cannot
        return device
    except (RuntimeError, AssertionError, ImportError):
        raise InputError(f"--device {name}: this machine has no such device") from None


def _chosen_norm(cfg: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """A run's norm after the overrides of ``norm``.

    Raises:
        InputError: there is no such norm or key, or a value is not allowed.
    """
    if any(text.startswith("norm=") for text in overrides):
        chosen = compose(list(overrides))
        check_config(chosen)
        return chosen.norm
    chosen, changed = compose([f"norm={cfg.norm.name}", *overrides]), copy.deepcopy(cfg.norm)
    check_config(chosen)
    for key in (text.partition("=")[0] for text in overrides):
        OmegaConf.update(changed, key.removeprefix("norm."), OmegaConf.select(chosen, key))
    return changed


def _load_exported(model: nn.Module, path: Path) -> None:
    try:
        model.load_state_dict(safetensors.torch.load_file(path))
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be loaded ({reason}); export the run again") from None


def predict(
    network: Network,
    image: np.ndarray,
    *,
    halo: int | None = None,
    core: int | None = None,
    memory: float = DEFAULT_MEMORY,
    shift: Pair = (0, 0),
    blend: bool = False,
    probabilities: bool = False,
    scale: float | None = None,
) -> np.ndarray:
    """What the network says of an image [H, W, bands]; for the options see `choose_tiling`.

    Returns:
        Segmentation: class ids, uint8 [H, W], or probabilities, float32 [classes, H, W].
        Classification: probabilities, float32 [classes].

    Raises:
        InputError: the image does not fit the network.
    """
    if network.kind == "classification":
        return _classify(network, image, scale)
    if network.kind != "segmentation":
        raise InputError(
            "predict gives maps and classes; of detection use tasks.prediction.objects.detect"
        )
    network.prepare(image[:1, :1], scale)
    tiling = choose_tiling(network, image.shape[:2], halo, core, memory, shift, blend).tiling
    if tiling.blend:
        blended = _blended(network, image, tiling, scale)
        return blended if probabilities else blended.argmax(0).astype(np.uint8)
    shape = (network.cfg.task.num_classes, *tiling.size) if probabilities else tiling.size
    result = np.empty(shape, dtype=np.float32 if probabilities else np.uint8)
    for tile in tiling:
        found = predict_tile(network, image[tile.window.slices], tile, probabilities, scale)
        result[(..., *tile.core.slices)] = found
    return result


def _blended(
    network: Network, image: np.ndarray, tiling: Tiling, scale: float | None
) -> np.ndarray:
    """Probabilities, float32 [classes, H, W]: a mean over the tiles that hold a pixel."""
    result = np.zeros((network.cfg.task.num_classes, *tiling.size), np.float32)
    columns = tiling.weights(1)
    for band, rows in zip(tiling.bands, tiling.weights(0), strict=True):
        for tile, across in zip(band, columns, strict=True):
            whole = tile.whole(tiling.size)
            place = whole.core.slices
            found = predict_tile(network, image[place], whole, True, scale)
            result[(slice(None), *place)] += found * rows[:, None] * across
    return result


def predict_tile(
    network: Network,
    part: np.ndarray,
    tile: Tile,
    probabilities: bool = False,
    scale: float | None = None,
    valid: np.ndarray | None = None,
) -> np.ndarray:
    """The result in a tile's core.

    Args:
        part: what the image has of the tile's window, [h, w, bands]; padded here to the window.
        valid: which pixels of it have data, bool [h, w]; None: all. The others are 0 in the
            network's input, the mean of the training images, and take no part in the statistics of
            the norm layers.
    """
    missing = (tile.window.height - part.shape[0], tile.window.width - part.shape[1])
    if any(missing):
        padding = ((0, missing[0]), (0, missing[1]))
        part = np.pad(part, (*padding, (0, 0)), mode="edge")
        valid = None if valid is None else np.pad(valid, padding, mode="edge")
    with torch.inference_mode():
        images = network.prepare(part, scale)[None]
        if valid is None:
            logits = network(require_finite(images))
        else:
            known = torch.from_numpy(valid).to(network.device)
            with statistics_of(network, known):
                logits = network(require_finite(images.masked_fill_(~known, 0.0)))
        logits = logits[(slice(None), slice(None), *core_of(tile.window, tile.core))]
        found = network.probabilities(logits) if probabilities else network.decide(logits)
        return found[0].cpu().numpy()


def _classify(network: Network, image: np.ndarray, scale: float | None) -> np.ndarray:
    """Classifies as the evaluation does: resizes the shorter side, then crops the centre."""
    from torchvision.transforms.v2 import functional as VF

    options = network.cfg.data
    with torch.inference_mode():
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1)
        pixels = VF.center_crop(VF.resize(pixels, [options.resize]), list(options.crop))
        images = network.prepare(pixels.permute(1, 2, 0).numpy(), scale)[None]
        logits = network(require_finite(images))
        return logits.softmax(1)[0].cpu().numpy()
