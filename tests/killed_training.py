"""A run of its own for test_resume.py: train to the end, then again with ten kills -9 on the way, and compare.

python tests/killed_training.py FOLDER
"""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch

from rootsam_lib.checkpoints import build_sam, save_checkpoint
from rootsam_lib.data.drawn import synthetic_scans
from rootsam_lib.data.scans import Scan
from rootsam_lib.training import feature_bank as features
from rootsam_lib.training import loop as training
from rootsam_lib.training.config import StageConfig

KILLS = int(os.environ.get("ROOTSAM_KILLS", 10))  # a multiple of 5
CONFIG = StageConfig(
    1,
    "nano",
    64,
    3e-3,
    epochs=max(9, KILLS // 2),
    batch_size=2,
    views=2,
    refresh=0.5,
    correction_share=0.5,
    schedule="cosine",
)


def scans() -> list[Scan]:
    """Three small scans with roots, of three tubes."""
    drawn = [s for s in synthetic_scans("train", 24, seed=3, height=128, width=128) if s.mask.mean() > 0.02][:3]
    return [Scan(s.image, s.mask, f"s{i}", f"T{i:03d}", "", s.mm_per_px) for i, s in enumerate(drawn)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def arrange_death(moment: str, call: int) -> None:
    """Have this process kill itself in the given call of what it does at such a moment."""
    calls = []

    def counted(function):
        def wrapper(*arguments, **named):
            calls.append(1)
            if len(calls) == call:
                if moment == "checkpoint":  # half of the file is written
                    Path(arguments[1]).write_bytes(b"half a checkpoint")
                die()
            return function(*arguments, **named)

        return wrapper

    if moment == "bank":  # the view's features are written, its number is not
        features.np.packbits = counted(np.packbits)
    elif moment == "step":
        training.train_step = counted(training.train_step)
    elif moment == "validation":
        training.score = counted(training.score)
    elif moment == "checkpoint":
        training.torch.save = counted(torch.save)
    else:  # between the best weights, the history and the checkpoint
        training.write_csv = counted(training.write_csv)


def in_a_child(work) -> int:
    """Run `work` in a forked process; return the signal that ended it, 0 for none."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise SystemExit("a run failed: see the lines above")
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def main(folder: Path) -> None:
    """Print one line a kill, then how both runs compare."""
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    train, val, base = scans()[:2], scans()[2:], folder / "base.safetensors"
    save_checkpoint(build_sam("nano", weights=None, seed=0), base)

    def run(name: str):
        return training.train_stage(CONFIG, train, val, folder / name, base, save_seconds=0)

    in_a_child(lambda: run("whole"))
    rng = np.random.default_rng(0)
    moments = ["bank", "step", "validation", "checkpoint", "history"] * (KILLS // 5)
    kills = 0
    for moment in rng.permutation(moments):
        call = 1 + int(rng.integers(1 if moment == "history" else 3))

        def work(moment=str(moment), call=call):
            arrange_death(moment, call)
            run("killed")

        ended = in_a_child(work)
        last = next((folder / "killed").glob("stage1-*"), None)
        print(f"{moment}, call {call}: signal {ended}, {'started' if last else 'not started'}", flush=True)
        kills += ended == signal.SIGKILL
    in_a_child(lambda: run("killed"))
    (whole,), (killed,) = ((folder / name).glob("stage1-*") for name in ("whole", "killed"))
    for file in ("best.safetensors", "history.csv"):
        assert (whole / file).read_bytes() == (killed / file).read_bytes(), f"{file} differs"
    a, b = (torch.load(each / "last.pt", weights_only=True) for each in (whole, killed))
    assert all(a["model"][n].equal(b["model"][n]) and a["ema"][n].equal(b["ema"][n]) for n in a["model"])
    assert not (killed / "bank").exists()
    print(f"{kills} kills, same weights and history")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
