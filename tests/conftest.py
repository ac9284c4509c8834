"""What every test, and every kernel that a test starts, finds around it."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]

# Kernels start in the notebook's folder; they must import this tree and not an installed copy.
os.environ["PYTHONPATH"] = os.pathsep.join(
    filter(None, (str(ROOT), os.environ.get("PYTHONPATH", "")))
)
os.environ["JUPYTER_PREFER_ENV_PATH"] = "1"
os.environ["PYDEVD_DISABLE_FILE_VALIDATION"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded: a missing file must fail at once
