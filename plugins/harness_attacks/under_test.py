"""An attack that is itself put to the test: made from the table of its options."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from harness.errors import HarnessError
from harness.info import resolve
from harness.options import Options, option
from harness.threats import Norm
from harness_attacks.ball_options import diameter_of

if TYPE_CHECKING:
    from harness.threats import Threat, ThreatContext

ATTACKS: dict[str, tuple[str, str]] = {"pgd": ("harness_attacks.options:PGDOptions", "harness_attacks.pgd:build")}
"""The attacks that can be put to the test: where their options and factories are."""


class UnboundedOptions(Options):
    """Options of `unbounded`."""

    attack: dict[str, Any] = option(help='the attack under test, without eps: {"plugin": "pgd", "norm": "linf", ...}')


def build_unbounded(options: UnboundedOptions, context: ThreatContext) -> Threat:
    """The attack with a budget that covers the image space: nothing withstands it (Athalye et al. 2018, section 3.1).

    Raises:
        HarnessError: one line: an attack that cannot be tested, or options that it refuses.
    """
    norm = options.attack.get("norm", "linf")
    known = norm in get_args(Norm)  # what is no norm, its options refuse
    eps = diameter_of(norm, context.data.shape) if known else 1.0
    return attack_of({**options.attack, "eps": eps}, context, "unbounded")


def attack_of(table: Mapping[str, Any], context: ThreatContext, tester: str) -> Threat:
    """The attack that a table with a key ``plugin`` describes.

    Raises:
        HarnessError: one line, beginning with the name of the `tester`.
    """
    plugin = table.get("plugin")
    if plugin not in ATTACKS:
        raise HarnessError(f"{tester}: attack needs a plugin, one of {', '.join(sorted(ATTACKS))}; got {plugin!r}")
    path, factory = ATTACKS[plugin]
    try:
        chosen = resolve(path, tester).model_validate({k: v for k, v in table.items() if k != "plugin"})
    except ValidationError as error:
        first = error.errors()[0]
        raise HarnessError(f"{tester}: attack.{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    attack: Threat = resolve(factory, tester)(chosen, context)
    return attack
