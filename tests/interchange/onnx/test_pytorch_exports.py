"""Modules as PyTorch's exporter writes them, sizes worked out from Shape included: the same numbers, with an open batch too."""

import io
import warnings

import numpy as np
import pytest

from tapeprop.interchange.onnx import load_function

torch = pytest.importorskip("torch")
nn, functional = torch.nn, torch.nn.functional

pytestmark = pytest.mark.conformance


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.dense = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 5)

    def forward(self, x):
        y = functional.max_pool2d(self.conv(x).relu(), 2)
        return self.dense(y.view(y.size(0), -1)).log_softmax(1)


class Attention(nn.Module):
    """Heads are cut by hand and by PyTorch's own function; later places are masked."""

    def __init__(self):
        super().__init__()
        self.norm, self.project = nn.LayerNorm(8), nn.Linear(8, 24)

    def forward(self, x):
        n, t, c = x.shape
        q, k, v = self.project(self.norm(x)).reshape(n, t, 3, 2, c // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mask = torch.tril(torch.ones(t, t)).bool()
        scores = (q @ k.transpose(-2, -1) * (c // 2) ** -0.5).masked_fill(~mask, float("-inf"))
        found = scores.softmax(-1) @ v + functional.scaled_dot_product_attention(q, k, v)
        return found.transpose(1, 2).reshape(n, t, c) + x


class Positions(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.places = nn.Parameter(torch.randn(1, 1, 8)), nn.Parameter(torch.randn(1, 5, 8))

    def forward(self, x):
        return torch.cat([self.first.expand(x.shape[0], -1, -1), x], 1) + self.places


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.places = nn.Embedding(10, 6), nn.Embedding(7, 6)

    def forward(self, numbers):
        return self.words(numbers) + self.places(torch.arange(numbers.shape[1]))


class Shuffled(nn.Module):
    def forward(self, x):
        n, c, h, w = x.shape
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)[:, ::2, 1:, :-1]


class Enlarged(nn.Module):
    def forward(self, x):
        smooth = functional.interpolate(x, scale_factor=2.0, mode="bilinear", align_corners=False)
        return smooth + functional.interpolate(x, size=(x.shape[2] * 2, x.shape[3] * 2))


class Activations(nn.Module):
    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList([nn.GroupNorm(2, 4), nn.InstanceNorm2d(4, affine=True), nn.BatchNorm2d(4)])

    def forward(self, x):
        y = (
            functional.gelu(self.norms[0](x))
            + functional.silu(self.norms[1](x))
            + functional.hardswish(self.norms[2](x))
        )
        y = y + functional.hardsigmoid(x) + functional.mish(x) + functional.softplus(x) + functional.elu(x)
        return y + functional.relu6(x) + x.clamp(-0.5, 0.5) + x.abs().sqrt() + x.pow(2).mean((2, 3), keepdim=True)


class Assorted(nn.Module):
    def forward(self, x):
        z = torch.stack(x.chunk(2, 1), 1).flatten(1, 2)
        return (
            z.norm(dim=1), torch.einsum("nchw,nchw->nc", z, z), z.std(1), functional.pad(z, (1, 1, 0, 2), mode="reflect"),
            x.roll(1, 2), z.cumsum(1), torch.where(z > 0, z, z * 2), z.var((2, 3)), functional.normalize(z, dim=1),
            z.amax(1), z.logsumexp(1), z.repeat(1, 2, 1, 1), z.new_zeros(z.shape[0], 2) + z[:, :2, 0, 0],
        )  # fmt: skip


IMAGES, SEQUENCES = (2, 4, 6, 6), (2, 4, 8)
MODULES = {
    "classifier": (Classifier, (2, 3, 8, 8)),
    "attention": (Attention, SEQUENCES),
    "encoder": (lambda: nn.Sequential(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)), SEQUENCES),
    "positions": (Positions, SEQUENCES),
    "words": (Words, None),
    "shuffled": (Shuffled, IMAGES),
    "enlarged": (Enlarged, IMAGES),
    "activations": (Activations, IMAGES),
    "assorted": (Assorted, IMAGES),
}


def exported(module, x, open_batch):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter that needs no other package is deprecated, and it traces
        file = io.BytesIO()
        axes = {"x": {0: "N"}} if open_batch else None
        torch.onnx.export(module, (x,), file, opset_version=17, dynamo=False, input_names=["x"], dynamic_axes=axes)
    return file.getvalue()


@pytest.mark.parametrize("open_batch", [False, True])
@pytest.mark.parametrize("name", MODULES)
def test_module(name, open_batch):
    torch.manual_seed(0)
    make, shape = MODULES[name]
    module = make().eval()
    x = torch.randint(0, 7, (2, 5)) if shape is None else torch.randn(shape)
    f = load_function(exported(module, x, open_batch))
    for given in [x, torch.cat([x, x[:1]])] if open_batch else [x]:
        with torch.no_grad():
            wanted = module(given)
        found = f(given.numpy())
        pairs = zip(found, wanted, strict=True) if isinstance(wanted, tuple) else [(found, wanted)]
        for result, one in pairs:
            np.testing.assert_allclose(result, one.numpy(), rtol=1e-4, atol=1e-5)
