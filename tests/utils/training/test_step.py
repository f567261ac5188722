"""The training step in one process: accumulation, clipping, averages, and what a NaN may touch."""

import copy
import io

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from configs.schema import OptimizerOptions, PretrainConfig
from models.mfm import MaskedFrequencyModelling, network_from_config
from tests.support.launch import ROOT
from utils.config import parse_command_line
from utils.distributed import World
from utils.training.average import AverageRule
from utils.training.optimizer import OPTIMIZERS, make_optimizer
from utils.training.step import OVERFLOWS_IN_A_ROW, TrainingState, changed_by, training_step

BETAS, DECAY = (0.9, 0.95), 0.05
FLOATS = [torch.float64, torch.float32]
CPU = World(0, 1, 1, torch.device("cpu"))


def tiny_model(seed=0, dtype=torch.float64):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).to(dtype)


def adamw(model, decay_on="all", betas=BETAS, weight_decay=DECAY):
    options = OptimizerOptions(learning_rate=1e-3, betas=betas, weight_decay=weight_decay, weight_decay_on=decay_on)
    return make_optimizer(model, options)


def make_state(
    model=None, precision=torch.float32, decay_on="all", scale=256.0, optimizer=adamw, ema_decay=None, **options
):
    """`precision` is autocast's; in float32 there is none, so a float64 model stays one. `scale`: float16's."""
    model = model or tiny_model(dtype=torch.float32)
    optimizer = adamw(model, decay_on) if optimizer is adamw else optimizer(model)
    rule = None if ema_decay is None else AverageRule(ema_decay)
    state = TrainingState(model, optimizer, CPU, precision, average_rule=rule, **options)
    if precision == torch.float16:
        state.scaler.load_state_dict(state.scaler.state_dict() | {"scale": scale})
    return state


def micro_batches(step, count=3, size=5, dtype=torch.float64):
    generator = torch.Generator().manual_seed(100 + step)
    scale = 1 + 3 * (step % 3)  # gradients of unlike norms
    draw = [torch.randn(count, size, width, generator=generator, dtype=torch.float64) * scale for width in (4, 3)]
    return [(x.to(dtype), y.to(dtype)) for x, y in zip(*draw, strict=True)]


def squared_error(model, x, y):
    return F.mse_loss(model(x).to(y.dtype), y), {}


def take(state, steps, count=3, dtype=torch.float64, rate=lambda step: 0.01 / (step + 1), how=squared_error):
    return [training_step(state, step, rate(step), micro_batches(step, count, dtype=dtype), how) for step in steps]


def tensors(state):
    """Copies of every tensor that a checkpoint would hold, by name."""
    found = {f"model.{name}": tensor for name, tensor in state.model.state_dict().items()}
    for number, moments in state.optimizer.state_dict()["state"].items():
        found |= {f"optimizer.{number}.{name}": torch.as_tensor(value) for name, value in moments.items()}
    if state.average:
        found |= {f"ema.{name}": tensor for name, tensor in state.average.state_dict().items()}
    return {name: tensor.clone() for name, tensor in found.items()}


def assert_identical(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


# The update.


def plain_loop(model, steps, count, clip, rate):
    """The same training in plain torch: one loss, the mean over the micro-batches, and one clipping a step."""
    optimizer = torch.optim.AdamW(model.parameters(), betas=BETAS, weight_decay=DECAY, foreach=False)
    norms = []
    for step in steps:
        optimizer.param_groups[0]["lr"] = rate(step)
        optimizer.zero_grad()
        losses = [F.mse_loss(model(x), y) for x, y in micro_batches(step, count)]
        (sum(losses) / count).backward()
        gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
        norms.append(gradient.norm())
        if clip and norms[-1] > clip:
            for parameter in model.parameters():
                parameter.grad *= clip / (norms[-1] + 1e-6)  # as torch does
        optimizer.step()
    return optimizer, norms


@pytest.mark.parametrize("clip", [None, 0.5, 3.0])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_micro_batches_make_the_update_of_their_mean_loss(count, clip):
    """Also clipping: once a step, by the norm of the whole gradient."""
    ours, theirs = tiny_model(), tiny_model()
    state = make_state(ours, clip_grad_norm=clip)
    metrics = take(state, range(5), count)
    optimizer, norms = plain_loop(theirs, range(5), count, clip, lambda step: 0.01 / (step + 1))
    for name, tensor in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], tensor, rtol=1e-8, atol=1e-9)
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        for moment in ("exp_avg", "exp_avg_sq"):
            mine_now, other_now = state.optimizer.state[mine][moment], optimizer.state[other][moment]
            torch.testing.assert_close(mine_now, other_now, rtol=1e-8, atol=1e-9)
    for metric, norm in zip(metrics, norms, strict=True):
        torch.testing.assert_close(metric["grad_norm"][0], norm.detach(), rtol=1e-8, atol=0)
    assert min(norms) < 3 < max(norms)


