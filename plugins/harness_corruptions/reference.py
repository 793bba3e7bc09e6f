"""The original code of the corruptions, the package `imagecorruptions` 1.1.2, running on a current environment.

Its last release asks for what is gone by now: `pkg_resources` of setuptools, `np.float_`, the argument `multichannel`
of scikit-image. It is loaded here as a module of its own, for which stand-ins are at hand while it is imported and
whose own names for NumPy and scikit-image are then replaced. The installed package, `sys.modules` and NumPy stay as
they are, and so do the numbers: tests/harness_corruptions compares them with those of the untouched package under old
versions.

Its random functions are replaced as well, by `Numbers`: seeded ones, recorded ones, or given ones. So NumPy's global
generator is neither used nor changed, and what the original draws elsewhere (`impulse_noise`: a generator of
scikit-image's own; the code in its repository: one of numba's) follows the seed too.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from harness.errors import HarnessError

if TYPE_CHECKING:
    from harness.randomness import Draws

RANDOM = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "glass_blur", "motion_blur", "snow", "frost", "fog"),
    *("elastic_transform", "speckle_noise", "spatter"),
)
NAMES = (
    *("gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur"),
    *("snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression"),
    *("speckle_noise", "gaussian_blur", "spatter", "saturate"),
)
"""The 19 functions, in the original's order: 15 that mCE averages, then the four extra ones."""
INSTALL = (
    "pip install --no-deps imagecorruptions==1.1.2 && pip install opencv-python-headless scikit-image"
    " (without --no-deps it brings a second OpenCV, which needs a display)"
)
_NO_GREY = ("glass_blur", "gaussian_blur", "motion_blur")  # raise on a grey image, or take its width for channels
_WORDS = 4  # of 32 bits, in a seed

Image = NDArray[np.uint8]


class Numbers(Protocol):
    """Where the original's random numbers come from: it stands for ``np.random`` in the original's module."""

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None) -> Any: ...
    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any: ...
    def poisson(self, lam: Any = 1.0, size: Any = None) -> Any: ...
    def randint(self, low: int, high: int | None = None, size: Any = None) -> Any: ...
    def generator(self) -> np.random.Generator:
        """The generator that scikit-image is handed; only its method `random` is called."""
        ...


class Seeded(np.random.RandomState):
    """What the original draws after ``np.random.seed(seed)``; scikit-image draws from ``default_rng(seed)``."""

    def __init__(self, seed: Any) -> None:
        super().__init__(seed)
        self._seed = seed

    def generator(self) -> np.random.Generator:
        return np.random.default_rng(self._seed)


class Fed:
    """Given numbers in place of random ones, taken in the order in which the original asks for them.

    They are the standard ones, made to fit what is asked: of `normal` N(0, 1), of `uniform` and of scikit-image's
    `random` those on [0, 1); of `randint` and `poisson` the whole numbers themselves.

    The calls, with H x W the image's size:
        gaussian_noise, speckle_noise: normal (H, W, C).    shot_noise: poisson (H, W, C).
        impulse_noise: random (H, W, C), at most the amount where one is hit; random (H, W, C), at most 0.5 for salt.
        glass_blur: randint (2,), dx and dy, -delta to delta - 1, for each of its turns, rows and columns (backwards).
        motion_blur: uniform (), the angle.    snow: normal (H, W), uniform (), the angle.    spatter: normal (H, W).
        frost: randint (), the texture; randint (), the top of the cut; randint (), its left.
        fog: uniform (k, k), centres of squares, then twice (k, k), centres of their edges; for k = 1, 2, 4, ... to half
            the map's side, which is the next power of two.
        elastic_transform: uniform (H, W), to the right; uniform (H, W), downwards.
    """

    def __init__(self, numbers: Iterable[Any]) -> None:
        self._numbers = iter(numbers)

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None) -> Any:
        return loc + scale * self._next(size)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
        return low + (high - low) * self._next(size)

    def poisson(self, lam: Any = 1.0, size: Any = None) -> Any:
        return self._next(np.shape(lam) if size is None else size)

    def randint(self, low: int, high: int | None = None, size: Any = None) -> Any:
        start, end = (0, low) if high is None else (low, high)
        found = np.asarray(self._next(size)).astype(np.int64)
        if not ((found >= start) & (found < end)).all():
            raise ValueError(f"randint asks for {start} to {end - 1}, and is given {found}")
        return found if found.ndim else int(found)

    def generator(self) -> np.random.Generator:
        return _Generator(self)

    def done(self) -> bool:
        """Whether every number was asked for."""
        return next(self._numbers, None) is None

    def _next(self, size: Any) -> Any:
        wanted = () if size is None else tuple(np.atleast_1d(size).tolist())
        found = next(self._numbers, None)
        if found is None:
            raise ValueError("the original asks for more random numbers than it is given")
        array = np.asarray(found, dtype=np.float64)
        if array.shape != wanted:
            raise ValueError(f"the original asks for random numbers of shape {wanted}, and is given {array.shape}")
        return array if wanted else float(array)


