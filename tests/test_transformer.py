"""The transformer beside torch's on torch's own parameters, and by its laws: what it may see, and what it cannot."""

import math
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from fn import tree
from fn.attention import split_heads, weighted_sum
from fn.conv import patches
from fn.layers import gelu, relu
from fn.losses import cross_entropy
from fn.models.transformer import encoder, encoder_init, encoder_layer, transformer
from fn.positions import sinusoidal_encoding
from fn.rng import generator, key
from tests.strategies import agree, tensor
from tests.test_attention import WAYS, attention_by

POSITIONS = ["learned", "sinusoidal", "rotary", "none"]
NO_DROPOUT = {"dropout": 0.0, "batch_first": True, "dtype": torch.float64}


def tied(reference: Callable, names: list[str]) -> Callable:
    """f(x, named parameters) as a function of tensors alone, the parameters last."""
    return lambda x, *values: reference(x, dict(zip(names, values, strict=True)))


def drawn(module: nn.Module, seed: int) -> dict[str, Tensor]:
    """Parameters as large as first weights are, but none of them 0 or 1."""
    rng = generator(seed)
    named = dict(module.named_parameters())
    return {
        name: torch.randn(p.shape, generator=rng, dtype=torch.float64) / p.shape[-1] ** 0.5 for name, p in named.items()
    }


def agree_on_parameters(ours: Callable, module: nn.Module, x: Tensor, reference: Callable, seed: int) -> None:
    """ours(x, **params) and reference(x, flat params): values, and the gradient of x and of every parameter."""
    params = drawn(module, seed)
    mine = tied(lambda x, flat: ours(x, **tree.unflatten(flat)), list(params))
    agree(mine, tied(reference, list(params)), x, *params.values())


layers = st.tuples(*[st.integers(1, 3)] * 4, st.integers(1, 9))  # heads, d_head, batch, seq, d_ff


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", [relu, gelu])
@pytest.mark.parametrize("mask", ["none", "causal", "boolean"])
@settings(max_examples=8)
@given(layers, st.integers(0, 2**31), st.data())
def test_encoder_layer_is_torchs(norm_first, activation, mask, sizes, seed, data):
    heads, d_head, batch, seq, d_ff = sizes
    d_model = heads * (d_head + 1)  # a norm over two entries leaves ±1, which has no gradient
    options = {"activation": activation.__name__, "norm_first": norm_first}
    module = nn.TransformerEncoderLayer(d_model, heads, d_ff, **options, **NO_DROPOUT)
    visible = data.draw(tensor(seq, seq, below=2)) == 0
    visible = {"none": None, "causal": torch.ones(seq, seq).tril() > 0, "boolean": visible | torch.eye(seq).bool()}[
        mask
    ]
    own: dict[str, Any] = {"is_causal": True} if mask == "causal" else {"attn_mask": visible}

    def ours(x: Tensor, **params: Any) -> Tensor:
        return encoder_layer(x, **params, heads=heads, norm_first=norm_first, activation=activation, **own)[0]

    def reference(x: Tensor, params: dict[str, Tensor]) -> Tensor:
        return functional_call(module, params, (x,), {"src_mask": None if visible is None else ~visible})

    agree_on_parameters(ours, module, data.draw(tensor(batch, seq, d_model)), reference, seed)


def torchs_weights(module: nn.TransformerEncoder, x: Tensor, mask: Tensor | None) -> Tensor:
    """Return what its attention gives, if asked, from the input that each layer has."""
    weights = []
    for layer in module.layers:
        h = layer.norm1(x)  # pyright: ignore
        weights.append(layer.self_attn(h, h, h, attn_mask=mask, average_attn_weights=False)[1])  # pyright: ignore
        x = layer(x, mask)
    return torch.stack(weights)


class Encoder(nn.TransformerEncoder):
    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore
        return super().forward(x, mask), torchs_weights(self, x, mask)


