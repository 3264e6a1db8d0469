"""The model: SAM2.1's architecture, split into a frozen encoder and a trained prompt encoder and mask decoder."""

import copy
import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


class Features(NamedTuple):
    """What the frozen encoder says of a batch of images.

    maps: four trunk outputs (B, C_i, h / s, w / s) at strides s = 4, 8, 16, 32 of the encoded size.
    image_size: (H, W) in pixels of the images before encoding; points are given in these pixels.
    pixels: what the encoder saw, `RootSAM.pixels`, (B, 3, h, w); only a detail path looks at it.
    """

    maps: tuple[Tensor, ...]
    image_size: tuple[int, int]
    pixels: Tensor | None = None


class Embedding(NamedTuple):
    """What the decoder looks at: made once per image, and used for any number of prompts.

    image: (B, C, h / 16, w / 16). fine: conv_s0's and conv_s1's outputs at strides 4 and 8. image_size: as in Features.
    detail: a detail path's finest maps (B, 32, h / 2, w / 2), where there is one.
    """

    image: Tensor
    fine: tuple[Tensor, Tensor]
    image_size: tuple[int, int]
    detail: Tensor | None = None

    def of(self, rows: Sequence[int]) -> "Embedding":
        """The embeddings of some of the images, which may repeat."""
        if list(rows) == list(range(len(self.image))):
            return self
        detail = None if self.detail is None else self.detail[rows]
        return Embedding(self.image[rows], tuple(x[rows] for x in self.fine), self.image_size, detail)

    @staticmethod
    def join(parts: "Sequence[Embedding]") -> "Embedding":
        """One embedding of all images of several, in order."""
        if len(parts) == 1:
            return parts[0]
        image, fine, sizes, detail = zip(*parts, strict=True)
        joined = None if detail[0] is None else torch.cat(detail)
        return Embedding(torch.cat(image), tuple(map(torch.cat, zip(*fine, strict=True))), sizes[0], joined)


class Prediction(NamedTuple):
    """M masks, 1 or with `multimask` 3, for each of P prompt sets.

    logits (P, M, h / 4, w / 4), with a detail path (P, M, h, w), of the encoder's h x w px: 0 is a mask's edge.
    iou (P, M): the model's own estimate of each mask's IoU. low_res (P, M, h / 4, w / 4): the logits before the detail
    path refines them, which is what `mask_input` takes.
    """

    logits: Tensor
    iou: Tensor
    low_res: Tensor


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
    """A convolutional side path for thin structures: it answers for all roots by itself, and brings the decoder detail.

    SAM2.1's own path to detail, the neck with conv_s0 / conv_s1, is linear and treats each place alone. This one goes
    through the trunk's maps from coarse to fine and on to the pixels, as a U-Net's decoder does (Ronneberger et al.
    2015). Its maps are added to the embedding at strides 16, 8 and 4, and refine the decoder's masks from one logit per
    4 to one per pixel of the encoder's input. "All roots" needs no prompt, so that answer is the path's own: on real
    scans a U-Net found them better than SAM2.1's decoder did. HQ-SAM (Ke et al. 2023, section 3.2) fuses early features
    for thin structures in the same spirit.

    What it adds to the decoder starts at 0, so that answers to prompts begin as they were.
    channels: of the trunk's maps at strides 4, 8, 16, 32. out: of the embedding's maps at 4, 8, 16.
    """

    WIDTHS = (32, 48, 64, 128)  # channels at strides 2, 4, 8, 16
    PIXELS = 3 * 2 * 2  # channels of the pixels, 2 x 2 of them folded into one place at stride 2

    def __init__(self, channels: tuple[int, int, int, int], out: tuple[int, int, int]):
        super().__init__()
        two, four, eight, sixteen = self.WIDTHS
        self.to16 = _convolutions(channels[3] + channels[2], sixteen)
        self.to8 = _convolutions(sixteen + channels[1], eight)
        self.to4 = _convolutions(eight + channels[0], four)
        self.to2 = _convolutions(four + self.PIXELS, two)
        self.out4, self.out8, self.out16 = (
            nn.Conv2d(wide, n, 1) for wide, n in zip((four, eight, sixteen), out, strict=True)
        )
        self.all_roots = nn.Conv2d(two, 4, 3, padding=1)
        self.of_detail = nn.Conv2d(two, 32, 1)
        self.of_mask = nn.Conv2d(1, 32, 3, padding=1, bias=False)
        self.finer = nn.Conv2d(32, 4, 3, padding=1)
        for last in (self.out4, self.out8, self.out16, self.finer, self.all_roots):
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        nn.init.constant_(self.all_roots.bias, -3.0)  # few pixels are root
        self.to(memory_format=torch.channels_last)

    def forward(self, features: Features, embedding: Embedding) -> Embedding:
        """Add what the path sees to an embedding of the same images."""
        pixels = F.pixel_unshuffle(features.pixels, 2)
        x16 = self.to16(_joined(features.maps[3], features.maps[2]))
        x8 = self.to8(_joined(x16, features.maps[1]))
        x4 = self.to4(_joined(x8, features.maps[0]))
        return Embedding(
            embedding.image + self.out16(x16),
            (embedding.fine[0] + self.out4(x4), embedding.fine[1] + self.out8(x8)),
            embedding.image_size,
            self.to2(_joined(x4, pixels)),
        )

    def answer(self, detail: Tensor) -> Prediction:
        """All roots, from an embedding's detail (B, 32, h / 2, w / 2). The estimate of their IoU is what the logits'
        probabilities say of it."""
        logits = F.pixel_shuffle(self.all_roots(detail), 2).contiguous()
        probability, found = logits.float().sigmoid(), logits > 0
        right = (probability * found).sum((2, 3))
        iou = right / (found.sum((2, 3)) + (probability * ~found).sum((2, 3))).clamp_min(1)
        return Prediction(logits, iou, F.avg_pool2d(logits, 4))

    def refine(self, logits: Tensor, detail: Tensor) -> Tensor:
        """From logits (P, M, h / 4, w / 4) and an embedding's detail (P, 32, h / 2, w / 2) to (P, M, h, w)."""
        each = F.interpolate(logits.flatten(0, 1)[:, None], scale_factor=2, mode="bilinear", align_corners=False)
        seen = self.of_detail(detail)
        if logits.shape[1] > 1:  # a copy that one mask does not need
            seen = seen.repeat_interleave(logits.shape[1], 0)
        seen = seen + self.of_mask(each.clamp(-16, 16) / 4)
        more = F.pixel_shuffle(self.finer(F.relu(seen)), 2)
        finer = F.interpolate(each, scale_factor=2, mode="bilinear", align_corners=False) + more
        return finer.unflatten(0, logits.shape[:2])[:, :, 0]


