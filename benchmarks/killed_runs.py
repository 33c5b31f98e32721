"""Kill a job of several processes at random times until it is done; compare its files.

    python benchmarks/killed_runs.py [--images 200] [--processes 3] [--seed 0] [--longest 3]

A job under `torchrun` segments images in nested folders. One or all of its processes are killed by
SIGKILL at random times, and the job is started again with `--resume`. Its files must equal those of
one process that was not interrupted, and no image whose files were complete is written again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image

from isanet_zoo import ISANet, save_model

STREET = Path(__file__).parents[1] / "examples" / "street.jpg"
PREDICT = ("isanet_zoo", "predict", "--device", "cpu", "-r", "--batch-size", "1")


def make_images(folder: Path, count: int, rng: random.Random) -> None:
    """Write crops of the street, of several sizes, to nested folders."""
    with Image.open(STREET) as street:
        for number in range(count):
            path = folder / rng.choice(["", "a", "a/b", "a/b/c", "d"]) / f"{number:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            left, top = rng.randrange(400), rng.randrange(300)
            size = rng.choice([(96, 64), (128, 96), (160, 128)])
            street.crop((left, top, left + size[0], top + size[1])).save(path)


def stamps(folder: Path) -> dict[Path, int]:
    """Return the result files, with their inodes; a file that is written again has a new one."""
    return {path: path.stat().st_ino for path in folder.rglob("[!.]*.png")}


def children(process: int) -> list[int]:
    """Return the processes that a process has started."""
    return [*map(int, Path(f"/proc/{process}/task/{process}/children").read_text("ascii").split())]


def images_of(files: dict[Path, int]) -> set[str]:
    """Return the images whose two result files both exist."""
    stems = [str(path).rpartition(".png")[0] for path in files]
    labels = {stem.removesuffix(".labels") for stem in stems if stem.endswith(".labels")}
    return {stem for stem in labels if f"{stem}.overlay" in stems}


def main() -> None:
    """Run the job and print how often it was killed, and whether the files are equal."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=200)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--longest", type=float, default=3.0, help="most seconds from a first file to a kill"
    )
    parser.add_argument("--model", help="default: a small network with random weights")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        photos, one, many = (Path(name, part) for part in ("photos", "one", "many"))
        make_images(photos, options.images, rng)
        model = options.model or str(Path(name, "small.safetensors"))
        if not options.model:
            torch.manual_seed(0)
            save_model(ISANet("test_resnet", num_classes=5), model)
        predict = [*PREDICT, "-m", model, str(photos)]
        null = subprocess.DEVNULL
        command = [sys.executable, "-m", *predict, "-o", str(one)]
        subprocess.run(command, check=True, stdout=null, stderr=null)
        torchrun = [sys.executable, "-m", "torch.distributed.run"]
        torchrun += [f"--nproc-per-node={options.processes}", "-m", *predict]
        kills, done, rewritten = 0, False, 0
        while not done:
            before = stamps(many)
            complete = images_of(before)
            command = [*torchrun, "-o", str(many), "--resume"]
            job = subprocess.Popen(command, stdout=null, stderr=null)
            while job.poll() is None and stamps(many) == before:  # until it has started
                time.sleep(0.01)
            try:
                done = job.wait(rng.uniform(0.0, options.longest)) == 0
            except subprocess.TimeoutExpired:
                workers = children(job.pid)  # `torchrun` starts them in other sessions
                everything = [job.pid, *workers]
                for process in rng.choice([everything, workers[:1] or everything]):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                job.wait()
                kills += 1
            after = stamps(many)
            rewritten += sum(
                after[path] != inode
                for path, inode in before.items()
                if str(path).rsplit(".", 2)[0] in complete
            )
            print(f"{len(images_of(after))} of {options.images} images, {kills} kills", flush=True)
        expected = {path.relative_to(one): path.read_bytes() for path in stamps(one)}
        found = {path.relative_to(many): path.read_bytes() for path in stamps(many)}
        print(
            f"{kills} kills; {len(found)} files, of which {rewritten} were written twice; "
            f"equal to those of one process: {found == expected}"
        )
        raise SystemExit(found != expected or rewritten > 0)


if __name__ == "__main__":
    main()