@settings(max_examples=8)
@given(st.integers(0, 3), st.booleans(), st.integers(0, 2**31))
def test_encoder_is_torchs_and_so_are_its_weights(depth, last_norm, seed):
    layer = nn.TransformerEncoderLayer(6, 2, 5, activation="gelu", norm_first=True, **NO_DROPOUT)
    norm = nn.LayerNorm(6, dtype=torch.float64) if last_norm else None
    module = Encoder(layer, depth + 1, norm, enable_nested_tensor=False)
    x = torch.randn(2, 4, 6, generator=generator(seed), dtype=torch.float64)
    mask = torch.ones(4, 4, dtype=torch.bool).triu(1)
    ours = partial(encoder, num_layers=depth + 1, heads=2, is_causal=True, need_weights=True)
    agree_on_parameters(ours, module, x, lambda x, params: functional_call(module, params, (x, mask)), seed)


class LanguageModel(nn.Module):
    """Of nn's parts, named as ours are."""

    def __init__(self, length: int, classes: int, d_model: int, depth: int, heads: int, kind: str) -> None:
        super().__init__()
        self.embedding = nn.Embedding(classes, d_model, dtype=torch.float64)
        if kind == "learned":
            self.positions = nn.Embedding(length, d_model, dtype=torch.float64)
        options = {"activation": "gelu", "norm_first": True, **NO_DROPOUT}
        layer = nn.TransformerEncoderLayer(d_model, heads, 4 * d_model, **options)
        norm = nn.LayerNorm(d_model, dtype=torch.float64)
        self.encoder = nn.TransformerEncoder(layer, depth, norm, enable_nested_tensor=False)
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        h, seq = self.embedding(x), x.shape[1]
        if self.kind == "learned":
            h = h + self.positions(torch.arange(seq))
        elif self.kind == "sinusoidal":
            h = h + sinusoidal_encoding(seq, h.shape[-1], dtype=h.dtype)
        h = self.encoder(h, nn.Transformer.generate_square_subsequent_mask(seq, dtype=h.dtype))
        return F.linear(h, self.embedding.weight).mT


@pytest.mark.parametrize("kind", ["learned", "sinusoidal", "none"])
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_language_model_is_one_of_torchs_parts(kind, way):
    module = LanguageModel(7, 11, 8, 2, 4, kind)
    model = transformer((7,), 11, d_model=8, layers=2, heads=4, positions=kind)
    initial = tree.flatten(model.init(generator(0))[0])
    assert {name: p.shape for name, p in initial.items()} == {name: p.shape for name, p in module.named_parameters()}

    def ours(x: Tensor, **params: Any) -> Tensor:
        return model.apply(params, {}, x, train=True, attention=attention_by(way))[0]

    x = torch.randint(11, (3, 5), generator=generator(1))
    agree_on_parameters(ours, module, x, lambda x, params: functional_call(module, params, (x,)), seed=0)


class VisionTransformer(nn.Module):
    """With the patches read by a convolution, as published."""

    def __init__(self, channels: int, patch: int, seq: int, classes: int, d_model: int) -> None:
        super().__init__()
        self.patches = nn.Linear(channels * patch * patch, d_model, dtype=torch.float64)
        self.positions = nn.Embedding(seq, d_model, dtype=torch.float64)
        options = {"activation": "gelu", "norm_first": True, **NO_DROPOUT}
        layer = nn.TransformerEncoderLayer(d_model, 2, 4 * d_model, **options)
        self.encoder = nn.TransformerEncoder(layer, 2, nn.LayerNorm(d_model, dtype=torch.float64), False)
        self.head = nn.Linear(d_model, classes, dtype=torch.float64)
        self.patch = patch

    def forward(self, x: Tensor) -> Tensor:
        kernel = self.patches.weight.unflatten(1, (x.shape[1], self.patch, self.patch))
        h = F.conv2d(x, kernel, self.patches.bias, stride=self.patch).flatten(2).mT
        return self.head(self.encoder(h + self.positions.weight).mean(dim=1))


def test_vision_transformer_is_one_of_torchs_parts():
    module = VisionTransformer(3, 4, 6, 5, 8)
    model = transformer((3, 8, 12), 5, d_model=8, heads=2, patch_size=4)
    initial = tree.flatten(model.init(generator(0))[0])
    assert {name: p.shape for name, p in initial.items()} == {name: p.shape for name, p in module.named_parameters()}
    x = torch.randn(2, 3, 8, 12, generator=generator(1), dtype=torch.float64)
    ours = lambda x, **params: model.apply(params, {}, x, train=False)[0]  # noqa: E731
    agree_on_parameters(ours, module, x, lambda x, params: functional_call(module, params, (x,)), seed=0)


