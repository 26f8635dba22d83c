"""Update rules against PyTorch's formulas written out in NumPy, and against PyTorch itself where it is installed."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from training.stepper import Stepper

from tapeprop.ops.expression import Scalar, inputs, where
from tapeprop.optimizers import SGD, AdaDelta, AdaGrad, Adam, AdaMax, AdamW, Lion, NAdam, Optimizer, RMSProp

STEPS = 20
WEIGHTS = np.array([1.0, -2.0, 0.5, 3.0])
GRADIENTS = [np.cos(np.arange(4) + 0.7 * k) * (1 + k % 3) for k in range(STEPS)]
GRADIENTS[0] = GRADIENTS[0] * [1, 0, 1, 1]  # a weight whose first gradient is 0


def trajectory(optimizer: Optimizer, dtype: str = "float64") -> np.ndarray:
    """(STEPS, 4): the weights after each step."""
    stepper = Stepper(optimizer, WEIGHTS.astype(dtype))
    found = []
    for gradient in GRADIENTS:
        stepper.step(gradient.astype(dtype))
        found.append(stepper.weights)
    return np.array(found)


# ---- the formulas, each (weights, gradients) -> trajectory


def written_sgd(momentum: float = 0, nesterov: bool = False, weight_decay: float = 0, lr: float = 0.1):
    def run() -> np.ndarray:
        w, buffer, found = WEIGHTS.copy(), None, []
        for g in GRADIENTS:
            g = g + weight_decay * w
            if momentum:
                buffer = g if buffer is None else momentum * buffer + g
                g = g + momentum * buffer if nesterov else buffer
            w = w - lr * g
            found.append(w)
        return np.array(found)

    return run


def written_adam(lr=0.01, b1=0.9, b2=0.999, eps=1e-8, decay=0.0):
    def run() -> np.ndarray:
        w, m, v, found = WEIGHTS.copy(), 0.0, 0.0, []
        for t, g in enumerate(GRADIENTS, 1):
            w = w * (1 - lr * decay)
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            w = w - lr / (1 - b1**t) * m / (np.sqrt(v) / np.sqrt(1 - b2**t) + eps)
            found.append(w)
        return np.array(found)

    return run


def written_nadam(lr=0.01, b1=0.9, b2=0.999, eps=1e-8, decay=4e-3):
    def run() -> np.ndarray:
        w, m, v, product, found = WEIGHTS.copy(), 0.0, 0.0, 1.0, []
        for t, g in enumerate(GRADIENTS, 1):
            mu = b1 * (1 - 0.5 * 0.96 ** (t * decay))
            following = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * decay))
            product *= mu
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
            root = np.sqrt(v / (1 - b2**t)) + eps
            w = w - lr * (1 - mu) / (1 - product) * g / root - lr * following / (1 - product * following) * m / root
            found.append(w)
        return np.array(found)

    return run


def written_adamax(lr=0.01, b1=0.9, b2=0.999, eps=1e-8):
    def run() -> np.ndarray:
        w, m, u, found = WEIGHTS.copy(), 0.0, 0.0, []
        for t, g in enumerate(GRADIENTS, 1):
            m, u = b1 * m + (1 - b1) * g, np.maximum(b2 * u, np.abs(g) + eps)
            w = w - lr / (1 - b1**t) * m / u
            found.append(w)
        return np.array(found)

    return run


def written_rmsprop(momentum: float = 0, lr=0.01, rho=0.9, eps=1e-8):
    def run() -> np.ndarray:
        w, v, buffer, found = WEIGHTS.copy(), 0.0, 0.0, []
        for g in GRADIENTS:
            v = rho * v + (1 - rho) * g * g
            buffer = momentum * buffer + g / (np.sqrt(v) + eps)
            w = w - lr * buffer
            found.append(w)
        return np.array(found)

    return run


def written_adagrad(lr=0.1, eps=1e-8):
    def run() -> np.ndarray:
        w, total, found = WEIGHTS.copy(), 0.0, []
        for g in GRADIENTS:
            total = total + g * g
            w = w - lr * g / (np.sqrt(total) + eps)
            found.append(w)
        return np.array(found)

    return run


def written_adadelta(lr=1.0, rho=0.95, eps=1e-8):
    def run() -> np.ndarray:
        w, v, d, found = WEIGHTS.copy(), 0.0, 0.0, []
        for g in GRADIENTS:
            v = rho * v + (1 - rho) * g * g
            step = np.sqrt(d + eps) / np.sqrt(v + eps) * g
            d = rho * d + (1 - rho) * step * step
            w = w - lr * step
            found.append(w)
        return np.array(found)

    return run


def written_lion(lr=0.01, b1=0.9, b2=0.99):
    def run() -> np.ndarray:
        w, m, found = WEIGHTS.copy(), np.zeros(4), []
        for g in GRADIENTS:
            w = w - lr * np.sign(b1 * m + (1 - b1) * g)
            m = b2 * m + (1 - b2) * g
            found.append(w)
        return np.array(found)

    return run


# The weights after STEPS steps in PyTorch 2.13 with float64 as its default dtype: else NAdam keeps its product of
# momenta in float32 whatever the weights' dtype, which moves them by 3e-10.
PINNED = {
    "SGD": [0.7024045761682187, 0.12444380927795895, 2.580408952443995, 3.5982698580835826],
    "Adam": [0.9725478525835947, -1.952055527346942, 0.5466835064380313, 3.0318779554283957],
    "AdamW": [0.9532379453529599, -1.9131560343501735, 0.5359972941335307, 2.97187880316786],
    "NAdam": [0.9811752631685721, -1.978305641352528, 0.5250971701123494, 3.0217769682362663],
    "AdaMax": [0.9755412253439427, -1.9722629526053814, 0.5335542498515815, 3.0271446180597015],
    "RMSProp": [0.7192331280808884, -1.386244922224481, 1.0719695586149884, 3.354811939783335],
    "AdaGrad": [0.8673951418747273, -1.8052367711189679, 0.7146981507827529, 3.1561921357127334],
    "AdaDelta": [0.9989156284717084, -1.999372555742313, 0.5009071570241688, 3.001178228885313],
}

# (optimizer, its formula, PyTorch's class and arguments where it has one)
CASES: list[tuple[Optimizer, Callable[[], np.ndarray], tuple[str, dict] | None]] = [
    (SGD(0.1), written_sgd(), ("SGD", {"lr": 0.1})),
    (SGD(0.1, weight_decay=0.05), written_sgd(weight_decay=0.05), ("SGD", {"lr": 0.1, "weight_decay": 0.05})),
    (SGD(0.1, momentum=0.9), written_sgd(0.9), ("SGD", {"lr": 0.1, "momentum": 0.9})),
    (
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        written_sgd(0.9, True, 0.01),
        ("SGD", {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ),
    (Adam(0.01), written_adam(), ("Adam", {"lr": 0.01})),
    (
        Adam(0.01, beta1=0.8, beta2=0.95, epsilon=1e-3),
        written_adam(b1=0.8, b2=0.95, eps=1e-3),
        ("Adam", {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-3}),
    ),
    (AdamW(0.01, weight_decay=0.1), written_adam(decay=0.1), ("AdamW", {"lr": 0.01, "weight_decay": 0.1})),
    (NAdam(0.01), written_nadam(), ("NAdam", {"lr": 0.01})),
    (AdaMax(0.01), written_adamax(), ("Adamax", {"lr": 0.01})),
    (RMSProp(0.01), written_rmsprop(), ("RMSprop", {"lr": 0.01, "alpha": 0.9})),
    (
        RMSProp(0.01, momentum=0.9),
        written_rmsprop(0.9),
        ("RMSprop", {"lr": 0.01, "alpha": 0.9, "momentum": 0.9}),
    ),
    (AdaGrad(0.1), written_adagrad(), ("Adagrad", {"lr": 0.1, "eps": 1e-8})),
    (AdaDelta(), written_adadelta(), ("Adadelta", {"lr": 1.0, "rho": 0.95, "eps": 1e-8})),
    (Lion(0.01), written_lion(), None),
]
NAMES = [repr(case[0]) for case in CASES]


@pytest.mark.parametrize(("optimizer", "written", "torch_case"), CASES, ids=NAMES)
def test_is_the_written_formula(optimizer, written, torch_case) -> None:
    """Both do the same few operations, in another order here and there: 1e-12 leaves a hundredfold room."""
    np.testing.assert_allclose(trajectory(optimizer), written(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("optimizer", "written", "torch_case"), CASES, ids=NAMES)
def test_is_pytorch(optimizer, written, torch_case) -> None:
    torch = pytest.importorskip("torch")
    if torch_case is None:
        pytest.skip("PyTorch has no such optimizer")
    name, options = torch_case
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # see PINNED
    try:
        weight = torch.tensor(WEIGHTS, requires_grad=True)
        theirs, found = getattr(torch.optim, name)([weight], **options), []
        for gradient in GRADIENTS:
            weight.grad = torch.tensor(gradient)
            theirs.step()
            found.append(weight.detach().numpy().copy())
    finally:
        torch.set_default_dtype(default)
    np.testing.assert_allclose(trajectory(optimizer), np.array(found), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (SGD(0.1, momentum=0.9), PINNED["SGD"]),
        (Adam(0.01), PINNED["Adam"]),
        (AdamW(0.01, weight_decay=0.1), PINNED["AdamW"]),
        (NAdam(0.01), PINNED["NAdam"]),
        (AdaMax(0.01), PINNED["AdaMax"]),
        (RMSProp(0.01, momentum=0.9), PINNED["RMSProp"]),
        (AdaGrad(0.1), PINNED["AdaGrad"]),
        (AdaDelta(), PINNED["AdaDelta"]),
    ],
    ids=list(PINNED),
)
def test_ends_where_pytorch_ends(optimizer, expected) -> None:
    """The weights after 20 steps as PyTorch 2.13 printed them."""
    np.testing.assert_allclose(trajectory(optimizer)[-1], expected, rtol=1e-10)


@pytest.mark.parametrize("optimizer", [case[0] for case in CASES], ids=NAMES)
def test_float32_stays_float32_and_near(optimizer) -> None:
    """Lion's sign may turn where its argument nearly is 0; these gradients keep away from that."""
    found = trajectory(optimizer, "float32")
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, trajectory(optimizer), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("optimizer", [case[0] for case in CASES], ids=NAMES)
def test_a_weight_without_gradient_stays(optimizer) -> None:
    """Padding between parameters holds zeros and has to keep them."""
    stepper = Stepper(optimizer, np.zeros(3))
    for _ in range(5):
        stepper.step(np.zeros(3))
    np.testing.assert_array_equal(stepper.weights, np.zeros(3))


