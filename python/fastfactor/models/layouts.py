"""Which matrix a tensor of weights is: which of its axes are outputs, and which are inputs.

PyTorch stores (out, in) and (out, in, height, width), Keras (in, out) and (height, width, in, out),
mixtures of experts (expert, out, in) or (expert, in, out). Where names and shapes do not decide,
the bias of the layer does: it has as many entries as the layer has outputs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property

from ..files.checkpoint import Stored
from ..files.layout import Layout

AUTO = "auto"
# Names of layouts in recipes: the axes of outputs, then those of inputs, of a tensor of n axes.
AXES_OUT: dict[str, Callable[[int], tuple[int, ...]]] = {
    "oi": lambda n: (0,),
    "io": lambda n: (n - 1,),
    "stacked": lambda n: tuple(range(n - 1)),
    "stacked_io": lambda n: (*range(n - 2), n - 1),
    "depthwise": lambda n: (n - 2, n - 1),
}
LAYOUTS = (AUTO, *AXES_OUT)
# A convolution with rows shorter than this is grouped: several rows become one, so that tables of
# rows serve at least as many weights as GROUPED says.
SHORT_ROW, GROUPED = 32, 128
MAX_KERNEL = 11  # height and width of a convolution, where the shape alone must tell
LAST_WORD = re.compile(r"(?:.*[./])?(?P<leaf>[^./]+?)(?::\d+)?$")
NUMBERED = re.compile(r"arr_(\d+)")
NAMES_OF_BIASES = tuple(
    (re.compile(pattern), word)
    for pattern, word in (
        (r"weights", "biases"),
        (r"weight", "bias"),
        (r"kernel", "bias"),
        (r"\bW(?=\d*$)|(?<=_)W(?=\d*$)", "b"),
        (r"\bw(?=\d*$)|(?<=_)w(?=\d*$)", "b"),
    )
)
KERAS_VARIABLE = re.compile(r"(?<=/vars/)0$")


def named_layout(name: str, shape: tuple[int, ...]) -> Layout:
    """Return the layout of this name in recipes for a shape of two axes or more."""
    n = len(shape)
    out = AXES_OUT[name](n)
    axes = (*out, *(axis for axis in range(n) if axis not in out))
    rows = math.prod(shape[axis] for axis in out)
    columns = math.prod(shape[axis] for axis in axes[len(out) :])
    return Layout(shape, axes, (rows, columns))


def layout_text(layout: Layout) -> str:
    """Return a layout as people read it: the matrix's shape, and the name of the layout."""
    rows, columns = layout.matrix
    text = f"{rows:,} × {columns:,}"
    if layout.is_usual:
        return text
    for name in AXES_OUT:
        if len(layout.shape) < 2:
            break
        known = named_layout(name, layout.shape)
        if known == layout:
            return f"{text} {name}"
        if known.axes == layout.axes and rows and known.matrix[0] % rows == 0:
            return f"{text} {name}, {known.matrix[0] // rows} rows in one"
    return f"{text}, axes {', '.join(map(str, layout.axes))}"


def convolution_layout(layout: Layout) -> Layout | None:
    """Return the layout of a kernel with its inputs as channels, height, width.

    None if the tensor is no kernel of four axes. Depthwise kernels have one channel.
    """
    shape, axes = layout.shape, layout.axes
    if len(shape) != 4 or layout.matrix[0] not in (shape[axes[0]], shape[axes[0]] * shape[axes[1]]):
        return None
    n_out = 1 if layout.matrix[0] == shape[axes[0]] else 2
    inner = axes[n_out:]
    if inner == (0, 1, 2):  # height, width, channels
        inner = (2, 0, 1)
    return Layout(shape, (*axes[:n_out], *inner), layout.matrix)


def kernel_shape(layout: Layout) -> tuple[int, ...]:
    """Return the shape of a convolution's weight, (F, C, height, width), for such a layout."""
    filters, columns = layout.matrix
    height, width = (layout.shape[axis] for axis in layout.axes[2:])
    return filters, columns // max(height * width, 1), height, width


