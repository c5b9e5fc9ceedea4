"""``python -m bucket_moo_ext doctor``: what it prints, its exit status, and what it advises where a part is broken."""

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bucket_moo_ext as moo
import pytest
import torch
import torch.distributed as dist
from bucket_moo_ext import private_torch
from bucket_moo_ext.__main__ import main
from bucket_moo_ext.observe import machine, self_test

Patch = pytest.MonkeyPatch


def run(*arguments: str, **variables: str) -> tuple[int, str]:
    """The command as a user gives it."""
    done = subprocess.run(
        [sys.executable, "-m", "bucket_moo_ext", "doctor", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **variables},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout


@pytest.mark.slow
def test_the_command_in_json() -> None:
    status, said = run("--json", TORCH_NCCL_NAN_CHECK="0")
    found = json.loads(said)
    assert (found["schema"], found["version"]) == ("bucket_moo_ext.doctor", 1)
    assert (status, found["ok"]) == ((1, False) if found["problems"] else (0, True))
    sections = found["sections"]
    assert sections["versions"]["torch"] == torch.__version__
    assert sections["versions"]["Python"].endswith(platform.python_version())
    assert sections["build"] == {name: str(value) for name, value in moo.build_info().items()}
    assert sections["wrappers"].keys() >= {"DDP", "FSDP2", "FSDP1", "replicate"}
    assert set(sections["wrappers"].values()) == {"usable"}
    for name in ("transformers", "trl", "accelerate", "lightning", "deepspeed"):
        installed = sections["trainers"][name]
        assert installed == (importlib.metadata.version(name) if installed != "not installed" else installed)
    assert sections["environment"]["OMP_NUM_THREADS"] == "1 (torch uses 1 threads)"
    assert sections["environment"]["TORCH_NCCL_NAN_CHECK"] == "0"
    assert sections["self-test"]["all_reduce, 2 ranks, Gloo"].startswith("right to ")
    if not torch.cuda.is_available():
        assert found["problems"] == []
        assert "no GPU to run them on" in sections["devices"]["CUDA kernels"]


@pytest.mark.slow
def test_the_self_test_where_ranks_cannot_connect() -> None:
    status, said = run("--json", GLOO_SOCKET_IFNAME="no_such_interface")
    assert status == 1
    first, second = json.loads(said)["problems"]
    assert (first["section"], first["name"]) == ("environment", "GLOO_SOCKET_IFNAME")
    assert "no interface no_such_interface" in first["advice"]
    assert "raised RuntimeError" in second["value"]
    assert "set GLOO_SOCKET_IFNAME to an interface" in second["advice"]


def test_ranks_that_do_not_finish_are_ended(monkeypatch: Patch) -> None:
    monkeypatch.setattr(self_test, "TIMEOUT", 0.01)
    (found,) = self_test.run()
    assert "rank 0 did not finish in 0 s; rank 1 did not finish" in found.value
    assert found.advice


def test_what_the_self_test_compares_with() -> None:
    """The point of the segment whose inner products with both ends are equal and at least its square."""
    a, b = (self_test.gradient(rank).double() for rank in range(2))
    assert float(a @ b) < 0
    d = self_test.expected()
    torch.testing.assert_close(d @ a, d @ d)
    torch.testing.assert_close(d @ b, d @ d)
    torch.testing.assert_close(d, moo.aggregate(torch.stack([a, b]), "mgda"))


# --- broken parts ---


@pytest.fixture
def healthy(monkeypatch: Patch) -> None:
    """Ranks that have the right result, without starting them, and no GPU."""
    right = self_test.expected().float().tolist()
    monkeypatch.setattr(self_test, "_results", lambda: ([right, right], []))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "NVIDIA_DRIVER", Path("/nonexistent"))
    for name in machine.VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.usefixtures("healthy")