def test_first_adam_step_is_the_learning_rate() -> None:
    """Bias correction makes the first step lr * sign(gradient), but for epsilon."""
    stepper = Stepper(Adam(0.001), np.zeros(2))
    stepper.step(np.array([3.0, -0.02]))
    np.testing.assert_allclose(stepper.weights, [-0.001, 0.001], rtol=1e-5)


def test_lion_keeps_zero_and_nan() -> None:
    stepper = Stepper(Lion(0.5), np.ones(3))
    stepper.step(np.array([0.0, np.nan, -2.0]))
    np.testing.assert_array_equal(stepper.weights, [1.0, np.nan, 1.5])


def test_the_learning_rate_is_a_scalar_that_can_be_edited() -> None:
    stepper = Stepper(SGD(0.1), np.ones(1))
    stepper.step(np.ones(1))
    stepper.scalars["lr"] = 0.0
    stepper.step(np.ones(1))
    np.testing.assert_array_equal(stepper.weights, [0.9])


def test_prepare_advances_only_what_it_names() -> None:
    stepper = Stepper(Adam(0.01, beta1=0.5, beta2=0.75), np.ones(1))
    for _ in range(3):
        stepper.step(np.ones(1))
    assert stepper.scalars == {"lr": 0.01, "beta1_power": 0.125, "beta2_power": 0.421875}


