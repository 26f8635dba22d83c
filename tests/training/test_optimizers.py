"""Update rules against PyTorch's formulas written out in NumPy, and against PyTorch itself where it is installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from training.stepper import Stepper

from tapeprop import LayerGraph, LayerNode
from tapeprop.layers import Dense
from tapeprop.losses import MSE
from tapeprop.ops.expression import Scalar, inputs, where
from tapeprop.optimizers import SGD, AdaDelta, AdaGrad, Adam, AdaMax, AdamW, Lion, NAdam, Optimizer, RMSProp

STEPS = 20
WEIGHTS = np.array([1.0, -2.0, 0.5, 3.0])
GRADIENTS = [np.cos(np.arange(4) + 0.7 * k) * (1 + k % 3) for k in range(STEPS)]
GRADIENTS[0] = GRADIENTS[0] * [1, 0, 1, 1]  # a weight whose first gradient is 0
#: What the learning rate is multiplied by from some steps on.
CHANGES = {7: 0.1, 13: 5.0}


def trajectory(optimizer: Optimizer, dtype: str = "float64", changes: dict[int, float] | None = None) -> np.ndarray:
    """(STEPS, 4): the weights after each step."""
    stepper = Stepper(optimizer, WEIGHTS.astype(dtype))
    found = []
    for k, gradient in enumerate(GRADIENTS):
        stepper.scalars["lr"] *= (changes or {}).get(k, 1.0)
        stepper.step(gradient.astype(dtype))
        found.append(stepper.weights)
    return np.array(found)


# ---- the formulas: (w, g, lr, t from 1, state) -> the new w, of a state that starts empty

State = dict[str, Any]
Step = Callable[[np.ndarray, np.ndarray, float, int, State], np.ndarray]


def written_sgd(momentum=0.0, nesterov=False, decay=0.0) -> Step:
    def step(w, g, lr, t, state):
        g = g + decay * w
        if momentum:
            state["buffer"] = g if t == 1 else momentum * state["buffer"] + g
            g = g + momentum * state["buffer"] if nesterov else state["buffer"]
        return w - lr * g

    return step


def moments(state: State, g: np.ndarray, b1: float, b2: float) -> tuple[np.ndarray, np.ndarray]:
    state["m"] = b1 * state.get("m", 0.0) + (1 - b1) * g
    state["v"] = b2 * state.get("v", 0.0) + (1 - b2) * g * g
    return state["m"], state["v"]


def written_adam(b1=0.9, b2=0.999, eps=1e-8, decay=0.0, decoupled=0.0) -> Step:
    def step(w, g, lr, t, state):
        w, g = w * (1 - lr * decoupled), g + decay * w
        m, v = moments(state, g, b1, b2)
        return w - lr / (1 - b1**t) * m / (np.sqrt(v) / np.sqrt(1 - b2**t) + eps)

    return step


def written_nadam(b1=0.9, b2=0.999, eps=1e-8, momentum_decay=4e-3, decay=0.0) -> Step:
    def step(w, g, lr, t, state):
        g = g + decay * w
        mu = b1 * (1 - 0.5 * 0.96 ** (t * momentum_decay))
        following = b1 * (1 - 0.5 * 0.96 ** ((t + 1) * momentum_decay))
        product = state["product"] = state.get("product", 1.0) * mu
        m, v = moments(state, g, b1, b2)
        root = np.sqrt(v / (1 - b2**t)) + eps
        return w - lr * (1 - mu) / (1 - product) * g / root - lr * following / (1 - product * following) * m / root

    return step


def written_adamax(b1=0.9, b2=0.999, eps=1e-8, decay=0.0) -> Step:
    def step(w, g, lr, t, state):
        g = g + decay * w
        m, _ = moments(state, g, b1, b2)
        state["u"] = np.maximum(b2 * state.get("u", 0.0), np.abs(g) + eps)
        return w - lr / (1 - b1**t) * m / state["u"]

    return step


def written_rmsprop(momentum=0.0, rho=0.9, eps=1e-8, decay=0.0) -> Step:
    def step(w, g, lr, t, state):
        g = g + decay * w
        _, v = moments(state, g, 0.0, rho)
        state["buffer"] = momentum * state.get("buffer", 0.0) + g / (np.sqrt(v) + eps)
        return w - lr * state["buffer"]

    return step


def written_adagrad(eps=1e-8, decay=0.0) -> Step:
    def step(w, g, lr, t, state):
        g = g + decay * w
        state["total"] = state.get("total", 0.0) + g * g
        return w - lr * g / (np.sqrt(state["total"]) + eps)

    return step


def written_adadelta(rho=0.95, eps=1e-8, decay=0.0) -> Step:
    def step(w, g, lr, t, state):
        g = g + decay * w
        _, v = moments(state, g, 0.0, rho)
        change = np.sqrt(state.get("d", 0.0) + eps) / np.sqrt(v + eps) * g
        state["d"] = rho * state.get("d", 0.0) + (1 - rho) * change * change
        return w - lr * change

    return step


def written_lion(b1=0.9, b2=0.99, decoupled=0.0) -> Step:
    """Algorithm 2 of Chen et al. 2023, as github.com/google/automl and lucidrains' lion-pytorch have it."""

    def step(w, g, lr, t, state):
        m = state.get("m", 0.0)
        w = w * (1 - lr * decoupled) - lr * np.sign(b1 * m + (1 - b1) * g)
        state["m"] = b2 * m + (1 - b2) * g
        return w

    return step


