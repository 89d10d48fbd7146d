import copy
import gc
import threading
import time

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from blockkit import ledger
from blockkit.blockwise.blocks import apply_blockwise
from blockkit.blockwise.memory import measure_peak, predict_peak


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, grad):
        (x,) = ctx.saved_tensors
        return 2 * x * grad


class Workbench:
    """Networks, tensors and optimizers that functions reach without being handed them."""

    def __init__(self, shape=(12, 9, 7)):
        torch.manual_seed(0)
        self.x, self.leaf = torch.randn(1, 2, *shape), torch.randn(1, 2, *shape, requires_grad=True)
        self.wave = torch.randn(shape, dtype=torch.complex64)
        self.net = nn.Sequential(
            nn.Conv3d(2, 8, 3, padding=1), nn.ReLU(), nn.Conv3d(8, 8, 3, padding=1), nn.SiLU(), nn.Conv3d(8, 2, 1)
        )
        self.mixed = nn.Sequential(
            nn.Conv3d(2, 4, (3, 1, 5), padding="same"), nn.BatchNorm3d(4), nn.MaxPool3d(2, ceil_mode=True),
            nn.Upsample(scale_factor=2, mode="trilinear"), nn.GroupNorm(2, 4), nn.Dropout(0.3),
            nn.ConvTranspose3d(4, 2, 2, stride=2),
        )  # fmt: skip
        self.linear = nn.Linear(300, 300)
        self.adam = torch.optim.Adam(self.linear.parameters())
        self.foreach = torch.optim.AdamW(self.linear.parameters(), foreach=True)
        self.sgd = torch.optim.SGD(self.linear.parameters(), lr=0.1, momentum=0.9)
        self.schedule = torch.optim.lr_scheduler.StepLR(self.sgd, 1)

    def nothing(self):
        pass

    def forward(self):
        return self.net(self.x)

    def forward_without_graph(self):
        with torch.no_grad():
            return self.net(self.x)

    def train(self):
        self.net(self.x).square().mean().backward()

    def train_again(self):
        self.net.zero_grad()
        self.net(self.leaf).square().mean().backward()

    def accumulate(self):
        for _ in range(2):
            self.net(self.x).square().mean().backward()

    def train_mixed(self):
        self.mixed(self.x).sum().backward()

    def checkpointed(self):
        h = self.leaf
        for layer in self.net:
            h = checkpoint(layer, h, use_reentrant=False)
        h.square().mean().backward()

    def checkpointed_reentrant(self):
        h = self.leaf
        for layer in self.net:
            h = checkpoint(layer, h, use_reentrant=True)
        h.square().mean().backward()

    def blocks_by_hand(self):
        h = torch.zeros_like(self.x)
        for z in range(0, self.x.shape[2], 5):
            h[:, :, z : z + 5] = checkpoint(self.net, self.leaf[:, :, z : z + 5], use_reentrant=False)
        h.square().sum().backward()

    def custom_function(self):
        Square.apply(self.leaf).sum().backward()

    def double_backward(self):
        y = self.net(self.leaf).square().sum()
        (grad,) = torch.autograd.grad(y, self.leaf, create_graph=True)
        grad.square().sum().backward()

    def optimize(self, optimizer):
        optimizer.zero_grad()
        self.linear(torch.ones(3, 300)).square().mean().backward()
        optimizer.step()

    def adam_step(self):
        self.optimize(self.adam)

    def foreach_step(self):
        self.optimize(self.foreach)

    def scheduled_step(self):
        self.optimize(self.sgd)
        self.schedule.step()

    def views(self):
        y = self.x[:, :1].transpose(2, 4)
        return y.reshape(-1) + self.x[:, 1:].view(-1)

    def in_place(self):
        y = self.x.clone()
        y.mul_(2).relu_()
        y[0, 0] += 1
        return y

    def resize(self):
        y = torch.empty(10)
        y.resize_(1000)
        y.resize_(20)
        return torch.zeros(100)

    def out_argument(self):
        y = torch.empty(0)
        torch.add(self.x, 1, out=y)
        return y + 1

    def fourier(self):
        k = torch.fft.fftn(self.wave, dim=(0, 1, 2), norm="ortho")
        power = torch.view_as_real(k * k.conj())
        return torch.fft.ifftn(k, s=(24, 18, 14)).abs(), power, torch.fft.irfftn(self.x[0, 0], s=(9, 9, 9))

    def complex_training(self):
        wave = self.wave.clone().requires_grad_()
        (torch.fft.fftn(wave).abs() ** 2).sum().backward()

    def constants(self):
        a = torch.tensor([1.0, 2.0, 3.0]) * torch.tensor(2.0)
        return a, torch.arange(10) * 2, torch.where(self.x > 0, self.x, 0.0)

    def attention(self):
        tokens = self.x.flatten(2).transpose(1, 2)
        return F.scaled_dot_product_attention(tokens, tokens, tokens)

    def outside(self):
        a = torch.zeros(100)
        with ledger.outside_torch(5000):
            b = torch.zeros(50)
        return a, b, torch.zeros(1000)

    def nested(self):
        with measure_peak():
            self.train()

    def blockwise(self):
        apply_blockwise(self.net, self.leaf[0], (5, 4, 7)).square().sum().backward()

    def blockwise_kept(self):
        apply_blockwise(self.net, self.x[0], 6, recompute=False).square().sum().backward()