@settings(max_examples=40)
@given(st.tuples(*[st.integers(1, 3)] * 5), st.data())
def test_patches_are_the_windows_of_unfold(sizes, data):
    batch, channels, rows, columns, patch = sizes
    x = data.draw(tensor(batch, channels, rows * patch, columns * patch))
    agree(partial(patches, patch_size=patch), lambda x: F.unfold(x, patch, stride=patch).mT, x)


def sequence_model(positions: str = "learned", seed: int = 0, **options: Any):
    """Return (parameters in float64, what applies it), for sequences of 6 out of 10 tokens."""
    model = transformer((6,), 10, d_model=16, positions=positions, **options)  # pyright: ignore
    params, state = model.init(generator(seed))
    return tree.to(params, torch.float64), lambda params, x, **more: model.apply(
        params, state, x, **{"train": False, **more}
    )[0]


@pytest.mark.parametrize("positions", POSITIONS)
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_the_future_leaves_the_past_as_it_was_to_the_bit(positions, way):
    params, apply = sequence_model(positions)
    x = torch.randint(9, (4, 6), generator=generator(1))
    apply = partial(apply, attention=attention_by(way))
    before = apply(params, x)
    for t in range(1, 6):
        changed = x.clone()
        changed[:, t:] += 1
        after = apply(params, changed)
        assert torch.equal(after[..., :t], before[..., :t])
        assert (after[..., t] != before[..., t]).any(dim=1).all()


@pytest.mark.parametrize(
    "options", [{"rotary": True}, {"norm_first": False}, *({"attention": way} for way in WAYS)], ids=str
)
def test_no_gradient_reaches_the_future(options):
    params = tree.to(encoder_init(generator(0), 8, 2, 2, 16), torch.float64)
    options = options | {"attention": attention_by(options.get("attention", "plain"))}
    run = partial(encoder, **params, num_layers=2, heads=2, is_causal=True, **options)
    x = torch.randn(5, 8, generator=generator(1), dtype=torch.float64)
    y = lambda x, t: run(x)[0][t].sin().sum()  # noqa: E731
    for t in range(5):
        reached = grad(y)(x, t).any(dim=-1)
        assert reached.tolist() == [i <= t for i in range(5)]


@pytest.mark.parametrize("positions", POSITIONS)
def test_without_positions_images_are_bags_of_patches(positions):
    """Shuffled patches give the same logits; with positions of any kind they do not."""
    model = transformer((2, 9, 6), 5, positions=positions, patch_size=3)
    params = tree.to(model.init(generator(0))[0], torch.float64)
    pieces = torch.randn(4, 2, 3, 2, 3, 3, generator=generator(1), dtype=torch.float64)
    order = torch.tensor([3, 0, 5, 1, 2, 4])
    shuffled = pieces.flatten(2, 3)[:, :, order].unflatten(2, (3, 2))
    whole, mixed = (x.permute(0, 1, 2, 4, 3, 5).reshape(4, 2, 9, 6) for x in (pieces, shuffled))
    torch.testing.assert_close(patches(mixed, 3), patches(whole, 3)[:, order])
    logits, other = (model.apply(params, {}, x, train=False)[0] for x in (whole, mixed))
    same = float((logits - other).abs().max())
    assert same < 1e-12 if positions == "none" else same > 1e-5


@settings(max_examples=10)
@given(st.permutations(range(6)), st.booleans())
def test_the_encoder_moves_with_a_permutation(order, norm_first):
    params = tree.to(encoder_init(generator(0), 8, 2, 2, 16), torch.float64)
    x = torch.randn(2, 6, 8, generator=generator(1), dtype=torch.float64)
    run = partial(encoder, **params, num_layers=2, heads=2, norm_first=norm_first, need_weights=True)
    (y, weights), (y_, weights_) = run(x), run(x[:, order])
    torch.testing.assert_close(y_, y[:, order])
    assert weights is not None
    torch.testing.assert_close(weights_, weights[..., order, :][..., order])
    assert not torch.allclose(run(x[:, order], rotary=True)[0], run(x, rotary=True)[0][:, order]) or order == [
        *range(6)
    ]


