from tapeprop.targets.cpu.kernel import NumbaKernel

def forward(dtype, outs, uneven, pixels, taps, stride):
    from tapeprop.targets.cpu.lanes import correlate_row
    less, tap = max(outs - 1,1), 1
    def body(x, w, bias, y, groups, channels, height, width, filters, out_h, out_w, taps_h, step_h, top, left, has_bias, floor, tall, blocks, merged, worker, workers):
        plane, w_m, w_channel = height * width, channels * taps_h * taps, taps_h * taps
        lines = groups * out_h
        for line in range(lines * worker // workers, lines * (worker + 1) // workers):
            g, h = line // out_h, line % out_h
            low = max(0, top - h * step_h)
            high = min(taps_h, height + top - h * step_h)
            rows = max(high - low, 0)
            x_start = (g * channels * height + h * step_h - top + low) * width
            if h + 1 < out_h:
                ahead, old = step_h * width, min(max(rows - step_h, 0), rows)
            else:
                ahead, old = ((channels - 1) * height + height - h * step_h + top - low) * width, 0
            depth, inner, x_channel, x_row, w_row = channels, rows, plane, width, taps
            if merged:
                depth, inner, x_channel, x_row, w_row = rows, channels, 0, plane, w_channel
            for block in range(blocks):
                o = block * outs - max(block - tall, 0)
                c0, c1 = channels * block // blocks, channels * (block + 1) // blocks
                c1 -= c0
                r0, r1 = old, rows - old
                if merged:
                    c0, c1, r0, r1 = r0, r1, c0, c1
                w_start = (o * channels * taps_h + low) * taps
                y_start = ((g * filters + o) * out_h + h) * out_w
                if block < tall:
                    correlate_row(
                        outs, pixels, taps, stride, tap, x, x_start, x_channel, x_row, width, -left,
                        w, w_start, w_m, w_channel, w_row, depth, inner,
                        bias, o, has_bias, floor, y, y_start, out_h * out_w, 1, out_w, ahead, c0, c1, r0, r1)
                elif uneven:
                    correlate_row(
                        less, pixels, taps, stride, tap, x, x_start, x_channel, x_row, width, -left,
                        w, w_start, w_m, w_channel, w_row, depth, inner,
                        bias, o, has_bias, floor, y, y_start, out_h * out_w, 1, out_w, ahead, c0, c1, r0, r1)
    ints = "groups channels height width filters out_h out_w taps_h step_h top left has_bias floor tall blocks merged".split()
    return NumbaKernel(body, [(n, dtype, 1) for n in ("x", "w", "bias", "y")], ints)