def test_the_learning_rate_of_the_step_is_used_in_every_group():
    model = tiny_model()
    state = make_state(model, decay_on="matrices")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    take(state, [0], rate=lambda step: 0.0)
    assert all(torch.equal(parameter, before[name]) for name, parameter in model.named_parameters())
    take(state, [1], rate=lambda step: 0.25)
    assert [group["lr"] for group in state.optimizer.param_groups] == [0.25, 0.25]
    moved = {name for name, parameter in model.named_parameters() if (parameter - before[name]).abs().max() > 0.05}
    assert moved == before.keys() - {"0.bias"}  # BatchNorm takes its gradient away


def test_metrics_are_sums_and_counts_over_micro_batches():
    def counted(model, x, y):
        loss, _ = squared_error(model, x, y)
        return loss, {"first": (x[:, 0].sum(), torch.tensor(len(x)))}

    state = make_state(tiny_model())
    state.model.eval()  # a loss that no other micro-batch changes
    batches = micro_batches(0, count=4)
    expected = [F.mse_loss(state.model(x), y).item() for x, y in batches]
    metrics = training_step(state, 0, 0.1, batches, counted)
    assert {name: count.item() for name, (_, count) in metrics.items()} == {"loss": 4, "first": 20, "grad_norm": 1}
    assert metrics["loss"][0].item() == pytest.approx(sum(expected))
    assert metrics["first"][0].item() == pytest.approx(sum(x[:, 0].sum().item() for x, _ in batches))
    assert not metrics["loss"][0].requires_grad


def test_the_loss_is_given_every_micro_batch_in_order():
    seen = []

    def note(model, x, y):
        seen.append(x)
        return squared_error(model, x, y)

    batches = micro_batches(7)
    training_step(make_state(tiny_model()), 7, 0.1, batches, note)
    assert all(x is batch[0] for x, batch in zip(seen, batches, strict=True))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_the_closure_runs_in_the_precision_asked_for(precision):
    seen = []

    def note(model, x, y):
        seen.append(model(x).dtype)
        return F.mse_loss(model(x).float(), y), {}

    state = make_state(precision=precision)
    take(state, [0], dtype=torch.float32, how=note)
    assert set(seen) == {precision}
    assert {parameter.dtype for parameter in state.model.parameters()} == {torch.float32}


# Numbers that are not finite.


def nan_input(model, x, y):
    return squared_error(model, x * float("nan"), y)


def infinite_input(model, x, y):
    return squared_error(model, x * float("inf"), y)


def infinite_loss_with_finite_gradient(model, x, y):
    loss, metrics = squared_error(model, x, y)
    return loss + float("inf"), metrics


def nan_loss_with_finite_gradient(model, x, y):
    loss, metrics = squared_error(model, x, y)
    return loss + float("nan"), metrics


def finite_loss_with_infinite_gradient(model, x, y):
    loss, metrics = squared_error(model, x, y)
    steep = model[0].weight.float() * 1e25
    return loss + ((steep - steep.detach()) * 1e25).sum(), metrics


FAULTS = pytest.mark.parametrize(
    "fault",
    [
        nan_input, infinite_input, infinite_loss_with_finite_gradient, nan_loss_with_finite_gradient,
        finite_loss_with_infinite_gradient,
    ],
)  # fmt: skip


class FaultIn:
    """A loss that is `fault`'s in one micro-batch of a step, and squared_error in the others."""

    def __init__(self, micro_step, fault):
        self.micro_step, self.fault, self.calls = micro_step, fault, 0

    def __call__(self, model, x, y):
        self.calls += 1
        loss_of = self.fault if (self.calls - 1) % 3 == self.micro_step else squared_error
        return loss_of(model, x, y)


