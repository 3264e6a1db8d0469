"""Trained weights for other programs: Meta's own layout, Hugging Face's `Sam2Model`, or two ONNX files.

`python -m rootsam_lib export --to sam2|transformers|onnx SOURCE OUT`

**What the others have to know.** Everything that they see is squashed to 1024 x 1024 px, as SAM2.1 does. A model that
was trained at `input_scale` s therefore wants tiles of 1024 / s px, and the export says how many. No points (one point
of label -1 where a program insists on a prompt) means all roots. What stands in `rootsam_lib.predictor`, tiles that
fade into each other, points that select whole roots, merged corrections, stays here. The first of sam2's four masks is
the trained one: ask for a single mask, and without sam2's fall-back to the other three.

**What opens where.** sam2: `build_sam2` and `SAM2ImagePredictor`; nano also needs rootsam_lib, which holds its trunk.
transformers: `Sam2Model` and `Sam2Processor`; Meta's sizes only. ONNX: any onnxruntime; X-AnyLabeling reads the three
files by "Load Custom Model" as they are. CVAT's own plugin for SAM 2 takes inputs of these names, and in some versions
another one, `orig_im_size`. napari opens none of them itself; its plugin micro-sam builds SAM 2.1 (its names hvit_t,
hvit_s, hvit_b, hvit_l) with `build_sam2`, so that the sam2 file of Meta's sizes is the one to give it, not nano.
Tried (in tests): sam2, transformers and onnxruntime, on the CPU. **Not tried:** X-AnyLabeling, CVAT, napari and
micro-sam themselves, a GPU, TensorRT.
"""

import argparse
import os
import re
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rootsam_lib.checkpoints import EMBEDDED
from rootsam_lib.data.images import read_image
from rootsam_lib.metrics import count, iou
from rootsam_lib.model import Features, RootSAM
from rootsam_lib.predictor import load_predictor
from rootsam_lib.results import atomic, shown

SIZE = 1024  # px, the side of what sam2, transformers and the ONNX encoder see
INPUTS = ["image_embed", "high_res_feats_0", "high_res_feats_1"]  # X-AnyLabeling takes inputs by their order
INPUTS += ["point_coords", "point_labels", "mask_input", "has_mask_input"]


def export_weights(source: str | Path, out: str | Path, to: str, without_detail: bool = False) -> str:
    """Write a trained model in another program's format, and return the lines that say how to use it there.

    source: what `load_predictor` takes. to: "sam2" (out is a .pt file), "transformers" or "onnx" (out is a folder).
    without_detail: leave a detail path out, which only onnx can carry.
    Raises ValueError, before anything is written, for what the format cannot hold, and FileExistsError where `out` is.
    """
    out = Path(out).expanduser()
    if to not in FORMATS:
        raise ValueError(f"format {to!r} is unknown: choose one of {', '.join(FORMATS)}.")
    if out.exists():
        raise FileExistsError(f"{shown(out)} is there already: give another name, or delete it.")
    if to == "sam2" and out.suffix != ".pt":
        raise ValueError(f"{shown(out)} must end in .pt, as Meta's checkpoints do.")
    predictor = load_predictor(source)
    model = predictor.model.cpu().eval()
    if without_detail:
        model.sam.sam_mask_decoder.detail = None
    elif to != "onnx" and model.sam.sam_mask_decoder.detail is not None:
        raise ValueError(
            f"{source} has a detail path, which {to} has no place for: leave it out with --without-detail (with "
            "--scan IMAGE it is said what that costs), or export to onnx, which carries it."
        )
    if to == "transformers" and model.name in EMBEDDED:
        raise ValueError(
            f"{model.name} cannot become a Sam2Model, whose trunk is always a Hiera: export to sam2 or onnx, or "
            "train tiny."
        )
    how = FORMATS[to](model, out)
    tile = round(SIZE / predictor.input_scale)
    return f"{shown(out)}: {how}\nIt squashes what it sees to {SIZE} px: give it tiles of {tile} x {tile} px."


