"""Environment variables that the libraries under a run read: one list, with what each does to a run.

A variable of `VARIABLES` has the effect that is given there; the first pattern that fits decides. Any other variable
whose name begins as those of one of the libraries do (`FAMILIES`) is taken to change results: nobody knows what it
does, and keeping two runs apart needlessly does less harm than taking two unlike ones for repeats.

Sources: `getenv`, `check_env` and `get_env` in torch's C++ (c10/core/AllocatorConfig.cpp, c10/cuda, aten/src/ATen with
its folders cuda, native/cudnn, native/mkldnn) and `os.environ` in its Python (torch/_inductor/config.py,
torch/_dynamo/config.py); the chapters on environment variables in the manuals of CUDA, cuBLAS, cuDNN, NCCL, oneMKL,
oneDNN and ROCm; libgomp's and LLVM's manuals; glibc's mallopt(3).
"""

from __future__ import annotations

import fnmatch
import functools
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

Effect = Literal["allocator", "result", "message", "place"]
"""What a variable changes: torch's allocator of GPU memory; speed, memory or numbers in another way; only what is
printed before or after the steps; or only where things lie, what is built, and which device is visible."""

_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
"""Versions of torch read one of them or the first that is set; pytorch issue 183387."""


def allocator_variables(allocator: str, environment: Mapping[str, str]) -> dict[str, str]:
    """The environment of a run whose case names its `allocator`: both of torch's variables hold what it means."""
    if allocator == "default":
        return dict(environment)
    text = "expandable_segments:True" if allocator == "expandable" else allocator
    rest = {name: value for name, value in environment.items() if name != "PYTORCH_HIP_ALLOC_CONF"}
    return rest | dict.fromkeys(_ALLOCATOR, text)


_LONGEST = 300  # characters of a value that are kept as they are