class _Generator(np.random.Generator):
    """A generator whose `random` is asked of numbers given elsewhere."""

    def __init__(self, fed: Fed) -> None:
        super().__init__(np.random.PCG64(0))
        self._fed = fed

    def random(self, size: Any = None, *_: Any) -> Any:  # type: ignore[override]
        return self._fed.uniform(size=size)


@dataclass(frozen=True)
class Drawn:
    """One call of a random function: which, with what arguments, and what it gave."""

    function: str
    arguments: Mapping[str, Any]
    value: Any


class Recorder:
    """Numbers of `source`, kept in `calls` in the order in which they were drawn."""

    def __init__(self, source: Numbers) -> None:
        self._source = source
        self.calls: list[Drawn] = []

    def normal(self, loc: float = 0.0, scale: float = 1.0, size: Any = None) -> Any:
        return self._kept("normal", loc=loc, scale=scale, size=size)

    def uniform(self, low: float = 0.0, high: float = 1.0, size: Any = None) -> Any:
        return self._kept("uniform", low=low, high=high, size=size)

    def poisson(self, lam: Any = 1.0, size: Any = None) -> Any:
        return self._kept("poisson", lam=lam, size=size)

    def randint(self, low: int, high: int | None = None, size: Any = None) -> Any:
        return self._kept("randint", low=low, high=high, size=size)

    def generator(self) -> np.random.Generator:
        return _RecordedGenerator(self, self._source.generator())

    def _kept(self, function: str, **arguments: Any) -> Any:
        value = getattr(self._source, function)(**arguments)
        self.calls.append(Drawn(function, arguments, value))
        return value


class _RecordedGenerator(np.random.Generator):
    def __init__(self, recorder: Recorder, source: np.random.Generator) -> None:
        super().__init__(source.bit_generator)
        self._recorder = recorder

    def random(self, size: Any = None, *_: Any) -> Any:  # type: ignore[override]
        value = super().random(size)
        self._recorder.calls.append(Drawn("random", {"size": size}, value))
        return value


class _Nothing:
    """No random numbers at all, for what needs none."""

    def __getattr__(self, name: str) -> Any:
        raise ValueError("a random corruption needs numbers to draw from: Seeded, Fed or a Recorder")


def corrupt(images: Image, name: str, severity: int, draws: Draws | None) -> Image:
    """The original's corruption of each image, on random numbers of the sample's own, the same at every severity.

    Args:
        images: uint8 (n, H, W, C) with C = 1 or 3.
        name: one of `NAMES`.
        severity: 1 to 5.
        draws: the samples' streams, n of them; None will do for what is not in `RANDOM`.

    Returns:
        uint8 (n, H, W, C). See `run` for images of one channel.

    Raises:
        HarnessError: unknown name or severity, another number of channels, a package that is missing.
    """
    _check(name, severity)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise HarnessError(
            f"{name}: imagecorruptions takes 8-bit images of 1 or 3 channels, (n, H, W, C); these are"
            f" {images.dtype} {images.shape}"
        )
    if name in RANDOM and draws is None:
        raise ValueError(f"{name} is random: it needs the samples' draws")
    out = np.empty_like(images)
    seeds = seeds_of(draws, name) if draws is not None and name in RANDOM else None
    for row, image in enumerate(images):
        out[row] = run(image, name, severity, Seeded(seeds[row]) if seeds is not None else None)
    return out


def seeds_of(draws: Draws, name: str) -> NDArray[np.uint32]:
    """Seeds (n, 4) of the original's generators, of each sample's own stream, other ones for each corruption."""
    bits = draws.stream("imagecorruptions", name).bits("seed", 0, (_WORDS,))
    return bits.cpu().numpy().astype(np.uint32)


def run(image: Image, name: str, severity: int, numbers: Numbers | None = None) -> Image:
    """The original's corruption of one image (H, W, C), uint8 in and out, on the random numbers given.

    The image goes to the original's function itself, so that images under 32 pixels, which the package's `corrupt`
    refuses, are corrupted too; the result is cut to whole grey levels, not rounded, as that does.

    An image of one channel is handed over as a grey one, for which most functions have a branch of their own: noise
    is drawn once a pixel, frost and spatter are turned into grey, brightness is added, the saturation of an image
    without colour becomes a change of its value. The three without such a branch (glass, Gaussian and motion blur)
    get it as three equal channels, and one of those is taken. The package's `corrupt` would return three channels.
    """
    _check(name, severity)
    grey = image.shape[2] == 1
    one = image[..., 0] if grey else image
    if grey and name in _NO_GREY:
        one = np.stack([one] * 3, axis=-1)
    with _numbers(numbers) as module, np.errstate(all="ignore"):
        found = getattr(module, name)(module.Image.fromarray(np.ascontiguousarray(one)), severity)
        pixels = np.asarray(found).astype(np.uint8)
    if grey:
        pixels = pixels[..., :1] if pixels.ndim == 3 else pixels[..., np.newaxis]
    return pixels