def detail_cost(source: str | Path, image: str | Path) -> float:
    """IoU of a scan's automatic masks with and without the detail path: 1 where leaving it out changes nothing."""
    predictor, pixels = load_predictor(source), read_image(image)
    masks = [predictor(pixels)]
    predictor.model.sam.sam_mask_decoder.detail = None
    predictor.set_image(pixels.copy())
    return float(iou(count(predictor.predict()[0][0], masks[0])))


def export_command(options: argparse.Namespace) -> int:
    """Export as the command line asks."""
    if options.scan:
        if not options.without_detail:
            raise ValueError("--scan says what leaving the detail path out costs: give --without-detail with it.")
        agreement = detail_cost(options.source, options.scan)
        print(f"{shown(options.scan)}: masks with and without the detail path agree with an IoU of {agreement:.3f}")
    print(export_weights(options.source, options.out, options.to, options.without_detail))
    if options.without_detail:
        print("The detail path, if there was one, is left out: its fine structures are lost.")
    return 0


# --- sam2


def to_sam2(model: RootSAM, out: Path) -> str:
    """Meta's layout: {"model": state dict} with sam2's own keys."""
    with atomic(out) as partial:
        torch.save({"model": {key: value.contiguous() for key, value in model.sam.state_dict().items()}}, partial)
    config = "rootsam_lib/nano/nano.yaml" if model.name in EMBEDDED else f"sam2's {model.name} configuration"
    return f"for sam2's build_sam2 with {config}, apply_postprocessing=False and predict(multimask_output=False)."


# --- transformers


_KEYS = (  # Meta's names, as regular expressions, and Hugging Face's; in this order
    (r"^image_encoder\.trunk", "vision_encoder.backbone"),
    (r"^image_encoder\.neck\.convs\.(\d)\.conv", r"vision_encoder.neck.convs.\1"),
    (r"patch_embed\.proj", "patch_embed.projection"),
    (r"^no_mem_embed", "no_memory_embedding"),
    (r"^sam_prompt_encoder", "prompt_encoder"),
    (r"^sam_mask_decoder", "mask_decoder"),
    (r"pe_layer\.positional_encoding_gaussian_matrix", "shared_embedding.positional_embedding"),
    (r"mask_downscaling\.0", "mask_embed.conv1"),
    (r"mask_downscaling\.1", "mask_embed.layer_norm1"),
    (r"mask_downscaling\.3", "mask_embed.conv2"),
    (r"mask_downscaling\.4", "mask_embed.layer_norm2"),
    (r"mask_downscaling\.6", "mask_embed.conv3"),
    (r"output_upscaling\.0", "upscale_conv1"),
    (r"output_upscaling\.1", "upscale_layer_norm"),
    (r"output_upscaling\.3", "upscale_conv2"),
    (r"\.norm_final_attn", ".layer_norm_final_attn"),
    (r"\.norm(\d)", r".layer_norm\1"),
    (r"\.out_proj", ".o_proj"),
    (r"\.mlp\.layers\.0", ".mlp.proj_in"),  # a block's two layers
    (r"\.mlp\.layers\.1", ".mlp.proj_out"),
    (r"(mlps\.\d|head)\.layers\.0", r"\1.proj_in"),  # the three layers of a head
    (r"(mlps\.\d|head)\.layers\.2", r"\1.proj_out"),
    (r"(mlps\.\d|head)\.layers\.1", r"\1.layers.0"),
)
_OF_VIDEO = re.compile("mem|maskmem|no_mem_pos|no_obj|obj_ptr|mask_downsample")


def hugging_face_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """A state dict with Meta's keys under the keys of `Sam2Model`, without what serves video only."""
    renamed, corners = {}, {}
    for key, value in state.items():
        if _OF_VIDEO.match(key):
            continue
        if found := re.match(r"sam_prompt_encoder\.point_embeddings\.(\d)", key):
            corners[int(found[1])] = value
            continue
        for old, new in _KEYS:
            key = re.sub(old, new, key)
        renamed[key] = value.contiguous()
    renamed["prompt_encoder.point_embed.weight"] = torch.cat([corners[kind] for kind in sorted(corners)])
    shared = renamed["prompt_encoder.shared_embedding.positional_embedding"]
    renamed["shared_image_embedding.positional_embedding"] = shared.clone()
    return renamed


