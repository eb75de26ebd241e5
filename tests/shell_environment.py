"""What a user's shell would hand on: libraries that tests import add settings of their own to os.environ later.

Except that every process would compile torch, diffusers and Ray anew where nothing may be written beside them, which
is half of what their import takes, and tests start dozens.
"""

import os
import sys

os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

SHELL_ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