JOBS = [name for name in vars(Workbench) if not name.startswith("_") and name != "optimize"]


OTHER_SHAPES = [("train", (1, 30, 5)), ("train_mixed", (4, 16, 11)), ("blockwise", (5, 16, 1)), ("fourier", (1, 8, 3))]


@pytest.mark.parametrize(("job", "shape"), [*((job, (12, 9, 7)) for job in JOBS), *OTHER_SHAPES], ids=str)
def test_the_prediction_is_the_count_to_the_byte(job, shape):
    function = getattr(Workbench(shape), job)
    predicted = predict_peak(function)
    with measure_peak() as peak:
        function()
    assert predicted == peak.bytes


@pytest.mark.parametrize("job", ["adam_step", "foreach_step", "scheduled_step", "accumulate", "train_mixed"])
def test_the_prediction_of_the_second_step_is_the_count_too(job):
    function = getattr(Workbench(), job)
    function()
    predicted = predict_peak(function)
    with measure_peak() as peak:
        function()
    assert predicted == peak.bytes


def test_a_view_of_one_number_is_no_new_number():
    one = nn.Parameter(torch.ones(1))

    def read():
        kept = [one.detach() for _ in range(3)] + [one.detach().view(1, 1).expand(5, 5), torch.zeros(4)]
        return float(kept[0]) + float(kept[3][0, 0])

    assert predict_peak(read) == 16
    network = nn.Conv3d(2, 1, 3, padding=1)  # its bias is one number
    assert predict_peak(blockwise_step, network) == counted(blockwise_step, network)


def blockwise_step(network):
    apply_blockwise(network, torch.zeros(2, 6, 6, 6), 3).sum().backward()


def counted(function, *args):
    with measure_peak() as peak:
        function(*args)
    return peak.bytes


def test_the_first_adam_step_takes_two_moments_more_than_the_second():
    bench = Workbench()
    first = predict_peak(bench.adam_step)
    bench.adam_step()
    n_weights = sum(p.numel() for p in bench.linear.parameters())
    assert first - predict_peak(bench.adam_step) >= 2 * 4 * n_weights


def test_the_count_is_what_arithmetic_says():
    x = torch.zeros(1000)
    with measure_peak() as peak:
        a = x + 1
        b = a.double()
        del a
        c = b[:500] * 2
    assert peak.bytes == 4000 + 8000 + 0
    assert c.shape == (500,)


