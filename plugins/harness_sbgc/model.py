"""The model `sbgc`: a class-conditional diffusion model that classifies by Bayes' rule.

Zimmermann, Schott, Song, Dunn, Klindt 2021, *Score-Based Generative Classifiers*: log p(x | y) by equation 3 for every
class, the prediction the class of the highest. The paper drops the prior 1/K in p(x) = sum_y p(x | y) / K; it is kept
here. The paper names both sub-VP (section 2.1) and VP (appendix A.1) as its process: an option, VP by default, since
its smallest time 1e-5 is VP's.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
from harness_diffusion.building import Source, find_source
from harness_diffusion.likelihood import Flow, Likelihood, log_prob, sample_flow
from harness_diffusion.sampling import sample
from harness_diffusion.scaling import dequantise, log_prob_of_image, quantise, to_image, to_scaled
from torch import Tensor, nn

from harness.errors import ModelError
from harness.models import ModelContext
from harness.randomness import Draws
from harness_sbgc.noise import StreamNoise, fixed_stream
from harness_sbgc.options import SbgcOptions

if TYPE_CHECKING:
    from harness_diffusion.options import DenoisingRecipe

    from harness.datasets import DatasetSlice
    from harness.training import FitSession

_SHOWN = 3


class Sbgc(nn.Module):
    """A classifier, density, detector and sampler, all from one class-conditional denoiser.

    Densities are those of the dequantised image, ((levels - 1) x + u) / levels with u uniform on [0, 1), so that bits
    per dimension bound those of the grey levels. The one draw of u and the probes are an unbiased estimate of what the
    ODE gives; the same noise serves all classes.

    Attributes:
        num_classes: K.
        denoiser: the network with its process.
        files: the files it was built from, for the model's digest.
        source_modules: where what it computes is written down, for the model's digest.
    """

    source_modules = ("harness_diffusion",)
    stochastic = False
    density_tag = "exact"

    def __init__(self, name: str, source: Source, options: SbgcOptions) -> None:
        super().__init__()
        self.name = name
        self.source = source
        self.options = options
        self.denoiser = source.make()
        self.num_classes = self.denoiser.num_classes
        self.files = source.files
        self.shape = source.blueprint.shape
        unit = options.temperature
        self.temperature = math.prod(self.shape) * math.log(2) if isinstance(unit, str) else unit

    def class_log_prob(self, x: Tensor) -> Tensor:
        """(B, K) log p(x | y), nats, float64.

        Raises:
            ModelError: the solver gave up on an image.
        """
        return self._checked(self.likelihoods(x, fixed_stream(self.options.noise_seed, x.device)))

    def logits(self, x: Tensor) -> Tensor:
        """(B, K) log p(y | x) under a uniform prior over the temperature, float64. Raises as `class_log_prob`."""
        return self.class_log_prob(x).log_softmax(dim=1) / self.temperature

    def ood_score(self, x: Tensor) -> Tensor:
        """(B,) -log p(x), nats, float64. Raises as `class_log_prob`."""
        return math.log(self.num_classes) - self.class_log_prob(x).logsumexp(dim=1)

    def likelihoods(self, x: Tensor, draws: Draws) -> Likelihood:
        """What the solver finds for every image and class, each entry (B, K): see `harness_diffusion.likelihood`.

        `log_prob` is of images in [0, 1]. `draws`: one stream an image, or a single one for all.
        """
        uniform = self.noise(draws, len(x)).dequantisation().double()
        v = to_scaled(dequantise(x.double(), self.source.blueprint.levels, uniform))
        flow = self.flow()
        each = max(1, self.options.rows // self.num_classes)
        starts = range(0, max(len(x), 1), each)
        parts = [
            self._solve(flow, v[at : at + each], draws[at : at + each] if len(draws) > 1 else draws) for at in starts
        ]
        found = (torch.cat([getattr(p, name) for p in parts]) for name in ("log_prob", "evaluations", "failed"))
        return Likelihood(*found)

    def flow(self) -> Flow:
        """How likelihoods are integrated."""
        options = self.options
        process = self.denoiser.process
        return Flow(
            process,
            self.denoiser.score,
            method=options.chosen_solver,
            steps=options.chosen_steps,
            rtol=options.rtol,
            atol=options.atol,
            max_steps=options.max_steps,
            smallest=options.smallest_time or self.denoiser.smallest_time,
            trace=options.trace,
            gradient=options.gradient,
            draws=options.surrogate_draws,
            dtype=next(self.denoiser.parameters()).dtype,
        )

    def noise(self, draws: Draws, samples: int) -> StreamNoise:
        """The random numbers of `samples` images."""
        options = self.options
        return StreamNoise(draws, samples, self.shape, options.chosen_probes, options.trace == "gaussian")

    def sample(self, y: Tensor, *, draws: Draws) -> Tensor:
        """(B, C, H, W) in [0, 1], on the grey levels of the data: image i of class y[i], from stream i of `draws`.

        Raises:
            ModelError: the model knows no such class; the solver gave up.
        """
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < self.num_classes:
            raise ModelError(f"model '{self.name}' knows classes 0 to {self.num_classes - 1}, not {int(y.max())}")
        process = self.denoiser.process
        if self.options.sample_by == "flow":
            v = sample_flow(self.flow(), process.prior_sample(draws.normal("prior", 0, self.shape)), y)
            if bool(v.isnan().any()):
                raise ModelError(f"model '{self.name}': the solver gave up on a sample; {self._advice()}")
        else:
            v = sample(
                lambda x, t: self.denoiser.noise(x, t, y),
                process,
                self.shape,
                draws,
                self.options.sampling,
                self.denoiser.smallest_time,
            )
        return quantise(to_image(v.float()), self.source.blueprint.levels)

    def fit(self, data: DatasetSlice, recipe: DenoisingRecipe, session: FitSession) -> None:
        """Train the denoiser anew (from the checkpoint, where the options name one) and write `session.out`."""
        from harness_diffusion.training import fit

        self.denoiser = fit(self.source, data, recipe, session)

    def _solve(self, flow: Flow, v: Tensor, draws: Draws) -> Likelihood:
        """Likelihoods (B, K) of dequantised images on the scale [-1, 1], all classes at once."""
        images, classes = len(v), self.num_classes
        y = torch.arange(classes, device=v.device).repeat(images)
        owner = torch.arange(images, device=v.device).repeat_interleave(classes)
        found = log_prob(flow, v.repeat_interleave(classes, dim=0), y, owner, self.noise(draws, images))
        of_image = log_prob_of_image(found.log_prob, math.prod(self.shape))
        return Likelihood(*(entry.reshape(images, classes) for entry in (of_image, found.evaluations, found.failed)))

    def _checked(self, found: Likelihood) -> Tensor:
        failed = found.failed.any(dim=1)
        if bool(failed.any()):
            index = failed.nonzero()[:, 0].tolist()
            named = ", ".join(str(i) for i in index[:_SHOWN]) + (" ..." if len(index) > _SHOWN else "")
            raise ModelError(
                f"model '{self.name}': no likelihood for {len(index)} of {len(failed)} images (number {named} of the"
                f" batch): {self._advice()}"
            )
        return found.log_prob

    def _advice(self) -> str:
        if self.options.chosen_solver == "rk45":
            return f"rk45 did not finish within {self.options.max_steps} steps; raise max_steps, or rtol and atol"
        return "the flow left the range of numbers; is the network trained?"


class RandomSbgc(Sbgc):
    """The same with fresh noise: each image's dequantisation and probes come from its own stream."""

    stochastic = True

    def class_log_prob(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        """(B, K) log p(x | y), nats, float64: one draw."""
        return self._checked(self.likelihoods(x, draws))

    def logits(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        """(B, K) log p(y | x) under a uniform prior, divided by the temperature: one draw."""
        return self.class_log_prob(x, draws=draws).log_softmax(dim=1) / self.temperature

    def ood_score(self, x: Tensor, *, draws: Draws) -> Tensor:  # type: ignore[override]
        """(B,) -log p(x), nats: one draw."""
        return math.log(self.num_classes) - self.class_log_prob(x, draws=draws).logsumexp(dim=1)


def build(options: SbgcOptions, context: ModelContext) -> Sbgc:
    """The model plugin's factory.

    Raises:
        HarnessError: one line: a file is missing, unreadable or does not fit; the denoiser is told no class.
    """
    source = find_source(options, context)
    if not source.blueprint.conditional:
        where = f"checkpoint {options.checkpoint} is" if options.checkpoint else "conditional = false makes"
        raise ModelError(
            f"model '{context.name}': {where} a denoiser without a class embedding, which cannot classify; give one"
            " trained with conditional = true"
        )
    kind = RandomSbgc if options.noise == "fresh" else Sbgc
    return kind(context.name, source, options)
