"""Which models there are, and where their weights come from.

`nano` is embedded (SAM2.1 decoder, EfficientNet-Lite0 trunk, pretrained here), and so is `nano-roots`, the same after
Stage 1 on drawn scans, for who has annotated none, or few. `tiny`, `small`, `base_plus` and `large` are Meta's SAM2.1
checkpoints, downloaded when first asked for.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import NamedTuple

import pooch
import sam2
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from rootsam_lib.model import RootSAM, pick_device
from rootsam_lib.results import atomic, cache_dir, downloader

NANO = Path(__file__).parent / "nano"
ROOTS = "nano-roots"
# What the loaders of torch and safetensors raise for a file that is damaged, or not a checkpoint at all.
LOAD_ERRORS = (RuntimeError, LookupError, TypeError, AttributeError, OSError, EOFError, ValueError)
LOAD_ERRORS += (UnpicklingError, SafetensorError)
META_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"


# The files of sam2 that answer about images, first 16 hex digits of their SHA-256. The registry's package of that name
# is a third party's; at 1.1.0 these files are Meta's own, letter for letter, and weights are only good with them.
SAM2_FILES = {
    "modeling/backbones/hieradet.py": "03785581ca304d04",
    "modeling/backbones/image_encoder.py": "16eaad232220386f",
    "modeling/backbones/utils.py": "c4a0657db2a92bda",
    "modeling/position_encoding.py": "b51404718c0d38f3",
    "modeling/sam/mask_decoder.py": "ca3523c58365574f",
    "modeling/sam/prompt_encoder.py": "4965ccb4a4504aa4",
    "modeling/sam/transformer.py": "cda19052331e7751",
    "modeling/sam2_base.py": "69a46b44e8625f50",
    "modeling/sam2_utils.py": "e35bbf13bc2e544a",
}


class ModelSpec(NamedTuple):
    """One model: its architecture file, its checkpoint, the checkpoint's SHA-256 (embedded: on its card), its label."""

    config: Path
    checkpoint: str
    sha256: str
    label: str


_SAM2 = Path(sam2.__path__[0])
_META = _SAM2 / "configs" / "sam2.1"
EMBEDDED = {"nano": "pretrained here", ROOTS: "pretrained here, then trained on drawn scans"}
MODELS = {
    name: ModelSpec(
        NANO / "nano.yaml", f"{name}.safetensors", "", f"{name} (SAM2.1 decoder, EfficientNet-Lite0 trunk, {how})"
    )
    for name, how in EMBEDDED.items()
}
for _name, _short, _sha256 in (
    ("tiny", "t", "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69"),
    ("small", "s", "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38"),
    ("base_plus", "b+", "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5"),
    ("large", "l", "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318"),
):
    _label = f"SAM2.1 {_name.replace('_plus', '+')}"
    MODELS[_name] = ModelSpec(_META / f"sam2.1_hiera_{_short}.yaml", f"sam2.1_hiera_{_name}.pt", _sha256, _label)


def download_checkpoint(name: str, base_url: str = META_URL) -> Path:
    """Fetch one of Meta's checkpoints with a progress bar, verify its SHA-256, and return its path in the cache.

    Raises OSError, in one sentence, when it cannot be fetched or is not the published file.
    """
    entry = MODELS[name]
    try:
        path = pooch.retrieve(
            base_url + entry.checkpoint,
            known_hash=f"sha256:{entry.sha256}",
            fname=entry.checkpoint,
            path=cache_dir(),
            downloader=downloader(progressbar=True),
        )
    except OSError as error:  # also of a malformed proxy, which is a ValueError as well
        raise OSError(
            f"{entry.checkpoint} could not be fetched from {base_url} ({type(error).__name__}): check the connection "
            f"and the proxy's settings, put the file into {cache_dir()} yourself, or use the embedded model with "
            "MODEL = 'nano'."
        ) from error
    except ValueError as error:  # pooch's word for a hash that does not match; it has removed the file
        raise OSError(
            f"{entry.checkpoint} from {base_url} is not the published file (its SHA-256 differs): try again later."
        ) from error
    return Path(path)


def embedded_checkpoint(name: str = "nano") -> Path:
    """The path of a model's weights, a key of `EMBEDDED`, after comparing them with the SHA-256 on their card.

    Raises ValueError when they differ: the package is damaged or half updated.
    """
    path, card = NANO / f"{name}.safetensors", NANO / f"{name}.json"
    known = json.loads(card.read_text(encoding="utf-8"))["sha256"]
    if hashlib.sha256(path.read_bytes()).hexdigest() != known:
        raise ValueError(f"{path.name} is not the file that {card.name} describes: install the package again.")
    return path