def test_what_was_created_counts_on_when_it_is_gone_and_views_do_not():
    x = torch.zeros(250)
    with measure_peak() as peak:
        for _ in range(5):
            y = x + 1
            y[:100].mul_(2)
            del y
    assert (peak.bytes, peak.created_bytes) == (1000, 5000)


def test_what_a_convolution_keeps_for_backward_is_what_arithmetic_says():
    layer, x = nn.Conv3d(1, 4, 3, padding=1), torch.zeros(1, 1, 6, 5, 4)
    with measure_peak() as peak:
        y = layer(x).sigmoid()
        y.backward(torch.zeros(1).expand_as(y))
    sigmoid, gradient, weights = 4 * 120 * 4, 4 * 120 * 4, (4 * 27 + 4) * 4
    assert peak.bytes == 4 + sigmoid + gradient + weights


def test_what_was_there_before_counts_nothing_also_when_viewed():
    x = torch.zeros(10, 10)
    with measure_peak() as peak:
        views = x.t(), x.view(-1)[5:], x[None].expand(5, 10, 10), x.detach(), torch.view_as_complex(x.view(50, 2))
    assert peak.bytes == 0
    assert len(views) == 5
    assert predict_peak(lambda: (x.t(), x.view(-1)[5:], x.detach())) == 0


def test_what_was_there_before_counts_nothing_when_it_dies_inside():
    x = [torch.zeros(1000)]
    with measure_peak() as peak:
        x.pop()
        y = torch.zeros(10)
    assert peak.bytes == 40
    assert y.shape == (10,)


def test_growing_an_old_tensor_counts_what_it_grew_by():
    x = torch.zeros(100)
    with measure_peak() as peak:
        x.resize_(300)
    assert peak.bytes == 800


def test_a_tensor_that_outlives_the_block_does_no_harm():
    with measure_peak() as first:
        x = torch.zeros(100)
    with measure_peak() as second:
        del x
        y = torch.zeros(10)
    assert (first.bytes, second.bytes) == (400, 40)
    assert y.shape == (10,)


def test_nested_blocks_both_count():
    with measure_peak() as outer:
        x = torch.zeros(100)
        with measure_peak() as inner:
            y = x + 1
    assert (outer.bytes, inner.bytes) == (800, 400)
    assert y.shape == (100,)


def test_the_ledger_counts_in_both():
    def function():
        x = torch.zeros(10)
        with ledger.outside_torch(1000):
            pass
        return x

    with measure_peak() as peak:
        function()
    assert peak.bytes == predict_peak(function) == 1040


def measure_until_it_breaks(peaks):
    with measure_peak() as peak:
        peaks.append(peak)
        torch.zeros(5)
        raise ZeroDivisionError


def test_after_an_exception_nothing_is_counted_or_faked_any_more():
    bench = Workbench()

    def broken():
        bench.adam_step()
        raise ZeroDivisionError

    peaks = []
    with pytest.raises(ZeroDivisionError):
        measure_until_it_breaks(peaks)
    torch.zeros(50)
    with ledger.outside_torch(10**6):
        pass
    assert peaks[0].bytes == 20
    with pytest.raises(ZeroDivisionError):
        predict_peak(broken)
    assert type(torch.zeros(1)) is torch.Tensor
    assert not bench.adam.state
    assert all(p.grad is None for p in bench.linear.parameters())


def test_the_resident_memory_shows_a_large_tensor():
    n_threads = threading.active_count()
    with measure_peak() as peak:
        large = torch.ones(2**24)
        time.sleep(0.3)  # on a busy machine the thread that samples comes late
        del large  # so that the samples alone show it
    assert peak.bytes == 2**26
    assert peak.resident_bytes is None or 0.9 * 2**26 < peak.resident_bytes < 3 * 2**26
    assert threading.active_count() == n_threads


def test_a_prediction_allocates_nothing():
    with measure_peak() as peak:
        predicted = predict_peak(lambda: torch.zeros(1000, 1000, 1000, dtype=torch.complex64) + 1)
    assert predicted == 16 * 10**9
    assert peak.bytes == 0
    assert peak.resident_bytes is None or peak.resident_bytes < 10**9


