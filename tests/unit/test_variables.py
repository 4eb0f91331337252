"""Which environment variables tell runs apart, which are only disclosed, and what of them is never stored."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import bench
from bench.records import Environment
from bench.records.variables import FAMILIES, VARIABLES, find_variable, spell_variables, variables_set
from tests import plugins

CHANGING = """
PYTORCH_CUDA_ALLOC_CONF PYTORCH_ALLOC_CONF PYTORCH_HIP_ALLOC_CONF PYTORCH_NO_CUDA_MEMORY_CACHING
PYTORCH_NO_HIP_MEMORY_CACHING CUBLAS_WORKSPACE_CONFIG CUBLASLT_WORKSPACE_SIZE TORCH_BLAS_PREFER_CUBLASLT
TORCH_CUBLASLT_UNIFIED_WORKSPACE TORCH_CUBLAS_WORKSPACE_CACHE DISABLE_ADDMM_CUDA_LT TORCH_CUDNN_USE_HEURISTIC_MODE_B
TORCH_CUDNN_V8_API_LRU_CACHE_LIMIT TORCH_CUDNN_SDPA_DEPRIORITIZED TORCH_LINEAR_FLATTEN_3D NVIDIA_TF32_OVERRIDE
CUBLAS_EMULATE_SINGLE_PRECISION CUDA_MPS_PINNED_DEVICE_MEM_LIMIT CUDA_SCALE_LAUNCH_QUEUES CUDA_INJECTION64_PATH
NCCL_BUFFSIZE NCCL_MAX_NCHANNELS OMP_DYNAMIC OMP_SCHEDULE OMP_THREAD_LIMIT KMP_HW_SUBSET MKL_CBWR MKL_THREADING_LAYER
ONEDNN_DEFAULT_FPMATH_MODE DNNL_PRIMITIVE_CACHE_CAPACITY THP_MEM_ALLOC_ENABLE LRU_CACHE_CAPACITY TORCH_MKLDNN_MATMUL_MIN_DIM
MALLOC_TRIM_THRESHOLD_ MALLOC_TOP_PAD_ PYTHONMALLOC PYTHONOPTIMIZE OPENBLAS_NUM_THREADS HIP_LAUNCH_BLOCKING HSA_XNACK
MIOPEN_DEBUG_CONV_WINOGRAD ROCBLAS_INTERNAL_FP16_ALT_IMPL TORCHINDUCTOR_COORDINATE_DESCENT_TUNING TRITON_F32_DEFAULT
ONEDNN_VERBOSE CUDNN_LOGLEVEL_DBG CUBLASLT_LOG_LEVEL MKL_VERBOSE PYTORCH_TUNABLEOP_FILENAME HSA_OVERRIDE_GFX_VERSION
""".split()  # noqa: SIM905
HARMLESS = """
TORCH_HOME TORCH_LOGS TORCH_LOGS_OUT TORCH_EXTENSIONS_DIR TORCHINDUCTOR_CACHE_DIR TRITON_CACHE_DIR CUDA_HOME CUDA_PATH
CUDA_CACHE_PATH CUDA_VISIBLE_DEVICES CUDA_DEVICE_ORDER CUDA_VERSION CUDNN_VERSION NCCL_VERSION NVIDIA_VISIBLE_DEVICES
NVIDIA_DRIVER_CAPABILITIES NVIDIA_REQUIRE_CUDA NVIDIA_PYTORCH_VERSION NCCL_DEBUG OMP_DISPLAY_ENV HIP_VISIBLE_DEVICES
ROCR_VISIBLE_DEVICES ROCM_PATH HIP_PATH KMP_SETTINGS TORCH_CPP_LOG_LEVEL CUDA_MPS_PIPE_DIRECTORY PYTORCH_VERSION
TORCH_CUDA_ARCH_LIST HOME PATH LANG SLURM_JOB_ID UV_TORCH_BACKEND MASTER_ADDR PYTHONPATH BENCH_DATA
""".split()  # noqa: SIM905


def environment(**variables: str) -> Environment:
    return Environment(
        device="cpu",
        allocator_settings=spell_variables(variables, "allocator"),
        speed_variables=spell_variables(variables, "result"),
        other_variables=spell_variables(variables, "message"),
    )


@pytest.mark.parametrize("name", CHANGING)
def test_a_variable_that_changes_results_is_in_the_key_by_its_value(name: str) -> None:
    keys = {environment().key, environment(**{name: "0"}).key, environment(**{name: "1"}).key}
    assert len(keys) == 3
    (change,) = environment(**{name: "1"}).changes_since({"device": "cpu"})
    assert f"{name}=1" in change


@pytest.mark.parametrize("name", HARMLESS)
def test_a_variable_that_says_where_things_lie_or_what_to_print_keeps_no_runs_apart(name: str) -> None:
    assert environment(**{name: "/home/someone/x"}).key == environment().key


def test_a_variable_that_prints_is_disclosed() -> None:
    assert environment(TORCH_LOGS="recompiles", OMP_DISPLAY_ENV="true").other_variables == (
        "OMP_DISPLAY_ENV=true; TORCH_LOGS=recompiles"
    )


@given(
    family=st.sampled_from(sorted(FAMILIES)),
    rest=st.from_regex(r"[A-Z]{1,12}_?(SIZE|MODE|ENABLE|[0-9])", fullmatch=True),
)
def test_an_unknown_variable_of_a_known_family_is_in_the_key(family: str, rest: str) -> None:
    name = family + rest
    secret = {"KEY", "TOKEN", "AUTH", "SECRET", "PASSWORD"} & set(name.split("_"))
    if find_variable(name) in VARIABLES or secret:
        return
    assert environment(**{name: "1"}).key != environment(**{name: "2"}).key


def test_results_measured_with_the_variables_of_old_keep_their_keys() -> None:
    """The texts and the key are those of version 9b563e3."""
    old = {
        "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True,max_split_size_mb:64",
        "OMP_NUM_THREADS": "4",
        "GOMP_CPU_AFFINITY": "0-3 7",
        "GLIBC_TUNABLES": "glibc.malloc.arena_max=2:glibc.malloc.check=3",
        "LD_PRELOAD": "/usr/lib/a/libjemalloc.so.2:/opt/libx.so",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
        "CUDA_VISIBLE_DEVICES": "0",
        "CUDA_HOME": "/usr/local/cuda",
        "NVIDIA_REQUIRE_CUDA": "cuda>=12.0 brand=x",
    }
    made = environment(**old)
    assert made.allocator_settings == "PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True,max_split_size_mb:64"
    assert made.speed_variables == (
        "CUBLAS_WORKSPACE_CONFIG=:4096:8; GLIBC_TUNABLES=glibc.malloc.arena_max=2:glibc.malloc.check=3; "
        "GOMP_CPU_AFFINITY=0-3 7; LD_PRELOAD=libjemalloc.so.2 libx.so; OMP_NUM_THREADS=4"
    )
    assert made.key == "6656ac87b950f192"


@pytest.mark.parametrize(
    ("value", "told"),
    [
        ("/home/alice/x.json", "x.json"),
        ("~/x.json", "x.json"),
        ("~alice/x.json", "x.json"),
        ("a=/home/alice/x,b='/home/alice/y'", "a=x,b='y'"),
        ("@/home/alice/options", "@options"),
        ("redis://alice:pass@host:1/0", "(address)"),
        ("1; NCCL_PROTO=LL", r"1\; NCCL_PROTO=LL"),
        ("a\x00b\x1b[31m", r"a\x00b\x1b[31m"),
        ("\udcff", r"\xff"),
    ],
)
def test_a_value_is_told_without_folders_addresses_and_control_characters(value: str, told: str) -> None:
    assert spell_variables({"NCCL_ALGO": value}, "result") == f"NCCL_ALGO={told}"


def test_values_that_are_cut_or_quoted_stay_apart() -> None:
    long = ["x" * 5000 + end for end in "ab"]
    assert len({spell_variables({"NCCL_ALGO": value}, "result") for value in long}) == 2
    assert len(str(spell_variables({"NCCL_ALGO": long[0]}, "result"))) < 400
    joined = spell_variables({"NCCL_ALGO": "1; NCCL_PROTO=2"}, "result")
    assert joined != spell_variables({"NCCL_ALGO": "1", "NCCL_PROTO": "2"}, "result")


@given(st.text())
def test_any_value_can_be_written_to_a_file(value: str) -> None:
    told = spell_variables({"NCCL_ALGO": value}, "result")
    assert pa.array([told]).to_pylist() == [told]


@pytest.mark.parametrize("name", ["NVIDIA_API_KEY", "TORCH_HUB_TOKEN", "CUDA_SECRET", "TRITON_PASSWORD_1", "NCCL_AUTH"])
def test_a_secret_is_never_recorded(name: str) -> None:
    assert not variables_set({name: "hush"}, "allocator", "result", "message", "place")


def names_read_by(module: str) -> Iterator[str]:
    """The names of variables that a module of torch's Python reads at import."""
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    for node in ast.walk(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"TORCH[A-Z]*_[A-Z0-9_]+", node.value)
        ):
            yield node.value