def written(step: Step, lr: float, changes: dict[int, float] | None = None) -> np.ndarray:
    """As `trajectory`, by a formula."""
    w, state, found = WEIGHTS, {}, []
    for k, gradient in enumerate(GRADIENTS):
        lr *= (changes or {}).get(k, 1.0)
        w = step(w, gradient, lr, k + 1, state)
        found.append(w)
    return np.array(found)


# (optimizer, changes of the rate, weights after STEPS steps), as PyTorch 2.13 printed them with float64 as its default
# dtype: else NAdam keeps its product of momenta in float32 whatever the weights' dtype, which moves them by 3e-10.
PINNED: list[tuple[Optimizer, dict[int, float] | None, list[float]]] = [
    (SGD(0.1, momentum=0.9), None, [0.7024045761682187, 0.12444380927795895, 2.580408952443995, 3.5982698580835826]),
    (Adam(0.01), None, [0.9725478525835947, -1.952055527346942, 0.5466835064380313, 3.0318779554283957]),
    (AdamW(0.01, weight_decay=0.1), None, [0.9532379453529599, -1.9131560343501735, 0.5359972941335307, 2.97187880316786]),
    (NAdam(0.01), None, [0.9811752631685721, -1.978305641352528, 0.5250971701123494, 3.0217769682362663]),
    (AdaMax(0.01), None, [0.9755412253439427, -1.9722629526053814, 0.5335542498515815, 3.0271446180597015]),
    (RMSProp(0.01, momentum=0.9), None, [0.7192331280808884, -1.386244922224481, 1.0719695586149884, 3.354811939783335]),
    (AdaGrad(0.1), None, [0.8673951418747273, -1.8052367711189679, 0.7146981507827529, 3.1561921357127334]),
    (AdaDelta(), None, [0.9989156284717084, -1.999372555742313, 0.5009071570241688, 3.001178228885313]),
    (SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01), CHANGES,
     [1.1576875869550327, 0.2001135095132932, 2.1343960021318864, 2.875499496992858]),
    (Adam(0.01, weight_decay=0.1), CHANGES, [0.9698083923685197, -1.932999608886441, 0.5426095318918315, 3.0131119416762653]),
    (AdamW(0.01, weight_decay=0.1), CHANGES, [0.9643540884844819, -1.9316801792681872, 0.5392128126121687, 2.9956565960863597]),
    (NAdam(0.01, weight_decay=0.1), CHANGES, [0.9940740878365623, -1.949165444030903, 0.517712339532392, 2.9899327933335482]),
    (AdaMax(0.01, weight_decay=0.1), CHANGES, [0.9736251200538183, -1.9554356979665684, 0.5310450720061802, 3.0166455345582732]),
    (RMSProp(0.01, momentum=0.9, weight_decay=0.1), CHANGES,
     [0.7747447284773716, -1.3364209615338767, 0.9043107155104446, 3.1232102816144187]),
    (AdaGrad(0.1, weight_decay=0.1), CHANGES, [0.9416751676202767, -1.6170183363065076, 0.6819689387095115, 2.9970222334770042]),
    (AdaDelta(weight_decay=0.1), CHANGES, [1.00007862434408, -1.996975965089996, 0.5004629582728906, 2.9987806607137864]),
]  # fmt: skip

# (optimizer, its formula, PyTorch's class and arguments where it has one)
CASES: list[tuple[Optimizer, Step, tuple[str, dict] | None]] = [
    (SGD(0.1), written_sgd(), ("SGD", {})),
    (SGD(0.1, weight_decay=0.05), written_sgd(decay=0.05), ("SGD", {"weight_decay": 0.05})),
    (SGD(0.1, momentum=0.9), written_sgd(0.9), ("SGD", {"momentum": 0.9})),
    (
        SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        written_sgd(0.9, True, 0.01),
        ("SGD", {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}),
    ),
    (Adam(0.01), written_adam(), ("Adam", {})),
    (
        Adam(0.01, beta1=0.8, beta2=0.95, epsilon=1e-3),
        written_adam(b1=0.8, b2=0.95, eps=1e-3),
        ("Adam", {"betas": (0.8, 0.95), "eps": 1e-3}),
    ),
    (Adam(0.01, weight_decay=0.1), written_adam(decay=0.1), ("Adam", {"weight_decay": 0.1})),
    (AdamW(0.01, weight_decay=0.1), written_adam(decoupled=0.1), ("AdamW", {"weight_decay": 0.1})),
    (NAdam(0.01), written_nadam(), ("NAdam", {})),
    (NAdam(0.01, weight_decay=0.1), written_nadam(decay=0.1), ("NAdam", {"weight_decay": 0.1})),
    (AdaMax(0.01), written_adamax(), ("Adamax", {})),
    (AdaMax(0.01, weight_decay=0.1), written_adamax(decay=0.1), ("Adamax", {"weight_decay": 0.1})),
    (RMSProp(0.01), written_rmsprop(), ("RMSprop", {"alpha": 0.9})),
    (
        RMSProp(0.01, momentum=0.9, weight_decay=0.1),
        written_rmsprop(0.9, decay=0.1),
        ("RMSprop", {"alpha": 0.9, "momentum": 0.9, "weight_decay": 0.1}),
    ),
    (AdaGrad(0.1), written_adagrad(), ("Adagrad", {"eps": 1e-8})),
    (AdaGrad(0.1, weight_decay=0.1), written_adagrad(decay=0.1), ("Adagrad", {"eps": 1e-8, "weight_decay": 0.1})),
    (AdaDelta(), written_adadelta(), ("Adadelta", {"rho": 0.95, "eps": 1e-8})),
    (
        AdaDelta(weight_decay=0.1),
        written_adadelta(decay=0.1),
        ("Adadelta", {"rho": 0.95, "eps": 1e-8, "weight_decay": 0.1}),
    ),
    (Lion(0.01), written_lion(), None),
    (Lion(0.01, weight_decay=0.1), written_lion(decoupled=0.1), None),
]
NAMES = [repr(case[0]) for case in CASES]


