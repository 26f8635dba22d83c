"""CUDA kernels of the convolutions: three matrix products whose operands are images, read where they lie.

What a pixel and a tap of a filter contribute to an element's place are found apart and added: where in memory, and where in the
image, whose outside is zero. Numbers of pixels run over images, rows and columns, those of taps over channels, rows and columns.
In 3-D there is a product for each depth of the result, of the taps for the weights' gradient, and whether a term lies inside the image
in depth is a matter of the term alone.
"""

from __future__ import annotations

from tapeprop.ops.conv.geometry import PACKED_BITS
from tapeprop.targets.cuda.gemm import product_kernel
from tapeprop.targets.cuda.kernel import CudaKernel
from tapeprop.targets.cuda.product import FAR, Operand, Product, beyond, divide, i32, inline, u32

#: A row's integers, those of three axes packed in one: what all threads have of a row at first takes registers.
FIELDS = "images groups channels depth_in height_in width_in filters taps strides fronts steps depth_out height_out width_out".split()
#: Of the input's gradient: where its pixels begin and how many there are in units of the stride; after how many taps the stride is met
#: again, and how far on that is in the output; the same as distances in w and dy; and those from one filter to the next.
PHASE_FIELDS = "first_u count_u first_v count_v periods hop_d hop_h hop_w tap_d tap_h tap_w back_d filter_weights filter_pixels".split()
#: As row of a term whose depth is outside of the image: beyond all limits, and less than what marks terms past the end.
OUTSIDE = FAR // 4


MASK = (1 << PACKED_BITS) - 1


@inline
def _d(word):
    """Of depth, in a word that `geometry.packed` has made."""
    return word >> (2 * PACKED_BITS)


@inline
def _h(word):
    """Of height, likewise."""
    return (word >> PACKED_BITS) & MASK


@inline
def _w(word):
    """Of width, likewise."""
    return word & MASK


# ---- forward: m filters, n output pixels, k taps; a batch is a group and an output depth


def forward(dtype: str, tile: tuple[int, ...]) -> CudaKernel:
    """y = conv(x, w) + bias."""
    return product_kernel(dtype, tile, FIELDS, FORWARD)


@inline
def _group(sizes, batch, depths):
    """(group, elements of a group's image of x, of a row of taps, of a group's image of y, pixels of a depth of y, depth)."""
    group = divide(batch, depths)
    image = sizes.channels * sizes.depth_in * sizes.height_in * sizes.width_in
    pixels = sizes.height_out * sizes.width_out
    taps = sizes.channels * _d(sizes.taps) * _h(sizes.taps) * _w(sizes.taps)
    return group, image, taps, sizes.filters * sizes.depth_out * pixels, pixels, batch - group * depths


@inline
def _group_and_depth(sizes, batch):
    """As `_group`, the depth being what the first tap meets of x; and the place of the depth in a filter's image of y."""
    group, x, taps, y, pixels, depth = _group(sizes, batch, sizes.depth_out)
    return group, x, taps, y, pixels, depth * _d(sizes.strides) - _d(sizes.fronts), depth * pixels


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
def _within(depth, limit):
    """0 <= depth < limit: as an unsigned number a negative one is larger than any limit."""
    return u32(i32(depth)) < u32(limit)


@inline
def _output_pixel(sizes, place, x):
    """Of x, what the filter's first tap meets at output pixel x."""
    image, row, column = _split(sizes, x, sizes.width_out, place[4])
    u, v = row * _h(sizes.strides) - _h(sizes.fronts), column * _w(sizes.strides) - _w(sizes.fronts)
    start = (image * sizes.groups + place[0]) * place[1] + place[5] * sizes.height_in * sizes.width_in
    return start + u * sizes.width_in + v, u, v


@inline
def _tap_entry(sizes, place, k):
    """Of x, how far tap k is from the first."""
    channel_depth, row, column = _split(sizes, k, _w(sizes.taps), _h(sizes.taps) * _w(sizes.taps))
    channel = divide(channel_depth, _d(sizes.taps))
    depth = (channel_depth - channel * _d(sizes.taps)) * _d(sizes.steps)
    u, v = row * _h(sizes.steps), column * _w(sizes.steps)
    distance = ((channel * sizes.depth_in + depth) * sizes.height_in + u) * sizes.width_in + v
    return distance, u if _within(place[5] + depth, sizes.depth_in) else OUTSIDE, v, 0


@inline
def _input_size(sizes):
    return sizes.height_in, sizes.width_in


@inline
def _output_row(sizes, place, m):
    return m * sizes.depth_out * place[4]