class SignSGD(Optimizer):
    """The example of the module's docstring."""

    def rule(self, weight, gradient, slots, scalars):
        return weight - scalars["lr"] * where(gradient < 0, -1, 1), {}


def test_a_rule_of_the_users_own() -> None:
    stepper = Stepper(SignSGD(0.25), np.zeros(2))
    stepper.step(np.array([-3.0, 7.0]))
    np.testing.assert_array_equal(stepper.weights, [0.25, -0.25])
    assert SignSGD(0.25).config() == {"lr": 0.25}


def test_an_optimizer_without_a_rule_says_so() -> None:
    with pytest.raises(NotImplementedError, match=r"Optimizer has no rule\(\)"):
        Optimizer(0.1).rule(*inputs(2), {}, {})


def test_config_clone_and_with_params() -> None:
    optimizer = AdamW(0.02, beta1=0.8, weight_decay=0.3)
    assert optimizer.config() == {"lr": 0.02, "beta1": 0.8, "beta2": 0.999, "epsilon": 1e-8, "weight_decay": 0.3}
    twin = optimizer.clone()
    assert twin is not optimizer
    assert twin.config() == optimizer.config()
    changed = optimizer.with_params(lr=1, beta2=0.5)
    assert isinstance(changed, AdamW)
    assert (changed.lr, changed.beta1, changed.beta2) == (1.0, 0.8, 0.5)
    assert repr(SGD(0.1, momentum=0.9)) == "SGD(lr=0.1, momentum=0.9, nesterov=False, weight_decay=0.0)"


