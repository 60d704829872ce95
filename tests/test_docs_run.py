"""Every code block of the documentation runs, with small networks and few images.

What a page's reader brings is made once; each page runs in a copy of it, its blocks in order. What is made shorter than
the page says, and what does not run, stands in the tables here.
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.sshd import Server
from tests.test_docs import PAGES, ROOT, blocks

pytestmark = pytest.mark.slow
WALK = ROOT / "docs" / "your-network.md"
"""The stranger's way; it runs as it stands."""

FEWER = (
    "--recover-epochs 3 --recover-learning-rate 0.02 --batch-size 32 --score-images 16 --score-steps 1 "
    "--robust-images 64 --file-images 2 --quick-bench --format onnx --precision fp32"
)
SHORTER = {
    "train": "--epochs 4 --batch-size 16 --learning-rate 0.02 --crop-padding 0",
    "compress": f"{FEWER} --round-epochs 0",
    "sweep": FEWER,
    "export": "--calibration-images 32",
    "bench model": "--quick",
    "bench networks/": "--quick",
    "targets calibrate": "--statistic min",
}
"""What a command gets in addition: of two equal options the last counts."""
REPLACED = {
    "robust_accuracy>=40%": "robust_accuracy>=1%",
    "--arch resnet18 ": "--arch cifar:resnet20-a ",
    "--arch cifar:vgg16_bn ": "--arch cifar:vgg16_bn-w0.125 ",
    "latency=75%,50%,25%": "latency=90%,75%",
    "latency_p50=5%": "size=5%",  # a latency from a machine that was busy does not pass
    'target="jetson-nano")': 'target="jetson-nano", recovery=None, robust_images=64, file_images=2)',
}
"""What stands in a block, and what runs in its place."""
NOT_RUN = {
    "pip install": "the tests run with what is installed",
    "make demo": "takes ten minutes; its two commands are those of the quick start",
    "make test": "what continuous integration runs",
}
"""Lines that begin so, with the reason."""
OUTPUT = "text"
"""The language of blocks that show what something says."""