_TABLE = """
allocator torch: PYTORCH_ALLOC_CONF PYTORCH_CUDA_ALLOC_CONF PYTORCH_HIP_ALLOC_CONF PYTORCH_NO_CUDA_MEMORY_CACHING
allocator torch: PYTORCH_NO_HIP_MEMORY_CACHING TORCH_CUDA_EXPANDABLE_SEGMENTS_IPC

result torch: ATEN_CPU_CAPABILITY CUBLASLT_WORKSPACE_SIZE DISABLE_ADDMM_CUDA_LT DISABLE_ADDMM_HIP_LT
result torch: HIPBLASLT_WORKSPACE_SIZE LRU_CACHE_CAPACITY PYTORCH_TUNABLEOP_* PYTORCH_USE_CUDA_DSA THP_MEM_ALLOC_ENABLE
result torch: TORCH_ALLOW_TF32_CUBLAS_OVERRIDE TORCH_BLAS_PREFER_* TORCH_COMPILE_DISABLE TORCH_CUBLAS_WORKSPACE_CACHE
result torch: TORCH_CUBLASLT_UNIFIED_WORKSPACE TORCH_CUDNN_* TORCH_DEVICE_BACKEND_AUTOLOAD TORCH_LINALG_PREFER_*
result torch: TORCH_LINEAR_FLATTEN_3D TORCH_MKLDNN_* TORCH_SHOW_DISPATCH_TRACE TORCHDYNAMO_DISABLE
result torch: TORCHINDUCTOR_CPP_MARCH TORCHINDUCTOR_MAX_AUTOTUNE USE_PYTORCH_KERNEL_CACHE
result CUDA: CUDA_DEVICE_MAX_CONNECTIONS CUDA_FORCE_PTX_JIT CUDA_INJECTION64_PATH CUDA_LAUNCH_BLOCKING
result CUDA: CUDA_MODULE_DATA_LOADING CUDA_MODULE_LOADING CUDA_MPS_ACTIVE_THREAD_PERCENTAGE
result CUDA: CUDA_MPS_PINNED_DEVICE_MEM_LIMIT CUDA_SCALE_LAUNCH_QUEUES NVTX_INJECTION64_PATH
result cuBLAS: CUBLAS_EMULATE_* CUBLAS_EMULATION_* CUBLAS_LOGINFO_DBG CUBLAS_WORKSPACE_CONFIG CUBLASLT_HEURISTICS_*
result cuBLAS: CUBLASLT_LOG_LEVEL CUBLASLT_LOG_MASK NVIDIA_TF32_OVERRIDE
result cuDNN: CUDNN_ERRATA_JSON_FILE CUDNN_LOGINFO_DBG CUDNN_LOGLEVEL_DBG
result NCCL: NCCL_ALGO NCCL_BUFFSIZE NCCL_CONF_FILE NCCL_NTHREADS NCCL_PROTO NCCL_TOPO_FILE NCCL_TUNER_CONFIG_PATH
result OpenMP: GOMP_CPU_AFFINITY GOMP_SPINCOUNT GOMP_STACKSIZE KMP_AFFINITY KMP_BLOCKTIME OMP_DYNAMIC OMP_NUM_THREADS
result OpenMP: OMP_PLACES OMP_PROC_BIND OMP_SCHEDULE OMP_STACKSIZE OMP_THREAD_LIMIT OMP_WAIT_POLICY
result MKL: MKL_CBWR MKL_DYNAMIC MKL_ENABLE_INSTRUCTIONS MKL_NUM_THREADS MKL_THREADING_LAYER MKL_VERBOSE
result oneDNN: DNNL_DEFAULT_FPMATH_MODE DNNL_MAX_CPU_ISA DNNL_VERBOSE ONEDNN_DEFAULT_FPMATH_MODE ONEDNN_MAX_CPU_ISA
result oneDNN: ONEDNN_PRIMITIVE_CACHE_CAPACITY ONEDNN_VERBOSE
result ROCm: AMD_LOG_LEVEL AMD_SERIALIZE_COPY AMD_SERIALIZE_KERNEL GPU_MAX_HW_QUEUES HIP_LAUNCH_BLOCKING
result ROCm: HSA_ENABLE_SDMA HSA_OVERRIDE_GFX_VERSION HSA_XNACK MIOPEN_ENABLE_LOGGING* MIOPEN_FIND_ENFORCE
result ROCm: MIOPEN_FIND_MODE
result Triton: TRITON_INTERPRET TRITON_LIBDEVICE_PATH TRITON_PTXAS_BLACKWELL_PATH TRITON_PTXAS_PATH
result malloc: GLIBC_TUNABLES LD_PRELOAD MALLOC_ARENA_MAX MALLOC_CONF MALLOC_MMAP_MAX_ MALLOC_MMAP_THRESHOLD_
result malloc: MALLOC_PERTURB_ MALLOC_TOP_PAD_ MALLOC_TRIM_THRESHOLD_ _RJEM_MALLOC_CONF
result Python: PYTHONDEVMODE PYTHONMALLOC PYTHONMALLOCSTATS PYTHONOPTIMIZE PYTHONPERFSUPPORT PYTHONTRACEMALLOC
result Python: PYTHON_GIL PYTHON_JIT PYTHON_PERF_JIT_SUPPORT

message torch: GLOO_LOG_LEVEL KINETO_LOG_LEVEL PYTORCH_API_USAGE_STDERR PYTORCH_JIT_LOG_LEVEL TORCH_CPP_LOG_LEVEL
message torch: TORCH_DISABLE_ADDR2LINE TORCH_DISTRIBUTED_DEBUG TORCH_LOGS TORCH_LOGS_FORMAT TORCH_SHOW_CPP_STACKTRACES
message torch: TORCH_SYMBOLIZE_MODE TORCHDYNAMO_VERBOSE TORCHINDUCTOR_WORKER_SUPPRESS_LOGGING
message NCCL: NCCL_DEBUG NCCL_DEBUG_SUBSYS NCCL_WARN_* TORCH_NCCL_LOG_*
message OpenMP: GOMP_DEBUG KMP_SETTINGS KMP_VERSION KMP_WARNINGS OMP_AFFINITY_FORMAT OMP_DISPLAY_AFFINITY
message OpenMP: OMP_DISPLAY_ENV

place torch: PYTORCH_BUILD_* PYTORCH_NVCC PYTORCH_NVML_BASED_CUDA_CHECK PYTORCH_ROCM_ARCH TORCH_ADDR2LINE_BINARY
place torch: TORCH_COMPILE_JOB_ID TORCH_CUDA_ARCH_LIST TORCH_FORCE_*WEIGHTS_ONLY_LOAD TORCH_HUB TORCH_LOGS_OUT
place torch: TORCH_MODEL_ZOO TORCH_NCCL_DEBUG_INFO_* TORCH_TRACE TORCHINDUCTOR_REDIS_HOST
place CUDA: CUDA_ARCH CUDA_ARCHITECTURES CUDA_BIN* CUDA_CACHE_* CUDA_COREDUMP_FILE CUDA_DEVICE_ORDER CUDA_INC* CUDA_LIB*
place CUDA: CUDA_MPS_LOG_DIRECTORY CUDA_MPS_PIPE_DIRECTORY CUDA_TOOLKIT* CUDA_VISIBLE_DEVICES NVIDIA_BUILD_*
place CUDA: NVIDIA_CTK_* NVIDIA_DISABLE_REQUIRE NVIDIA_DRIVER_CAPABILITIES NVIDIA_IMEX_CHANNELS NVIDIA_MIG_*_DEVICES
place CUDA: NVIDIA_PIP_CONSTRAINT NVIDIA_PRODUCT_NAME NVIDIA_REQUIRE_* NVIDIA_VISIBLE_DEVICES
place cuBLAS: CUBLAS_LOGDEST_DBG
place cuDNN: CUDNN_INCLUDE* CUDNN_LIB* CUDNN_LOGDEST_DBG
place NCCL: NCCL_COMM_ID NCCL_DEBUG_FILE NCCL_HOSTID NCCL_INCLUDE* NCCL_LIB* NCCL_TOPO_DUMP_FILE
place ROCm: AMD_LOG_LEVEL_FILE GPU_DEVICE_ORDINAL HIP_DEVICE_ORDER HIP_VISIBLE_DEVICES ROCR_VISIBLE_DEVICES
place XPU: ONEAPI_DEVICE_SELECTOR ZE_AFFINITY_MASK SYCL_CACHE_DIR ZE_ENABLE_PCI_ID_DEVICE_ORDER
"""