@inline
def _output_column(sizes, place, n):
    image = divide(n, place[4])
    return (image * sizes.groups + place[0]) * place[3] + place[6] + n - image * place[4]


FORWARD = Product(
    places=7,
    place=_group_and_depth,
    depth=_tap_count,
    left=Operand(True, _filter_row, _filter_column, _one),
    right=Operand(False, _output_pixel, _filter_column, _input_size, tabulated=True),
    row=_output_row,
    column=_output_column,
    terms=_tap_entry,
)


# ---- the weights' gradient: m filters, n taps, k output pixels; a batch is a group and a tap in depth


def weight_grad(dtype: str, tile: tuple[int, ...]) -> CudaKernel:
    """dw = the sum over output pixels of dy and what each tap meets of x there."""
    return product_kernel(dtype, tile, (*FIELDS, "depth_bits"), WEIGHT_GRAD)


@inline
def _group_and_tap(sizes, batch):
    """As `_group`, but of whole images of x and y; the depth is that of the tap; and what it meets for depth 0 of y."""
    group, x, taps, y, pixels, tap = _group(sizes, batch, _d(sizes.taps))
    return group, x * sizes.groups, taps, y * sizes.groups, pixels, tap, tap * _d(sizes.steps) - _d(sizes.fronts)


@inline
def _output_count(sizes, place):
    return sizes.images * sizes.depth_out * place[4]


@inline
def _pixel_entry(sizes, place, k):
    """(image and depth that tap 0 meets, where it lies there, number in the image of y) of output pixel k."""
    image_depth, row, column = _split(sizes, k, sizes.width_out, place[4])
    image = divide(image_depth, sizes.depth_out)
    depth = image_depth - image * sizes.depth_out
    u, v = row * _h(sizes.strides) - _h(sizes.fronts), column * _w(sizes.strides) - _w(sizes.fronts)
    met = depth * _d(sizes.strides) + place[6]
    if not _within(met, sizes.depth_in):
        met, u = 0, OUTSIDE
    return (image << sizes.depth_bits) + met, u, v, depth * place[4] + row * sizes.width_out + column


@inline
def _gradient_row(sizes, place, x):
    return (place[0] * sizes.filters + x) * sizes.depth_out * place[4], 0, 0


@inline
def _gradient_column(sizes, place, entry):
    return (entry[0] >> sizes.depth_bits) * place[3] + entry[3], beyond(entry[1]), 0


@inline
def _tap_of_group(sizes, place, x):
    channel, row, column = _split(sizes, x, _w(sizes.taps), _h(sizes.taps) * _w(sizes.taps))
    u, v = row * _h(sizes.steps), column * _w(sizes.steps)
    plane = (place[0] * sizes.channels + channel) * sizes.depth_in
    return (plane * sizes.height_in + u) * sizes.width_in + v, u, v


@inline
def _input_pixel(sizes, place, entry):
    u, v = entry[1], entry[2]
    image = entry[0] >> sizes.depth_bits
    depth = entry[0] - (image << sizes.depth_bits)
    return image * place[1] + i32(depth * i32(sizes.height_in) + u) * i32(sizes.width_in) + v, u, v


@inline
def _weight_row(sizes, place, m):
    return (place[0] * sizes.filters + m) * place[2]


@inline
def _weight_column(sizes, place, n):
    taps = _h(sizes.taps) * _w(sizes.taps)
    channel = divide(n, taps)
    return n + (channel * (_d(sizes.taps) - 1) + place[5]) * taps


WEIGHT_GRAD = Product(
    places=7,
    place=_group_and_tap,
    depth=_output_count,
    left=Operand(True, _gradient_row, _gradient_column, _one, tabulated=True),
    right=Operand(True, _tap_of_group, _input_pixel, _input_size, tabulated=True),
    row=_weight_row,
    column=_weight_column,
    terms=_pixel_entry,
)


# ---- the input's gradient: m channels, n input pixels of a phase, k filters and taps; a batch is a group, a phase and a depth
#
# Input row h meets output row i by tap a where h + top = i stride + a dilation. So rows h with the same remainder of h + top by
# the stride, a phase, meet the same taps: a = first + j period; and with h + top = u stride + phase, output row u - shift - j hop.
# So for columns and depths; of these one is a product's.


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
def _taps_of_phase(phase, taps, stride, step, period):
    """(first tap, how many there are, how far they are shifted in the output) of a phase."""
    first = _first_tap(phase, taps, stride, step)
    shift = divide(max(first * step - phase, 0), stride)  # of no tap, if there is none
    return first, divide(taps - first + period - 1, period), shift