@pytest.mark.parametrize("changes", [None, CHANGES], ids=["one rate", "three rates"])
@pytest.mark.parametrize(("optimizer", "step", "torch_case"), CASES, ids=NAMES)
def test_is_the_written_formula(optimizer, step, torch_case, changes) -> None:
    """Both do the same few operations, in another order here and there: 1e-12 leaves a hundredfold room."""
    found = trajectory(optimizer, changes=changes)
    np.testing.assert_allclose(found, written(step, optimizer.lr, changes), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("changes", [None, CHANGES], ids=["one rate", "three rates"])
@pytest.mark.parametrize(("optimizer", "step", "torch_case"), CASES, ids=NAMES)
def test_is_pytorch(optimizer, step, torch_case, changes) -> None:
    torch = pytest.importorskip("torch")
    if torch_case is None:
        pytest.skip("PyTorch has no such optimizer")
    name, options = torch_case
    default = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)  # see PINNED
    try:
        weight = torch.tensor(WEIGHTS, requires_grad=True)
        theirs, found = getattr(torch.optim, name)([weight], lr=optimizer.lr, **options), []
        for k, gradient in enumerate(GRADIENTS):
            theirs.param_groups[0]["lr"] *= (changes or {}).get(k, 1.0)
            weight.grad = torch.tensor(gradient)
            theirs.step()
            found.append(weight.detach().numpy().copy())
    finally:
        torch.set_default_dtype(default)
    np.testing.assert_allclose(trajectory(optimizer, changes=changes), np.array(found), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("optimizer", "changes", "expected"), PINNED, ids=[repr(case[0]) for case in PINNED])
def test_ends_where_pytorch_ends(optimizer, changes, expected) -> None:
    np.testing.assert_allclose(trajectory(optimizer, changes=changes)[-1], expected, rtol=1e-10)


@pytest.mark.parametrize(("optimizer", "step", "torch_case"), CASES, ids=NAMES)
def test_a_layer_in_two_nodes_is_one_weight(optimizer, step, torch_case) -> None:
    """y = W (W x + b) + b, trained on the squared error by the compiled step: the gradients of both places are one.

    The gradients follow by hand; sums of three or four terms in another order leave 1e-10 much room.
    """
    layer = Dense(3, 3)
    first, second = LayerNode(layer, name="first"), LayerNode(layer, name="second")
    graph = LayerGraph({first: [second], second: []}, root=first, term=second).build((4, 3), dtype="float64")
    w, b = np.cos(np.arange(9.0)).reshape(3, 3), np.array([0.5, -0.25, 0.75])
    layer.weight.assign(w)
    layer.bias.assign(b)
    graph.set_optimizer(optimizer)
    x, y = np.sin(np.arange(12.0)).reshape(4, 3), np.sin(np.arange(20.0, 32.0)).reshape(4, 3)
    states: tuple[State, State] = ({}, {})
    for k in range(STEPS):
        if k == 7:
            graph.update_lr(0.5 * optimizer.lr)
        graph.train_step(x, y, MSE())
        h = x @ w.T + b
        to_output = 2 * (h @ w.T + b - y) / y.size
        to_hidden = to_output @ w
        lr = optimizer.lr * (1 if k < 7 else 0.5)
        slopes = to_output.T @ h + to_hidden.T @ x, (to_output + to_hidden).sum(0)
        w, b = (step(a, g, lr, k + 1, state) for a, g, state in zip((w, b), slopes, states, strict=True))
        np.testing.assert_allclose(layer.weight.value, w, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(layer.bias.value, b, rtol=1e-10, atol=1e-10)


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
        *(
            (lambda kind=kind: kind(weight_decay=-1), ValueError, "weight_decay: expected a finite number >= 0")
            for kind in (SGD, RMSProp, Adam, AdamW, NAdam, AdaMax, AdaGrad, AdaDelta, Lion)
        ),
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