def test_every_variable_that_inductor_and_dynamo_read_is_known_to_the_list() -> None:
    names = {*names_read_by("torch._inductor.config"), *names_read_by("torch._dynamo.config")}
    assert len(names) > 50
    assert [name for name in sorted(names) if find_variable(name) is None] == []


CONFIG = """
name = "variables"
[grid]
dataset = "mnist"
model = "mlp"
optimizer = "sgd"
batch_size = 8
[measure]
repeats = 1
warmup_steps = 1
measured_steps = 2
min_window = "1 ms"
[data]
fetch = false
"""


@pytest.mark.slow
def test_runs_under_unlike_variables_are_kept_apart_and_the_sweep_says_so(tmp_path: Path) -> None:
    config = tmp_path / "c.toml"
    config.write_text(CONFIG, encoding="utf-8")
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    said = [
        plugins.bench(
            "sweep", config, "--device", "cpu", "--no-report", "--out", tmp_path / "out", env=here | more
        ).stderr
        for more in ({}, {"THP_MEM_ALLOC_ENABLE": "1", "TORCH_SOMETHING_NEW": "/home/someone/fast"})
    ]
    frame = bench.load(tmp_path / "out")
    assert frame["environment_key"].nunique() == 2
    assert frame["case_key"].nunique() == 1
    assert "THP_MEM_ALLOC_ENABLE=1; TORCH_SOMETHING_NEW=fast" in said[1]
    assert "someone" not in frame.to_json() + said[1]
