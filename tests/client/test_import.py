from __future__ import annotations

import json
import subprocess
import sys

HEAVY = [
    "torch",
    "mujoco",
    "ray",
    "fastapi",
    "sqlalchemy",
    "onnx",
    "onnxruntime",
    "model_signing",
    "sigstore_models",
]
CODE = f"""
import json, sys, time
begun = time.process_time()
import neuraverse.client, neuraverse.runtime
spent = time.process_time() - begun
print(json.dumps([spent, [m for m in {HEAVY} if m in sys.modules]]))
"""


def test_importing_client_and_runtime_is_light():
    out = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True).stdout
    spent_s, loaded = json.loads(out)
    assert loaded == []
    assert spent_s < 0.5