@FAULTS
@pytest.mark.parametrize("turn", [0, 1, 2])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_bad_micro_batch_leaves_no_trace(fault, turn, dtype):
    state, untouched = (make_state(tiny_model(dtype=dtype), clip_grad_norm=3.0) for _ in range(2))
    take(state, range(2), dtype=dtype)
    take(untouched, range(2), dtype=dtype)
    before = tensors(state)
    take(state, [2], dtype=dtype, how=FaultIn(turn, fault))
    assert_identical(before, tensors(state))
    assert state.first_bad_step() == 2
    take(state, [3], dtype=dtype)
    take(untouched, [3], dtype=dtype)
    assert_identical(tensors(untouched), tensors(state))


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_the_first_of_several_bad_steps_is_named(precision):
    state = make_state(precision=precision)
    take(state, range(3), dtype=torch.float32)
    assert state.first_bad_step() is None
    take(state, range(3, 7), dtype=torch.float32, how=FaultIn(1, nan_input))
    assert state.first_bad_step() == 3


@pytest.mark.parametrize("bad", [[1], [1, 2, 4]])
def test_a_bad_step_is_told_at_the_next_check_even_if_good_ones_follow(bad):
    state = make_state()
    for step in range(6):
        take(state, [step], dtype=torch.float32, how=nan_input if step in bad else squared_error)
    assert state.first_bad_step() == 1


# float16 and its scaler.


def bad_in_a_row(state):
    return int(state.bad_steps.in_a_row)


def bad_in_all(state):
    return int(state.bad_steps.total)


@FAULTS
def test_a_float16_overflow_is_skipped_and_counted(fault):
    state, untouched = (make_state(precision=torch.float16) for _ in range(2))
    for one in (state, untouched):
        take(one, range(2), dtype=torch.float32)
    before, scale = tensors(state), state.scaler.get_scale()
    take(state, [2], dtype=torch.float32, how=FaultIn(1, fault))
    assert_identical(before, tensors(state))
    assert state.scaler.get_scale() == scale / 2
    assert (bad_in_a_row(state), bad_in_all(state)) == (1, 1)
    assert state.first_bad_step() is None
    take(state, [3], dtype=torch.float32)
    assert (bad_in_a_row(state), bad_in_all(state)) == (0, 1)


def test_a_real_float16_overflow_is_met_by_a_lower_scale():
    """Gradients times 65536 do not fit into float16; after a few halvings they do."""

    def large(model, x, y):
        return 50 * F.mse_loss(model(x).float(), y), {}

    state = make_state(precision=torch.float16, scale=65536.0)
    before = tensors(state)
    take(state, range(12), dtype=torch.float32, how=large)
    overflows = bad_in_all(state)
    assert 0 < overflows < 12 and bad_in_a_row(state) == 0
    assert state.scaler.get_scale() == 65536 / 2**overflows
    assert not torch.equal(before["model.0.weight"], state.model[0].weight)
    assert {int(moments["step"]) for moments in state.optimizer.state.values()} == {12 - overflows}


def test_float16_overflows_in_a_row_are_fatal_at_last():
    state = make_state(precision=torch.float16)
    take(state, range(3), dtype=torch.float32)
    take(state, range(3, 3 + OVERFLOWS_IN_A_ROW), dtype=torch.float32, how=nan_input)
    assert state.first_bad_step() is None
    take(state, [23], dtype=torch.float32, how=nan_input)
    assert OVERFLOWS_IN_A_ROW == 20
    assert state.first_bad_step() == 3


def test_a_good_step_between_float16_overflows_starts_the_count_anew():
    state = make_state(precision=torch.float16)
    for first in (0, 16):
        take(state, range(first, first + 15), dtype=torch.float32, how=nan_input)
        assert state.first_bad_step() is None
        assert (bad_in_a_row(state), bad_in_all(state)) == (15, 15 if first == 0 else 30)
        take(state, [first + 15], dtype=torch.float32)
    assert bad_in_a_row(state) == 0


def test_float16_gradients_are_unscaled_before_they_are_clipped():
    half, single = make_state(precision=torch.float16, clip_grad_norm=0.5), make_state(clip_grad_norm=0.5)
    for state in (half, single):
        (metrics,) = take(state, [0], dtype=torch.float32)
        assert metrics["grad_norm"][0] > 0.5
    for one, other in zip(half.model.parameters(), single.model.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=0.05, atol=1e-3)
    assert sum(parameter.grad.square().sum() for parameter in half.model.parameters()) == pytest.approx(0.25, rel=1e-4)


# The average.