def test_cuda_bytes_are_none_without_cuda():
    with measure_peak() as peak:
        torch.zeros(10)
    assert (peak.cuda_bytes is None) == (not torch.cuda.is_available())


@pytest.mark.cuda
def test_the_count_on_cuda_is_what_the_allocator_gives_out():
    x = torch.zeros(2**20, device="cuda", requires_grad=True)
    function = lambda: (x * 2).sin().sum().backward()  # noqa: E731
    predicted = predict_peak(function)
    with measure_peak() as peak:
        function()
    assert predicted == peak.bytes
    assert peak.bytes <= peak.cuda_bytes <= peak.bytes + 2**21


def snapshot(bench):
    return {
        "parameters": copy.deepcopy({**bench.net.state_dict(), **bench.mixed.state_dict()}),
        "grads": [p.grad for p in (*bench.net.parameters(), *bench.linear.parameters(), bench.leaf)],
        "versions": [p._version for p in (*bench.net.parameters(), *bench.linear.parameters(), bench.leaf)],
        "optimizers": [copy.deepcopy(o.state_dict()) for o in (bench.adam, bench.foreach, bench.sgd)],
        "schedule": bench.schedule.state_dict(),
        "flags": [m.training for m in (*bench.net, *bench.mixed)],
        "random": torch.get_rng_state(),
    }


def assert_same(a, b):
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        assert_same(list(a.values()), list(b.values()))
    elif isinstance(a, list):
        assert len(a) == len(b)
        for one, other in zip(a, b, strict=True):
            assert_same(one, other)
    else:
        assert a == b


def test_a_prediction_leaves_everything_as_it_was():
    bench = Workbench()

    def everything():
        torch.manual_seed(7)
        bench.mixed.eval()
        bench.train_mixed()
        bench.train_again()
        bench.accumulate()
        bench.adam_step()
        bench.foreach_step()
        bench.scheduled_step()
        bench.net[0].weight.requires_grad_(False)
        with torch.no_grad():
            bench.net[0].weight.add_(1)
        bench.net[0].cache = torch.zeros(3)
        bench.mixed[1].running_mean = torch.zeros(4)
        bench.net.append(nn.ReLU())

    for _ in range(2):
        before = snapshot(bench)
        predict_peak(everything)
        assert_same(snapshot(bench), before)
        assert all(a is b for a, b in zip(snapshot(bench)["grads"], before["grads"], strict=True))
        assert not hasattr(bench.net[0], "cache")
        assert len(bench.net) == 5
        assert bench.net[0].weight.requires_grad
        bench.scheduled_step()
        bench.adam_step()
        bench.train_again()


def test_training_goes_on_as_if_nothing_had_been_predicted():
    def trained(predict):
        bench = Workbench()
        for _ in range(3):
            if predict:
                predict_peak(bench.adam_step)
                predict_peak(bench.train_mixed)
            bench.adam_step()
            bench.train_mixed()
        return {**bench.linear.state_dict(), **bench.mixed.state_dict()}

    assert_same(trained(True), trained(False))


def test_a_graph_from_before_can_be_differentiated_after():
    bench = Workbench()
    loss = bench.linear(torch.ones(3, 300)).square().sum()
    predict_peak(bench.adam_step)
    loss.backward()
    assert all(torch.isfinite(p.grad).all() for p in bench.linear.parameters())


def test_no_fake_tensor_stays_alive():
    bench = Workbench()
    predict_peak(bench.train)
    predict_peak(bench.adam_step)
    gc.collect()
    assert not [v for v in gc.get_objects() if type(v).__name__ == "FakeTensor"]


def test_arguments_count_nothing_and_may_ask_for_gradients():
    bench = Workbench()
    predicted = predict_peak(lambda x, net: net(x).sum().backward(), bench.leaf, bench.net)
    with measure_peak() as peak:
        bench.net(bench.leaf).sum().backward()
    assert predicted == peak.bytes
    assert predict_peak(lambda x: x.view(-1), bench.x) == 0