def run(command: str, folder: Path) -> None:
    """A shell's commands, as a reader types them."""
    search = os.pathsep.join([str(folder / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
    paths = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        ["bash", "-euc", command], cwd=folder,
        env={**os.environ, "PATH": search, "PYTHONPATH": paths, "FSRP_EDGE_PROFILES": str(folder / "own")},
        capture_output=True, text=True, check=False, timeout=1200,
    )  # fmt: skip
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


def write_program(folder: Path, more: Mapping[str, str]) -> None:
    """`fsrp-edge`, which is this code, with options for some commands."""
    cases = "".join(f'"{name}"*) set -- "$@" {options};;\n' for name, options in more.items())
    program = folder / "bin" / "fsrp-edge"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\nexec "{sys.executable}" -m fsrp_edge "$@"\n')
    program.chmod(0o755)


def execute(page: Path, folder: Path) -> None:
    """All blocks of a page in their order: files are written, programs and commands run."""
    for language, name, text in blocks(page):
        if name:
            (folder / name).write_text(text)
        elif language == "python":
            (folder / "block.py").write_text(shortened(text))
            run("python block.py", folder)
        elif language == "sh":
            run(shortened(text), folder)
        else:
            assert language == OUTPUT, f"a block of no known language: {text}"


def shortened(text: str) -> str:
    """A block as it runs here; devices are this machine, where `python3` need not be the one with the runtimes."""
    lines = [line for line in text.splitlines() if not line.startswith(tuple(NOT_RUN))]
    text = "\n".join(lines)
    for long, short in REPLACED.items():
        text = text.replace(long, short)
    return re.sub(r"(ssh://[\w.@-]+)(\?python=[\w./-]+)?", rf"\1?python={sys.executable}", text)


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reader's folder: networks, image sets, and a finished run with its files."""
    folder = tmp_path_factory.mktemp("workshop")
    write_program(folder, SHORTER)
    for name in ("ci", "profiles"):
        (folder / name).symlink_to(ROOT / name)
    for _, name, text in blocks(WALK):
        if name:
            (folder / name).write_text(text)
    run("python make_photos.py; cp net.py own.py", folder)
    # Not every image: a page's commands take a small network a few seconds each.
    for path in (folder / "photos").glob("*/*/*[2-9]?.png"):
        path.unlink()
    write_sets(folder)
    run(FINISHED, folder)
    for name, whole in BARE.items():
        torch.save(torch.load(folder / whole, weights_only=True)["state_dict"], folder / name)
    return folder


TRAIN = "python -m fsrp_edge train --epochs 8 --batch-size 16 --learning-rate 0.02 --crop-padding 0"
SCALED = "--mean 0.5,0.5,0.5 --std 0.5,0.5,0.5"
FINISHED = f"""
{TRAIN} --arch cifar:vgg16_bn-w0.25 --data digits --input-size 32 --eps 0.1 --epochs 3 --out resnet18.pt
fsrp-edge compress resnet18.pt --target jetson-nano
for copy in last new-run half quarter tenth; do cp -r resnet18-jetson-nano $copy; done
fsrp-edge compress resnet18.pt --target jetson-nano --save-config run.yaml --dry-run
cp last/bench.json before.json
cp last/bench.json after.json
{TRAIN} --arch cifar:vgg16_bn-w0.125 --data photos --input-size 32 --method natural --out net.pt
{TRAIN} --arch cifar:vgg16_bn-w0.125 --data photos --input-size 32 --method natural --out mobilenet_v2.pt
{TRAIN} --arch own.py:build --data own.npz --input-size 96 {SCALED} --method natural --out own.pt
{TRAIN} --arch cifar:resnet20-a --data cifar-10-batches-bin --method natural --out resnet20-cifar10.pt
fsrp-edge export net.pt --target raspberry-pi-4 --data photos
cp artifacts/model-fp32.onnx artifacts/model-int8.tflite .
mkdir networks
cp model-fp32.onnx networks/net.onnx
for run in dense artifacts; do cp resnet18-jetson-nano/$run/model-fp32.onnx networks/$run.onnx; done
cp artifacts/model-fp32.tflite networks/net.tflite
for pair in resnet18.pt:dense resnet18-jetson-nano/recovered.safetensors:artifacts; do
    fsrp-edge export ${{pair%:*}} --target raspberry-pi-4 --format tflite --precision fp32 --out tflite
    mv tflite/model-fp32.tflite networks/${{pair#*:}}.tflite
done
"""
BARE = {"net.pth": "net.pt", "own.pth": "own.pt", "resnet20-cifar10.th": "resnet20-cifar10.pt"}
"""Files with weights alone, as others save them."""


def write_sets(folder: Path) -> None:
    """`cifar-10-batches-bin` and `own.npz`, both of the photos."""
    arrays, cifar = {}, folder / "cifar-10-batches-bin"
    cifar.mkdir()
    for part, name in (("train", "train"), ("val", "test")):
        paths = sorted((folder / "photos" / part).glob("*/*.png"))
        images = np.stack([np.asarray(Image.open(path)) for path in paths])
        labels = np.array([int(path.parent.name[-1]) for path in paths], np.uint8)
        arrays |= {f"x_{name}": images.repeat(3, 1).repeat(3, 2), f"y_{name}": labels}
        records = np.concatenate([labels[:, None], images.transpose(0, 3, 1, 2).reshape(len(labels), -1)], 1)
        if part == "val":
            (cifar / "test_batch.bin").write_bytes(records.tobytes())
        else:
            for number, batch in enumerate(np.array_split(records, 5), 1):
                (cifar / f"data_batch_{number}.bin").write_bytes(batch.tobytes())
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    (cifar / "batches.meta.txt").write_text("\n".join(names) + "\n")
    np.savez(folder / "own.npz", **arrays)


SSH = """#!/bin/sh
for word; do shift; [ "$word" = pi ] && word=$(id -un); set -- "$@" "$word"; done
exec "{client}" -o HostName=127.0.0.1 -o Port={port} "$@"
"""
"""Every host is the tests' sshd, and `pi` whoever runs the tests."""


@pytest.mark.parametrize("page", [page for page in PAGES if page != WALK], ids=lambda page: page.name)
def test_every_block_of_a_page_runs(page: Path, workshop: Path, server: Server, tmp_path: Path) -> None:
    folder = shutil.copytree(workshop, tmp_path / "copy", symlinks=True)
    (folder / "bin" / "ssh").write_text(SSH.format(client=server.folder / "bin" / "ssh", port=server.port))
    (folder / "bin" / "ssh").chmod(0o755)
    execute(page, folder)


def test_the_walk_through_works(tmp_path: Path) -> None:
    write_program(tmp_path, {})
    execute(WALK, tmp_path)
    assert (tmp_path / "compressed" / "report.html").is_file()
    assert (tmp_path / "compressed.zip").is_file()


def test_what_does_not_run_is_still_there() -> None:
    lines = [line for page in PAGES for _, _, text in blocks(page) for line in text.splitlines()]
    for beginning in NOT_RUN:
        assert any(line.startswith(beginning) for line in lines), beginning
    for long in REPLACED:
        assert any(long in line for line in lines), long