def to_transformers(model: RootSAM, out: Path) -> str:
    """A folder that `Sam2Model.from_pretrained` and `Sam2Processor.from_pretrained` read."""
    try:
        from transformers import Sam2Config, Sam2ImageProcessor, Sam2Model, Sam2Processor
    except ImportError as error:
        raise ValueError("export to transformers needs a package that is absent: pip install transformers") from error
    trunk, neck = model.sam.image_encoder.trunk, model.sam.image_encoder.neck
    last = trunk.stage_ends
    backbone = {
        "hidden_size": trunk.channel_list[-1],
        "num_attention_heads": trunk.blocks[0].attn.num_heads,
        "blocks_per_stage": [b - a for a, b in zip([-1, *last], last, strict=False)],
        "embed_dim_per_stage": trunk.channel_list[::-1],
        "num_attention_heads_per_stage": [trunk.blocks[i].attn.num_heads for i in last],
        "window_size_per_stage": list(trunk.window_spec),
        "window_positional_embedding_background_size": list(trunk.window_pos_embed_bkg_spatial_size),
        "global_attention_blocks": list(trunk.global_att_blocks),
    }
    vision = {"backbone_config": {"model_type": "sam2_hiera_det_model", **backbone}}
    vision["backbone_channel_list"] = list(neck.backbone_channel_list)
    config = Sam2Config(vision_config=vision, mask_decoder_config={"dynamic_multimask_via_stability": False})
    theirs = Sam2Model(config).eval()
    theirs.load_state_dict(hugging_face_state(model.sam.state_dict()))

    def write(folder: Path) -> None:
        theirs.save_pretrained(folder)
        Sam2Processor(Sam2ImageProcessor()).save_pretrained(folder)

    _write_folder(out, write)
    return "for transformers' Sam2Model.from_pretrained, called with multimask_output=False."


# --- ONNX


class OnnxEncoder(nn.Module):
    """Normalised pixels (1, 3, S, S) to what the decoder looks at. A detail path's own features travel as further
    channels of high_res_feats_0, which programs hand on as they are."""

    def __init__(self, model: RootSAM):
        super().__init__()
        self.model = model

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        maps = self.model.sam.image_encoder.trunk(image)
        embedding = self.model.embed(Features(tuple(maps), tuple(image.shape[-2:]), image))
        fine = embedding.fine[0]
        if embedding.detail is not None:
            fine = torch.cat([fine, F.pixel_unshuffle(embedding.detail, 2)], 1)
        return fine, embedding.fine[1], embedding.image


