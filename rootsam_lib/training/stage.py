"""A finished stage, and what names its folder: everything that decides what a training learns."""

import ast
import hashlib
import json
import warnings
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

import rootsam_lib
from rootsam_lib.checkpoints import MODELS, build_sam
from rootsam_lib.data.scans import Patch, Scan, tile
from rootsam_lib.model import RootSAM
from rootsam_lib.results import file_hash, provenance, read_csv, read_json
from rootsam_lib.training.config import StageConfig

PATCH_STREAM = 3  # tells this use of a seed from others, so that no two draw the same numbers


@dataclass(frozen=True)
class Stage:
    """A finished stage: its folder, its configuration, the best epoch's weights and the history, one row an epoch."""

    folder: Path
    config: dict[str, object]
    history: list[dict[str, float]]

    @property
    def weights(self) -> Path:
        return self.folder / "best.safetensors"

    def model(self) -> RootSAM:
        """Build the model with the best epoch's weights."""
        return build_sam(str(self.config["model"]), self.weights)


def load_stage(folder: str | Path) -> Stage:
    """Read a finished stage. Raises FileNotFoundError when it is not finished or not there, ValueError for damage."""
    folder = Path(folder)
    if not (folder / "stage.json").is_file():
        raise FileNotFoundError(f"{folder} holds no finished stage: run notebook 03 (Stage 1) or 04 (Stage 2).")
    if missing := [name for name in ("best.safetensors", "history.csv") if not (folder / name).is_file()]:
        raise ValueError(f"{folder} is said to be finished, but lacks {missing[0]}: delete it to train it anew.")
    about = read_json(folder / "stage.json")
    if about.get("weights_sha256") != file_hash(folder / "best.safetensors"):
        raise ValueError(
            f"{folder}: stage.json is of other weights than best.safetensors: delete the folder to train it anew."
        )
    try:
        rows = read_csv(folder / "history.csv")
        history = [{key: float("nan" if v is None else v) for key, v in row.items()} for row in rows]
        whole = len(history) == about["config"]["epochs"]
    except (ValueError, TypeError, KeyError):
        whole = False
    if not whole:
        raise ValueError(f"{folder}: stage.json or history.csv is damaged: delete the folder to train it anew.")
    return Stage(folder, about["config"], history)


def training_patches(scans: Sequence[Scan], config: StageConfig) -> list[Patch]:
    """All patches with roots, and as many without as config.soil_share asks for (drawn from config.seed)."""
    patches = [patch for scan in scans for patch in tile(scan, config.patch_size)]
    mirrored = 1 - np.mean([np.prod(1 - np.array(p.padding) / config.patch_size) for p in patches])
    if mirrored > 0.5:
        what = f"patches of {config.patch_size} px are larger than the scans: {mirrored:.0%} of them are mirrored"
        warnings.warn(f"{what}: take a smaller patch_size.", stacklevel=2)
    rooted = [p for p in patches if p.mask.any()]
    soil = [p for p in patches if not p.mask.any()]
    if not rooted:
        raise ValueError(f"none of the {len(scans)} training scans has a root: check the masks, or take more scans.")
    wanted = min(len(soil), round(len(rooted) * config.soil_share / (1 - config.soil_share)))
    chosen = np.random.default_rng([PATCH_STREAM, config.seed]).permutation(len(soil))[:wanted]
    return rooted + [soil[i] for i in sorted(chosen)]


def run_id(config: StageConfig, train: Sequence[Scan], val: Sequence[Scan], base: str) -> str:
    """Eight hex digits for config, scans, starting weights (by hash) and code: no other setting shares the folder."""
    loop = Path(__file__).with_name("loop.py")
    code = [MODELS[config.model].config.read_text(encoding="utf-8"), *map(code_of, imported_files(loop))]
    scans = [
        [(s.name, zlib.crc32(np.ascontiguousarray(s.image)), zlib.crc32(np.ascontiguousarray(s.mask))) for s in part]
        for part in (train, val)
    ]
    identity = json.dumps([asdict(config), scans, base, code, provenance()["versions"]], sort_keys=True)
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def code_of(path: Path) -> str:
    """A Python file's code without its comments and docstrings: rewording them must not make a trained stage stale."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node) is not None:
            del node.body[0]
    return ast.dump(tree)


def imported_files(start: Path) -> list[Path]:
    """A file of this package and all those of it that it imports, directly or not: what results are computed by."""
    package, found, waiting = Path(rootsam_lib.__file__).parent, set(), [start]
    while waiting:
        path = waiting.pop()
        if path in found:
            continue
        found.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package.name}."):
                room = package.parent.joinpath(*node.module.split("."))
                waiting.append(room / "__init__.py" if room.is_dir() else room.with_suffix(".py"))
    return sorted(found)
