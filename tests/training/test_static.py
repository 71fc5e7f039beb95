"""Batches of static shapes: the loss and gradients of the padded ones, whatever fills the shapes up."""

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from models import bert, mobilenet, picture_setup, text_setup, vit, write_completions, write_texts, writer

from autopeft.tasks import Ragged
from autopeft.training import stack as stacks
from autopeft.training.batches import collate, collate_targets
from autopeft.training.loop import Worker
from autopeft.training.network import Network
from autopeft.training.pack import Pack
from autopeft.training.resident import Column, Room
from autopeft.training.setup import Setup
from autopeft.training.stack import Member, Stack, Update
from autopeft.trial import WEATHER, Trial
from tests.training.traces import traced

LORA = {"method": "lora", "lora.lr": 1e-2, "head.lr": 1e-2}


@pytest.fixture(scope="module")
def setup(tmp_path_factory):
    return text_setup(tmp_path_factory.mktemp("static"))


def network_of(setup, params=LORA, **options):
    worker = Worker(setup.but(layout="flat", **options))
    network = worker.network(Trial(0, params, 7))
    network.train()
    return network


def gradients(network):
    return {name: p.grad.clone() for name, p in network.model.named_parameters() if p.grad is not None}


def assert_near(found, expected, tolerance=1e-5):
    assert found.keys() == expected.keys()
    largest = max(float(gradient.abs().max()) for gradient in expected.values())
    for name, gradient in expected.items():
        assert float((found[name] - gradient).abs().max()) <= tolerance * largest, name


def padded(network, rows):
    """(loss, gradients) of a batch as the padded layout computes them."""
    network.model.zero_grad(set_to_none=True)
    is_static, network.is_static = network.is_static, False
    if network.flattening is not None:
        network.flattening.read(None)
    loss = network.backward("train", rows)
    network.is_static = is_static
    return loss, gradients(network)


def static(network, rows, size=None):
    network.model.zero_grad(set_to_none=True)
    size = size or network.size_of([rows])
    loss = network.static_loss(network.send([rows], size), size)
    loss.sum().backward()
    return float(loss.detach()), gradients(network)


@pytest.mark.parametrize("form", ["flat", "padded"])
@pytest.mark.parametrize("n_rows", [16, 3, 1])
@pytest.mark.parametrize("cache", [0, 2**30])
def test_filler_rows_and_tokens_change_neither_the_loss_nor_a_gradient(setup, form, n_rows, cache):
    """Whatever the size: that of the batch, and the largest. With a cut, too: blocks that a cache replaces."""
    params = {**LORA, "lora.layers": [1, 2]}
    worker = Worker(setup.but(layout="flat", prefix_cache_bytes=cache))
    worker.statics._form, worker.statics._is_asked = form, True
    network = worker.network(Trial(0, params, 7))
    network.train()
    assert (network.cut is not None) == bool(cache)
    rows = np.arange(20, 20 + n_rows)
    loss, expected = padded(network, rows)
    sizes = worker.statics.sizes(worker.data, "train", 16, network.micro_batch_size)
    assert network.size_of([rows]).rows == 16
    for size in (network.size_of([rows]), sizes.all[-1]):
        found, own = static(network, rows, size)
        assert found == pytest.approx(loss, rel=1e-5)
        assert_near(own, expected)