def test_average_is_the_hand_rolled_one_and_copies_buffers():
    state = make_state(tiny_model(), ema_decay=0.8)
    expected = None
    for step in range(4):
        take(state, [step])
        now = {name: parameter.detach().clone() for name, parameter in state.model.named_parameters()}
        # The first step's weights start the average, not the initial ones.
        expected = {name: 0.8 * expected[name] + 0.2 * now[name] for name in now} if expected else now
        average = state.average.module
        for name, parameter in average.named_parameters():
            torch.testing.assert_close(parameter.detach(), expected[name], rtol=1e-12, atol=1e-15)
        for one, other in zip(average.buffers(), state.model.buffers(), strict=True):
            assert torch.equal(one, other)
    assert not torch.equal(average[0].weight, state.model[0].weight)


def test_no_average_unless_asked_for():
    state = make_state()
    assert state.average is None
    assert state.state_dict()["ema"] is None


@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_a_bad_step_leaves_the_average_alone(precision):
    state = make_state(precision=precision, ema_decay=0.5)
    take(state, range(2), dtype=torch.float32)
    before = tensors(state)
    take(state, [2], dtype=torch.float32, how=nan_input)
    after = tensors(state)
    assert_identical(before, after | {"ema.n_averaged": before["ema.n_averaged"]})


def test_the_first_good_step_starts_the_average():
    """float16's first steps often overflow, until the scale is low enough."""
    state = make_state(precision=torch.float16, ema_decay=0.999)
    take(state, [0], dtype=torch.float32, how=nan_input)
    take(state, [1], dtype=torch.float32)
    for average, now in zip(state.average.module.parameters(), state.model.parameters(), strict=True):
        torch.testing.assert_close(average, now)


# Saving and loading.


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("ema_decay", [None, 0.9])
@pytest.mark.parametrize("decay_on", ["all", "matrices"])
def test_a_saved_state_goes_on_bit_identically(precision, ema_decay, decay_on):
    def fresh(seed):
        model = tiny_model(seed, torch.float32)
        return make_state(model, precision, decay_on, clip_grad_norm=1.0, ema_decay=ema_decay)

    state, resumed = fresh(0), fresh(1)
    take(state, range(3), dtype=torch.float32)
    if precision == torch.float16:
        take(state, [3], dtype=torch.float32, how=finite_loss_with_infinite_gradient)  # halves the scale
    file = io.BytesIO()
    torch.save(state.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    assert_identical(tensors(state), tensors(resumed))
    for one in (state, resumed):
        take(one, range(4, 8), dtype=torch.float32)
    assert_identical(tensors(state), tensors(resumed))
    assert state.scaler.state_dict() == resumed.scaler.state_dict()


def test_a_saved_state_shares_no_memory_with_a_copy():
    state = make_state(ema_decay=0.9)
    take(state, [0], dtype=torch.float32)
    saved = copy.deepcopy(state.state_dict())
    before = tensors(state)
    take(state, [1], dtype=torch.float32)
    state.load_state_dict(saved)
    assert_identical(before, tensors(state))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_moments_follow_the_memory_layout_of_their_weights(layout):
    """A fused update walks through memory: moments in another layout would meet the wrong weights."""

    def fresh(memory_format):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).to(memory_format=memory_format)
        return make_state(model)

    def go_on(state, steps):
        for step in steps:
            draw = torch.Generator().manual_seed(step)
            batch = torch.randn(5, 3, 4, 4, generator=draw), torch.randn(5, 2, generator=draw)
            training_step(state, step, 0.01, [batch], squared_error)

    state, resumed = fresh(torch.contiguous_format), fresh(layout)
    go_on(state, range(3))
    resumed.load_state_dict(copy.deepcopy(state.state_dict()))
    for one in (state, resumed):
        go_on(one, range(3, 6))
    for one, other in zip(state.model.parameters(), resumed.model.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_a_changed_recipe_stays_changed_on_resuming():
    """As after --allow-config-change: the moments are the checkpoint's, the settings this run's."""
    state = make_state()
    take(state, [0], dtype=torch.float32)
    resumed = TrainingState(
        model := tiny_model(dtype=torch.float32), adamw(model, betas=(0.8, 0.9), weight_decay=0.3), CPU, torch.float32
    )  # fmt: skip
    resumed.load_state_dict(state.state_dict())
    (group,) = resumed.optimizer.param_groups
    assert (group["betas"], group["weight_decay"]) == ((0.8, 0.9), 0.3)


@pytest.mark.parametrize("before", [torch.float32, torch.bfloat16])
def test_a_run_may_go_on_in_float16(before):
    """`precision: auto` on another GPU: bfloat16 on an A100, float16 on a V100, and the config is the same."""
    state, resumed = make_state(precision=before), make_state(precision=torch.float16)
    take(state, [0], dtype=torch.float32)
    resumed.load_state_dict(state.state_dict())
    take(resumed, [1], dtype=torch.float32)
    assert resumed.first_bad_step() is None


def test_finite_gradients_whose_norm_overflows_leave_no_trace_in_float16():
    """The scaler itself sees nothing wrong with them."""
    state = make_state(precision=torch.float16)
    take(state, range(2), dtype=torch.float32)
    before = tensors(state)

    def steep(model, x, y):
        return sum((parameter * 1e22).sum() for parameter in model.parameters()), {}

    take(state, [2], dtype=torch.float32, how=steep)
    assert all(parameter.grad.isfinite().all() for parameter in state.model.parameters())  # as announced
    assert_identical(before, tensors(state))


class Reads(TorchDispatchMode):
    """Notes every operation that hands a value of a tensor to Python, for which a GPU would be waited for."""

    def __init__(self):
        super().__init__()
        self.noted = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        if operation._schema.name in ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::is_nonzero"):
            self.noted.append(operation._schema.name)
        return operation(*args, **kwargs or {})


@pytest.mark.process
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_no_step_waits_for_the_device(precision, monkeypatch):
    """The pretraining step, filter and loss included, and what comes after it; reading `bad_steps` does wait."""
    words = ["--config", str(ROOT / "configs/sample_pretrain.yaml"), "model.name=resnet18", "data.train_crop_size=32"]
    config = parse_command_line(PretrainConfig, words, "")
    state = make_state(network_from_config(config), precision, clip_grad_norm=3.0, ema_decay=0.9)
    task = MaskedFrequencyModelling.from_config(config, torch.device("cpu"))
    keep_low = torch.tensor([True, False])
    batches = [(torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8), keep_low) for _ in range(2)]
    with Reads() as reads:
        for name in ("tolist", "numpy", "cpu"):  # of a CPU's tensor these read memory without an operation
            monkeypatch.setattr(torch.Tensor, name, lambda tensor, name=name: reads.noted.append(name) or [0, 0])
        for step in range(2):
            training_step(state, step, 0.1, batches, task.loss)
        assert reads.noted == []
        state.first_bad_step()
    assert reads.noted == ["tolist"]


