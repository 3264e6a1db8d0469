"""A run of its own for test_resume.py: the same stage in one process and in two, on the CPU.

python tests/two_processes.py FOLDER
"""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import torch
from killed_training import CONFIG, scans

from rootsam_lib.checkpoints import build_sam, save_checkpoint
from rootsam_lib.training.loop import train_stage

SETTING = replace(CONFIG, batch_size=4, epochs=4, correction_share=0.0)


def work(folder: str, name: str) -> None:
    """Train in every process that runs this."""
    torch.set_num_threads(1)
    given = scans()
    stage = train_stage(SETTING, given[:2], given[2:], Path(folder) / name, Path(folder) / "base.safetensors")
    (Path(folder) / f"{name}.json").write_text(json.dumps(stage.history))


def main(folder: Path) -> None:
    """Leave one.json and two.json, the histories."""
    folder.mkdir(parents=True, exist_ok=True)
    save_checkpoint(build_sam("nano", weights=None, seed=0), folder / "base.safetensors")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    subprocess.run([*launch, __file__, str(folder), "two"], check=True)
    work(str(folder), "one")


if __name__ == "__main__":
    work(*sys.argv[1:]) if sys.argv[2:] else main(Path(sys.argv[1]))
