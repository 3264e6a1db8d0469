"""Peers: what a score is worth beside a method without any learning, and beside a U-Net that learns from the same
patches. Predictors for `protocols`, which ignore prompts."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from skimage.color import rgb2gray
from skimage.filters import sato, threshold_otsu
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from rootsam_lib.data.augment import augment, build_augmentation
from rootsam_lib.data.scans import Patch, Scan
from rootsam_lib.losses import boundary_schedule, hybrid_loss, signed_distance
from rootsam_lib.model import PIXEL_MEAN, PIXEL_STD, Embedding, Features, Prediction, RootSAM, encoder_size, pick_device
from rootsam_lib.predictor import Predictor
from rootsam_lib.prompts import Prompts
from rootsam_lib.results import atomic, progress, shown
from rootsam_lib.training.config import StageConfig
from rootsam_lib.training.loop import build_scheduler
from rootsam_lib.training.stage import training_patches
from rootsam_lib.training.step import CLIP_NORM, FIRST_WEIGHT, first_roots_loss

SIGMAS = (2, 3, 4)  # px: roots of 4 to 10 px width


def brightness_threshold(image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
    """Call everything brighter than Otsu's threshold root; a picture of one brightness has none. bool (H, W)."""
    grey = rgb2gray(image)
    return grey > threshold_otsu(grey) if np.ptp(grey) > 0 else np.zeros(grey.shape, bool)


def ridge_strength(image: np.ndarray) -> np.ndarray:
    """How much a bright line passes through each pixel, float32 (H, W): Sato's filter (Sato et al. 1998)."""
    return sato(rgb2gray(image), sigmas=SIGMAS, black_ridges=False).astype(np.float32)


@dataclass(frozen=True)
class RidgeFilter:
    """Call every pixel root whose `ridge_strength` is above a threshold; `fit_ridge` finds it."""

    threshold: float

    def __call__(self, image: np.ndarray, prompts: Prompts | None = None) -> np.ndarray:
        return ridge_strength(image) > self.threshold

    @property
    def about(self) -> str:
        return f"Sato ridge filter, sigmas {SIGMAS} px, threshold {self.threshold:.4g} (fitted on training patches)"


def fit_ridge(patches: Sequence[Patch], bins: int = 200) -> RidgeFilter:
    """The threshold with the best pooled Dice on training patches. Raises ValueError where none has a root."""
    rooted = [patch for patch in patches if patch.mask.any()]
    if not rooted:
        raise ValueError("none of the patches has a root, so no threshold can be fitted: take more patches.")
    strengths = [ridge_strength(patch.image) for patch in patches]
    edges = np.linspace(0, max(float(s.max()) for s in strengths), bins + 1)
    root, soil = np.zeros(bins), np.zeros(bins)
    for strength, patch in zip(strengths, patches, strict=True):
        root += np.histogram(strength[patch.mask], edges)[0]
        soil += np.histogram(strength[~patch.mask], edges)[0]
    found, false = root[::-1].cumsum()[::-1], soil[::-1].cumsum()[::-1]  # above each lower edge
    dice = 2 * found / (found + false + root.sum())
    return RidgeFilter(float(edges[int(dice.argmax())]))


