"""Write the embedded nano-roots anew: `.venv/bin/python benchmarks/nano_roots.py`.

It is Stage 1 of the profile `segroot` on drawn scans alone (`real_scans.nano_roots`), in half precision, for who has
annotated no scan, or few. The weights and their card, nano-roots.json, go into rootsam_lib/nano.
"""

import copy
import hashlib

from real_scans import DRAWN, nano_roots

from rootsam_lib.checkpoints import NANO, ROOTS, build_sam, read_about, save_checkpoint
from rootsam_lib.results import read_json, write_json

if __name__ == "__main__":
    trained = nano_roots()
    stage, about, weights = read_json(trained.parent / "stage.json"), read_about(trained), NANO / f"{ROOTS}.safetensors"
    save_checkpoint(copy.deepcopy(build_sam("nano", trained)).half(), weights, about)
    card = {
        "name": ROOTS,
        "data": f"{DRAWN} drawn scans (rootsam_lib/data/drawn.py); no photograph",
        "recipe": "benchmarks/nano_roots.py",
        "bytes": weights.stat().st_size,
        "sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
    }
    write_json(NANO / f"{ROOTS}.json", card | {key: stage[key] for key in ("config", "base", "scans", "provenance")})
