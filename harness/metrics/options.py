"""Options of the metrics over several cells: what each is relative to. Loaded with every suite, so nothing heavy."""

from __future__ import annotations

from harness.options import Options, option

ALEXNET = "alexnet"


class ReferenceOptions(Options):
    """What corruption errors are relative to."""

    reference: str = option(
        ALEXNET,
        help='"alexnet": its published error rates on ImageNet-C, for data of 1,000 classes; or the name of a model of'
        " the suite",
        model_or=(ALEXNET,),
    )


class BackgroundOptions(Options):
    """The background model of the likelihood ratio."""

    background: str = option(
        "",
        help="name of the suite's model that knows the background alone, such as one trained on noisy images",
        model_or=("",),
    )
