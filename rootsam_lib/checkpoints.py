"""Which models there are, and where their weights come from.

`nano` is embedded (SAM2.1 decoder, EfficientNet-Lite0 trunk, pretrained here); `tiny`, `small`, `base_plus` and
`large` are Meta's SAM2.1 checkpoints, downloaded when first asked for.
"""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import pooch
import sam2

from rootsam_lib.progress import cache_dir

NANO = Path(__file__).parent / "nano"
META_URL = "https://dl.fbaipublicfiles.com/segment_anything_2/092824/"


class ModelSpec(NamedTuple):
    """One model: its architecture file, its checkpoint, the checkpoint's SHA-256 (nano's is on its card), its label."""

    config: Path
    checkpoint: str
    sha256: str
    label: str


_META = Path(sam2.__path__[0]) / "configs" / "sam2.1"
MODELS = {
    "nano": ModelSpec(
        NANO / "nano.yaml",
        "nano.safetensors",
        "",
        "nano (SAM2.1 decoder, EfficientNet-Lite0 trunk, pretrained here)",
    ),
    "tiny": ModelSpec(
        _META / "sam2.1_hiera_t.yaml",
        "sam2.1_hiera_tiny.pt",
        "7402e0d864fa82708a20fbd15bc84245c2f26dff0eb43a4b5b93452deb34be69",
        "SAM2.1 tiny",
    ),
    "small": ModelSpec(
        _META / "sam2.1_hiera_s.yaml",
        "sam2.1_hiera_small.pt",
        "6d1aa6f30de5c92224f8172114de081d104bbd23dd9dc5c58996f0cad5dc4d38",
        "SAM2.1 small",
    ),
    "base_plus": ModelSpec(
        _META / "sam2.1_hiera_b+.yaml",
        "sam2.1_hiera_base_plus.pt",
        "a2345aede8715ab1d5d31b4a509fb160c5a4af1970f199d9054ccfb746c004c5",
        "SAM2.1 base+",
    ),
    "large": ModelSpec(
        _META / "sam2.1_hiera_l.yaml",
        "sam2.1_hiera_large.pt",
        "2647878d5dfa5098f2f8649825738a9345572bae2d4350a2468587ece47dd318",
        "SAM2.1 large",
    ),
}


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
            downloader=pooch.HTTPDownloader(progressbar=True, timeout=60),
        )
    except ValueError as error:  # pooch's word for a hash that does not match; it has removed the file
        raise OSError(
            f"{entry.checkpoint} from {base_url} is not the published file (its SHA-256 differs): try again later."
        ) from error
    except OSError as error:
        raise OSError(
            f"{entry.checkpoint} could not be fetched from {base_url} ({type(error).__name__}): check the connection, "
            f"put the file into {cache_dir()} yourself, or use the embedded model with MODEL = 'nano'."
        ) from error
    return Path(path)


def embedded_checkpoint() -> Path:
    """The path of nano's weights, after comparing them with the SHA-256 on their card, nano.json.

    Raises ValueError when they differ: the package is damaged or half updated.
    """
    path = NANO / MODELS["nano"].checkpoint
    card = json.loads((NANO / "nano.json").read_text(encoding="utf-8"))
    if hashlib.sha256(path.read_bytes()).hexdigest() != card["sha256"]:
        raise ValueError(f"{path.name} is not the file that nano.json describes: install the package again.")
    return path
