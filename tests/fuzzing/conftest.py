"""The datasets' factory lies in another room."""

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "datasets"))
