"""ResNet-18 as PyTorch saves it, loaded by name, and ours loaded in PyTorch. Needs torch and torchvision, of the extra `peers`."""

import numpy as np
import pytest

from tapeprop import zoo
from tapeprop.interchange import load_weights, save_weights

torch = pytest.importorskip("torch", reason="needs torch")
pytest.importorskip("safetensors.torch", reason="needs safetensors")
from safetensors.torch import load_file, save_file  # noqa: E402


class Block(torch.nn.Module):
    """Two 3 x 3 convolutions around a shortcut (He et al. 2016, figure 2), named as torchvision names them."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        nn = torch.nn
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = torch.relu(self.bn1(self.conv1(x)))
        return torch.relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet18(torch.nn.Module):
    def __init__(self, classes):
        super().__init__()
        nn = torch.nn
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        widths = [64, 64, 128, 256, 512]
        for i in range(1, 5):
            blocks = Block(widths[i - 1], widths[i], 2 if i > 1 else 1), Block(widths[i], widths[i], 1)
            setattr(self, f"layer{i}", nn.Sequential(*blocks))
        self.fc = nn.Linear(512, classes)

    def forward(self, x):
        x = torch.nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for i in range(1, 5):
            x = getattr(self, f"layer{i}")(x)
        return self.fc(x.mean((2, 3)))


@pytest.fixture(scope="module")
def theirs():
    """A network whose running statistics are those of some batches."""
    torch.manual_seed(0)
    model = ResNet18(10).train()
    for _ in range(3):
        model(torch.randn(8, 3, 64, 64))
    return model.eval()


X = np.random.default_rng(0).standard_normal((4, 3, 64, 64)).astype(np.float32)


def logits(model):
    with torch.no_grad():
        return model(torch.tensor(X)).numpy()


def test_a_state_dict_of_pytorch_loads(theirs, tmp_path):
    save_file(theirs.state_dict(), tmp_path / "resnet18.safetensors")
    graph = zoo.resnet18(10, seed=1).build()
    load_weights(graph, tmp_path / "resnet18.safetensors")
    np.testing.assert_allclose(graph(X), logits(theirs), rtol=1e-4, atol=1e-4)  # float32 through 20 layers


def test_a_file_of_ours_loads_in_pytorch(tmp_path):
    graph = zoo.resnet18(10, seed=1).build()
    for _ in range(3):  # running statistics that are not 0 and 1
        graph.forward(X, True)
    save_weights(graph, tmp_path / "ours.safetensors")
    model = ResNet18(10)
    model.load_state_dict(load_file(tmp_path / "ours.safetensors"))
    np.testing.assert_allclose(logits(model.eval()), graph(X), rtol=1e-4, atol=1e-4)


def test_names_that_differ_are_given_once_for_both_directions(theirs, tmp_path):
    renamed = {f"backbone.{key}" if key[:2] != "fc" else f"head{key[2:]}": v for key, v in theirs.state_dict().items()}
    save_file(renamed, tmp_path / "renamed.safetensors")
    graph, names = zoo.resnet18(10, seed=1).build(), {"": "backbone", "fc": "head"}
    load_weights(graph, tmp_path / "renamed.safetensors", names)
    np.testing.assert_allclose(graph(X), logits(theirs), rtol=1e-4, atol=1e-4)
    save_weights(graph, tmp_path / "back.safetensors", names)
    back = load_file(tmp_path / "back.safetensors")
    assert set(back) == {key for key in renamed if not key.endswith("num_batches_tracked")}
    assert all(torch.equal(back[key], renamed[key]) for key in back)
