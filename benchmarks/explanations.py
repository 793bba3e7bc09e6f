"""How exact the explanations of an IB-INN are on the digits test images, and what its decision rests on.

python benchmarks/explanations.py [RUN] [CHECKPOINT ...]

With RUN, the folder of a run of one of the models, also how often a repeated attack ends at the stored image.
"""

from __future__ import annotations

import sys
from pathlib import Path

from harness_ib_inn.loading import builtin_names
from harness_ib_inn.model import IBINN, build
from harness_ib_inn.options import IBINNOptions
from harness_ib_inn.posterior_maps import CONTRAST, class_maps, likelihood_maps, posterior_maps, saliency_maps
from harness_ib_inn.sample_pictures import codes
from harness_ib_inn.spread import accuracy_by_components, components
from torch import Tensor

from harness.arithmetic import fixed_arithmetic
from harness.datasets import DatasetSlice
from harness.host import load_host
from harness.loading import open_dataset
from harness.models import ModelContext, prepare
from harness.retrace import Retracing
from harness.store import load_run
from harness.suite import dataset_entry


def main(arguments: list[str]) -> None:
    runs = [Path(a) for a in arguments if Path(a).is_dir()]
    names = [a for a in arguments if not Path(a).is_dir()] or [f"builtin:{known}" for known in builtin_names()]
    host = load_host()
    data = open_dataset(dataset_entry({"name": "digits", "split": "test"}, host, "digits"), host, None)
    with fixed_arithmetic():
        for name in names:
            context = ModelContext("digits", data.facts, "cpu", Path.cwd())
            exactness(name, prepare(build(IBINNOptions(checkpoint=name), context), "cpu"), data)
        for run in runs:
            repetition(run)


def exactness(name: str, model: IBINN, data: DatasetSlice) -> None:
    x, y = data.load(data.ids)
    z, log_det = codes(model, x)
    by_class = class_maps(z, model.means, model.to_spatial)
    maps = posterior_maps(by_class, model.log_prior)
    error = (maps.sum(dim=(2, 3)) - model.logits(x).log_softmax(dim=1)).abs().max()
    likelihood = likelihood_maps(by_class, model.latent_shape[0]).sum(dim=(2, 3)) + log_det[:, None]
    print(f"{name}, {len(x)} images")
    print(f"  heat maps against log-posterior: {error:.1e} nats at most")
    print(f"  class maps against log p(x | y): {(likelihood - model.class_log_prob(x)).abs().max():.1e} nats at most")
    for what, some in (("no S_kl", by_class), ("here", maps), ("the paper's words", worded(by_class, model.log_prior))):
        shared = some.mean(dim=1).flatten(1).std(dim=1).mean()
        print(
            f"  standard deviation over places, {what}: {shared:.1f} nats, between classes {some.std(dim=1).mean():.1f}"
        )
    of_codes, of_means = (components(model.to_spatial(v.double())) for v in (z, model.means))
    accuracy = accuracy_by_components(of_codes, of_means, model.log_prior, y)
    print(f"  accuracy of the pooled component alone {accuracy[0]:.1%}, of all {accuracy[-1]:.1%}")


def worded(by_class: Tensor, log_prior: Tensor) -> Tensor:
    """The maps with r_kl of equation 32 as the paper words it: log p(w_kl) scaled to [0, 1]."""
    saliency = saliency_maps(by_class, log_prior)
    low, high = saliency.amin(dim=(1, 2), keepdim=True), saliency.amax(dim=(1, 2), keepdim=True)
    r = (high - saliency) / (high - low) + CONTRAST
    log_s = by_class.sum(dim=(2, 3)).logsumexp(dim=1)
    return by_class - (log_s[:, None, None] * r / r.sum(dim=(1, 2), keepdim=True))[:, None]


def repetition(folder: Path) -> None:
    run = load_run(folder)
    (model,) = run.info["suite"]["models"]
    again = Retracing.of(run, model, None, None, ())
    for cell in again.attacks():
        ids = run.reader.raw(cell.id, ["sample_id"])["sample_id"]
        images = [image for sample in ids for image in again.attacked(int(sample), [cell])[0]]
        print(
            f"{cell.id}: {sum(i.repeated for i in images)} of {len(images)} repeated attacks ended at the stored image"
        )


if __name__ == "__main__":
    main(sys.argv[1:])