def recorded(image: Image, name: str, severity: int, seed: Any) -> tuple[Image, list[Drawn]]:
    """The corrupted image (H, W, C), and every call of a random function with what it gave, in order."""
    recorder = Recorder(Seeded(seed))
    return run(image, name, severity, recorder), recorder.calls


def fed(image: Image, name: str, severity: int, numbers: Iterable[Any]) -> Image:
    """The corrupted image (H, W, C), its random numbers being the given ones: see `Fed`.

    Raises:
        ValueError: more or fewer numbers than the original asks for, or of another shape.
    """
    given = Fed(numbers)
    found = run(image, name, severity, given)
    if not given.done():
        raise ValueError(f"{name} asks for fewer random numbers than it is given")
    return found


def package_folder() -> Path:
    """The folder of the installed package; its frost textures are in ``frost`` there.

    Raises:
        HarnessError: it is not installed.
    """
    spec = importlib.util.find_spec("imagecorruptions")  # does not import it
    if spec is None or not spec.submodule_search_locations:
        raise HarnessError(f"backend imagecorruptions is not installed; install it with: {INSTALL}")
    return Path(next(iter(spec.submodule_search_locations)))


def library_files() -> tuple[Path, ...]:
    """The files of the package that images depend on."""
    folder = package_folder()
    return (folder / "corruptions.py", *sorted((folder / "frost").glob("frost*")))


def library_versions() -> dict[str, str]:
    """Releases of what the package computes with."""
    names = ("imagecorruptions", "numpy", "opencv-python-headless", "opencv-python", "pillow", "scikit-image", "scipy")
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


@functools.cache
def original() -> ModuleType:
    """The original's module of functions, loaded once, in nobody's `sys.modules`.

    Raises:
        HarnessError: the package, or one that it uses, is not installed.
    """
    folder = package_folder()
    spec = importlib.util.spec_from_file_location("imagecorruptions.corruptions", folder / "corruptions.py")
    if spec is None or spec.loader is None:
        raise HarnessError(f"{folder}: holds no corruptions.py; install it with: {INSTALL}")
    module = importlib.util.module_from_spec(spec)
    try:
        with _stand_ins(folder):
            spec.loader.exec_module(module)
    except ImportError as error:
        raise HarnessError(
            f"backend imagecorruptions cannot be loaded ({error}); install it with: {INSTALL}"
        ) from error
    _rename(module)
    return module


@contextmanager
def _stand_ins(folder: Path) -> Iterator[None]:
    """Modules that the original imports and that may be gone, there for as long as it is being imported."""
    ndimage = importlib.import_module("scipy.ndimage")
    modules = {
        "pkg_resources": {"resource_filename": lambda _, name: str(folder / name)},
        "scipy.ndimage.interpolation": {"map_coordinates": ndimage.map_coordinates},
        "numba": {"njit": lambda *_, **__: lambda function: function},  # the repository's code compiles glass_blur
    }
    before = {name: sys.modules.get(name) for name in modules}
    try:
        for name, names in modules.items():
            sys.modules[name] = ModuleType(name)
            vars(sys.modules[name]).update(names)
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _rename(module: Any) -> None:
    """What the original's module calls NumPy, scikit-image and `print` from now on."""
    numpy, skimage = ModuleType("numpy"), module.sk
    vars(numpy).update(vars(np))
    numpy.float_ = np.float64  # type: ignore[attr-defined]
    numpy.random = _Nothing()  # type: ignore[attr-defined]
    module.np = numpy
    module.sk = SimpleNamespace(
        color=skimage.color,
        util=SimpleNamespace(random_noise=functools.partial(_random_noise, numpy, skimage.util.random_noise)),
    )
    if "multichannel" not in inspect.signature(module.gaussian).parameters:
        module.gaussian = functools.partial(_gaussian, module.gaussian)
    module.print = lambda *_: None  # it tells of images whose zoomed layer came out a pixel too small


def _random_noise(numpy: Any, random_noise: Any, image: Any, **arguments: Any) -> Any:
    keyword = "rng" if "rng" in inspect.signature(random_noise).parameters else "seed"
    return random_noise(image, **{keyword: numpy.random.generator()}, **arguments)


def _gaussian(gaussian: Any, image: Any, sigma: Any, multichannel: bool = False, **arguments: Any) -> Any:
    return gaussian(image, sigma, **({"channel_axis": -1} if multichannel else {}), **arguments)


@contextmanager
def _numbers(numbers: Numbers | None) -> Iterator[Any]:
    module: Any = original()
    before = module.np.random
    module.np.random = _Nothing() if numbers is None else numbers
    try:
        yield module
    finally:
        module.np.random = before


def _check(name: str, severity: int) -> None:
    if name not in NAMES:
        raise HarnessError(f"imagecorruptions knows no corruption '{name}'; it has {', '.join(NAMES)}")
    if severity not in range(1, 6):
        raise HarnessError(f"{name}: severity is {severity}; it goes from 1 to 5")
