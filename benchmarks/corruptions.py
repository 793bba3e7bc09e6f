"""The native corruptions beside the original library: parity, speed, and what a model makes of both.

python benchmarks/corruptions.py parity    # difference in grey levels, fed the same draws, as Markdown
python benchmarks/corruptions.py speed     # throughput of the whole grid, ours and the original's in turn
python benchmarks/corruptions.py truth     # accuracy of ResNet-20 on both, paired

The original is imagecorruptions 1.1.2 (`harness_corruptions.reference`: what it needs stands there). The images are the
20 photos at 224 px and the 1,000 lossless CIFAR-10 test images under `--data FOLDER` (or HARNESS_DATA). Ours runs in
`compat`, with ImageNet-C's parameters, and is truncated to grey levels as the original is. On a machine that others use
too, measure speed with ``--clock cpu --threads 1``: of several threads those that wait for a core slow down the rest.
"""

from __future__ import annotations

import argparse
import math
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness_corruptions import reference
from harness_corruptions.catalogue import SEVERITIES, corruptions
from harness_corruptions.corruption import Corruption, Table
from harness_corruptions.feeding import Native, numbers_for
from harness_torch.model import build
from harness_torch.options import TorchOptions
from numpy.typing import NDArray
from torch import Tensor

from harness.datasets import DatasetFacts
from harness.models import ModelContext, prepare
from harness.randomness import Draws, draws_for
from harness.statistics import mean_difference, paired_proportions

Image = NDArray[np.uint8]
TABLE: Table = "imagenet-c"
PHOTOS, SMALL = "imagenet/imagenet_foolbox20_224.npz", "cifar10/cifar10_test1000_lossless.npz"


def images(data: str, file: str, count: int) -> tuple[Image, NDArray[Any]]:
    """The first `count` images (n, H, W, C) and labels; more than there are begin again."""
    with np.load(Path(data) / file) as arrays:
        index = np.arange(count) % len(arrays["x"])
        return arrays["x"][index], arrays["y"][index]


def native(x: Tensor, one: Corruption, severity: int, draws: Draws) -> tuple[Tensor, dict[str, Tensor]]:
    """Our corrupted images, in whole grey levels, and what was drawn for them."""
    parameters = one.severities[TABLE][severity - 1]
    drawn = dict(one.draw(draws, 0, tuple(x.shape[1:]), parameters)) if one.draw else {}
    return one.once(x, parameters, drawn, True), drawn


def as_tensor(x: Image, device: str = "cpu") -> Tensor:
    return torch.from_numpy(x).to(device).permute(0, 3, 1, 2).float().div(255).contiguous()


def as_pixels(x: Tensor) -> Image:
    return x.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()


def chosen(only: str, extra: bool = True) -> list[Corruption]:
    """Corruptions in the original's order whose name has `only` in it."""
    every = [corruptions()[name] for name in reference.NAMES]
    return [one for one in every if only in one.name and (extra or not one.extra)]


def original(x: Image, one: Corruption, severity: int, drawn: dict[str, Tensor]) -> Image:
    """The original's images on what ours drew."""
    theirs, parameters = np.empty_like(x), one.severities[TABLE][severity - 1]
    for row, image in enumerate(x):
        if one.draw is None:
            theirs[row] = reference.run(image, one.name, severity)
        else:
            mine = Native({name: values[row].numpy() for name, values in drawn.items()}, image, parameters)
            theirs[row] = reference.fed(image, one.name, severity, numbers_for(one.name, mine))
    return theirs


def differences(one: Corruption, severity: int, x: Image) -> tuple[int, float, int]:
    """Largest and mean difference in grey levels, and how many entries differ by more than one."""
    ours, drawn = native(as_tensor(x), one, severity, draws_for(torch.arange(len(x)), 0, "parity"))
    difference = np.abs(as_pixels(ours).astype(int) - original(x, one, severity, drawn))
    return int(difference.max()), float(difference.mean()), int((difference > 1).sum())


