"""Schedules against PyTorch's where it is installed, against numbers printed by it, and against their definitions."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest

from tapeprop.schedules import (
    CosineAnnealingLR,
    CyclicLR,
    ExponentialLR,
    LinearWarmup,
    OneCycleLR,
    ReduceLROnPlateau,
    Schedule,
    StepLR,
)

COUNT = 100
BASE = 0.3

# Learning rates that PyTorch 2.13 gives from 0.3 at some counts.
PINNED = {
    "StepLR": {0: 0.3, 1: 0.3, 13: 0.15, 29: 0.01875, 64: 0.0005859375, 99: 1.8310546875e-05},
    "ExponentialLR": {
        0: 0.3,
        1: 0.285,
        13: 0.15400262498385145,
        29: 0.06778066229776968,
        64: 0.011257241763334806,
        99: 0.0018696408064212623,
    },
    "CosineAnnealingLR": {
        0: 0.3,
        1: 0.2992056748283996,
        13: 0.18514719516857514,
        29: 0.010794325171600358,
        64: 0.28746409135818285,
        99: 0.06977113841759133,
    },
    "CyclicLR": {
        0: 0.01,
        1: 0.03374999999999998,
        13: 0.01,
        29: 0.027812500000000004,
        64: 0.012374999999999992,
        99: 0.011484375,
    },
    "OneCycleLR": {
        0: 0.020000000000000018,
        1: 0.021378255200136587,
        13: 0.21776139536585198,
        29: 0.4998758488309306,
        64: 0.2572207423879128,
        99: 0.00024877305198064617,
    },
    "LinearLR": {
        0: 0.075,
        1: 0.08625,
        13: 0.22124999999999995,
        29: 0.29999999999999993,
        64: 0.29999999999999993,
        99: 0.29999999999999993,
    },
}

# (schedule, PyTorch's name and arguments)
CASES = [
    (StepLR(7, 0.5), "StepLR", {"step_size": 7, "gamma": 0.5}),
    (ExponentialLR(0.95), "ExponentialLR", {"gamma": 0.95}),
    (CosineAnnealingLR(30, 0.01), "CosineAnnealingLR", {"T_max": 30, "eta_min": 0.01}),
    (CosineAnnealingLR(100), "CosineAnnealingLR", {"T_max": 100}),
    (CyclicLR(0.01, 0.2, 8), "CyclicLR", {"base_lr": 0.01, "max_lr": 0.2, "step_size_up": 8}),
    (
        CyclicLR(0.01, 0.2, 8, 5, mode="triangular2"),
        "CyclicLR",
        {"base_lr": 0.01, "max_lr": 0.2, "step_size_up": 8, "step_size_down": 5, "mode": "triangular2"},
    ),
    (
        CyclicLR(0.01, 0.2, 8, mode="exp_range", gamma=0.98),
        "CyclicLR",
        {"base_lr": 0.01, "max_lr": 0.2, "step_size_up": 8, "mode": "exp_range", "gamma": 0.98},
    ),
    (OneCycleLR(0.5, 101), "OneCycleLR", {"max_lr": 0.5, "total_steps": 101}),
    (
        OneCycleLR(
            0.5, 101, pct_start=0.4, anneal_strategy="linear", div_factor=10, final_div_factor=100, three_phase=True
        ),
        "OneCycleLR",
        {
            "max_lr": 0.5,
            "total_steps": 101,
            "pct_start": 0.4,
            "anneal_strategy": "linear",
            "div_factor": 10,
            "final_div_factor": 100,
            "three_phase": True,
        },
    ),
    (LinearWarmup(20, 0.25), "LinearLR", {"start_factor": 0.25, "total_iters": 20}),
]
NAMES = [f"{name}-{i}" for i, (_, name, _) in enumerate(CASES)]


def rates(schedule: Schedule, count: int = COUNT, base: float = BASE) -> list[float]:
    """What a fit would use in its first `count` epochs or batches."""
    schedule.begin(base, epochs=count, batches_per_epoch=1)
    found = []
    for _ in range(count):
        found.append(schedule.current())
        schedule.advance({"loss": 1.0})
    return found


@pytest.mark.parametrize(("schedule", "name", "options"), CASES, ids=NAMES)
def test_is_pytorch(schedule, name, options) -> None:
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE, momentum=0.9)
    theirs = getattr(torch.optim.lr_scheduler, name)(optimizer, **options)
    expected = []
    for _ in range(COUNT):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        theirs.step()
    fresh = type(schedule).__new__(type(schedule))
    fresh.__dict__.update(schedule.__dict__)
    np.testing.assert_allclose(rates(fresh), expected, rtol=1e-12, atol=1e-15)


def test_plateau_is_pytorch() -> None:
    torch = pytest.importorskip("torch")
    figures = np.random.default_rng(5).uniform(0.5, 1.0, COUNT) * np.linspace(1, 0.7, COUNT)
    for options in (
        {"patience": 3, "factor": 0.5},
        {"patience": 2, "cooldown": 4, "mode": "max", "min_lr": 0.002},
        {"patience": 1, "threshold": 0.02, "threshold_mode": "abs", "factor": 0.7},
        {"patience": 0, "threshold": 0.05, "mode": "max", "threshold_mode": "abs"},
    ):
        optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=BASE)
        theirs = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, **options)
        ours = ReduceLROnPlateau(**options)
        ours.begin(BASE, epochs=COUNT, batches_per_epoch=1)
        for figure in figures:
            theirs.step(figure)
            ours.advance({"loss": figure})
            assert ours.current() == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


@pytest.mark.parametrize(
    ("schedule", "places"),
    [
        (StepLR(7, 0.5), PINNED["StepLR"]),
        (ExponentialLR(0.95), PINNED["ExponentialLR"]),
        (CosineAnnealingLR(30, 0.01), PINNED["CosineAnnealingLR"]),
        (CyclicLR(0.01, 0.2, 8, 5, mode="triangular2"), PINNED["CyclicLR"]),
        (OneCycleLR(0.5, 101), PINNED["OneCycleLR"]),
        (LinearWarmup(20, 0.25), PINNED["LinearLR"]),
    ],
)
def test_is_what_pytorch_printed(schedule, places) -> None:
    found = rates(schedule)
    for t, expected in places.items():
        assert found[t] == pytest.approx(expected, rel=1e-12), f"at {t}"


def warmed(then: Schedule) -> LinearWarmup:
    return LinearWarmup(12, 0.2, then=then, by="epoch")


# Over the first 100 counts PyTorch's rates sum up to the first number, and weighted with their counts to the second: of
# CASES in their order, then of LinearLR with a start_factor of 0.2 for 12 steps, chained to another by SequentialLR.
SUMS = [
    (4.199780273437501, 41.975921630859375),
    (5.964476824677992, 109.77274213668134),
    (14.410705689912625, 631.2188123507982),
    (15.150000000000002, 446.01144783923786),
    (10.262500000000001, 501.2725),
    (3.4573828125, 97.40375),
    (5.036899734509671, 186.38732021506507),
    (25.303085564526707, 1042.8222237870907),
    (22.22803579637966, 899.7155826309743),
    (27.637499999999992, 1470.0374999999995),
    (13.440000000000001, 435.28000000000003),
    (15.825000000000001, 551.6527704166375),
]
CHAINED = [warmed(StepLR(20, 0.5)), warmed(CosineAnnealingLR(88, 0.01))]


@pytest.mark.parametrize(("schedule", "sums"), list(zip([*(case[0] for case in CASES), *CHAINED], SUMS, strict=True)))
def test_the_first_hundred_are_pytorchs(schedule, sums) -> None:
    found = rates(copy.copy(schedule))
    assert (sum(found), sum(t * rate for t, rate in enumerate(found))) == pytest.approx(sums, rel=1e-12)


# (arguments, sums as above of the rates after each figure, the last rate), as PyTorch 2.13 gives them
PLATEAUS = [
    ({"patience": 3, "factor": 0.5}, (5.187492370605469, 59.04919166564942), 1.1444091796875e-06),
    ({"patience": 2, "cooldown": 4, "mode": "max", "min_lr": 0.002}, (1.297, 12.061), 0.002),
    (
        {"patience": 1, "threshold": 0.02, "threshold_mode": "abs", "factor": 0.7},
        (3.294788290885366, 22.172218809979242),
        9.359204468536246e-08,
    ),
    ({"patience": 0, "threshold": 0.05, "mode": "max", "threshold_mode": "abs", "eps": 1e-3}, (0.3621, 1.5201), 3e-4),
]


@pytest.mark.parametrize(("options", "sums", "last"), PLATEAUS)
def test_plateaus_are_what_pytorch_printed(options, sums, last) -> None:
    schedule, found = ReduceLROnPlateau(**options), []
    schedule.begin(BASE, epochs=COUNT, batches_per_epoch=1)
    for figure in np.cos(np.arange(100) * 0.7) * 0.1 + np.linspace(1, 0.7, 100):
        schedule.advance({"loss": figure})
        found.append(schedule.current())
    assert (sum(found), sum(t * rate for t, rate in enumerate(found))) == pytest.approx(sums, rel=1e-12)
    assert found[-1] == pytest.approx(last, rel=1e-12)


def test_lr_is_a_function_of_the_count_alone() -> None:
    schedule = CosineAnnealingLR(10)
    first = [schedule.lr(t, 1.0) for t in range(20)]
    assert first == [schedule.lr(t, 1.0) for t in range(20)]
    assert schedule.t == 0
    assert first[0] == 1.0
    assert first[10] == pytest.approx(0.0, abs=1e-16)


def test_one_cycle_takes_the_length_of_the_fit() -> None:
    schedule = OneCycleLR(1.0)
    schedule.begin(0.1, epochs=5, batches_per_epoch=8)
    assert schedule.total_steps == 40
    by_epoch = OneCycleLR(1.0, by="epoch")
    by_epoch.begin(0.1, epochs=5, batches_per_epoch=8)
    assert by_epoch.total_steps == 5
    with pytest.raises(ValueError, match="total_steps is not known"):
        OneCycleLR(1.0).lr(0, 0.1)


def test_one_cycle_stays_at_its_end() -> None:
    schedule = OneCycleLR(1.0, 10)
    assert schedule.lr(50, 0.1) == schedule.lr(9, 0.1) == pytest.approx(1 / 25 / 1e4)


def test_warmup_goes_on_with_another_schedule() -> None:
    schedule = LinearWarmup(4, 0.2, then=StepLR(2, 0.1), by="epoch")
    assert rates(schedule, 8, 1.0) == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 0.1, 0.1])


def test_warmup_before_a_schedule_with_a_base_of_its_own() -> None:
    schedule = LinearWarmup(2, 0.5, then=CyclicLR(0.01, 0.03, 2))
    assert rates(schedule, 6, 1.0) == pytest.approx([0.5, 0.75, 0.01, 0.02, 0.03, 0.02])


def test_a_second_fit_goes_on() -> None:
    schedule = StepLR(2, 0.5)
    whole = rates(StepLR(2, 0.5), 6, 1.0)
    schedule.begin(1.0, epochs=3, batches_per_epoch=1)
    first = []
    for _ in range(3):
        first.append(schedule.current())
        schedule.advance({})
    schedule.begin(first[-1], epochs=3, batches_per_epoch=1)  # the rate in force now is no new base
    second = []
    for _ in range(3):
        second.append(schedule.current())
        schedule.advance({})
    assert first + second == whole


def test_state_dict_resumes() -> None:
    schedule = ReduceLROnPlateau(patience=1, factor=0.5)
    schedule.begin(1.0, epochs=9, batches_per_epoch=1)
    for figure in (1.0, 2.0, 2.0):
        schedule.advance({"loss": figure})
    assert schedule.state_dict() == {
        "t": 3, "base_lr": 1.0, "reduced_lr": 0.5, "best": 1.0, "bad_epochs": 0, "cooling": 0,
    }  # fmt: skip
    other = ReduceLROnPlateau(patience=1, factor=0.5)
    other.load_state_dict(schedule.state_dict())
    for figure in (2.0, 2.0):
        schedule.advance({"loss": figure})
        other.advance({"loss": figure})
    assert other.current() == schedule.current() == 0.25
    with pytest.raises(ValueError, match="expected the entries t, base_lr, received t"):
        StepLR(1).load_state_dict({"t": 3})


def test_plateau_watches_validation_first_and_refuses_unknown_figures() -> None:
    schedule = ReduceLROnPlateau(patience=0, factor=0.5)
    schedule.begin(1.0, epochs=9, batches_per_epoch=1)
    schedule.advance({"loss": 5.0, "val_loss": 1.0})
    schedule.advance({"loss": 4.0, "val_loss": 1.0})
    assert schedule.current() == 0.5
    with pytest.raises(ValueError, match="no figure 'f1' to watch; there are loss"):
        ReduceLROnPlateau(monitor="f1").advance({"loss": 1.0})


def test_plateau_takes_nan_for_no_progress() -> None:
    schedule = ReduceLROnPlateau(patience=1, factor=0.5)
    schedule.begin(1.0, epochs=9, batches_per_epoch=1)
    for figure in (1.0, math.nan, math.nan):
        schedule.advance({"loss": figure})
    assert schedule.current() == 0.5
    assert schedule.best == 1.0


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: StepLR(0), "step_size must be an integer >= 1; received 0"),
        (lambda: StepLR(2.5), "step_size must be an integer"),
        (lambda: StepLR(True), "step_size must be an integer"),
        (lambda: StepLR(3, by="step"), 'by must be "epoch" or "batch"'),
        (lambda: ExponentialLR(0), "gamma must be finite and above 0"),
        (lambda: CosineAnnealingLR(10, -1), "eta_min must be finite and >= 0"),
        (lambda: CyclicLR(0.1, 0.2, mode="saw"), "mode must be"),
        (lambda: OneCycleLR(0.1, pct_start=1.0), "pct_start must lie between 0 and 1"),
        (lambda: OneCycleLR(0.1, anneal_strategy="cubic"), "anneal_strategy must be"),
        (lambda: OneCycleLR(float("nan")), "max_lr must be finite and above 0"),
        (lambda: ReduceLROnPlateau(factor=1.0), "factor must lie between 0 and 1"),
        (lambda: ReduceLROnPlateau(mode="up"), "mode must be"),
        (lambda: ReduceLROnPlateau(threshold_mode="x"), "threshold_mode must be"),
        (lambda: ReduceLROnPlateau(patience=-1), "patience must be an integer >= 0"),
        (lambda: LinearWarmup(3, 0), r"start_factor must lie in \(0, 1\]"),
        (lambda: LinearWarmup(3, then=StepLR(3)), 'counts by batch, but `then` by epoch; pass by="epoch"'),
        (lambda: LinearWarmup(3, then=ReduceLROnPlateau(), by="epoch"), "depend on a count alone; ReduceLROnPlateau"),
        (lambda: LinearWarmup(3, then=OneCycleLR(0.1)), "depend on a count alone; OneCycleLR"),
    ],
)
def test_arguments_are_checked(make, text) -> None:
    with pytest.raises(ValueError, match=text):
        make()


def test_a_schedule_that_has_not_begun_says_so() -> None:
    with pytest.raises(ValueError, match="StepLR has not begun"):
        StepLR(3).current()