@pytest.mark.parametrize("shape", [(6,), (1, 4, 6)], ids=["sequences", "images"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_weights_are_an_output_that_one_asks_for(shape, positions):
    model = transformer(shape, 10, layers=3, positions=positions)
    params, state = model.init(generator(0))
    x = torch.randint(10, (2, 6)) if len(shape) == 1 else torch.randn(2, *shape, generator=generator(1))
    logits, weights = model.apply(params, state, x, train=False, need_weights=True)[0]
    assert weights.shape == (3, 2, 4, 6, 6)
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(3, 2, 4, 6))
    assert weights.triu(1).any() == (len(shape) == 3)
    assert torch.equal(model.apply(params, state, x, train=False)[0], logits)


def test_the_weights_are_those_that_made_the_output():
    params = tree.to(encoder_init(generator(0), 8, 1, 2, 16), torch.float64)["layers"]["0"]
    x = torch.randn(3, 5, 8, generator=generator(1), dtype=torch.float64)
    y, weights = encoder_layer(x, **params, heads=2, rotary=True, need_weights=True)
    assert weights is not None
    attn, (_, _, w_value) = params["self_attn"], params["self_attn"]["in_proj_weight"].chunk(3)
    value = split_heads(F.layer_norm(x, [8]) @ w_value.T, 2)
    mixed = weighted_sum(weights, value).transpose(1, 2).flatten(2)
    h = x + F.linear(mixed, *attn["out_proj"].values())
    h = h + F.linear(F.gelu(F.linear(F.layer_norm(h, [8]), *params["linear1"].values())), *params["linear2"].values())
    torch.testing.assert_close(y, h)


def watch_dropout(monkeypatch) -> list[tuple[int, float, tuple[int, ...]]]:
    """Return the (key, p, shape) of each dropout above 0, in order."""
    dropped: list[tuple[int, float, tuple[int, ...]]] = []
    for module in (sys.modules[f.__module__] for f in (split_heads, encoder)):

        def spy(x, p, *, key, dropout=module.dropout):
            if p:
                dropped.append((int(key), p, tuple(x.shape)))
            return dropout(x, p, key=key)

        monkeypatch.setattr(module, "dropout", spy)
    return dropped


def test_every_place_of_every_layer_drops_by_a_key_of_its_own(monkeypatch):
    """Weights, attention's output, the hidden layer and its output, 2 layers; none in evaluation."""
    dropped = watch_dropout(monkeypatch)
    params, apply = sequence_model(dropout_p=0.25)
    x = torch.randint(10, (3, 6), generator=generator(1))
    evaluated = apply(params, x)
    assert torch.equal(apply(params, x, key=key(0)), evaluated)
    assert not dropped
    trained = apply(params, x, train=True, key=key(0))
    assert [shape for _, _, shape in dropped] == 2 * [(3, 4, 6, 6), (3, 6, 16), (3, 6, 64), (3, 6, 16)]
    assert {p for _, p, _ in dropped} == {0.25}
    assert len({k for k, _, _ in dropped}) == 8
    assert torch.equal(trained, apply(params, x, train=True, key=key(0)))
    assert not torch.allclose(trained, apply(params, x, train=True, key=key(1)))
    assert not torch.allclose(trained, evaluated)


@pytest.mark.parametrize("norm_first", [True, False])
def test_a_layer_draws_each_dropout_by_a_key_of_its_own(monkeypatch, norm_first):
    dropped = watch_dropout(monkeypatch)
    layer = encoder_init(generator(0), 8, 1, 2, 16)["layers"]["0"]
    encoder_layer(torch.ones(3, 5, 8), **layer, heads=2, norm_first=norm_first, train=True, dropout_p=0.1, key=key(0))
    assert len(dropped) == len({k for k, _, _ in dropped}) == 4


def test_what_drops_everything_passes_the_residual_alone():
    params = encoder_init(generator(0), 8, 2, 2, 16)
    x = torch.randn(5, 8, generator=generator(1))
    y, _ = encoder(x, params["layers"], num_layers=2, heads=2, train=True, dropout_p=1.0, key=key(0))
    assert torch.equal(y, x)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("way", WAYS, ids=str)
def test_vmap_over_stacked_parameters_is_a_loop(way):
    members, apply = zip(*(sequence_model("rotary", seed, dropout_p=0.1) for seed in range(3)), strict=True)
    x = torch.randint(10, (2, 6), generator=generator(1))
    train = {"train": True, "key": key(0)} if way == "plain" else {"attention": attention_by(way)}
    loss = lambda params: cross_entropy(apply[0](params, x[:, :-1], **train), x[:, 1:])  # noqa: E731
    together = vmap(grad(loss))(tree.stack(*members))
    for k, params in enumerate(members):
        tree.map(lambda one, all, k=k: torch.testing.assert_close(all[k], one), grad(loss)(params), together)


def test_a_shorter_sequence_is_read_the_same():
    for positions in POSITIONS:
        params, apply = sequence_model(positions)
        x = torch.randint(10, (2, 6), generator=generator(1))
        torch.testing.assert_close(apply(params, x[:, :4]), apply(params, x)[..., :4])


@pytest.mark.parametrize("seed", range(5))
def test_an_untrained_model_finds_all_tokens_about_as_likely(seed):
    model = transformer((64,), 65, d_model=128, layers=4)
    params, state = model.init(generator(seed))
    x = torch.randint(65, (4, 65), generator=generator(seed, 1))
    loss = cross_entropy(model.apply(params, state, x[:, :-1], train=False)[0], x[:, 1:])
    assert float(loss) == pytest.approx(math.log(65), abs=0.1)


def test_tokens_and_positions_start_small():
    params, _ = transformer((64,), 64, d_model=64).init(generator(0))
    for name in ("embedding", "positions"):
        assert float(params[name]["weight"].std()) == pytest.approx(0.02, rel=0.1)
        assert abs(float(params[name]["weight"].mean())) < 0.002
    params, _ = transformer((1, 16, 16), 10, d_model=64, patch_size=2).init(generator(0))
    assert float(params["positions"]["weight"].std()) == pytest.approx(0.02, rel=0.1)


def test_what_is_added_to_the_residual_stream_starts_smaller_the_deeper_it_is():
    """The same draws, times 1 / √(2 · layers); nothing else depends on the depth."""
    one, nine = (tree.flatten(encoder_init(generator(0), 8, n, 2, 16)["layers"]["0"]) for n in (1, 9))
    for name in one:
        shrunk = 3 if name in ("self_attn.out_proj.weight", "linear2.weight") else 1
        torch.testing.assert_close(one[name], shrunk * nine[name])
    for layers in (1, 8):
        weight = encoder_init(generator(0), 64, layers, 4, 256)["layers"]["0"]["linear2"]["weight"]
        assert float(weight.std()) == pytest.approx(1 / math.sqrt(2 * layers * 256), rel=0.03)


@pytest.mark.parametrize(
    ("size", "expected"),
    [((8, 8), 2), ((28, 28), 4), ((32, 32), 4), ((64, 64), 8), ((16, 24), 4), ((64, 2), 2), ((6, 9), 3), ((7, 7), 7)],
)
def test_patches_are_the_smallest_of_which_there_are_at_most_64(size, expected):
    params, _ = transformer((3, *size), 10).init(generator(0))
    assert params["patches"]["weight"].shape == (64, 3 * expected**2)
    assert params["positions"]["weight"].shape == (size[0] * size[1] // expected**2, 64)


def test_what_a_transformer_cannot_be_is_refused():
    for size in ((8, 9), (1, 1), (130, 2)):
        with pytest.raises(ValueError, match=f"no squares divide an image of {size[0]}×{size[1]} into at most 64"):
            transformer((1, *size), 10)
    with pytest.raises(ValueError, match="squares of 3×3 do not divide 8×9"):
        transformer((1, 8, 9), 10, patch_size=3).init(generator(0))
    for shape in ((6,), (1, 8, 8)):
        with pytest.raises(ValueError, match="3 heads do not divide a width of 64"):
            transformer(shape, 10, heads=3).init(generator(0))
    params, apply = sequence_model()
    with pytest.raises(ValueError, match="a sequence of 7 is longer than the 6 that were learned"):
        apply(params, torch.zeros(1, 7, dtype=torch.int64))
    with pytest.raises(ValueError, match="positions: a width of 1 does not divide into pairs"):
        transformer((6,), 10, d_model=4, heads=4, positions="rotary").apply(
            transformer((6,), 10, d_model=4, heads=4).init(generator(0))[0], {}, torch.zeros(1, 6).long(), train=False
        )
