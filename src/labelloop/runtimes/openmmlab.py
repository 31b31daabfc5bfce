"""OpenMMLab's packages in the one set of versions that still goes together: MMDetection, MMYOLO and MMOCR.

mmcv has no wheel for a torch of today, so one must be given; torchvision's is for CUDA and is installed without its
dependencies, because only its Python parts are used. imgaug wants a NumPy before 2, which is why all of it lives apart.
"""

from __future__ import annotations

TORCH = "torch==2.13.0"
MMCV = "mmcv==2.0.1"
PACKAGES = ("mmdet==3.1.0", "mmyolo==0.6.0", "mmocr==1.0.1")
BESIDE = (
    "mmengine==0.10.7",
    "numpy==1.26.4",
    "opencv-python-headless==4.11.0.86",
    "imgaug==0.4.0",
    "lmdb",
    "prettytable",
    "pyclipper",
    "pycocotools",
    "rapidfuzz",
    "scikit-image",
    "scipy",
    "shapely",
    "terminaltables",
)

REQUIREMENTS = (TORCH, "torchvision==0.28.0", MMCV, "mmengine==0.10.7", "numpy==1.26.4", *PACKAGES)
"""What is verified, and what the marker says was installed."""

IMPORTS = ("torch", "mmcv.ops", "mmengine", "mmdet", "mmyolo", "mmocr")

STEPS = (
    ("setuptools<75", "wheel"),  # the packages' setup.py import pkg_resources
    (TORCH,),
    ("--no-deps", "torchvision==0.28.0"),
    (*BESIDE, MMCV),
    ("--no-deps", *PACKAGES),
)
"""Arguments of `pip install`, one after the other."""
