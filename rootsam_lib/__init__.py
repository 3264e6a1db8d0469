"""RootSAM: adapt SAM2.1 to plant roots in minirhizotron scans, and prove that it works."""

import os
from pathlib import Path

# albumentations asks the network for a newer version at import; nothing here wants that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

CHECKOUT = Path(__file__).resolve().parent.parent  # notebooks, README, data and git, where the project is a clone
# Where runs/ grows: ROOTSAM_HOME, else the clone, else (installed without one) a folder in the user's home.
HOME = Path(
    os.environ.get("ROOTSAM_HOME") or (CHECKOUT if (CHECKOUT / "pyproject.toml").is_file() else Path.home() / "rootsam")
)