_FAMILIES = """
torch: PYTORCH_ TORCH_ TORCHINDUCTOR_ TORCHDYNAMO_ INDUCTOR_ AOT_INDUCTOR_ AOTINDUCTOR_ ATEN_ FBGEMM_ XNNPACK_ KINETO_
CUDA: CUDA_ CUBLAS_ CUBLASLT_ CUBLASXT_ CUDNN_ CUFFT_ CUSOLVER_ CUSPARSE_ CUTLASS_ NVIDIA_ NVRTC_ NVSHMEM_
NCCL: NCCL_ RCCL_
OpenMP: OMP_ GOMP_ KMP_ LIBOMP_
CPU: MKL_ MKLDNN_ ONEDNN_ DNNL_ OPENBLAS_ BLIS_ ARMPL_
ROCm: HIP_ HSA_ ROC_ ROCM_ ROCBLAS_ ROCPROFILER_ HIPBLAS_ HIPBLASLT_ MIOPEN_ TENSILE_ AMD_
XPU: ZE_ ZES_ SYCL_ UR_ NEO_ IGC_ ONEAPI_
Triton: TRITON_
malloc: MALLOC_ MIMALLOC_ TCMALLOC_
"""

_PLACES = """
*_VERSION *_HOME *_ROOT *_ROOT_DIR *_PATH *_DIR *_DIRS *_FOLDER *_FILENAME *_LOG_FILE *_PORT *_URL *_ADDR
"""
_SECRETS = "AUTH CREDENTIAL CREDENTIALS KEY KEYS PASSWD PASSWORD SECRET SECRETS TOKEN TOKENS"