@inline
def _phase(sizes, batch):
    """(group, phases, first tap, taps of the phase, how far output rows and columns are shifted; depth, its taps, the output
    depth that the first of them is met by)."""
    rest = divide(batch, sizes.depth_in)
    depth = batch - rest * sizes.depth_in
    group = divide(rest, _h(sizes.strides) * _w(sizes.strides))
    rest -= group * _h(sizes.strides) * _w(sizes.strides)
    phase_h = divide(rest, _w(sizes.strides))
    phase_w = rest - phase_h * _w(sizes.strides)
    whole = divide(depth + _d(sizes.fronts), _d(sizes.strides))
    phase_d = depth + _d(sizes.fronts) - whole * _d(sizes.strides)
    first_d, taps_d, shift_d = _taps_of_phase(
        phase_d, _d(sizes.taps), _d(sizes.strides), _d(sizes.steps), _d(sizes.periods)
    )
    first_h, taps_h, shift_h = _taps_of_phase(
        phase_h, _h(sizes.taps), _h(sizes.strides), _h(sizes.steps), _h(sizes.periods)
    )
    first_w, taps_w, shift_w = _taps_of_phase(
        phase_w, _w(sizes.taps), _w(sizes.strides), _w(sizes.steps), _w(sizes.periods)
    )
    first = (first_d * _h(sizes.taps) + first_h) * _w(sizes.taps) + first_w
    return group, phase_h, phase_w, first, taps_h, taps_w, shift_h, shift_w, depth, taps_d, whole - shift_d


@inline
def _phase_depth(sizes, place):
    return sizes.filters * place[9] * place[4] * place[5]


@inline
def _phase_entry(sizes, place, k):
    """(distance in w, rows and columns of dy back, distance in dy) of a filter and tap."""
    filter_depth, j_h, j_w = _split(sizes, k, place[5], place[4] * place[5])
    filter = divide(filter_depth, place[9])
    j_d = filter_depth - filter * place[9]
    tap = place[3] + j_d * sizes.tap_d + j_h * sizes.tap_h + j_w * sizes.tap_w
    u, v = -j_h * sizes.hop_h, -j_w * sizes.hop_w
    distance = filter * sizes.filter_pixels - j_d * sizes.back_d + u * sizes.width_out + v
    met = place[10] - j_d * sizes.hop_d
    return filter * sizes.filter_weights + tap, u if _within(met, sizes.depth_out) else OUTSIDE, v, distance


@inline
def _channel_row(sizes, place, x):
    return (place[0] * sizes.filters * sizes.channels + x) * _d(sizes.taps) * _h(sizes.taps) * _w(sizes.taps), 0, 0


@inline
def _channel_column(sizes, place, entry):
    return entry[0], beyond(entry[1]), 0


@inline
def _filter(sizes, place, entry):
    return i32(entry[0]) * i32(sizes.channels), entry[1], entry[2]


@inline
def _met_pixel(sizes, place, x):
    image, row, column = _split(sizes, x, sizes.count_v, sizes.count_u * sizes.count_v)
    u, v = sizes.first_u + row - place[6], sizes.first_v + column - place[7]
    start = (image * sizes.groups + place[0]) * sizes.filters * sizes.filter_pixels
    return start + (place[10] * sizes.height_out + u) * sizes.width_out + v, u, v


@inline
def _met_tap(sizes, place, entry):
    return entry[3], entry[1], entry[2]


@inline
def _met_filter(sizes, place, entry):
    return i32(entry[0]) * i32(sizes.filter_pixels), entry[1], entry[2]


@inline
def _output_size(sizes):
    return sizes.height_out, sizes.width_out


@inline
def _input_row(sizes, place, m):
    return m * sizes.depth_in * sizes.height_in * sizes.width_in


@inline
def _input_column(sizes, place, n):
    image, row, column = _split(sizes, n, sizes.count_v, sizes.count_u * sizes.count_v)
    h = (sizes.first_u + row) * _h(sizes.strides) + place[1] - _h(sizes.fronts)
    w = (sizes.first_v + column) * _w(sizes.strides) + place[2] - _w(sizes.fronts)
    if h < 0 or h >= sizes.height_in or w < 0 or w >= sizes.width_in:
        return -1
    plane = (image * sizes.groups + place[0]) * sizes.channels * sizes.depth_in + place[8]
    return (plane * sizes.height_in + h) * sizes.width_in + w


INPUT_GRAD = {
    single: Product(
        places=11,
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