def test_with_params_refuses_unknown_names() -> None:
    with pytest.raises(TypeError, match="SGD has no beta1; it has lr, momentum, nesterov, weight_decay"):
        SGD().with_params(beta1=0.9)


def test_a_constructor_that_hides_its_arguments_is_refused() -> None:
    class Hidden(SGD):
        def __init__(self, rate=0.1):
            super().__init__(rate)

    with pytest.raises(TypeError, match="stores each argument under its own name"):
        Hidden().config()


def test_keys_leave_the_learning_rate_out() -> None:
    assert SGD(0.1).key() == SGD(0.2).key()
    assert SGD(0.1).key() != SGD(0.1, momentum=0.9).key()
    assert Adam().key() != AdamW().key()


def test_momentum_decides_the_slots() -> None:
    assert SGD().slots == ()
    assert SGD(momentum=0.5).slots == ("momentum",)
    assert RMSProp().slots == ("square",)
    assert RMSProp(momentum=0.5).slots == ("square", "momentum")


@pytest.mark.parametrize(
    ("make", "error", "text"),
    [
        (lambda: SGD(-0.1), ValueError, "lr: expected a finite number >= 0, received -0.1"),
        (lambda: SGD(float("nan")), ValueError, "lr: expected a finite number"),
        (lambda: Adam(float("inf")), ValueError, "lr: expected a finite number"),
        (lambda: SGD("0.1"), TypeError, "lr: expected a real number, received '0.1'"),
        (lambda: SGD(True), TypeError, "lr: expected a real number, received True"),
        (lambda: SGD(momentum=-1), ValueError, "momentum: expected a finite number >= 0"),
        (lambda: SGD(nesterov=True), ValueError, "nesterov=True needs a momentum"),
        (lambda: Adam(beta1=1.0), ValueError, r"beta1: expected a number in \[0, 1\), received 1.0"),
        (lambda: Adam(beta2=-0.1), ValueError, "beta2: expected a number"),
        (lambda: Adam(epsilon=-1e-8), ValueError, "epsilon: expected a finite number >= 0"),
        (lambda: AdamW(weight_decay=-1), ValueError, "weight_decay: expected a finite number >= 0"),
        (lambda: RMSProp(rho=1.5), ValueError, "rho: expected a number"),
        (lambda: NAdam(momentum_decay=-1), ValueError, "momentum_decay: expected"),
        (lambda: Adam(0.1).with_params(beta1=2), ValueError, "beta1: expected a number"),
    ],
)
def test_hyper_parameters_are_checked(make, error, text) -> None:
    with pytest.raises(error, match=text):
        make()


def test_numpy_numbers_become_plain_floats() -> None:
    optimizer = SGD(np.float32(0.5), momentum=np.int64(0))
    assert type(optimizer.lr) is float
    assert optimizer.config() == {"lr": 0.5, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}


def test_scalars_are_expressions() -> None:
    """What `prepare` gives goes into the tape, so it must not have been computed."""
    for value in Adam().prepare(dict(zip(Adam().hyper(), inputs(3), strict=True))).values():
        assert isinstance(value, Scalar)