def test_a_healthy_machine(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    said = capsys.readouterr().out
    assert said.endswith("\nproblems: none\n")
    lines = said.splitlines()
    for section in ("versions", "build", "devices", "process groups", "wrappers", "trainers", "environment"):
        assert section in lines
    assert not [line for line in lines if line.startswith("!")]


def wrong_result(patch: Patch) -> None:
    wrong = (1.001 * self_test.expected()).tolist()
    patch.setattr(self_test, "_results", lambda: ([wrong, wrong], []))


def nan_result(patch: Patch) -> None:
    patch.setattr(self_test, "_results", lambda: ([[float("nan")] * self_test.NUMEL] * 2, []))


def different_results(patch: Patch) -> None:
    right = self_test.expected()
    other = right.clone()
    other[0] += 1e-7
    patch.setattr(self_test, "_results", lambda: ([right.tolist(), other.tolist()], []))


def dead_rank(patch: Patch) -> None:
    patch.setattr(self_test, "_results", lambda: ([[], []], ["rank 1 died with exit code -4"]))


def no_gloo(patch: Patch) -> None:
    patch.setattr(dist, "is_gloo_available", lambda: False)


def no_distributed(patch: Patch) -> None:
    patch.setattr(dist, "is_available", lambda: False)


def other_torch(patch: Patch) -> None:
    def refuse() -> None:
        raise RuntimeError("fully_shard() is supported with torch 2.11 to 2.15; got torch 2.16")

    patch.setattr(private_torch, "check_sharded_version", refuse)


def no_fsdp1(patch: Patch) -> None:
    import torch.distributed.fsdp

    patch.delattr(torch.distributed.fsdp, "FullyShardedDataParallel")


def a_gpu(patch: Patch, gramian: Callable[..., torch.Tensor] | None) -> None:
    """A machine with a GPU, over which ``gramian`` is what the kernels give; None: they are not built."""
    patch.setattr(torch.cuda, "is_available", lambda: True)
    patch.setattr(torch.cuda, "device_count", lambda: 1)
    patch.setattr(torch.cuda, "get_device_name", lambda number: "Some GPU")
    patch.setattr(torch.cuda, "get_device_capability", lambda number: (9, 0))
    patch.setattr(torch.cuda.nccl, "version", lambda: (2, 30, 7))
    patch.setattr(dist, "is_nccl_available", lambda: True)
    built = {**moo.build_info(), "cuda": gramian is not None, "cuda_architectures": "80-real;90-real"}
    patch.setattr(moo, "build_info", lambda: built)
    patch.setattr(torch.Tensor, "to", lambda tensor, device: tensor)
    if gramian is not None:
        patch.setattr(moo, "gramian", gramian)


def gpu_without_kernels(patch: Patch) -> None:
    a_gpu(patch, None)


def kernels_for_another_gpu(patch: Patch) -> None:
    def fail(rows: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no kernel image is available for execution on the device")

    a_gpu(patch, fail)


def wrong_kernels(patch: Patch) -> None:
    a_gpu(patch, lambda rows: 1.01 * (rows.double() @ rows.double().T))


def gpu_without_nccl(patch: Patch) -> None:
    a_gpu(patch, lambda rows: rows.double() @ rows.double().T)
    patch.setattr(dist, "is_nccl_available", lambda: False)


def driver_without_cuda(patch: Patch) -> None:
    patch.setattr(machine, "NVIDIA_DRIVER", Path(__file__))
    patch.setattr(torch.version, "cuda", None)


def old_driver(patch: Patch) -> None:
    patch.setattr(machine, "NVIDIA_DRIVER", Path(__file__))
    patch.setattr(torch.version, "cuda", "13.0")


def nan_check(patch: Patch) -> None:
    patch.setenv("TORCH_NCCL_NAN_CHECK", "1")


def damaged_section(patch: Patch) -> None:
    def fail() -> Any:
        raise OSError("no such thing")

    patch.setattr(platform, "platform", fail)


@pytest.mark.usefixtures("healthy")
@pytest.mark.parametrize(
    ("breaks", "section", "value", "advice"),
    [
        (wrong_result, "self-test", "wrong result: off by 1.0e-03, allowed 1e-05", "Do not train"),
        (nan_result, "self-test", "wrong result: off by nan", "Do not train"),
        (different_results, "self-test", "the ranks have different results", "Do not train"),
        (dead_rank, "self-test", "rank 1 died with exit code -4", "report it"),
        (no_gloo, "process groups", "not available", "Install a torch with Gloo"),
        (no_distributed, "process groups", "not in this torch", "built with torch.distributed"),
        (other_torch, "wrappers", "not usable: fully_shard() is supported", "Use a torch from 2.11 to 2.15"),
        (no_fsdp1, "wrappers", "not usable", "Use a torch from 2.11 to 2.15"),
        (gpu_without_kernels, "devices", "not built, but there is a GPU", "put nvcc 12.8 or newer on the PATH"),
        (kernels_for_another_gpu, "devices", "Some GPU, compute capability 9.0: the kernels do not", "CUDAARCHS=90"),
        (wrong_kernels, "devices", "the kernels give wrong results, off by 1.0e-02", "make gpu-check"),
        (gpu_without_nccl, "process groups", "not available", 'backend "gloo"'),
        (driver_without_cuda, "devices", "none, but there is an NVIDIA driver", "install a torch with CUDA"),
        (old_driver, "devices", "13.0, which finds no GPU", "Run nvidia-smi"),
        (nan_check, "environment", "1", "Unset it"),
        (damaged_section, "versions", "could not be examined: OSError: no such thing", "reinstall"),
    ],
)
def test_a_broken_part(
    monkeypatch: Patch,
    capsys: pytest.CaptureFixture[str],
    breaks: Callable[[Patch], None],
    section: str,
    value: str,
    advice: str,
) -> None:
    breaks(monkeypatch)
    status = main(["doctor", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert status == 1
    assert found["ok"] is False
    problem = next(problem for problem in found["problems"] if problem["section"] == section)
    assert value in problem["value"]
    assert advice in problem["advice"]
    assert found["sections"][section][problem["name"]] == problem["value"]
    assert main(["doctor"]) == 1
    text = capsys.readouterr().out
    assert f"\nproblems: {len(found['problems'])}\n" in text
    assert f"\n   {problem['advice']}\n" in text
    assert [line for line in text.splitlines() if line.startswith(f"! {problem['name']} ")]


@pytest.mark.usefixtures("healthy")
def test_a_gpu_whose_kernels_run(monkeypatch: Patch, capsys: pytest.CaptureFixture[str]) -> None:
    a_gpu(monkeypatch, lambda rows: rows.double() @ rows.double().T)
    assert main(["doctor", "--json"]) == 0
    sections = json.loads(capsys.readouterr().out)["sections"]
    assert sections["devices"]["CUDA kernels"] == "built for 80-real;90-real"
    assert sections["devices"]["cuda:0"] == "Some GPU, compute capability 9.0: the kernels run"
    assert sections["process groups"]["NCCL"] == "2.30.7"


@pytest.mark.usefixtures("healthy")
def test_trainers_are_not_imported(monkeypatch: Patch) -> None:
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.2.3")
    before = set(sys.modules)
    assert {found.value for found in machine.trainers()} == {"1.2.3"}
    assert set(sys.modules) == before


def test_a_command_that_there_is_not(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([], ["nurse"]):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
    assert "doctor" in capsys.readouterr().err