def parity(data: str, only: str, photos: int, small: int) -> None:
    sets = {"224 px": images(data, PHOTOS, photos)[0], "32 px": images(data, SMALL, small)[0]}
    print(f"Largest / mean difference in grey levels, {photos} photos at 224 px and {small} images at 32 px.\n")
    print("| corruption | px | " + " | ".join(f"severity {s}" for s in SEVERITIES) + " | more than 1 |")
    print("|---|---|" + "---|" * (len(SEVERITIES) + 1))
    for one in chosen(only):
        for size, x in sets.items():
            cells = [differences(one, severity, x) for severity in SEVERITIES]
            texts = [f"{largest} / {mean:.4f}" for largest, mean, _ in cells]
            over = sum(count for *_, count in cells)
            print(f"| {one.name} | {size} | " + " | ".join(texts) + f" | {over} of {5 * x.size:,} |", flush=True)


@dataclass(frozen=True)
class Measure:
    """How speed is measured: seconds of `clock`, the least of some rounds, ours on `device` in batches."""

    clock: Callable[[], float]
    rounds: int
    device: str
    batch: int

    def of(self, run: Callable[[slice], None], part: slice) -> float:
        start = self.clock()
        run(part)
        return self.clock() - start


def speed(data: str, only: str, counts: tuple[int, int], measure: Measure) -> None:
    """Images per second by corruption, over all severities, random numbers included, ours and theirs in turn."""
    for file, count in zip((SMALL, PHOTOS), counts, strict=True):
        if not count:
            continue
        x, _ = images(data, file, count)
        how = f"{torch.get_num_threads()} threads, {measure.clock.__name__}, ours on {measure.device}"
        print(f"\n{count} images at {x.shape[1]} px, five severities; {how}\n")
        print("| corruption | ours, images / s | original, images / s | factor |")
        print("|---|---|---|---|")
        seconds = {}
        for one in chosen(only, extra=False):
            seconds[one.name] = ours, theirs = both_seconds(one, x, measure)
            rates = [len(SEVERITIES) * count / each for each in (ours, theirs)]
            print(f"| {one.name} | {rates[0]:,.0f} | {rates[1]:,.0f} | {theirs / ours:.1f} |", flush=True)
        factors = [theirs / ours for ours, theirs in seconds.values()]
        # The release runs glass_blur's loop over pixels in Python; its repository compiles it since.
        for what, left_out in (("whole grid", ""), ("without glass_blur", "glass_blur")):
            ours, theirs = np.sum([pair for name, pair in seconds.items() if name != left_out], axis=0)
            print(f"| {what} | {ours:.1f} s | {theirs:.1f} s | {theirs / ours:.1f} |")
        mean = math.exp(float(np.log(factors).mean()))
        print(f"\nGeometric mean of the factors {mean:.1f}, least {min(factors):.1f}.")


def both_seconds(one: Corruption, x: Image, measure: Measure) -> tuple[float, float]:
    """Seconds that ours and the original take for all images and severities. Two images warm up."""
    tensor = as_tensor(x, measure.device)
    draws = draws_for(torch.arange(len(x), device=tensor.device), 0, "speed")
    numbers = reference.Seeded(0)

    def ours(part: slice) -> None:
        for _ in one.at(tensor[part], SEVERITIES, TABLE, draws[part], compat=True):
            if tensor.is_cuda:
                torch.cuda.synchronize()

    def theirs(part: slice) -> None:
        for severity in SEVERITIES:
            for image in x[part]:
                reference.run(image, one.name, severity, numbers)

    batches = [slice(start, start + measure.batch) for start in range(0, len(x), measure.batch)]
    for run in (ours, theirs):
        run(slice(0, 2))
    found = [[sum(measure.of(run, part) for part in batches) for run in (ours, theirs)] for _ in range(measure.rounds)]
    ours_least, theirs_least = np.array(found).min(axis=0)
    return float(ours_least), float(theirs_least)


