"""probatum: efficient deep learning, tested.

Every system is a part to use (``from probatum.zeroth import MeZO``), a claim to check (``probatum check mezo``) and an arm of a
comparison (``probatum compare finetune``). Families load on first use; importing this package loads nothing heavy.
"""

from probatum.errors import ProbatumError

__all__ = ["ProbatumError", "__version__"]

__version__ = "0.1.0"