class OnnxDecoder(nn.Module):
    """sam2's prompt encoder and mask decoder for one prompt set: points (1, N, 2) in px of the encoder's S x S, labels
    (1, N) (1 root, 0 soil, -1 none), mask_input (1, 1, S / 4, S / 4), used where has_mask_input (1,) is 1.

    Answers masks, logits (1, 1, S / 4, S / 4) or with a detail path (1, 1, S, S), iou_predictions (1, 1) and
    low_res_masks, which mask_input takes.
    """

    def __init__(self, model: RootSAM, size: int):
        super().__init__()
        self.model = model
        prompts = model.sam.sam_prompt_encoder
        prompts.input_image_size, prompts.image_embedding_size = (size, size), (size // 16, size // 16)

    def forward(
        self,
        image_embed: Tensor,
        high_res_feats_0: Tensor,
        high_res_feats_1: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        prompts, decoder = self.model.sam.sam_prompt_encoder, self.model.sam.sam_mask_decoder
        sparse, no_mask = prompts(points=(point_coords, point_labels), boxes=None, masks=None)
        _, given = prompts(points=None, boxes=None, masks=mask_input)
        channels = decoder.conv_s0.out_channels
        low_res, quality, _, _ = decoder(
            image_embeddings=image_embed,
            image_pe=prompts.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=torch.where(has_mask_input.view(-1, 1, 1, 1) > 0, given, no_mask),
            multimask_output=False,
            repeat_image=False,
            high_res_features=[high_res_feats_0[:, :channels], high_res_feats_1],
        )
        if decoder.detail is None:
            return low_res, quality, low_res
        detail = F.pixel_shuffle(high_res_feats_0[:, channels:], 2)
        refined = decoder.detail.refine(low_res, detail)
        asked = ((point_labels >= 0).any() | (has_mask_input > 0).any()).view(1, 1, 1, 1)
        own = decoder.detail.answer(detail)
        masks, low_res = (torch.where(asked, a, b) for a, b in ((refined, own.logits), (low_res, own.low_res)))
        return masks, torch.where(asked.view(1, 1), quality, own.iou), low_res


def to_onnx(model: RootSAM, out: Path, size: int = SIZE) -> str:
    """A folder of encoder.onnx, decoder.onnx and the YAML by which X-AnyLabeling finds them; it is kept only if ONNX
    Runtime answers as torch does."""
    try:
        import onnxscript  # noqa: F401  (what torch writes ONNX with)
        from onnxruntime import InferenceSession

        free = {1: torch.export.Dim.DYNAMIC}
    except (ImportError, AttributeError) as error:
        raise ValueError(
            "export to onnx needs newer packages: pip install 'torch>=2.11' 'onnxscript>=0.7' onnx onnxruntime"
        ) from error
    encoder, decoder = OnnxEncoder(model).eval(), OnnxDecoder(model, size).eval()
    generator = torch.Generator().manual_seed(0)
    image, mask = (torch.randn(1, n, s, s, generator=generator) for n, s in ((3, size), (1, size // 4)))
    points, labels = size * torch.rand(1, 3, 2, generator=generator), torch.tensor([[1.0, 0.0, 1.0]])
    with torch.no_grad():
        fine, middle, embed = encoder(image)
        given = (embed, fine, middle, points, labels, mask, torch.ones(1))
        expected = (fine, middle, embed, *decoder(*given))
    shapes = {name: free if name.startswith("point") else None for name in INPUTS}
    how = {"dynamo": True, "external_data": False, "verbose": False}

    def write(folder: Path) -> None:
        with torch.no_grad():
            torch.onnx.export(encoder, (image,), folder / "encoder.onnx", input_names=["image"],
                              output_names=["high_res_feats_0", "high_res_feats_1", "image_embed"], **how)  # fmt: skip
            torch.onnx.export(decoder, given, folder / "decoder.onnx", input_names=INPUTS, dynamic_shapes=shapes,
                              output_names=["masks", "iou_predictions", "low_res_masks"], **how)  # fmt: skip
        found = InferenceSession(folder / "encoder.onnx").run(None, {"image": image.numpy()})
        asked = {name: value.numpy() for name, value in zip(INPUTS, given, strict=True)}
        found += InferenceSession(folder / "decoder.onnx").run(None, asked)
        for ours, theirs in zip(expected, found, strict=True):  # torch 2.11 writes a detail path wrongly, and silently
            if not torch.allclose(ours, torch.from_numpy(theirs), rtol=1e-3, atol=1e-2):
                raise ValueError(f"torch {torch.__version__} writes this model wrongly as ONNX: install a newer torch.")
        lines = ["type: segment_anything_2", f"name: rootsam-{model.name}", f"display_name: RootSAM ({model.name})"]
        lines += [f"{part}_model_path: {part}.onnx" for part in ("encoder", "decoder")]
        (folder / "x-anylabeling.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")

    _write_folder(out, write)
    return "encoder.onnx and decoder.onnx for onnxruntime; x-anylabeling.yaml for X-AnyLabeling (there not tried)."


FORMATS = {"sam2": to_sam2, "transformers": to_transformers, "onnx": to_onnx}


def _write_folder(out: Path, write: Callable[[Path], None]) -> None:
    """A folder that is whole or not there."""
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as partial:
        write(Path(partial))
        os.chmod(partial, 0o755)  # a temporary folder is hidden from other users
        os.replace(partial, out)
