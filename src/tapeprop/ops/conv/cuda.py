"""CUDA kernels of the convolutions: three matrix products whose operands are images, read where they lie.

What a pixel and a tap of a filter contribute to an element's place are found apart and added: where in memory, and where in the
image, whose outside is zero. Numbers of pixels run over images, rows and columns, those of taps over channels, rows and columns.
"""

from __future__ import annotations

from tapeprop.ops.conv.geometry import FIELDS
from tapeprop.targets.cuda.gemm import Operand, Product, beyond, divide, i32, inline, product_kernel
from tapeprop.targets.cuda.kernel import CudaKernel

#: Of the input's gradient: where its pixels begin and how many there are in units of the stride, and after how many taps the
#: stride is met again.
PHASE_FIELDS = ("first_u", "count_u", "first_v", "count_v", "period_h", "period_w")


# ---- forward: m filters, n output pixels, k taps; a batch is a group


def forward(dtype: str, tile: tuple[int, ...]) -> CudaKernel:
    """y = conv(x, w) + bias."""
    return product_kernel(dtype, tile, FIELDS, FORWARD)


@inline
def _group(sizes, batch):
    """(group, elements of a group's image of x, of a row of taps, of a group's image of y)."""
    image = sizes.channels * sizes.height_in * sizes.width_in
    pixels = sizes.height_out * sizes.width_out
    return batch, image, sizes.channels * sizes.taps_h * sizes.taps_w, sizes.filters * pixels, pixels


@inline
def _tap_count(sizes, place):
    return place[2]


@inline
def _filter_row(sizes, place, x):
    return (place[0] * sizes.filters + x) * place[2], 0, 0


@inline
def _filter_column(sizes, place, entry):
    return entry[0], entry[1], entry[2]


@inline
def _one(sizes):
    return 1, 1


@inline
def _split(sizes, number, width, pixels):
    """(image, row, column) of a pixel's number."""
    image = divide(number, pixels)
    rest = number - image * pixels
    row = divide(rest, width)
    return image, row, rest - row * width


@inline
def _output_pixel(sizes, place, x):
    """Of x, what the filter's first tap meets at output pixel x."""
    image, row, column = _split(sizes, x, sizes.width_out, place[4])
    u, v = row * sizes.stride_h - sizes.top, column * sizes.stride_w - sizes.left
    return (image * sizes.groups + place[0]) * place[1] + u * sizes.width_in + v, u, v


@inline
def _tap(sizes, place, k):
    """Of x, how far tap k is from the first."""
    taps = sizes.taps_h * sizes.taps_w
    channel, row, column = _split(sizes, k, sizes.taps_w, taps)
    u, v = row * sizes.step_h, column * sizes.step_w
    return (channel * sizes.height_in + u) * sizes.width_in + v, u, v


@inline
def _tap_entry(sizes, place, k):
    distance, u, v = _tap(sizes, place, k)
    return distance, u, v, 0


@inline
def _input_size(sizes):
    return sizes.height_in, sizes.width_in


@inline
def _output_row(sizes, place, m):
    return m * place[4]


@inline
def _output_column(sizes, place, n):
    image = divide(n, place[4])
    return (image * sizes.groups + place[0]) * place[3] + n - image * place[4]


FORWARD = Product(
    places=5,
    place=_group,
    depth=_tap_count,
    left=Operand(True, _filter_row, _filter_column, _one),
    right=Operand(False, _output_pixel, _filter_column, _input_size, tabulated=True),
    row=_output_row,
    column=_output_column,
    terms=_tap_entry,
)


# ---- the weights' gradient: m filters, n taps, k output pixels; a batch is a group


def weight_grad(dtype: str, tile: tuple[int, ...]) -> CudaKernel:
    """dw = the sum over output pixels of dy and what each tap meets of x there."""
    return product_kernel(dtype, tile, FIELDS, WEIGHT_GRAD)


@inline
def _group_and_images(sizes, batch):
    """As `_group`, but of whole images of x and y."""
    group, x, taps, y, pixels = _group(sizes, batch)
    return group, x * sizes.groups, taps, y * sizes.groups, pixels


@inline
def _output_count(sizes, place):
    return sizes.images * place[4]


@inline
def _pixel_entry(sizes, place, k):
    """(image, where tap 0 lies in it, number in the image of y) of output pixel k."""
    image, row, column = _split(sizes, k, sizes.width_out, place[4])
    u, v = row * sizes.stride_h - sizes.top, column * sizes.stride_w - sizes.left
    return image, u, v, row * sizes.width_out + column


@inline
def _gradient_row(sizes, place, x):
    return (place[0] * sizes.filters + x) * place[4], 0, 0


@inline
def _gradient_column(sizes, place, entry):
    return entry[0] * place[3] + entry[3], beyond(entry[1]), 0


@inline
def _tap_of_group(sizes, place, x):
    distance, u, v = _tap(sizes, place, x)
    return place[0] * sizes.channels * sizes.height_in * sizes.width_in + distance, u, v


@inline
def _input_pixel(sizes, place, entry):
    u, v = entry[1], entry[2]
    return entry[0] * place[1] + u * i32(sizes.width_in) + v, u, v


@inline
def _weight_row(sizes, place, m):
    return (place[0] * sizes.filters + m) * place[2]


@inline
def _weight_column(sizes, place, n):
    return n


WEIGHT_GRAD = Product(
    places=5,
    place=_group_and_images,
    depth=_output_count,
    left=Operand(True, _gradient_row, _gradient_column, _one, tabulated=True),
    right=Operand(True, _tap_of_group, _input_pixel, _input_size, tabulated=True),
    row=_weight_row,
    column=_weight_column,
    terms=_pixel_entry,
)