def test_a_batch_taken_in_parts_has_the_gradients_of_the_whole(setup):
    whole, parts = (network_of(setup, micro_batch_size=size) for size in (16, 5))
    rows = np.arange(16)
    assert parts.size_of([rows[:5]]).rows == 5
    losses = [network.backward("train", rows) for network in (whole, parts)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert_near(gradients(parts), gradients(whole))


@pytest.mark.parametrize("form", ["flat", "padded"])
def test_checkpointed_blocks_have_the_same_gradients(setup, form):
    """The second pass over a block, for its gradients, reads the batch of the first one."""
    worker = Worker(setup.but(layout="flat", gradient_checkpointing="on"))
    worker.statics._form, worker.statics._is_asked = form, True
    network = worker.network(Trial(0, {"method": "full", "full.lr": 1e-3}, 7))
    network.train()
    assert network.is_checkpointed
    rows = np.arange(9)
    found, own = static(network, rows)
    loss, expected = padded(network_of(setup, {"method": "full", "full.lr": 1e-3}), rows)
    assert found == pytest.approx(loss, rel=1e-4)
    assert_near(own, expected)


def test_rows_are_weighted_as_the_task_says(setup):
    network = network_of(setup)
    source = network.worker.statics.split(network.worker.data, "train")
    rows = torch.tensor([[3, 1, -1, -1], [2, 5, 9, -1]])
    source.weights = torch.arange(len(source.split), dtype=torch.float32)
    assert source.weight(rows).tolist() == [4.0, 16.0]
    source.weights = torch.zeros(len(source.split))
    assert source.weight(rows).tolist() == [1.0, 1.0], "no scored row: divided by 1"


def test_both_layouts_take_the_same_batches_in_the_same_order(setup, monkeypatch):
    padded, flat = [], []
    backward, loss = Network._backward, Network.static_loss

    def watched(network, split, rows):
        padded.append(rows.tolist())
        return backward(network, split, rows)

    def followed(network, rows, *rest):
        flat.append(rows[0][rows[0] >= 0].tolist())
        return loss(network, rows, *rest)

    monkeypatch.setattr(Network, "_backward", watched)
    list(Worker(setup).evaluate(Trial(3, LORA, 11)))
    monkeypatch.undo()
    monkeypatch.setattr(Network, "static_loss", followed)
    list(Worker(setup.but(layout="flat")).evaluate(Trial(3, LORA, 11)))
    assert flat == padded
    assert len(flat) > 10


# ── several trials in one pass ──────────────────────────────────────────────────────────────────────────────────────


@pytest.fixture(params=["joined", "apart"])
def joined(request, monkeypatch):
    """Members' tokens in one buffer, or in one each."""
    monkeypatch.setattr(stacks, "JOINED", 1e9 if request.param == "joined" else 0)
    return request.param == "joined"


@contextlib.contextmanager
def stack_of(setup, **options):
    worker = Worker(setup.but(layout="flat", **options))
    trials = [
        Trial(0, LORA, 7),
        Trial(1, {**LORA, "lora.rank": 2, "lora.modules": ["up"]}, 8),
        Trial(2, {**LORA, "lora.rank": 1}, 9),
    ]
    yield Stack(worker, [Member.of(worker, trial) for trial in trials], 10)


def test_members_in_one_buffer_drop_out_by_their_own_shares(setup):
    with stack_of(setup) as stack:
        stack.members[1].updates["bert.encoder.layer.0.intermediate.dense"] = Update(1.0, 0.25)
        stack.chosen = (0, 1, 2)
        owner = torch.tensor([0, 0, 1, 1, 1, 2])
        masks = [
            stack.token_mask("bert.encoder.layer.0.intermediate.dense", torch.ones(1, 6, 4000), owner)[0] for _ in "ab"
        ]
        assert (masks[0][[0, 1, 5]] == 1).all()
        assert masks[0][2:5].unique().tolist() == pytest.approx([0, 4 / 3])
        assert masks[0][2:5].mean() == pytest.approx(1, abs=0.02)
        assert not torch.equal(*masks)
        stack._choose((0, 1, 2))
        module = stack.network.model.get_submodule("bert.encoder.layer.0.intermediate.dense")
        assert module.is_dropping
        with torch.no_grad():
            stack._choose((0, 1, 2))
        assert not module.is_dropping, "while scoring"


def member_losses(stack, batches):
    network = stack.network
    size = network.size_of(batches)
    return stack.static_loss(range(3), network.send(batches, size), size)


BATCHES = (np.arange(16), np.arange(30, 46), np.arange(50, 53))  # the last batch of an epoch is shorter


def test_gradients_of_trials_in_a_shared_pass_do_not_mix(setup, joined):
    """A member's loss has no gradient in another's tensors, and no loss but its own changes with a member's rows."""
    with stack_of(setup) as stack:
        losses = member_losses(stack, BATCHES)
        for member in range(3):
            (gradient,) = torch.autograd.grad(losses[member], stack.values, retain_graph=True)
            rest = [other for other in range(3) if other != member]
            assert gradient[member].abs().sum() > 0
            assert not gradient[rest].any()
        other = member_losses(stack, (BATCHES[0], np.arange(60, 76), BATCHES[2]))
        assert torch.allclose(other[[0, 2]], losses[[0, 2]], rtol=1e-5)
        assert not torch.allclose(other[1], losses[1], rtol=1e-3)


def test_a_member_of_a_shared_pass_has_the_loss_and_gradient_it_has_alone(setup, joined):
    with stack_of(setup) as stack:
        assert stack.network.is_joined == joined
        losses = member_losses(stack, BATCHES)
        losses.sum().backward()
        together = stack.values.grad.clone()
        for member, rows in enumerate(BATCHES):
            stack.values.grad = None
            size = stack.network.size_of([rows])
            alone = stack.static_loss([member], stack.network.send([rows], size), size)
            alone.sum().backward()
            assert float(alone.detach()) == pytest.approx(float(losses[member].detach()), rel=1e-5)
            assert_near({"": together[member]}, {"": stack.values.grad[member]})


# ── what a CUDA graph needs ─────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("form", ["flat", "padded"])
@pytest.mark.parametrize("layers", ["all", [2]])
def test_batches_of_a_size_take_the_same_operations_and_wait_for_no_value(setup, form, layers, monkeypatch):
    """Of a trial alone: forward and backward."""
    # transformers looks whether a mask is needed, unless a graph is captured
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    worker = Worker(setup.but(layout="flat"))
    worker.statics._form, worker.statics._is_asked = form, True
    network = worker.network(Trial(0, {**LORA, "lora.layers": layers}, 7))
    network.train()
    size = worker.statics.sizes(worker.data, "train", 16, 16).all[-1]
    seen = []
    for rows in (np.arange(16), np.arange(30, 46), np.arange(50, 53)):
        sent = network.send([rows], size)
        seen.append(traced(lambda sent=sent: network.static_loss(sent, size).sum().backward()))
        network.model.zero_grad(set_to_none=True)
    assert seen[0] == seen[1] == seen[2]
    with torch.no_grad():
        seen = [traced(lambda sent=sent: network.static_logits(sent, size)) for _ in range(2)]
    assert seen[0] == seen[1]


def test_passes_of_a_stack_of_a_size_take_the_same_operations_and_wait_for_no_value(setup, joined):
    with stack_of(setup) as stack:
        network, shuffled = stack.network, (BATCHES[2], BATCHES[0], np.arange(60, 76))
        size = max(network.size_of(batches) for batches in (BATCHES, shuffled))
        sent = [network.send(batches, size) for batches in (BATCHES, shuffled)]
        seen = []
        for rows in sent:
            seen.append(traced(lambda rows=rows: stack.static_loss(range(3), rows, size).sum().backward()))
            stack.values.grad = None
        assert seen[0] == seen[1]


# ── pictures ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("make", [vit, mobilenet])
def test_pictures_have_one_shape_and_the_last_batch_is_filled(tmp_path, make):
    network = network_of(picture_setup(tmp_path, make), {"method": "bias", "bias.lr": 1e-2, "head.lr": 1e-2})
    sizes = network.worker.statics.sizes(network.worker.data, "train", 8, network.micro_batch_size)
    assert [size.rows for size in sizes.all] == [8]
    for rows in (np.arange(8), np.arange(8, 11)):
        loss, expected = padded(network, rows)
        found, own = static(network, rows)
        assert found == pytest.approx(loss, rel=1e-5)
        assert_near(own, expected)


# ── what is not on the device ───────────────────────────────────────────────────────────────────────────────────────


def test_columns_without_room_are_gathered_on_the_host(setup, tmp_path):
    """The same inputs, from a buffer that stays at its place."""
    worker = Worker(setup.but(layout="flat"))
    worker.statics.room.left = 0
    network = worker.network(Trial(0, {**LORA, "lora.layers": [2]}, 7))
    network.train()
    source = worker.statics.split(worker.data, "train")
    assert not source.is_resident and not network._below_static("train").is_resident
    places = set()
    for rows in (np.arange(16), np.arange(40, 50)):
        loss, expected = padded(network, rows)
        found, own = static(network, rows, worker.statics.sizes(worker.data, "train", 16, 16).all[-1])
        assert found == pytest.approx(loss, rel=1e-5)
        assert_near(own, expected)
        places.update(tensor.data_ptr() for tensor in source.inputs_of["input_ids"]._sent.values())
    assert len(places) == 1


def test_trials_of_one_depth_share_what_is_on_the_device(setup):
    """Each opens the cache anew: it is sent once."""
    worker = Worker(setup.but(layout="flat"))
    columns = [worker.network(Trial(n, {**LORA, "lora.layers": [2]}, n))._below_static("train") for n in (0, 1)]
    assert columns[0] is columns[1]


def test_a_split_without_room_for_its_activations_is_padded(setup, monkeypatch):
    """The test split of a confirmation, where all three together exceed the bound on caches."""
    params = {**LORA, "lora.layers": [2]}
    logits = []
    for layout in ("padded", "flat"):
        worker = Worker(setup.but(layout=layout))
        network = worker.network(Trial(0, params, 7))
        if layout == "flat":
            size = network.size_of([np.arange(4)])
            network.static_loss(network.send([np.arange(4)], size), size)  # leaves a layout behind
        monkeypatch.setattr(network, "_cached", lambda splits, depth: None)
        assert network.takes_static("validation") == (layout == "flat")
        assert not network.takes_static("test")
        network.eval()
        with torch.no_grad():
            assert len(network.score_batches("test")) > 0
            logits.append(network.logits("test", np.arange(5)))
    assert torch.allclose(*logits, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("is_left", [False, True])
@pytest.mark.parametrize("room", [0, 1e9])
def test_a_column_is_padded_as_a_batch_is(is_left, room):
    values = [[1, 2, 3], [4], [5, 6, 7, 8, 9], [10, 11]]
    stored = Ragged.of(values, np.int32, 99, is_left)
    place = Room(torch.device("cpu"))
    place.left = room
    column = Column(stored, place)
    column.send(np.array([2, 1]), 6)
    blank = [99] * 6
    expected = [[*blank, *values[row]][-6:] if is_left else [*values[row], *blank][:6] for row in (2, 1)]
    assert column.padded(torch.tensor([2, 1]), 6).tolist() == expected


def test_inputs_and_targets_are_those_of_a_padded_batch(setup):
    worker = Worker(setup.but(layout="flat"))
    source, split = worker.statics.split(worker.data, "train"), worker.data.splits["train"]
    rows, network = np.array([4, 9, 2]), worker.network(Trial(0, LORA, 7))
    size = network.size_of([rows])
    inputs, targets = source.inputs(torch.tensor(rows), size), source.targets(torch.tensor(rows), size)
    for name, tensor in collate(split, rows).items():
        width = tensor.shape[1]
        assert torch.equal(inputs[name][:, :width], tensor) and inputs[name].dtype == tensor.dtype
        assert (inputs[name][:, width:] == (0 if name == "attention_mask" else inputs[name][1, -1])).all()
    for name, tensor in collate_targets(split, rows).items():
        assert torch.equal(targets[name], tensor)


def test_a_trial_scores_the_same_in_both_layouts(tmp_path):
    """Rungs, scores and steps; of a model that is not flattened, too."""
    (tmp_path / "model").mkdir()
    data = {"train": str(write_texts(tmp_path / "t.csv", 120)), "text": "text", "label": "label"}
    setup = Setup.of(
        model=bert(tmp_path / "model"), task="text_classification", data=data, folder=str(tmp_path / "run"),
        cache=str(tmp_path / "cache"), steps=12, batch_size=8, rungs=(0.5,), score_rungs=True,
    )  # fmt: skip
    found = []
    for form in ("padded layout", "flat", "padded"):
        worker = Worker(setup.but(layout="padded" if form == "padded layout" else "flat"))
        worker.statics._form, worker.statics._is_asked = form, form != "padded layout"
        found.append([event.metrics for event in worker.evaluate(Trial(0, LORA, 7))])
    for other in found[1:]:
        for one, event in zip(found[0], other, strict=True):
            for name in ("train_loss", "loss", "accuracy"):
                assert event[name] == pytest.approx(one[name], rel=1e-4)
    assert Path(setup.cache).exists()


# ── language models ─────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("layout", ["padded", "flat"])
def test_language_models_share_passes_and_write_alone(tmp_path, layout):
    """LoRA of three ranks: reports, scores and generated completions are those of each trial by itself."""
    (tmp_path / "model").mkdir()
    setup = Setup.of(
        model=writer(tmp_path / "model", "llama"), task="causal_language_modelling",
        data={"train": str(write_completions(tmp_path / "t.csv", 80)), "prompt": "prompt", "completion": "completion"},
        folder=str(tmp_path / "run"), cache=str(tmp_path / "cache"), steps=12, batch_size=8, rungs=(0.5,),
        score_rungs=True, layout=layout, options={"generate_rows": 3, "new_tokens": 3},
    )  # fmt: skip
    trials = [
        Trial(index, {"method": "lora", "lora.rank": rank, "lora.lr": 3e-2}, 5) for index, rank in enumerate((8, 2, 4))
    ]
    worker, pack = Worker(setup), Pack(Worker(setup))
    alone = {trial.number: list(worker.evaluate(trial)) for trial in trials}
    together = {trial.number: [] for trial in trials}
    for trial in trials:
        pack.join(trial)
    while events := pack.advance():
        for trial, event in events:
            together[trial.number].append(event)
    for number, events in alone.items():
        assert len(together[number]) == len(events) == 2
        assert together[number][-1].ran == "stack"
        assert "exact_match" in events[-1].metrics
        for one, other in zip(events, together[number], strict=True):
            for name in one.metrics.keys() - WEATHER:
                assert other.metrics[name] == pytest.approx(one.metrics[name], rel=1e-4), name
