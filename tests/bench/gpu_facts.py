"""What this machine's GPU, driver and libraries are, one fact a line; needs only Python (torch's answers where torch is)."""

import ctypes
import glob
import os
import shutil
import subprocess
import sys

ATTRIBUTES = {"multiprocessors": 16, "L2 bytes": 38, "SM clock kHz": 13, "memory clock kHz": 36, "bus width bits": 37, "shared bytes per multiprocessor": 81,
              "shared bytes per block, opt in": 97, "managed memory": 83, "concurrent managed access": 89, "pageable memory access": 88,
              "pageable through host page tables": 100, "host pointers as they are": 91, "compute preemption": 90, "memory pools": 115}


def said(command):
    if not shutil.which(command[0]):
        return None
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)


def driver_facts():
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        print(f"libcuda: {error}")
        return
    result = cuda.cuInit(0)
    version, device, name = ctypes.c_int(), ctypes.c_int(), ctypes.create_string_buffer(100)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    print(f"driver API: {version.value}, cuInit {result}")
    if result or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return
    cuda.cuDeviceGetName(name, 100, device)
    memory = ctypes.c_size_t()
    cuda.cuDeviceTotalMem_v2(ctypes.byref(memory), device)
    print(f"GPU: {name.value.decode()}, {memory.value / 2**30:.1f} GiB")
    for what, number in ATTRIBUTES.items():
        value = ctypes.c_int()
        if cuda.cuDeviceGetAttribute(ctypes.byref(value), number, device) == 0:
            print(f"{what}: {value.value}")


def libraries():
    """Folders that hold a cuBLAS, as MB_CUDA_LIBS takes them."""
    import site

    folders = ["/usr/local/cuda/lib64", "/usr/local/cuda/targets/x86_64-linux/lib"]
    for place in site.getsitepackages():
        folders += glob.glob(place + "/nvidia/cu*/lib") + glob.glob(place + "/nvidia/cublas/lib") + glob.glob(place + "/nvidia/nccl/lib")
    return [f for f in folders if glob.glob(f + "/libcublas.so*") or glob.glob(f + "/libnccl.so*")]


def main():
    if "--libraries" in sys.argv:
        print(":".join(libraries()))
        return
    driver_facts()
    print("cuBLAS and NCCL in:", ":".join(libraries()) or "nowhere known")
    for command in (["nvidia-smi", "--query-gpu=name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu,persistence_mode,ecc.mode.current", "--format=csv"],
                    ["nvcc", "--version"], ["ncu", "--version"], ["compute-sanitizer", "--version"], ["nsys", "--version"], ["uname", "-a"], ["gcc", "--version"],
                    ["lscpu"], ["free", "-g"], ["df", "-h", "/dev/shm", "/tmp"]):
        answer = said(command)
        print(f"--- {' '.join(command)[:60]}\n{answer if answer is not None else 'not here'}")
    print("--- limits: " + (open("/sys/fs/cgroup/memory.max").read().strip() if os.path.exists("/sys/fs/cgroup/memory.max") else "no cgroup limit seen"))
    try:
        import torch

        print(f"--- torch {torch.__version__}, GPU {torch.cuda.is_available()}" + (f"\n{torch.cuda.get_device_properties(0)}" if torch.cuda.is_available() else ""))
        import transformers

        print(f"transformers {transformers.__version__}")
    except ImportError as error:
        print(f"--- {error}")


main()