def truth(data: str, only: str, count: int, same_draws: bool, level: float = 0.95) -> None:
    """Accuracy of ResNet-20 on both backends' images, on the same random numbers or each on its own.

    The same ones show what the code changes; own ones show that what is drawn is distributed alike, too, and differ as
    two runs of the original do. Intervals: `harness.statistics.paired_proportions`; of the grid's mean, over images.
    """
    model, alpha = classifier(data), (1 - level) / 2
    x, y = images(data, SMALL, count)
    labels, draws = torch.from_numpy(y), draws_for(torch.arange(count), 0, "truth")
    print(f"ResNet-20, {count} lossless CIFAR-10 test images, clean {right(model, as_tensor(x), labels).mean():.2%}\n")
    print("| corruption | severity | ours | original | difference | interval |")
    print("|---|---|---|---|---|---|")
    cells = []
    for one in chosen(only, extra=False):
        for severity in SEVERITIES:
            corrupted, drawn = native(as_tensor(x), one, severity, draws)
            ours = right(model, corrupted, labels)
            if same_draws:
                theirs = right(model, as_tensor(original(x, one, severity, drawn)), labels)
            else:
                theirs = right(model, as_tensor(reference.corrupt(x, one.name, severity, draws)), labels)
            cell = paired_proportions(int((theirs & ~ours).sum()), int((ours & ~theirs).sum()), count, alpha)
            cells.append((cell, ours.astype(float) - theirs))
            print(
                f"| {one.name} | {severity} | {ours.mean():.1%} | {theirs.mean():.1%} | {100 * cell.value:+.1f} |"
                f" {100 * cell.low:+.1f} to {100 * cell.high:+.1f} |",
                flush=True,
            )
    # An image's cells go together: the unit of the mean over the grid is the image.
    grid = mean_difference(np.mean([of_image for _, of_image in cells], axis=0), alpha)
    farthest = max(max(abs(cell.low), abs(cell.high)) for cell, _ in cells)
    print(f"\nMean over the grid {100 * grid.value:+.2f} points, {100 * grid.low:+.2f} to {100 * grid.high:+.2f};")
    print(f"the farthest end of a cell's interval is {100 * farthest:.1f} points from 0.")


def right(model: Any, x: Tensor, labels: Tensor) -> NDArray[np.bool_]:
    with torch.no_grad():
        answers = [model.logits(x[start : start + 250]).argmax(dim=1) for start in range(0, len(x), 250)]
    return (torch.cat(answers) == labels).numpy()


def classifier(data: str) -> Any:
    options = TorchOptions.model_validate(
        {
            "factory": "harness_torch.networks:cifar_resnet20",
            "checkpoint": f"{data}/models/cifar10_resnet20.th",
            "key": "state_dict",
            "prefix": "module.",
            "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},
        }
    )
    facts = DatasetFacts("cifar10", (3, 32, 32), 256, tuple("0123456789"))
    return prepare(build(options, ModelContext("resnet20", facts, "cpu", Path())), "cpu")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["parity", "speed", "truth"])
    parser.add_argument("--data", default=os.environ.get("HARNESS_DATA"), help="folder of the images and the model")
    parser.add_argument("--only", default="", help="a part of the corruptions' names")
    parser.add_argument("--photos", type=int, help="images at 224 px (parity 20, speed 50)")
    parser.add_argument("--small", type=int, help="images at 32 px (parity 100, speed and truth 1000)")
    parser.add_argument("--draws", choices=["same", "own"], default="same", help="of the two backends, for truth")
    parser.add_argument("--rounds", type=int, default=1, help="of the measurement of speed; the least counts")
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall", help="of the measurement of speed")
    parser.add_argument("--threads", type=int, default=2, help="of torch and of OpenCV")
    parser.add_argument("--batch", type=int, default=50, help="images that ours takes at once, for speed")
    parser.add_argument("--device", default="cpu", help="of ours, for speed")
    arguments = parser.parse_args()
    if not arguments.data:
        parser.error("give the folder of the images with --data or HARNESS_DATA")
    torch.set_num_threads(arguments.threads)
    vars(reference.original())["cv2"].setNumThreads(arguments.threads)
    photos, small = arguments.photos, arguments.small
    if arguments.what == "parity":
        parity(arguments.data, arguments.only, 20 if photos is None else photos, 100 if small is None else small)
    elif arguments.what == "speed":
        counts = (1000 if small is None else small, 50 if photos is None else photos)
        clock = time.perf_counter if arguments.clock == "wall" else time.process_time
        measure = Measure(clock, arguments.rounds, arguments.device, arguments.batch)
        speed(arguments.data, arguments.only, counts, measure)
    else:
        truth(arguments.data, arguments.only, small or 1000, arguments.draws == "same")


if __name__ == "__main__":
    main()