class UNet(nn.Module):
    """A U-Net (Ronneberger et al. 2015) on nano's trunk, EfficientNet-Lite0, with a logit for every pixel that it sees.

    It answers as `RootSAM` does, so that `Predictor` tiles, blends and cleans for both alike; prompts change nothing.
    trunk: weights to start from (timm's names); frozen: only the decoder learns. Raises ImportError without
    segmentation-models-pytorch.
    """

    def __init__(self, trunk: Mapping[str, Tensor], frozen: bool):
        super().__init__()
        try:
            from segmentation_models_pytorch import Unet
        except ImportError as error:
            raise ImportError("a U-Net needs segmentation-models-pytorch: pip install 'rootsam_lib[dev]'.") from error
        self.net = Unet("tu-tf_efficientnet_lite0", encoder_weights=None, decoder_channels=(128, 64, 48, 32, 16))
        self.net.encoder.model.load_state_dict(trunk)
        nn.init.constant_(self.net.segmentation_head[0].bias, -3.0)  # few pixels are root
        self.frozen, self.name = frozen, "unet"
        self.label = "U-Net, decoder on the frozen trunk" if frozen else "U-Net, all of it trained"
        self.net.encoder.requires_grad_(not frozen)
        for name, values in (("pixel_mean", PIXEL_MEAN), ("pixel_std", PIXEL_STD)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)
        self.to(memory_format=torch.channels_last)

    def train(self, mode: bool = True) -> "UNet":
        super().train(mode)
        self.net.encoder.train(mode and not self.frozen)
        return self

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    pixels = RootSAM.pixels

    def encode(self, images: np.ndarray | Tensor, size: int | None = None) -> Features:
        return Features((), tuple(images.shape[1:3]), self.pixels(images, size))

    def embed(self, features: Features) -> Embedding:
        return Embedding(self.net(features.pixels), (), features.image_size)

    def decode(self, embedding: Embedding, *_prompts: object) -> Prediction:
        nothing = embedding.image.new_full((len(embedding.image), 1), torch.nan)
        return Prediction(embedding.image, nothing, embedding.image)


def train_unet(
    trunk: Mapping[str, Tensor], frozen: bool, config: StageConfig, train: Sequence[Scan], folder: Path
) -> Predictor:
    """Train a U-Net on the patches, augmentation, loss, batches, epochs and cosine schedule of a stage, and return the
    average of its weights as a predictor.

    Goes on from the last whole epoch that `folder` holds, and returns at once when all are done.
    """
    patches, pipeline = training_patches(train, config), build_augmentation(config.patch_size, config.families)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = UNet(trunk, frozen).to(pick_device())
    average = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    weights = [p for p in net.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=config.lr, weight_decay=config.weight_decay)
    steps = config.epochs * math.ceil(len(patches) / config.batch_size)
    scheduler = build_scheduler(optimizer, replace(config, schedule="cosine"), steps)
    parts = {"net": net, "average": average, "optimizer": optimizer, "scheduler": scheduler}
    path, start = Path(folder) / "unet.pt", 0
    if path.is_file():
        state = torch.load(path, weights_only=True, map_location=net.device)
        start = state.pop("epoch")
        for name, part in parts.items():
            part.load_state_dict(state[name])
    for epoch in progress(range(start, config.epochs), f"{net.label} ({shown(path.parent)})", "epoch"):
        net.train()
        order = np.random.default_rng([config.seed, epoch]).permutation(len(patches))
        for chosen in np.array_split(order, math.ceil(len(order) / config.batch_size)):
            views = []
            for i in chosen:
                own = np.random.SeedSequence([config.seed, epoch, int(i)]).generate_state(1)[0]
                views.append(augment(pipeline, patches[i].image, patches[i].mask, int(own)))
            loss = unet_loss(net, *zip(*views, strict=True), config, epoch)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(weights, CLIP_NORM)
            optimizer.step()
            scheduler.step()
            average.update_parameters(net)
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic(path) as partial:
            torch.save({name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch + 1}, partial)
    return Predictor(average.module, config.input_scale, config.patch_size)


def unet_loss(
    net: UNet, images: Sequence[np.ndarray], masks: Sequence[np.ndarray], config: StageConfig, epoch: int
) -> Tensor:
    """A stage's loss of the automatic answer, with the weighted cross entropy that finds the first roots."""
    features = net.encode(np.stack(images), encoder_size(config.patch_size, config.input_scale))
    logits = F.interpolate(net.embed(features).image, masks[0].shape, mode="bilinear", align_corners=False)
    truth, distance = (
        torch.from_numpy(np.stack(maps)).unsqueeze(1).to(net.device).float()
        for maps in (masks, [signed_distance(mask) for mask in masks])
    )
    terms = (config.fn_weight, config.fp_weight, config.focal_exponent, config.ce_weight)
    boundary = boundary_schedule(epoch, config.boundary_start, config.boundary_step)
    return hybrid_loss(logits, truth, distance, boundary, *terms).total + FIRST_WEIGHT * first_roots_loss(logits, truth)
