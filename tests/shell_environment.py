"""What a user's shell would hand on: libraries that tests import add settings of their own to os.environ later."""

import os

SHELL_ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