def _convolutions(channels: int, out: int) -> nn.Sequential:
    """A U-Net's block: two convolutions of 3 x 3, each normalised."""
    layers = []
    for wide in (channels, out):
        layers += [nn.Conv2d(wide, out, 3, padding=1, bias=False), nn.GroupNorm(8, out), nn.ReLU()]
    return nn.Sequential(*layers)


def _joined(coarse: Tensor, fine: Tensor) -> Tensor:
    """Two maps in one, at the finer one's size."""
    return torch.cat([F.interpolate(coarse, fine.shape[-2:], mode="bilinear", align_corners=False), fine], 1)


class RootSAM(nn.Module):
    """A SAM2.1-architecture model with a frozen image encoder.

    `encode` runs the trunk once per image, without gradient and always in eval mode (its batch-norm statistics and
    drop-path must not depend on training). `embed` and `decode` hold everything that
    may learn: prompt encoder, mask decoder with conv_s0 / conv_s1 (two small layers that bring fine detail in), and the
    detail path, if there is one. The neck, which joins the trunk's scales, is frozen unless asked for; it runs in
    `embed`, because trunk outputs are far smaller to keep than its own, and so that it can be trained.
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
        self._folded: tuple[nn.Module, ...] = ()  # hidden from the state dict: see `fold_norms`
        self.requires_grad_(False)
        for part in self.trained_parts().values():
            part.requires_grad_(True)
        self.train()

    def trained_parts(self) -> dict[str, nn.Module]:
        """The modules that fine-tuning trains."""
        return {"prompt encoder": self.sam.sam_prompt_encoder, "mask decoder": self.sam.sam_mask_decoder}

    def add_detail(self, seed: int = 0) -> None:
        """Give the decoder a `DetailPath` drawn from `seed`, where it has none. Until it is trained, answers to prompts
        stay the same, and it finds no roots by itself."""
        decoder = self.sam.sam_mask_decoder
        if decoder.detail is None:
            encoder = self.sam.image_encoder
            out = (decoder.conv_s0.out_channels, decoder.conv_s1.out_channels, encoder.neck.d_model)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                path = DetailPath(tuple(encoder.trunk.channel_list[::-1]), out)
            decoder.detail = path.to(self.device)

    def train(self, mode: bool = True) -> "RootSAM":
        """As in torch, but the image encoder stays in eval mode, so that kept and live features are the same."""
        super().train(mode)
        self.sam.image_encoder.eval()
        return self

    def fold_norms(self) -> None:
        """From now on encode with the frozen batch norms folded into the convolutions before them: the same maps up to
        rounding, on a CPU in two thirds of the time. Weights and checkpoints stay as they are.

        Nothing changes where there are no such norms, or where a trunk would answer otherwise.
        """
        trunk = copy.deepcopy(self.sam.image_encoder.trunk)
        for parent in list(trunk.modules()):
            for (name, conv), (after, norm) in itertools.pairwise(list(parent.named_children())):
                fits = isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
                if fits and conv.out_channels == norm.num_features:
                    setattr(parent, name, fuse_conv_bn_eval(conv, norm))
                    setattr(parent, after, getattr(norm, "act", nn.Identity()))  # timm's norms hold the activation too
        probe = torch.linspace(-2, 2, 3 * 64 * 64, device=self.device).sin().view(1, 3, 64, 64)
        with torch.no_grad():
            pairs = list(zip(trunk(probe), self.sam.image_encoder.trunk(probe), strict=True))
        if all(torch.allclose(new, old, rtol=1e-3, atol=1e-3 * float(old.abs().max())) for new, old in pairs):
            self._folded = (trunk,)

    @property
    def device(self) -> torch.device:
        return self.pixel_mean.device

    def pixels(self, images: np.ndarray | Tensor, size: int | None = None) -> Tensor:
        """What the encoder sees of images uint8 (B, H, W, 3): normalised, float (B, 3, h, w).

        size: side in px to which images are resized first (SAM2.1's own predictor always uses 1024); None keeps them as
        they are. Raises ValueError for another shape or dtype, or a side that is not a multiple of 32.
        """
        images = torch.as_tensor(images, device=self.device)
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != torch.uint8:
            raise ValueError(
                f"images must be uint8 (B, H, W, 3), not {images.dtype} {tuple(images.shape)}: "
                "stack images with numpy.stack, and do not normalise them first."
            )
        pixels = images.permute(0, 3, 1, 2).float() / 255
        if size is not None and pixels.shape[-2:] != (size, size):
            pixels = F.interpolate(pixels, (size, size), mode="bilinear", align_corners=False, antialias=True)
        if pixels.shape[-2] % 32 or pixels.shape[-1] % 32:
            raise ValueError(
                f"encoder input of {pixels.shape[-2]} x {pixels.shape[-1]} px: both sides must be multiples of 32; "
                "pass size=512 or size=1024, or tile the scan."
            )
        return (pixels - self.pixel_mean) / self.pixel_std

    @torch.no_grad()
    def encode(self, images: np.ndarray | Tensor, size: int | None = None) -> Features:
        """Run the frozen trunk on images uint8 (B, H, W, 3), resized to `size` px first: see `pixels`."""
        pixels = self.pixels(images, size).contiguous(memory_format=torch.channels_last)
        half = half_precision() if self.device.type == "cuda" else None
        with torch.autocast(self.device.type, half, enabled=half is not None):
            maps = (*self._folded, self.sam.image_encoder.trunk)[0](pixels)
        return Features(tuple(level.float() for level in maps), tuple(images.shape[1:3]), pixels)

    def embed(self, features: Features) -> Embedding:
        """Run the neck, conv_s0 / conv_s1 and a detail path's maps: once for all prompts of the images."""
        fpn, _ = self.sam.image_encoder.neck(list(features.maps))
        decoder = self.sam.sam_mask_decoder
        image = fpn[2] + self.sam.no_mem_embed.view(1, -1, 1, 1)
        embedding = Embedding(image, (decoder.conv_s0(fpn[0]), decoder.conv_s1(fpn[1])), features.image_size)
        return embedding if decoder.detail is None else decoder.detail(features, embedding)

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
        next to each other. mask_input: low_res logits (P, 1, h / 4, w / 4) of an earlier prediction.
        """
        embedding = self.embed(features) if isinstance(features, Features) else features
        images = len(embedding.image)
        if points is None:
            points, labels = torch.zeros(images, 1, 2), torch.full((images, 1), -1)
        if points.shape[0] % images or points.shape[:2] != labels.shape:
            raise ValueError(
                f"points {tuple(points.shape)} and labels {tuple(labels.shape)} do not fit {images} encoded images: "
                "give (P, N, 2) and (P, N) with P a multiple of the number of images."
            )
        # SAM2.1's prompt encoder has an embedding for label -1, so padding would change an answer: prompt sets of one
        # length are decoded together, without any padding.
        padded = labels.cpu() < 0  # below: in each set the real points come first, sets of one length are a group,
        # and `back` puts the answers into the order of the questions again.
        counts, first = (~padded).sum(1), padded.int().argsort(dim=1, stable=True)
        groups = [(counts == count).nonzero()[:, 0] for count in counts.unique()]
        image_of = torch.arange(len(points)) // (len(points) // images)
        answers = []
        for rows in groups:
            kept = first[rows, : max(int(counts[rows[0]]), 1)]
            own_points = points[rows[:, None], kept].to(self.device)
            own_labels = labels[rows[:, None], kept].to(self.device)
            fed = mask_input if mask_input is None or len(rows) == len(points) else mask_input[rows]
            own = embedding.of(image_of[rows].tolist())
            if embedding.detail is not None and not counts[rows[0]] and fed is None and not multimask:
                answers.append(self.sam.sam_mask_decoder.detail.answer(own.detail))  # all roots
            else:
                answers.append(self._decode(own, own_points, own_labels, fed, multimask))
        back = torch.cat(groups).argsort()
        parts = (x[0] if len(groups) == 1 else torch.cat(x)[back] for x in zip(*answers, strict=True))
        return Prediction(*parts)

    def _decode(
        self, embedding: Embedding, points: Tensor, labels: Tensor, mask_input: Tensor | None, multimask: bool
    ) -> Prediction:
        """sam2's prompt encoder and mask decoder, and the detail path's head, for prompt sets of one length."""
        prompt_encoder, decoder = self.sam.sam_prompt_encoder, self.sam.sam_mask_decoder
        # The prompt encoder only uses these sizes to normalise coordinates and to lay out the dense grid.
        prompt_encoder.input_image_size = embedding.image_size
        prompt_encoder.image_embedding_size = tuple(embedding.image.shape[-2:])
        sparse, dense = prompt_encoder(points=(points, labels), boxes=None, masks=mask_input)
        low_res, iou, _, _ = decoder(
            image_embeddings=embedding.image,
            image_pe=prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=multimask,
            repeat_image=False,
            high_res_features=list(embedding.fine),
        )
        logits = low_res if decoder.detail is None else decoder.detail.refine(low_res, embedding.detail)
        return Prediction(logits, iou, low_res)

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
        rows.append({"part": "memory (for video; unused)", "parameters": rest, "state": "frozen"})
        return rows


def pick_device() -> torch.device:
    """The device a model is built on: CUDA, else Apple's MPS, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def half_precision() -> torch.dtype | None:
    """The half precision that a CUDA device computes in: bfloat16 where it is not merely emulated (a T4 has only
    float16), else float16; None without such a device, and on a GTX 16xx, whose float16 is known to end in NaN."""
    if not torch.cuda.is_available() or " GTX 16" in torch.cuda.get_device_name():
        return None
    return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16


def images_at_once(side: int, device: torch.device) -> int:
    """How many images of `side` px the encoder takes together: on a GPU about four megapixels, on a CPU one image,
    which is as fast there, needs least memory and keeps every last bit."""
    return 1 if device.type == "cpu" else max(1, (2048 // side) ** 2)


def encoder_size(side: int, input_scale: float) -> int | None:
    """The side in px at which the encoder sees an image of `side` px: input_scale times as long, to a multiple of 32.

    None, "as it is", for input_scale 1. Raises ValueError for an input_scale that is not above 0.
    """
    if input_scale <= 0:
        raise ValueError(f"input_scale is {input_scale}: it must be greater than 0; 1 takes images as they are.")
    return None if input_scale == 1 else max(32, 32 * round(side * input_scale / 32))


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear resize of mask logits (B, M, h, w) to size (H, W), in fp32."""
    return F.interpolate(logits.float(), size, mode="bilinear", align_corners=False)
