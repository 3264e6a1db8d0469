"""The model: SAM2.1's architecture, split into a frozen encoder and a trained prompt encoder and mask decoder.

Every model of `zoo` comes out of one builder, `build_sam`.
"""

import hashlib
import os
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from rootsam_lib.checkpoints import MODELS, download_checkpoint, embedded_checkpoint
from rootsam_lib.model_detail import DetailPath
from rootsam_lib.training.devices import pick_device

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)
# What the loaders of torch and safetensors raise for a file that is damaged, or not a checkpoint at all.
LOAD_ERRORS = (RuntimeError, KeyError, TypeError, AttributeError, OSError, EOFError, ValueError)
LOAD_ERRORS += (UnpicklingError, SafetensorError)


class Features(NamedTuple):
    """What the frozen encoder says of a batch of images.

    maps: four trunk outputs (B, C_i, h / s, w / s) at strides s = 4, 8, 16, 32 of the encoded size.
    image_size: (H, W) in pixels of the images before encoding; points are given in these pixels.
    """

    maps: tuple[Tensor, ...]
    image_size: tuple[int, int]


class Embedding(NamedTuple):
    """What the decoder's prompts are asked of: the neck's output, made once for any number of prompts.

    image: (B, C, h / 16, w / 16). fine: conv_s0's and conv_s1's outputs at strides 4 and 8. image_size: as in Features.
    """

    image: Tensor
    fine: tuple[Tensor, Tensor]
    image_size: tuple[int, int]


class Prediction(NamedTuple):
    """logits (B, M, h / 4, w / 4), 0 is the mask's edge, and iou (B, M), the model's own estimate of each mask's IoU.

    M is 1, or 3 with `multimask`.
    """

    logits: Tensor
    iou: Tensor


class TimmTrunk(nn.Module):
    """A timm backbone in the place of SAM2.1's Hiera: outputs at strides 4, 8, 16 and 32.

    Raises ValueError when the architecture has no outputs at these strides.
    """

    def __init__(self, architecture: str):
        super().__init__()
        reductions = timm.create_model(architecture, features_only=True).feature_info.reduction()
        if not {4, 8, 16, 32} <= set(reductions):
            raise ValueError(
                f"trunk architecture {architecture!r} gives strides {reductions}; RootSAM needs 4, 8, 16 and 32: "
                "choose another timm backbone in the model's YAML."
            )
        levels = tuple(reductions.index(stride) for stride in (4, 8, 16, 32))
        self.backbone = timm.create_model(architecture, features_only=True, out_indices=levels)
        self.channel_list = self.backbone.feature_info.channels()[::-1]

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.backbone(images)


class NoPositions(nn.Module):
    """In the place of the neck's position encodings: they serve SAM2.1's video memory only, and on a CPU they would
    cost a batch of four more than its decoding."""

    def forward(self, x: Tensor) -> Tensor:
        return x.new_zeros(()).expand(x.shape)


