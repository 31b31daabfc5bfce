"""OpenMMLab's packages in the one set of versions that still goes together: MMDetection, MMYOLO and MMOCR.

mmcv has no wheel for a torch of today: it is given, or built. torchvision's is for CUDA and is installed without its
dependencies, because only its Python parts are used. imgaug wants a NumPy before 2, which is why all of it lives apart.
"""

from __future__ import annotations

from labelloop.runtimes.source import Build

TORCH = "torch==2.13.0"
MMCV = "mmcv==2.0.1"
PACKAGES = ("mmengine==0.10.7", "mmdet==3.1.0", "mmyolo==0.6.0", "mmocr==1.0.1", "imgaug==0.4.0")
BESIDE = (
    "numpy==1.26.4",
    "opencv-python-headless==4.11.0.86",
    "addict",
    "imageio",
    "lmdb",
    "matplotlib",
    "packaging",
    "pillow",
    "prettytable",
    "pyclipper",
    "pycocotools",
    "pyyaml",
    "rapidfuzz",
    "rich",
    "scikit-image",
    "scipy",
    "shapely",
    "six",
    "termcolor",
    "terminaltables",
    "yapf",
)
"""What those want, by name: as their own dependencies they would bring a second OpenCV, which lies over the first one
and asks for a screen's libraries."""

REQUIREMENTS = (TORCH, "torchvision==0.28.0", MMCV, "numpy==1.26.4", *PACKAGES)
"""What is verified, and what the marker says was installed."""

NEWEST_PYTHON = (3, 12)
"""NumPy before 2 has no wheels for later ones."""

IMPORTS = ("torch", "mmcv.ops", "mmengine", "mmdet", "mmyolo", "mmocr")

CUDA_SOURCES = (
    "mmcv/ops/csrc/common/pytorch_cuda_helper.hpp",
    "mmcv/ops/csrc/pytorch/cuda/ms_deform_attn_cuda.cu",
)
"""They name a header that torch has elsewhere since."""

ON_GPU = """\
import importlib.util, torch
if torch.version.cuda is None:
    print(f"torch {torch.__version__} is for the CPU, and there is a GPU: choose an index that has it for CUDA "
          "(PIP_INDEX_URL), then: labelloop runtimes create openmmlab --fresh")
elif importlib.util.find_spec("mmcv") is not None:
    from mmcv.ops import get_compiling_cuda_version
    if get_compiling_cuda_version() == "not available":
        print("mmcv was built without CUDA, so models run on the CPU though there is a GPU: install NVIDIA's compiler, "
              f"nvcc, for CUDA {torch.version.cuda}, then, without a wheel of mmcv: "
              "labelloop runtimes create openmmlab --fresh")
"""
"""Asked in the runtime where there is a GPU: prints why it would not be used."""

STEPS = (
    (TORCH,),
    BESIDE,
    Build(
        MMCV,
        tools=("setuptools<75", "wheel", "ninja"),  # its setup.py imports pkg_resources; ninja can go on where it was
        replaced=(
            ("setup.py", "-std=c++14", "-std=c++17"),  # torch's headers want it
            *((file, "<THC/THCAtomics.cuh>", "<ATen/cuda/Atomic.cuh>") for file in CUDA_SOURCES),
        ),
        environment=(("MMCV_WITH_OPS", "1"),),
        gpu=("FORCE_CUDA", "1", "0"),
        minutes=20,
    ),
    ("--no-deps", "--only-binary", "mmcv", "torchvision==0.28.0", MMCV, *PACKAGES),
)
"""Arguments of `pip install`, one after the other, and what is built in between."""
