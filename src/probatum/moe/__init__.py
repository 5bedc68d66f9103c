"""Family `moe`: public names are resolved from the catalog on first use."""

from probatum.lazy import public_names

__getattr__, __dir__ = public_names(__name__)