class Layouts:
    """The layouts of a model's tensors, as far as names, shapes and biases tell them."""

    def __init__(self, tensors: Mapping[str, Stored]) -> None:
        self._tensors = tensors

    def find(self, name: str, wanted: str = AUTO, *, may_group: bool = True) -> Layout:
        """Return the layout of a tensor with at least two axes, by name or as `wanted` says.

        Parameters
        ----------
        name : str
        wanted : str
            One of `LAYOUTS`.
        may_group : bool
            Whether several rows of a convolution may become one, which leaves no axis of inputs.
        """
        shape = self._tensors[name].shape
        if wanted != AUTO:
            return named_layout(wanted, shape)
        layout = named_layout(self._guess(name, shape), shape)
        return grouped(layout) if may_group else layout

    def _guess(self, name: str, shape: tuple[int, ...]) -> str:
        if "depthwise_kernel" in name and len(shape) > 3:
            return "depthwise"
        if _leaf(name).endswith("kernel"):
            return "io"
        if len(shape) == 2:
            return self._guess_matrix(name, shape)
        spatial = _spatial_axes(shape)
        if spatial == "first":
            return "depthwise" if shape[-1] == 1 else "io"
        if spatial == "last" or shape[-1] < SHORT_ROW:
            return "oi"
        return self._guess_stack(name, shape)

    def _guess_matrix(self, name: str, shape: tuple[int, ...]) -> str:
        n_outputs = self._n_outputs(name)
        if n_outputs is None and not re.fullmatch(r"arr_\d+", name):
            return "oi"
        found = _side(shape, n_outputs)
        return found if found else self._habit

    def _guess_stack(self, name: str, shape: tuple[int, ...]) -> str:
        n_outputs = self._n_outputs(name)
        bias = self._bias(name)
        if bias is not None and len(bias.shape) == 1:
            return "io" if n_outputs == shape[-1] != shape[0] else "oi"
        n_matrices = math.prod(shape[:-2])
        if n_matrices < 2 or ("expert" not in name and shape[0] >= min(shape[-2:])):
            return "oi"
        return "stacked_io" if n_outputs == shape[-1] != shape[-2] else "stacked"

    @cached_property
    def _habit(self) -> str:
        """The layout of most matrices whose bias tells it; convolutions count as well."""
        found = []
        for name, stored in self._tensors.items():
            if len(stored.shape) == 2:
                found.append(_side(stored.shape, self._n_outputs(name)))
            elif len(stored.shape) > 3:
                found.append({"first": "io", "last": "oi"}.get(_spatial_axes(stored.shape), ""))
        return "io" if found.count("io") > found.count("oi") else "oi"

    def _n_outputs(self, name: str) -> int | None:
        """Return the number of entries of a layer's bias, of each expert's; None without a bias."""
        bias = self._bias(name)
        return None if bias is None else bias.shape[-1]

    def _bias(self, name: str) -> Stored | None:
        for other in _names_of_bias(name):
            found = self._tensors.get(other)
            if found is not None and 1 <= len(found.shape) < len(self._tensors[name].shape):
                return found
        return None


def grouped(layout: Layout) -> Layout:
    """Return the layout in which several short rows of a convolution are one; of others itself."""
    rows, columns = layout.matrix
    if len(layout.shape) < 3 or not 0 < columns < SHORT_ROW:
        return layout
    each = 1
    while each * columns < GROUPED and rows % (2 * each) == 0:
        each *= 2
    return Layout(layout.shape, layout.axes, (rows // each, each * columns))


def _spatial_axes(shape: tuple[int, ...]) -> str:
    """Return whether height and width are the first or the last axes of a convolution, or ""."""
    n = len(shape) - 2
    if n < 2:
        return ""
    first, last = shape[:n], shape[2:]
    square = len(set(first)) == 1 and first[0] <= MAX_KERNEL
    is_mask = first[0] == 1 and len(set(last)) == 1  # (1, 1, n, n) is no convolution
    if square and math.prod(first) < math.prod(last) and not is_mask:
        return "first"
    return "last" if max(last) <= MAX_KERNEL else ""


def _side(shape: tuple[int, ...], n_outputs: int | None) -> str:
    """Return the layout of a matrix with so many outputs, or "" where its shape fits both."""
    if n_outputs not in shape or shape[0] == shape[1]:
        return ""
    return "oi" if n_outputs == shape[0] else "io"


def _leaf(name: str) -> str:
    match = LAST_WORD.match(name)
    return match["leaf"] if match else name


def _names_of_bias(name: str) -> Iterator[str]:
    yield f"{name}_bias"
    number = NUMBERED.fullmatch(name)
    if number:
        yield f"arr_{int(number[1]) + 1}"
    plain = name.removesuffix(":0")
    place, end = max(name.rfind("."), name.rfind("/")) + 1, name[len(plain) :]
    head, leaf = plain[:place], plain[place:]
    for pattern, word in NAMES_OF_BIASES:
        changed = pattern.sub(word, leaf)
        if changed != leaf:
            yield head + changed + end
    if "/vars/" in name:
        changed = KERAS_VARIABLE.sub("1", plain)
        if changed != plain:
            yield changed + end
