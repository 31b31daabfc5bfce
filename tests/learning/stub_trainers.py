"""Trainers that do nothing but behave: a package of their own, with entry points, as a stranger's would be.

`obedient` does what its options say. `counting` counts the pictures that it is given, and leaves a model for the engine
`plain`, whose answers follow from that number and from the number of the picture, which is its first pixel
(`reference.numbered`).

They are told what to do by `options`, and run in the real child process. `install` puts the package on the path of this
process and of the trainers' processes.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

MODULE = """\
import json, os, signal, subprocess, sys, time
from pathlib import Path
from labelloop.core.cards import ModelCard
from labelloop.core.errors import ModelError
from labelloop.core.regions import Box, Region
from labelloop.learning.trainers.base import Progress, Stopped, Trained, TrainerRefused, replace_file
import msgspec


class Obedient:
    name = "obedient"

    def refuses(self, request):
        return request.options.get("refuse")

    def train(self, request, report):
        options = request.options
        print("a library prints this to stdout")
        if "pipe" in options:  # held open for writing: its end of file is the kernel's word that all are gone
            pipe = open(options["pipe"], "w")
            os.set_inheritable(pipe.fileno(), True)
        if options.get("deaf"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        if options.get("helper"):
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], close_fds=False)
        return getattr(self, options["do"])(request, report)

    def finish(self, request, report):
        done = int(request.checkpoint.read_text()) if request.checkpoint.exists() else 0
        for step in range(done + 1, request.options["steps"] + 1):
            replace_file(request.checkpoint, lambda path: path.write_text(str(step)))
            report(Progress(step=step, steps=request.options["steps"], loss=1 / step, message=f"step {step}"))
            time.sleep(request.options.get("step_s", 0))
            if step == request.options.get("wait_at"):
                self.wait(request, report)
        model = Path(options["model"]).read_bytes() if (options := request.options).get("model") else b"model"
        (request.out / "model.onnx").write_bytes(model)
        return Trained(request.out / "model.onnx", ModelCard(name="m", labels=request.labels), {"done_before": done})

    def wait(self, request, report):
        while True:
            report(Progress(step=0, loss=float("nan")))
            time.sleep(0.01)

    def export(self, request, report):
        # a file to be served, and what it was made of
        card = request.base_card
        report(Progress(step=1, message=f"begins with {card.engine} {request.base.read_bytes()[:9].decode('latin')!r}"))
        source = request.out / "source.json"
        source.write_text("7")
        exported = self.finish(request, report)
        made_of = Trained(source, ModelCard(name="s", engine="plain", labels=request.labels))
        return Trained(exported.model, exported.card, source=made_of)

    def try_more(self, request, report):
        # a model is finished, and what comes then goes wrong
        path = request.out / "first.onnx"
        path.write_bytes(b"first")
        trained = Trained(path, ModelCard(name="m", labels=request.labels))
        report(Progress(step=7, finished=trained))
        return getattr(self, request.options["then"])(request, report)

    def hang(self, request, report):
        report(Progress(step=0, message="hanging"))
        time.sleep(600)

    def raise_ours(self, request, report):
        raise ModelError("The base model is no good.", hint="Take another.")

    def refuse_late(self, request, report):
        raise TrainerRefused("It has no neck.", hint="Take another.")

    def raise_theirs(self, request, report):
        raise {"memory": MemoryError(), "import": ModuleNotFoundError("No module named 'torch'"),
               "value": ValueError("seven")}[request.options["what"]]

    def leave(self, request, report):
        print("last words", file=sys.stderr)
        sys.exit(3)

    def crash(self, request, report):
        print("last words")
        os.kill(os.getpid(), getattr(signal, request.options["signal"]))
        time.sleep(600)

    def promise(self, request, report):
        return Trained(request.out / "nothing.onnx", ModelCard(name="m"))

    def eat(self, request, report):
        kept = b"x" * request.options["bytes"]
        self.wait(request, report)

    def tell(self, request, report):
        names = ("OMP_WAIT_POLICY", "OMP_NUM_THREADS", "LABELLOOP_PASSWORD")
        lines = {name: os.environ.get(name) for name in names} | {"nice": os.nice(0), "python": sys.executable}
        lines |= {"stdin": sys.stdin.read(), "group": os.getpgrp() == os.getpid()}
        report(Progress(step=0, message=repr(lines)))
        return self.finish(request, report)


class Second(Obedient):
    # goes on from what another made; its option `second` says what it does
    name = "second"

    def train(self, request, report):
        said = {**request.options, **request.options["second"]}
        told = request.options
        report(Progress(step=1, message=f"second is told rate {told.get('rate')} and {told['steps']} steps"))
        return super().train(msgspec.structs.replace(request, options=said), report)


class Shy(Obedient):
    # sees only when it has looked that it cannot do it
    name = "shy"

    def refuses(self, request):
        return None if request.base else "It begins with a model."

    def train(self, request, report):
        raise TrainerRefused("It has no neck.", hint="")


class Counting:
    name = "counting"

    def refuses(self, request):
        return None if request.base is None else "It begins with nothing."

    def train(self, request, report):
        pictures = len(json.loads((request.data / "train.json").read_text())["images"])
        with Path(os.environ["COUNTING_LOG"]).open("a") as log:
            print(request.seed, pictures, file=log)
        report(Progress(step=1, steps=1, message="counted"))
        (request.out / "model.json").write_text(json.dumps(pictures))
        return Trained(request.out / "model.json", ModelCard(name="counted", engine="plain", labels=request.labels))


class Endless(Counting):
    name = "endless"

    def train(self, request, report):
        fresh = Path(os.environ["COUNTING_LOG"]).with_name("endless.part")
        fresh.write_text(str(os.getpid()))
        fresh.rename(fresh.with_suffix(".txt"))
        while True:
            report(Progress(step=0))
            time.sleep(0.01)


class Plain:
    needs_file, max_batch, parallel, wants, input_size = True, 1, 2, "picture", None

    def __init__(self, path, card, options):
        self.classes, self.known = card.labels, json.loads(path.read_text())

    @staticmethod
    def describe(path, card):
        return card

    def prepare(self, picture):
        return int(picture.rgb[0, 0, 0])

    def predict(self, batch):
        return [self.found(number) for number in batch]

    def found(self, number):
        exact, pulled, elsewhere = (8, 8, 24, 24), (12, 8, 28, 24), (30, 30, 38, 38)
        if number > 100:
            right = number - 100 <= self.known // 2
            return (Region(Box(exact if right else elsewhere), self.classes[0], 0.9 if right else 0.4),)
        place = (elsewhere, exact, pulled)[number % 3]
        return (Region(Box(place), self.classes[0], 0.5 + number / 100),)
"""

ENTRY_POINTS = """\
[labelloop.trainers]
obedient = stub_trainer:Obedient
second = stub_trainer:Second
shy = stub_trainer:Shy
counting = stub_trainer:Counting
endless = stub_trainer:Endless

[labelloop.engines]
plain = stub_trainer:Plain
"""


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "stub_trainer.py").write_text(MODULE)
    info = folder / "stub_trainer-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: stub-trainer\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(ENTRY_POINTS)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("COUNTING_LOG", str(folder / "counting.txt"))
    monkeypatch.setenv("PYTHONPATH", str(folder), prepend=os.pathsep)