# Any optimizer.


def timms_lamb(model):
    return pytest.importorskip("timm.optim").Lamb(model.parameters(), lr=1e-3, weight_decay=0.02)


ANY_OPTIMIZER = {
    **{name: lambda model, name=name: make_optimizer(model, OptimizerOptions(name=name)) for name in OPTIMIZERS},
    "plain adamw": lambda model: torch.optim.AdamW(model.parameters(), foreach=False),
    "foreach adamw": lambda model: torch.optim.AdamW(model.parameters(), foreach=True),
    "fused sgd": lambda model: torch.optim.SGD(model.parameters(), momentum=0.9, fused=True),
    "nadam": lambda model: torch.optim.NAdam(model.parameters()),
    "rmsprop": lambda model: torch.optim.RMSprop(model.parameters(), momentum=0.9),
    "timm's lamb": timms_lamb,
}
EVERY_OPTIMIZER = pytest.mark.parametrize("optimizer", ANY_OPTIMIZER.values(), ids=ANY_OPTIMIZER.keys())


@EVERY_OPTIMIZER
@pytest.mark.parametrize("bad_step", [0, 2])
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
def test_a_bad_step_leaves_no_trace_whatever_the_optimizer(optimizer, bad_step, precision):
    """Nor does it in the steps after it, but for timm's LAMB, which counts steps outside of tensors."""
    state, untouched = (make_state(precision=precision, optimizer=optimizer, ema_decay=0.9) for _ in range(2))
    good_steps = range(bad_step)
    take(state, good_steps, dtype=torch.float32)
    take(untouched, good_steps, dtype=torch.float32)
    before = tensors(state)
    take(state, [bad_step], dtype=torch.float32, how=nan_input)
    after = tensors(state)
    assert_identical(before, {name: after[name] for name in before})
    assert int(state.bad_steps.total) == 1
    take(state, [bad_step + 1], dtype=torch.float32)
    take(untouched, [bad_step + 1], dtype=torch.float32)
    assert all(tensor.isfinite().all() for tensor in tensors(state).values())
    if optimizer is not timms_lamb and precision == torch.float32:
        assert_identical(tensors(untouched), tensors(state))


