"""OpenMMLab's runtime for tests: networks with the weights that they begin with, and code that runs there."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

import pytest

from labelloop.core.settings import read_settings
from labelloop.engines.isolated import FAR_SIDE
from labelloop.runtimes import venvs

CHECKPOINTS = """
import sys, torch
sys.path.append(sys.argv[1])
from labelloop_openmmlab import read_config
from mmengine.registry import MODELS
classes = sys.argv[2].split(",")
for path in sys.argv[3:]:
    torch.manual_seed(0)
    model = MODELS.build(read_config(path).model)
    model.init_weights()
    if hasattr(model, "det_head"):  # DBNet: nearly one half everywhere. A fifth of a page shall be text, not in a grid
        head = model.eval().det_head.binarize
        for layer in (head[3], head[6]):
            layer.weight.data[:] = layer.weight.data.mean((2, 3), keepdim=True)
        head[6].weight.data.mul_(100)
        page = torch.full((1, 3, 192, 256), 2.0)
        page[:, :, 40:60, 20:200] = page[:, :, 100:120, 20:120] = -1.5
        with torch.no_grad():
            head[6].bias.data -= head(model.extract_feat(page)).quantile(0.8)
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.out_channels == 4 and module.bias is not None:
            module.bias.data.fill_(2.0)  # distances from the centre: boxes that are there
    torch.save({"state_dict": model.state_dict(), "meta": {"dataset_meta": {"classes": classes}}}, path[:-3] + ".pth")
"""


@pytest.fixture(scope="module")
def runtime() -> venvs.Runtime:
    found = venvs.look(read_settings().home, "openmmlab")
    if found.state != "ready":
        pytest.skip("no runtime: labelloop runtimes create openmmlab --find-links ../shared/openmmlab/wheels")
    return found


def run_there(runtime: venvs.Runtime, code: str, *arguments: object) -> str:
    """Run code that may import `labelloop_openmmlab` from the folder in its first argument; what it printed."""
    argv = [runtime.python, "-c", code, FAR_SIDE / "names", *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


def make_models(
    runtime: venvs.Runtime, folder: Path, configs: Mapping[str, tuple[str, str]], *, classes: tuple[str, ...]
) -> None:
    """NAME.py and NAME.pth for each {NAME: (config inside the installed packages, what is changed in it)}."""
    (installed,) = runtime.path.glob("lib/python3*/site-packages")
    for name, (base, changes) in configs.items():
        (folder / f"{name}.py").write_text(f"_base_ = {str(installed / base)!r}\n{changes}\n")
    run_there(runtime, CHECKPOINTS, ",".join(classes), *(folder / f"{name}.py" for name in configs))
