"""Options of denoisers and of their training, shared by all plugins that build on one. No torch in here."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from harness.options import Options, option, problem

Parameterisation = Literal["eps", "x0", "v"]


class MLPOptions(Options):
    """A residual multi-layer perceptron, for images of a few hundred pixels."""

    kind: Literal["mlp"] = option("mlp", help="multi-layer perceptron")
    width: int = option(256, help="units of a layer", ge=8)
    blocks: int = option(4, help="residual blocks", ge=1)
    dropout: float = option(0.1, help="share of units dropped in training", ge=0, lt=1)


class UNetOptions(Options):
    """A small U-Net of convolutions."""

    kind: Literal["unet"] = option("unet", help="small U-Net")
    channels: tuple[int, ...] = option((16, 32), help="planes at each resolution, the first the full one", min_length=1)
    blocks: int = option(1, help="residual blocks at each resolution", ge=1)
    embedding: int = option(64, help="width of the embedding of noise level and class", ge=8)
    dropout: float = option(0.0, help="share of units dropped in training", ge=0, lt=1)


class DiffusersOptions(Options):
    """A network of the library diffusers (extra `diffusion`)."""

    kind: Literal["diffusers"] = option("diffusers", help="network of the library diffusers")
    architecture: Literal["UNet2DModel", "DiTTransformer2DModel"] = option(
        "UNet2DModel", help="class of diffusers; a folder's config.json says it itself"
    )
    config: dict[str, Any] = option(
        default_factory=dict, help="arguments of that class; sizes, channels and classes are filled in from the data"
    )
    folder: str | None = option(
        None, help="local folder in diffusers' format (config.json with safetensors weights); instead of config"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.folder is not None and self.config:
            raise problem("give `folder` or `config`, not both: the folder has a config.json")
        return self


NetworkOptions = Annotated[MLPOptions | UNetOptions | DiffusersOptions, Field(discriminator="kind")]


class VPOptions(Options):
    """Variance preserving."""

    kind: Literal["vp"] = option("vp", help="variance preserving")
    beta_min: float = option(0.1, help="beta at time 0", gt=0)
    beta_max: float = option(20.0, help="beta at time 1", gt=0)


class SubVPOptions(Options):
    """Sub-VP: a variance at most that of VP."""

    kind: Literal["sub-vp"] = option("sub-vp", help="sub-VP")
    beta_min: float = option(0.1, help="beta at time 0", gt=0)
    beta_max: float = option(20.0, help="beta at time 1", gt=0)


class VEOptions(Options):
    """Variance exploding."""

    kind: Literal["ve"] = option("ve", help="variance exploding")
    std_min: float = option(0.01, help="scale of the noise at time 0", unit="[-1, 1] pixel units", gt=0)
    std_max: float = option(50.0, help="scale of the noise at time 1", unit="[-1, 1] pixel units", gt=0)


class DDPMOptions(Options):
    """A schedule in steps."""

    kind: Literal["ddpm"] = option("ddpm", help="schedule in steps")
    schedule: Literal["linear", "scaled-linear", "cosine"] = option("linear", help="how beta grows over the steps")
    steps: int = option(1000, help="number of steps", ge=2)
    beta_start: float = option(1e-4, help="beta of the first step (not for cosine)", gt=0, lt=1)
    beta_end: float = option(0.02, help="beta of the last step (not for cosine)", gt=0, lt=1)


ProcessOptions = Annotated[VPOptions | SubVPOptions | VEOptions | DDPMOptions, Field(discriminator="kind")]


class Design(Options):
    """What a denoiser is, whatever its weights."""

    network: NetworkOptions = option(default_factory=MLPOptions, help='the network: kind "mlp", "unet" or "diffusers"')
    process: ProcessOptions = option(
        default_factory=VPOptions, help='how noise is added: kind "vp", "sub-vp", "ve" or "ddpm"'
    )
    parameterisation: Parameterisation = option("eps", help="what the network predicts: the noise, the image, or v")
    conditional: bool = option(True, help="the network is told the class")
    null_class: bool = option(True, help="it also knows a class for none, learnt by label dropout")


class Blueprint(Design):
    """A design with the facts of the data it was made for: all that is needed to build the denoiser again.

    This is what the header of a checkpoint holds under notes.denoiser.
    """

    shape: tuple[int, int, int] = option(help="(C, H, W) of the images")
    num_classes: int = option(help="classes, the null class not counted", ge=1)
    levels: int = option(help="grey levels of the data, by which images are dequantised", ge=2)
    smallest_time: float | None = option(
        None, help="where the times that it was trained on begin; by default where the process says", gt=0, lt=1
    )


class DenoiserOptions(Design):
    """A denoiser: the file it comes from, or what to build."""

    checkpoint: str | None = option(
        None,
        help='a ".safetensors" file that any diffusion plugin wrote (may begin with $HARNESS_DATA), or "builtin:NAME";'
        " it says by itself what to build",
    )


class DenoisingRecipe(Options):
    """How a denoiser is trained: denoising score matching."""

    epochs: int = option(300, help="passes over the training data", ge=1)
    batch_size: int = option(128, help="images in a batch", ge=1)
    objective: Literal["uniform", "likelihood", "importance", "mixture"] = option(
        "uniform",
        help="how times count: uniformly; weighted by likelihood (g^2); the same by drawing them so; or half of the"
        " batch drawn uniformly and half by likelihood",
    )
    smallest_time: float | None = option(
        None, help="times are drawn from here to 1; by default 1e-5, for sub-VP 1e-2, for ddpm one step", gt=0, lt=1
    )
    lr: float = option(1e-3, help="highest learning rate (Adam, cosine)", gt=0)
    warmup: int = option(200, help="steps in which the learning rate rises", ge=0)
    clip: float = option(1.0, help="longest gradient", gt=0)
    ema: float = option(0.999, help="decay, per step, of the average of the weights that is kept", ge=0, lt=1)
    label_dropout: float = option(
        0.1, help="share of images trained without their class, where there is a null class", ge=0, lt=1
    )
    dequantise: bool = option(True, help="spread each grey level over its bin, at random")
    flip: bool = option(False, help="mirror half of the images left to right, at random")
    precision: Literal["float32", "bfloat16"] = option(
        "float32", help="of the network's arithmetic; weights and loss stay float32"
    )


class SamplerOptions(Options):
    """How images are drawn."""

    sampler: Literal["euler-maruyama", "predictor-corrector", "ddpm", "ddim"] = option(
        "ddpm",
        help="reverse diffusion by Euler-Maruyama, the same with Langevin steps in between, ancestral sampling, or"
        " DDIM, which adds no noise",
    )
    steps: int = option(100, help="steps from noise to image", ge=1)
    corrector_steps: int = option(1, help="Langevin steps after each step of the predictor-corrector", ge=1)
    corrector_snr: float = option(0.16, help="signal-to-noise ratio that sets the length of a Langevin step", gt=0)


class DiffusionOptions(DenoiserOptions):
    """A diffusion model that draws images."""

    sampling: SamplerOptions = option(default_factory=SamplerOptions, help="how images are drawn")