@cache
def check_sam2(folder: Path = _SAM2) -> None:
    """Compare the installed sam2 with `SAM2_FILES`, once a process; line endings do not count.

    Raises ValueError, in one sentence that says what to install, where a file differs or is missing.
    """
    for name, expected in SAM2_FILES.items():
        try:
            found = hashlib.sha256((folder / name).read_bytes().replace(b"\r\n", b"\n")).hexdigest()
        except OSError:
            found = ""
        if not found.startswith(expected):
            raise ValueError(
                f"sam2/{name} is not the one that RootSAM was made with: pip install --no-deps --force-reinstall "
                "sam2==1.1.0, or Meta's own, git+https://github.com/facebookresearch/sam2 in place of sam2==1.1.0."
            )


def build_sam(name: str = "nano", weights: str | Path | None = "default", seed: int = 0) -> RootSAM:
    """Build a model, load its weights and put it on the device of `pick_device`.

    name: a key of `MODELS`. weights: "default" (embedded, or Meta's verified download), a checkpoint written by
    `save_checkpoint` or Meta's .pt format, or None for random weights drawn from `seed`.
    Raises ValueError for an unknown name, weights of another model or another sam2 than ours (see `check_sam2`),
    FileNotFoundError for a missing file.
    """
    check_sam2()
    if name not in MODELS:
        raise ValueError(f"model {name!r} is unknown: choose one of {', '.join(MODELS)}.")
    entry = MODELS[name]
    config = OmegaConf.load(entry.config)
    OmegaConf.resolve(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RootSAM(instantiate(config.model), name, entry.label)
    if weights is None:
        return model.to(pick_device())
    if weights == "default":
        weights = embedded_checkpoint(name) if name in EMBEDDED else download_checkpoint(name)
    load_weights(model, weights)
    return model.to(pick_device())


def _checkpoint(path: str | Path) -> Path:
    path = Path(path)
    if (path / "best.safetensors").is_file():  # a stage's folder
        path = path / "best.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}: run the notebook that trains it, or check the path.")
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} may not be read: give yourself the right to, or ask its owner.")
    return path


def load_weights(model: RootSAM, path: str | Path) -> None:
    """Load a checkpoint of the whole model (.safetensors, or Meta's .pt), strictly, detail path included.

    Raises FileNotFoundError or PermissionError, and ValueError when it is another model's or damaged.
    """
    path = _checkpoint(path)
    try:
        state = (
            load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)["model"]
        )
        if any(key.startswith("sam_mask_decoder.detail.") for key in state):
            model.add_detail()
        state = {key: value.float() for key, value in state.items()}
        model.sam.load_state_dict(state)
    except LOAD_ERRORS as error:
        why = (str(error).splitlines() or [""])[:2][-1].strip()[:120]
        if isinstance(error, UnpicklingError):  # torch's own words tell how to run code that may do harm
            why = "it is no checkpoint of weights alone"
        elif isinstance(error, KeyError):
            why = f"it has no entry {error}"
        raise ValueError(
            f"{path.name} does not hold weights of model {model.name!r}, or is damaged: choose the model that it was "
            f"made from, or make it again ({why})."
        ) from error
    if odd := [key for key, value in state.items() if not torch.isfinite(value).all()]:
        raise ValueError(f"{path.name} holds numbers that are none (NaN or infinite, in {odd[0]}): train it again.")


def save_checkpoint(model: RootSAM, path: str | Path, about: Mapping[str, object] | None = None) -> None:
    """Write the whole model's weights as safetensors, atomically, with a note of what they are and how to use them.

    about: anything that JSON holds; `predictor.load_predictor` wants input_scale and patch_size (px). The model's name
    and whether it has a detail path are added.
    """
    about = {**(about or {}), "model": model.name, "detail": model.sam.sam_mask_decoder.detail is not None}
    state = {key: value.contiguous() for key, value in model.sam.state_dict().items()}
    with atomic(path) as partial:
        save_file(state, partial, metadata={"rootsam": json.dumps(about, sort_keys=True)})
        partial.chmod(0o644)  # safetensors' own choice hides the file from other users


def read_about(path: str | Path) -> dict[str, object]:
    """What a checkpoint says of itself: see `save_checkpoint`.

    Raises FileNotFoundError or PermissionError, and ValueError when it is damaged or says nothing.
    """
    path = _checkpoint(path)
    try:
        with safe_open(path, "pt") as opened:
            about = json.loads((opened.metadata() or {}).get("rootsam", "null"))
    except LOAD_ERRORS as error:
        raise ValueError(
            f"{path.name} is no safetensors file, or is damaged: give what training wrote (best.safetensors), or make "
            "it again."
        ) from error
    if not isinstance(about, dict) or not {"model", "input_scale", "patch_size"} <= set(about):
        raise ValueError(f"{path.name} does not say which model it is and how to use it: train the stage again.")
    return about


def weights_hash(module: nn.Module) -> str:
    """SHA-256 over all weights of a model or of a part of it, first 16 hex digits: its identity in results files."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]