@dataclass(frozen=True, slots=True)
class Variable:
    """One variable, or several of a kind.

    Attributes:
        pattern: Its name; `*` stands for anything.
        reader: The library that reads it.
        effect: See `Effect`. The first two are in the environment key. Messages are disclosed beside it. Places, which
            name people and machines, are not stored.
    """

    pattern: str
    reader: str
    effect: Effect


def _rows(table: str) -> Iterator[tuple[str, list[str]]]:
    for line in filter(None, table.splitlines()):
        head, _, names = line.partition(":")
        yield head, names.split()


VARIABLES = tuple(
    Variable(name, head.split()[1], cast(Effect, head.split()[0])) for head, names in _rows(_TABLE) for name in names
)
"""What is known. Order decides where two patterns fit: what changes results stands first."""

FAMILIES = {family: reader for reader, families in _rows(_FAMILIES) for family in families}
"""Beginnings of names, each with the library that they belong to."""


@functools.cache
def find_variable(name: str) -> Variable | None:
    """What a variable does; None if no library of the list reads one of that name.

    An unknown one of a family is a place where its name ends as places do (`CUDA_HOME`), and changes results otherwise.
    """
    known = next((variable for variable in VARIABLES if fnmatch.fnmatchcase(name, variable.pattern)), None)
    family = next((family for family in FAMILIES if name.startswith(family)), None)
    if known is not None or family is None or not re.fullmatch(r"\w+", name, re.ASCII):
        return known
    place = any(fnmatch.fnmatchcase(name, pattern) for pattern in _PLACES.split())
    return Variable(name, FAMILIES[family], "place" if place else "result")


def variables_set(environment: Mapping[str, str], *effects: Effect) -> dict[str, str]:
    """The variables with one of these effects that are set, in the order of their names, fit to be published.

    Paths in values are cut to their last part. Places are left out, and so is what holds a secret by its name.

    Args:
        environment: As `os.environ`.
        effects: Which.
    """
    found = {}
    for name in sorted(environment):
        variable = find_variable(name)
        if variable is None or variable.effect not in effects or variable.effect == "place":
            continue
        if not set(_SECRETS.split()) & set(name.upper().split("_")):
            found[name] = _publishable(environment[name])
    return found


def spell_variables(environment: Mapping[str, str], *effects: Effect) -> str | None:
    r"""`variables_set` as one text, `NAME=value; NAME=value`, a `;` in a value as `\;`. None if nothing is set."""
    found = variables_set(environment, *effects)
    return "; ".join(f"{name}={value.replace(';', chr(92) + ';')}" for name, value in found.items()) or None


def cublas_workspaces(environment: Mapping[str, str], *, deterministic: bool) -> str | None:
    """What `CUBLAS_WORKSPACE_CONFIG` is in a run; None if it is not set.

    A deterministic run keeps a setting with which cuBLAS is deterministic, and gets `:4096:8`, eight workspaces of
    4096 KiB, otherwise (aten/src/ATen/Context.cpp, `checkCuBLASConfigDeterministic`).
    """
    given = environment.get("CUBLAS_WORKSPACE_CONFIG")
    return given if not deterministic or given in (":4096:8", ":16:8") else ":4096:8"


def _publishable(value: str) -> str:
    """A value without folders, addresses and control characters; what is too long is cut, with a hash of all of it."""
    words = ["(address)"] if "://" in value else value.replace(":/", " /").split()
    text = " ".join(_PATH.sub(lambda found: Path(found[0]).name, word) for word in words)
    text = text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)
    if len(text) <= _LONGEST:
        return text
    return f"{text[:_LONGEST]}... ({hashlib.sha256(text.encode()).hexdigest()[:12]})"


_PATH = re.compile(r"(?:^|(?<=[=,;:'\"(\[@]))(?:~[^/,;:'\"]*)?/[^,;:'\"]*")