class RootSAM(nn.Module):
    """A SAM2.1-architecture model with a frozen image encoder.

    `encode` runs the trunk once per image, without gradient and always in eval mode (its batch-norm statistics and
    drop-path must not depend on training). `decode` is everything that may learn: prompt encoder, conv_s0 / conv_s1 and
    mask decoder. The neck stands between the two: it is frozen too, but it runs in `decode`, because trunk outputs are
    far smaller to keep than the neck's, and because conv_s0 / conv_s1 must see gradients.
    """

    def __init__(self, sam: nn.Module, name: str):
        super().__init__()
        self.sam = sam
        self.name = name
        sam.sam_mask_decoder.detail = None
        mean = torch.tensor(PIXEL_MEAN).view(1, 3, 1, 1)
        std = torch.tensor(PIXEL_STD).view(1, 3, 1, 1)
        self.register_buffer("pixel_mean", mean, persistent=False)
        self.register_buffer("pixel_std", std, persistent=False)
        sam.image_encoder.neck.position_encoding = NoPositions()
        sam.image_encoder.trunk.to(memory_format=torch.channels_last)  # convolutions run about twice as fast on CPU
        self.requires_grad_(False)
        for part in self.trained_parts().values():
            part.requires_grad_(True)
        self.train()

    def trained_parts(self) -> dict[str, nn.Module]:
        """The modules that fine-tuning trains."""
        return {"prompt encoder": self.sam.sam_prompt_encoder, "mask decoder": self.sam.sam_mask_decoder}

    def add_detail(self, seed: int = 0) -> None:
        """Give the decoder a `DetailPath` drawn from `seed`, where it has none; the answers stay the same until it is
        trained."""
        decoder = self.sam.sam_mask_decoder
        if decoder.detail is None:
            eight, four = self.sam.image_encoder.trunk.channel_list[-2:]
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                path = DetailPath((four, eight), (decoder.conv_s0.out_channels, decoder.conv_s1.out_channels))
            decoder.detail = path.to(self.device)

    def train(self, mode: bool = True) -> "RootSAM":
        """As in torch, but the image encoder stays in eval mode, so that kept and live features are the same."""
        super().train(mode)
        self.sam.image_encoder.eval()
        return self

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    @property
    def label(self) -> str:
        return MODELS[self.name].label

    @torch.no_grad()
    def encode(self, images: np.ndarray | Tensor, size: int | None = None) -> Features:
        """Run the frozen trunk.

        images: uint8 (B, H, W, 3). size: side in px to which images are resized first (SAM2.1's own predictor always
        uses 1024); None keeps them as they are. Raises ValueError for another shape or dtype, or a side that is not a
        multiple of 32.
        """
        images = torch.as_tensor(images, device=self.device)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 (B, H, W, 3), not {images.dtype} {tuple(images.shape)}: "
                "stack images with numpy.stack, and do not normalise them first."
            )
        height, width = images.shape[1:3]
        pixels = images.permute(0, 3, 1, 2).float() / 255
        if size is not None and (height, width) != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True)
        if pixels.shape[-2] % 32 or pixels.shape[-1] % 32:
            raise ValueError(
                f"encoder input of {pixels.shape[-2]} x {pixels.shape[-1]} px: both sides must be multiples of 32; "
                "pass size=512 or size=1024, or tile the scan."
            )
        # Half precision where the hardware has it: bfloat16 if not merely emulated (a T4 has only float16).
        on_gpu = self.device.type == "cuda"
        half = torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
        with torch.autocast(self.device.type, half, enabled=on_gpu):
            maps = self.sam.image_encoder.trunk((pixels - self.pixel_mean) / self.pixel_std)
        return Features(tuple(level.float() for level in maps), (height, width))

    def embed(self, features: Features) -> Embedding:
        """Run the neck, conv_s0 / conv_s1 and the detail path, if there is one: once for all prompts of the images."""
        fpn, _ = self.sam.image_encoder.neck(list(features.maps))
        decoder = self.sam.sam_mask_decoder
        image = fpn[2] + self.sam.no_mem_embed.view(1, -1, 1, 1)
        fine = (decoder.conv_s0(fpn[0]), decoder.conv_s1(fpn[1]))
        if decoder.detail is not None:
            four, eight = decoder.detail(*features.maps[:2])
            fine = (fine[0] + four, fine[1] + eight)
        return Embedding(image, fine, features.image_size)

    def decode(
        self,
        features: Features | Embedding,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        mask_input: Tensor | None = None,
        multimask: bool = False,
    ) -> Prediction:
        """Predict masks from encoded images and prompts; gradients reach the trained parts.

        features: from `encode`, or from `embed` where the same images are asked more than once.
        points: float (P, N, 2), (x, y) in pixels of the original image; labels: int (P, N), 1 root, 0 soil, -1 padding.
        None stands for no prompt at all. P is B, or a multiple of B: several prompt sets per image, those of one image
        next to each other. mask_input: logits (P, 1, h / 4, w / 4) of an earlier prediction.
        """
        decoder, prompt_encoder = self.sam.sam_mask_decoder, self.sam.sam_prompt_encoder
        embedding, high_res, image_size = self.embed(features) if isinstance(features, Features) else features
        batch = embedding.shape[0]
        if points is None:
            points, labels = torch.zeros(batch, 1, 2), torch.full((batch, 1), -1)
        points, labels = points.to(self.device), labels.to(self.device)
        if points.shape[0] % batch or points.shape[:2] != labels.shape:
            raise ValueError(
                f"points {tuple(points.shape)} and labels {tuple(labels.shape)} do not fit {batch} encoded images: "
                "give (P, N, 2) and (P, N) with P a multiple of the number of images."
            )
        repeats = points.shape[0] // batch
        if repeats > 1:
            embedding, *high_res = (x.repeat_interleave(repeats, dim=0) for x in (embedding, *high_res))

        # The prompt encoder only uses these sizes to normalise coordinates and to lay out the dense grid.
        prompt_encoder.input_image_size = image_size
        prompt_encoder.image_embedding_size = tuple(embedding.shape[-2:])
        sparse, dense = prompt_encoder(points=(points, labels), boxes=None, masks=mask_input)
        logits, iou, _, _ = decoder(
            image_embeddings=embedding,
            image_pe=prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=list(high_res),
        )
        return Prediction(logits, iou)

    forward = decode  # what accelerate and DistributedDataParallel call

    def parameter_table(self) -> list[dict[str, object]]:
        """One row a part: its name, its number of parameters, and whether it is trained or frozen.

        What Meta's models keep for video, their memory, is not used on images; it counts as frozen.
        """
        encoder = self.sam.image_encoder
        parts = {"image encoder: trunk": encoder.trunk, "image encoder: neck": encoder.neck, **self.trained_parts()}
        rows, seen = [], 0
        for part, module in parts.items():
            count = sum(p.numel() for p in module.parameters())
            trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
            rows.append({"part": part, "parameters": count, "state": "trained" if trained else "frozen"})
            seen += count
        rest = sum(p.numel() for p in self.parameters()) - seen
        rows.append({"part": "memory (for video) and its stand-in", "parameters": rest, "state": "frozen"})
        return rows