# ---- the input's gradient: m channels, n input pixels of a phase, k filters and taps; a batch is a group and a phase
#
# Input row h meets output row i by tap a where h + top = i stride + a dilation. So rows h with the same remainder of h + top by
# the stride, a phase, meet the same taps: a = first + j period; and with h + top = u stride + phase, output row u - shift - j hop.


def input_grad(dtype: str, tile: tuple[int, ...], single: bool) -> CudaKernel:
    """dx = the sum over filters and taps of w and the dy that the tap was met by.

    single: whether a filter has a single tap: then the terms are filters, which are found without a table, and neighbours in
    memory are weights of neighbouring channels, else of neighbouring taps.
    """
    return product_kernel(dtype, tile, (*FIELDS, *PHASE_FIELDS), INPUT_GRAD[single])


@inline
def _first_tap(phase, taps, stride, step):
    """The first tap of a phase; `taps` where there is none."""
    tap = 0
    while tap < taps and tap * step - divide(tap * step, stride) * stride != phase:
        tap += 1
    return tap


@inline
def _phase(sizes, batch):
    """(group, phases, first taps, taps of the phase, how far output rows and columns are shifted)."""
    group = divide(batch, sizes.stride_h * sizes.stride_w)
    rest = batch - group * sizes.stride_h * sizes.stride_w
    phase_h = divide(rest, sizes.stride_w)
    phase_w = rest - phase_h * sizes.stride_w
    first_h = _first_tap(phase_h, sizes.taps_h, sizes.stride_h, sizes.step_h)
    first_w = _first_tap(phase_w, sizes.taps_w, sizes.stride_w, sizes.step_w)
    taps_h = divide(sizes.taps_h - first_h + sizes.period_h - 1, sizes.period_h)
    taps_w = divide(sizes.taps_w - first_w + sizes.period_w - 1, sizes.period_w)
    shift_h = divide(max(first_h * sizes.step_h - phase_h, 0), sizes.stride_h)  # of no tap, if there is none
    shift_w = divide(max(first_w * sizes.step_w - phase_w, 0), sizes.stride_w)
    return group, phase_h, phase_w, first_h, first_w, taps_h, taps_w, shift_h, shift_w


@inline
def _phase_depth(sizes, place):
    return sizes.filters * place[5] * place[6]


@inline
def _phase_entry(sizes, place, k):
    """(distance in w, rows and columns of dy back, distance in dy) of a filter and tap."""
    taps_h, taps_w = place[5], place[6]
    filter, j_h, j_w = _split(sizes, k, taps_w, taps_h * taps_w)
    tap = (place[3] + j_h * sizes.period_h) * sizes.taps_w + place[4] + j_w * sizes.period_w
    u = -(j_h * divide(sizes.period_h * sizes.step_h, sizes.stride_h))
    v = -(j_w * divide(sizes.period_w * sizes.step_w, sizes.stride_w))
    weight = filter * sizes.channels * sizes.taps_h * sizes.taps_w + tap
    return weight, u, v, (filter * sizes.height_out + u) * sizes.width_out + v


@inline
def _channel_row(sizes, place, x):
    return (place[0] * sizes.filters * sizes.channels + x) * sizes.taps_h * sizes.taps_w, 0, 0


@inline
def _channel_column(sizes, place, entry):
    return entry[0], beyond(entry[1]), 0


@inline
def _filter(sizes, place, entry):
    return i32(entry[0]) * i32(sizes.channels), entry[1], entry[2]


@inline
def _met_pixel(sizes, place, x):
    image, row, column = _split(sizes, x, sizes.count_v, sizes.count_u * sizes.count_v)
    u, v = sizes.first_u + row - place[7], sizes.first_v + column - place[8]
    start = (image * sizes.groups + place[0]) * sizes.filters * sizes.height_out * sizes.width_out
    return start + u * sizes.width_out + v, u, v


@inline
def _met_tap(sizes, place, entry):
    return entry[3], entry[1], entry[2]


@inline
def _met_filter(sizes, place, entry):
    return i32(entry[0]) * i32(sizes.height_out * sizes.width_out), entry[1], entry[2]


@inline
def _output_size(sizes):
    return sizes.height_out, sizes.width_out


@inline
def _input_row(sizes, place, m):
    return m * sizes.height_in * sizes.width_in


@inline
def _input_column(sizes, place, n):
    image, row, column = _split(sizes, n, sizes.count_v, sizes.count_u * sizes.count_v)
    h = (sizes.first_u + row) * sizes.stride_h + place[1] - sizes.top
    w = (sizes.first_v + column) * sizes.stride_w + place[2] - sizes.left
    if h < 0 or h >= sizes.height_in or w < 0 or w >= sizes.width_in:
        return -1
    return ((image * sizes.groups + place[0]) * sizes.channels * sizes.height_in + h) * sizes.width_in + w


INPUT_GRAD = {
    single: Product(
        places=9,
        place=_phase,
        depth=_phase_depth,
        left=Operand(False, _channel_row, _filter, _one)
        if single
        else Operand(True, _channel_row, _channel_column, _one, tabulated=True),
        right=Operand(False, _met_pixel, _met_filter, _output_size)
        if single
        else Operand(False, _met_pixel, _met_tap, _output_size, tabulated=True),
        row=_input_row,
        column=_input_column,
        terms=None if single else _phase_entry,
    )
    for single in (False, True)
}
