"""RootSAM: adapt SAM2.1 to plant roots in minirhizotron scans, and prove that it works."""

import os
from pathlib import Path

# albumentations asks the network for a newer version at import; nothing here wants that.
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")

_CHECKOUT = Path(__file__).resolve().parent.parent
# Where runs/ and data/ live: ROOTSAM_HOME, else the checkout, else (installed without one) the user's home.
HOME = Path(
    os.environ.get("ROOTSAM_HOME")
    or (_CHECKOUT if (_CHECKOUT / "pyproject.toml").is_file() else Path.home() / "rootsam")
)
__version__ = "0.1.0"
