"""What there is on this machine, section by section."""

import importlib
import importlib.metadata
import os
import platform
import socket
from pathlib import Path

import torch
import torch.distributed as dist

import bucket_moo_ext as moo
from bucket_moo_ext import private_torch
from bucket_moo_ext.observe.finding import Finding

_REBUILD = "pip install --no-build-isolation --force-reinstall --no-deps . (in the source folder of bucket_moo_ext)"

TRAINERS = ("transformers", "trl", "accelerate", "lightning", "pytorch-lightning", "deepspeed")

VARIABLES = (
    "OMP_NUM_THREADS",
    "GLOO_SOCKET_IFNAME",
    "NCCL_SOCKET_IFNAME",
    "NCCL_DEBUG",
    "TORCH_NCCL_NAN_CHECK",
    "TORCH_NCCL_ASYNC_ERROR_HANDLING",
    "TORCH_NCCL_BLOCKING_WAIT",
    "TORCH_DISTRIBUTED_DEBUG",
    "CUDA_VISIBLE_DEVICES",
    "CUDA_LAUNCH_BLOCKING",
    "CUDAARCHS",
    "TORCH_CUDA_ARCH_LIST",
    "RANK",
    "WORLD_SIZE",
    "MASTER_ADDR",
    "MASTER_PORT",
)
"""Those that change what happens here."""

NVIDIA_DRIVER = Path("/proc/driver/nvidia/version")


def versions() -> list[Finding]:
    """Package, torch, Python, operating system, processor."""
    libc = " ".join(platform.libc_ver()).strip()
    return [
        Finding("bucket_moo_ext", moo.__version__),
        Finding("torch", torch.__version__),
        Finding("Python", f"{platform.python_implementation()} {platform.python_version()}"),
        Finding("system", platform.platform() + (f", {libc}" if libc else "")),
        Finding("processor", f"{_processor()}, {_cores()} cores for this process"),
    ]


def build() -> list[Finding]:
    """``build_info()``."""
    return [Finding(name, str(value)) for name, value in moo.build_info().items()]


def devices() -> list[Finding]:
    """GPUs, and whether the CUDA kernels run on each."""
    has_kernels = moo.build_info()["cuda"]
    kernels = f"built for {moo.build_info()['cuda_architectures']}" if has_kernels else "not built"
    usable = torch.cuda.is_available()
    found = [_torch_cuda(usable)]
    if not usable:
        return [*found, Finding("CUDA kernels", f"{kernels}; no GPU to run them on")]
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    if not has_kernels:
        advice = f"To reduce on the GPU put nvcc 12.8 or newer on the PATH and rebuild: {_REBUILD}. See docs/gpu.md."
        found.append(Finding("CUDA kernels", "not built, but there is a GPU", advice))
    else:
        found.append(Finding("CUDA kernels", kernels))
    for number, name in enumerate(names):
        major, minor = torch.cuda.get_device_capability(number)
        title = f"{name}, compute capability {major}.{minor}"
        found.append(_tried(number, title) if has_kernels else Finding(f"cuda:{number}", title))
    return found


def process_groups() -> list[Finding]:
    """Backends of torch.distributed."""
    if not dist.is_available():
        advice = "Install a torch that is built with torch.distributed: those of pytorch.org and PyPI for Linux are."
        return [Finding("torch.distributed", "not in this torch", advice)]
    gloo = "" if dist.is_gloo_available() else "Install a torch with Gloo: reductions on the CPU need it."
    found = [Finding("Gloo", _available(not gloo), gloo)]
    nccl = dist.is_nccl_available()
    advice = ""
    if torch.cuda.is_available() and not nccl:
        advice = 'Install a torch with NCCL, or initialise process groups with backend "gloo", which is slow on GPUs.'
    version = ".".join(map(str, torch.cuda.nccl.version())) if nccl else ""  # type: ignore[no-untyped-call]
    found.append(Finding("NCCL", version or _available(False), advice))
    found.append(Finding("network interfaces", ", ".join(name for _, name in socket.if_nameindex())))
    return found