def test_numbers_that_are_known_beforehand_may_be_read():
    bound, table = torch.tensor(3.0), torch.arange(5.0)
    function = lambda: torch.zeros(10) / float(bound) * table.numpy().sum() + table.tolist()[1]  # noqa: E731
    assert predict_peak(function) > 0


@pytest.mark.parametrize(
    "read",
    [
        lambda x: x.sum().item(),
        lambda x: float(x.mean()),
        lambda x: 1 if (x > 0).any() else 2,
        lambda x: x[x > 0],
        lambda x: (x + 1).numpy(),
        lambda x: (x + 1).tolist(),
    ],
    ids=["item", "float", "bool", "index", "numpy", "tolist"],
)
def test_asking_for_a_number_that_nobody_computed_is_refused_with_the_line(read):
    with pytest.raises(ValueError, match=r"(?s)\.item\(\).*test_memory\.py, line \d+.*beforehand"):
        predict_peak(read, torch.ones(3, 4))


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.weight, "data", torch.zeros(2, 2, 3, 3, 3)),
        lambda layer: layer.double(),
        lambda layer: nn.utils.vector_to_parameters(torch.zeros(110), layer.parameters()),
    ],
    ids=["data", "double", "vector"],
)
def test_parameters_that_were_given_other_data_get_their_own_back(change):
    layer = nn.Conv3d(2, 2, 3)
    layer.weight.grad = torch.ones_like(layer.weight)
    before, place = layer.weight.detach().clone(), layer.weight.data_ptr()
    predict_peak(lambda: change(layer))
    assert torch.equal(layer.weight, before)
    assert (layer.weight.dtype, layer.weight.data_ptr()) == (torch.float32, place)
    assert torch.equal(layer.weight.grad, torch.ones_like(before))


def test_a_network_made_inside_can_run_block_by_block():
    def step():
        layer = nn.Conv3d(1, 1, 3, padding=1)
        apply_blockwise(layer, torch.zeros(1, 8, 8, 8), 4).sum().backward()

    assert predict_peak(step) > 0


def test_bytes_are_booked_under_the_part_they_are_taken_for():
    with measure_peak() as peak, ledger.part("a"):
        x = torch.zeros(100)
        with ledger.part("b"):
            y = x + 1
            with ledger.outside_torch(1000):
                pass
        del x
        z = torch.zeros(10)
    assert peak.parts == {"a": 400, "b": 1400}
    assert peak.bytes == 1800
    del y, z
    with measure_peak() as peak:
        x = torch.zeros(100)
        del x
        with ledger.part("late"):
            torch.zeros(200)
    assert peak.parts == {"late": 800}


@pytest.mark.parametrize("n_rounds", [1, 2, 3, 4, 50])
def test_a_few_rounds_stand_for_all_only_when_nothing_is_computed(n_rounds):
    seen = []

    def rounds(tensor):
        seen.append(list(ledger.few_for_all(range(n_rounds), tensor)))

    rounds(torch.zeros(3))
    predict_peak(lambda: rounds(torch.zeros(3)))
    assert seen[0] == list(range(n_rounds))
    assert seen[1] == (list(range(n_rounds)) if n_rounds <= 3 else [0, 1, n_rounds - 1])


def test_a_lazy_module_somewhere_else_is_no_hindrance():
    waiting = nn.LazyConv3d(3, 3)
    assert predict_peak(lambda: torch.zeros(1000) + 1) == 8000
    assert isinstance(waiting.weight, nn.UninitializedParameter)


def test_an_autocast_around_it_does_not_go_on_with_the_trials_weights():
    network, x = nn.Conv3d(2, 2, 3), torch.zeros(1, 2, 6, 6, 6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        network(x)
        assert predict_peak(lambda: network(x)) > 0
        assert not isinstance(network(x), FakeTensor)
