"""The model: SAM2.1's architecture, split into a frozen encoder and a trained prompt encoder and mask decoder."""

from typing import NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


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


class DetailPath(nn.Module):
    """A small convolutional side path for thin structures: from the trunk's strides 4 and 8 straight to the decoder.

    SAM2.1's own path there, the neck with conv_s0 / conv_s1, is linear and treats each place alone. This one looks at a
    place's neighbours, and its output is added to that of conv_s0 / conv_s1. Its last layers start at nought, so that
    training starts from the model as it was. HQ-SAM (Ke et al. 2023, section 3.2) fuses early features for thin
    structures in the same spirit.

    channels: of the trunk's maps at strides 4 and 8. out: of conv_s0's and conv_s1's outputs.
    """

    def __init__(self, channels: tuple[int, int], out: tuple[int, int], width: int = 32):
        super().__init__()
        self.conv8 = nn.Conv2d(channels[1], 2 * width, 3, padding=1)
        self.lift = nn.Conv2d(2 * width, width, 1)
        self.conv4 = nn.Conv2d(channels[0], width, 3, padding=1)
        self.mix4 = nn.Conv2d(width, width, 3, padding=1)
        self.out8 = nn.Conv2d(2 * width, out[1], 3, padding=1)
        self.out4 = nn.Conv2d(width, out[0], 3, padding=1)
        for last in (self.out4, self.out8):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        self.to(memory_format=torch.channels_last)

    def forward(self, four: Tensor, eight: Tensor) -> tuple[Tensor, Tensor]:
        """From maps (B, C, h / 4, w / 4) and (B, C, h / 8, w / 8) to what is added at the same strides."""
        eight = F.relu(self.conv8(eight))
        lifted = F.interpolate(self.lift(eight), four.shape[-2:], mode="bilinear", align_corners=False)
        four = F.relu(self.mix4(F.relu(self.conv4(four) + lifted)))
        return self.out4(four), self.out8(eight)


class RootSAM(nn.Module):
    """A SAM2.1-architecture model with a frozen image encoder.

    `encode` runs the trunk once per image, without gradient and always in eval mode (its batch-norm statistics and
    drop-path must not depend on training). `decode` is everything that may learn: prompt encoder, conv_s0 / conv_s1 and
    mask decoder. The neck stands between the two: it is frozen too, but it runs in `decode`, because trunk outputs are
    far smaller to keep than the neck's, and because conv_s0 / conv_s1 must see gradients.
    """

    def __init__(self, sam: nn.Module, name: str, label: str = ""):
        super().__init__()
        self.sam = sam
        self.name, self.label = name, label or name  # of the architecture; how charts and results files call it
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
        embedding, high_res, image_size = self.embed(features) if isinstance(features, Features) else features
        images = embedding.shape[0]
        if points is None:
            points, labels = torch.zeros(images, 1, 2), torch.full((images, 1), -1)
        if points.shape[0] % images or points.shape[:2] != labels.shape:
            raise ValueError(
                f"points {tuple(points.shape)} and labels {tuple(labels.shape)} do not fit {images} encoded images: "
                "give (P, N, 2) and (P, N) with P a multiple of the number of images."
            )
        # SAM2.1's prompt encoder has an embedding for label -1, so padding would change an answer: prompt sets of one
        # length are decoded together, without any padding.
        padded = labels.cpu() < 0
        counts, first = (~padded).sum(1), padded.int().argsort(dim=1, stable=True)
        groups = [(counts == count).nonzero()[:, 0] for count in counts.unique()]
        image_of = torch.arange(len(points)) // (len(points) // images)
        answers = []
        for rows in groups:
            kept = first[rows, : max(int(counts[rows[0]]), 1)]
            own_points = points[rows[:, None], kept].to(self.device)
            own_labels = labels[rows[:, None], kept].to(self.device)
            whole = len(rows) == images == len(points)  # nothing to pick
            picked = (x if whole else x[image_of[rows]] for x in (embedding, *high_res))
            fed = mask_input if mask_input is None or whole else mask_input[rows]
            answers.append(self._decode(*picked, own_points, own_labels, fed, image_size, multimask))
        back = torch.cat(groups).argsort()
        logits, iou = (x[0] if len(groups) == 1 else torch.cat(x)[back] for x in zip(*answers, strict=True))
        return Prediction(logits, iou)

    def _decode(self, embedding, fine4, fine8, points, labels, mask_input, image_size, multimask):
        """sam2's prompt encoder and mask decoder, for prompt sets of one length."""
        prompt_encoder = self.sam.sam_prompt_encoder
        # The prompt encoder only uses these sizes to normalise coordinates and to lay out the dense grid.
        prompt_encoder.input_image_size = image_size
        prompt_encoder.image_embedding_size = tuple(embedding.shape[-2:])
        sparse, dense = prompt_encoder(points=(points, labels), boxes=None, masks=mask_input)
        logits, iou, _, _ = self.sam.sam_mask_decoder(
            image_embeddings=embedding,
            image_pe=prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=[fine4, fine8],
        )
        return logits, iou

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


def pick_device() -> torch.device:
    """The device a model is built on: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def encoder_size(side: int, input_scale: float) -> int | None:
    """The side in px at which the encoder sees an image of `side` px: input_scale times as long, to a multiple of 32.

    None, "as it is", for input_scale 1. Raises ValueError for a input_scale that is not above 0.
    """
    if input_scale <= 0:
        raise ValueError(f"input_scale is {input_scale}: it must be greater than 0; 1 takes images as they are.")
    return None if input_scale == 1 else max(32, 32 * round(side * input_scale / 32))


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of mask logits (B, M, h, w) to size (H, W), in fp32."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