def wrappers() -> list[Finding]:
    """Those that ``register()`` takes."""
    found = [Finding("plain module, one process", "usable")]
    sharded = ""
    try:
        private_torch.check_sharded_version()
    except RuntimeError as error:
        sharded = str(error)
    for name, module, attribute, refusal in (
        ("DDP", "torch.nn.parallel", "DistributedDataParallel", ""),
        ("FSDP2", "torch.distributed.fsdp", "fully_shard", sharded),
        ("FSDP1", "torch.distributed.fsdp", "FullyShardedDataParallel", sharded),
        ("replicate", "torch.distributed._composable.replicate", "replicate", ""),
    ):
        why = refusal or _import_problem(module, attribute)
        advice = "Use a torch from 2.11 to 2.15 with torch.distributed, and rebuild bucket_moo_ext against it."
        found.append(Finding(name, f"not usable: {why}", advice) if why else Finding(name, "usable"))
    return found


def trainers() -> list[Finding]:
    """Versions of trainers that are installed; nothing is imported."""
    found = []
    for name in TRAINERS:
        try:
            found.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            found.append(Finding(name, "not installed"))
    return found


def environment() -> list[Finding]:
    """Variables that matter."""
    found = []
    for name in VARIABLES:
        value = os.environ.get(name)
        shown = value if value is not None else "not set"
        if name == "OMP_NUM_THREADS":
            shown += f" (torch uses {torch.get_num_threads()} threads)"
        found.append(Finding(name, shown, _advice_on(name, value)))
    return found


def _advice_on(variable: str, value: str | None) -> str:
    if variable == "TORCH_NCCL_NAN_CHECK" and (value or "0").lower() not in ("0", "n", "no", "f", "false"):
        return (
            "Unset it: with a Sketch gradients with NaN or Inf go through the all-reduces on purpose, so that a "
            "gradient scaler skips the step; the check ends the job there. See docs/gpu.md."
        )
    if variable == "GLOO_SOCKET_IFNAME" and value:
        there = [name for _, name in socket.if_nameindex()]
        missing = [name for name in value.split(",") if name not in there]
        if missing:
            return (
                f"This machine has no interface {', '.join(missing)}, so Gloo cannot connect; unset it, or use one or "
                f"more of {', '.join(there)}."
            )
    return ""


def _torch_cuda(usable: bool) -> Finding:
    version = torch.version.cuda
    if usable:
        return Finding("CUDA in torch", f"{version}, {torch.cuda.device_count()} GPUs")
    has_driver = NVIDIA_DRIVER.exists()
    if has_driver and version is None:
        advice = "To use the GPU install a torch with CUDA, and rebuild bucket_moo_ext against it."
        return Finding("CUDA in torch", "none, but there is an NVIDIA driver", advice)
    if has_driver:
        advice = (
            "Run nvidia-smi: the driver may be older than torch's CUDA needs, or CUDA_VISIBLE_DEVICES hides the GPUs."
        )
        return Finding("CUDA in torch", f"{version}, which finds no GPU, but there is an NVIDIA driver", advice)
    return Finding("CUDA in torch", f"{version}, no GPU" if version else "none: a torch for the CPU")


def _tried(number: int, title: str) -> Finding:
    """A GPU, after a kernel ran on it."""
    name = f"cuda:{number}"
    rows = torch.randn(3, 10_007, generator=torch.Generator().manual_seed(0))
    expected = rows.double() @ rows.double().T
    try:
        gramian = moo.gramian(rows.to(name)).cpu()
    except Exception as error:
        capability = "".join(map(str, torch.cuda.get_device_capability(number)))
        advice = (
            f"Rebuild for this GPU: set CUDAARCHS={capability}, then {_REBUILD}. If that is no help, update the driver."
        )
        return Finding(name, f"{title}: the kernels do not run: {type(error).__name__}: {error}", advice)
    off = float((gramian - expected).abs().max() / expected.abs().max())
    if not off <= 1e-5:
        advice = "Please report this, with all of the above; run make gpu-check in the source folder for details."
        return Finding(name, f"{title}: the kernels give wrong results, off by {off:.1e}", advice)
    return Finding(name, f"{title}: the kernels run")


def _import_problem(module: str, attribute: str) -> str:
    try:
        getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        return str(error)
    return ""


def _available(available: bool) -> str:
    return "available" if available else "not available"


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()
