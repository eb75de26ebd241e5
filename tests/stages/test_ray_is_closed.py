"""A Ray that a run starts for itself: no dashboard, and nobody without its token gets in."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from shell_environment import SHELL_ENVIRONMENT

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 300

# The stranger has neither this user's home, where Ray keeps the token, nor the run's environment.
PROGRAM = """
import os, subprocess, sys
from pipeline.config import RayConfig
from pipeline.stages.on_ray import ray_session
import ray
with ray_session(RayConfig()):
    context = ray.get_runtime_context()
    print("dashboard", repr(ray._private.worker.get_dashboard_url()))
    stranger = {**os.environ, "HOME": sys.argv[1]}
    stranger = {key: value for key, value in stranger.items() if not key.startswith("RAY_AUTH")}
    for who, environment in (("family", dict(os.environ)), ("stranger", stranger)):
        code = f"from ray._raylet import GcsClient; GcsClient(address={context.gcs_address!r}); print('came in')"
        settings = {"capture_output": True, "text": True, "timeout": 120}
        told = subprocess.run([sys.executable, "-c", code], env=environment, **settings)
        print(who, told.stdout.strip() or told.stderr.strip().splitlines()[-1])
"""


@pytest.mark.drill
def test_a_run_of_its_own_has_no_dashboard_and_refuses_strangers(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "elsewhere").mkdir()
    removed = ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")
    environment = {key: value for key, value in SHELL_ENVIRONMENT.items() if key not in removed}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / "elsewhere")],
        env=environment | {"HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    lines = done.stdout.splitlines()
    assert lines[:2] == ["dashboard ''", "family came in"], done.stdout + done.stderr
    assert "InvalidAuthToken" in lines[2]
