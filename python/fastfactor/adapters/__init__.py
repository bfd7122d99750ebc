"""What lets other libraries in: their functions under the names that factors' products use.

Nothing here is imported by the rest of the package, and a framework is imported when its namespace
is made.
"""

from .keras_namespace import KerasNamespace
from .torch_namespace import TorchNamespace

__all__ = ["KerasNamespace", "TorchNamespace"]