def zoomed(side: int, zoom: float) -> int | None:
    """The side in px at which the encoder sees an image of `side` px: zoom times as long, to the next multiple of 32.

    None, "as it is", for zoom 1. Raises ValueError for a zoom that is not above 0.
    """
    if zoom <= 0:
        raise ValueError(f"zoom is {zoom}: it must be greater than 0; 1 takes images as they are.")
    return None if zoom == 1 else max(32, 32 * round(side * zoom / 32))


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of mask logits (B, M, h, w) to size (H, W), in fp32."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)


def build_sam(name: str = "nano", weights: str | Path | None = "default", seed: int = 0) -> RootSAM:
    """Build a model, load its weights and put it on the device of `pick_device`.

    name: a key of `MODELS`. weights: "default" (embedded for nano, Meta's verified download otherwise), a checkpoint
    written by `save_weights` or Meta's .pt format, or None for random weights drawn from `seed`.
    Raises ValueError for an unknown name or weights of another model, FileNotFoundError for a missing file.
    """
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown: choose one of {', '.join(MODELS)}.")
    entry = MODELS[name]
    config = OmegaConf.load(entry.config)
    OmegaConf.resolve(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RootSAM(instantiate(config.model), name)
    if weights is None:
        return model.to(pick_device())
    if weights == "default":
        path = embedded_checkpoint() if name == "nano" else download_checkpoint(name)
    else:
        path = Path(weights)
    load_weights(model, path)
    return model.to(pick_device())


def load_weights(model: RootSAM, path: str | Path) -> None:
    """Load a checkpoint of the whole model (.safetensors, or Meta's .pt), strictly, detail path included.

    Raises FileNotFoundError when it is missing and ValueError when it is another model's or damaged.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: run the notebook that trains it, or check the path.")
    try:
        state = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)["model"]
        )
        if any(key.startswith("sam_mask_decoder.detail.") for key in state):
            model.add_detail()
        model.sam.load_state_dict({key: value.float() for key, value in state.items()})
    except LOAD_ERRORS as error:
        raise ValueError(
            f"{path.name} does not hold weights of model {model.name!r}, or is damaged: choose the model that it was "
            f"made from, or make it again ({(str(error).splitlines() or [''])[0][:120]})."
        ) from error


def save_weights(model: RootSAM, path: str | Path) -> None:
    """Write the whole model's weights as safetensors, atomically."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file({key: value.contiguous() for key, value in model.sam.state_dict().items()}, partial)
    os.replace(partial, path)


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over all weights of a model or of a part of it, first 16 hex digits: its identity in results files."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