@EVERY_OPTIMIZER
def test_any_optimizers_state_goes_on_bit_identically(optimizer):
    state, resumed = (make_state(tiny_model(seed, torch.float32), optimizer=optimizer) for seed in (0, 1))
    take(state, range(3), dtype=torch.float32)
    resumed.load_state_dict(copy.deepcopy(state.state_dict()))
    for one in (state, resumed):
        take(one, range(3, 6), dtype=torch.float32)
    assert_identical(tensors(state), tensors(resumed))


class LateState(torch.optim.SGD):
    """SGD that makes a second moment of its own at its third update, as lookahead methods do."""

    updates = 0

    @torch.no_grad()
    def step(self):
        super().step()
        self.updates += 1
        for parameter in self.param_groups[0]["params"]:
            if self.updates >= 3:
                slow = self.state[parameter].setdefault("slow", torch.zeros_like(parameter))
                slow += parameter.grad


def test_a_moment_that_a_bad_update_makes_starts_from_zero():
    state = make_state(optimizer=lambda model: LateState(model.parameters(), momentum=0.9))
    take(state, range(2), dtype=torch.float32)
    before = tensors(state)
    take(state, [2], dtype=torch.float32, how=nan_input)
    after = tensors(state)
    assert_identical(before, {name: after[name] for name in before})
    made = [tensor for name, tensor in after.items() if name.endswith(".slow")]
    assert made and all((tensor == 0).all() for tensor in made)


def test_a_count_on_another_device_is_left_to_the_optimizer():
    """As torch's own on a GPU, whose counts of steps are on the CPU: a bad flag on the GPU cannot be read for them."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9)
    for parameter in model.parameters():
        optimizer.state[parameter] = {
            "momentum_buffer": torch.zeros_like(parameter),
            "step": torch.ones((), device="meta"),
        }
    names = {name for _, name in changed_by(optimizer)}
    assert names == {"weight", "state momentum_buffer"}


@pytest.mark.parametrize("optimizer", [lambda model: torch.optim.SGD(model.parameters()), ANY_OPTIMIZER["lamb"]])
def test_only_the_first_update_of_a_process_reads_the_flag(optimizer):
    """SGD without momentum never has any state; LAMB has three tensors of it a parameter."""
    state = make_state(optimizer=optimizer, ema_decay=0.9)
    with Reads() as reads:
        take(state, [0], dtype=torch.float32)
        assert reads.noted == ["aten::_local_scalar_dense"]
        take(state, [1, 2], dtype=torch.float32)
    assert reads.noted == ["aten::_local_scalar_dense"]


# Numbers drawn in a forward pass.


def test_dropout_resumes_exactly_and_depends_on_nothing_but_seed_step_and_micro_batch():
    def fresh(seed):
        torch.manual_seed(0)
        return make_state(nn.Sequential(nn.Linear(4, 64), nn.Dropout(0.5), nn.Linear(64, 3)), seed=seed)

    whole, first, other_seed = fresh(5), fresh(5), fresh(6)
    take(whole, range(4), dtype=torch.float32)
    take(other_seed, range(4), dtype=torch.float32)
    take(first, range(2), dtype=torch.float32)
    resumed = fresh(5)
    resumed.load_state_dict(copy.deepcopy(first.state_dict()))
    torch.rand(17)  # whatever else was drawn meanwhile
    take(resumed, range(2, 4), dtype=torch.float32)
    assert_identical(tensors(whole), tensors(resumed))
    assert not torch.equal(whole.model[0].weight, other_seed.model[0].weight)


def test_every_micro_batch_of_every_step_draws_its_own_numbers_and_gives_the_generator_back():
    drawn = []

    def note(model, x, y):
        drawn.append(torch.rand(1).item())
        return squared_error(model, x, y)

    state = make_state(tiny_model())
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    take(state, range(2), how=note)
    assert torch.equal(torch.rand(1), expected)
    assert len(set(drawn)) == 6


@pytest.mark.parametrize("rank", [0, 1])
def test_the_rank_and_number_of_ranks_decide_which_micro_batches_are_its_own(rank):
    """Two ranks draw, between them, what one rank draws for the same global batch."""

    def draws_of(world, count):
        drawn = []

        def note(model, x, y):
            drawn.append(torch.rand(1).item())
            return squared_error(model, x, y)

        state = make_state(tiny_model())
        state.world = world
        take(state, [9], count, how=note)
        return drawn

    alone = draws_of(CPU, 4)
    assert draws_of(World(rank, 2, 2, torch.device("cpu")), 2) == alone[rank::2]
