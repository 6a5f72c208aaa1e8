"""A transform is torchvision's; what becomes of an image hangs on its own key; each example arrives once, as it was."""

import os
import pickle
import shutil
import subprocess
import sys
from functools import partial
from hashlib import md5
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError
from zlib import crc32

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy import stats
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, MNIST
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as TF

from experiments.shared.registry import AUGMENTS, DATASETS, resolve
from fn.data import datasets
from fn.data.datasets import Dataset, DatasetUnavailable, Split, data_root, digits, folder, take
from fn.data.transforms import (
    affine,
    channel_stats,
    compose,
    cutout,
    horizontal_flip,
    normalize,
    pad_crop,
    random_affine,
    random_crop,
    random_cutout,
    random_horizontal_flip,
    random_resized_crop,
)
from fn.rng import fold_in, generator, key
from tests.strategies import LAYOUTS, agree, tensor

ROOT = Path(os.environ.get("FN_DATA", "/nowhere"))


@pytest.fixture(autouse=True)
def _private_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


# Transforms: torchvision's, an image at a time.


@st.composite
def images(draw: st.DrawFn, smallest: int = 1) -> torch.Tensor:
    batch, channels = draw(st.tuples(st.integers(1, 4), st.integers(1, 3)))
    return draw(tensor(batch, channels, *draw(st.tuples(*[st.integers(smallest, 9)] * 2))))


def whole(draw: st.DrawFn, x: torch.Tensor, low: int, high: int) -> torch.Tensor:
    """Return a whole number from `low` to `high` per image."""
    return torch.tensor([draw(st.integers(low, high)) for _ in x])


def each(f, x: torch.Tensor, *parameters: torch.Tensor) -> torch.Tensor:
    """f, which knows one image and black surroundings, on each: its least value is black."""
    black = x.amin(dim=(1, 2, 3), keepdim=True)
    calls = zip(x - black, *(p.tolist() for p in parameters), strict=True)
    return torch.stack([f(*arguments) for arguments in calls]) + black


@given(st.data(), images())
def test_normalize_is_torchvisions(data, x):
    mean, std = (data.draw(tensor(x.shape[1])) for _ in range(2))
    agree(normalize, TF.normalize, x, mean, std.abs() + 0.1)


@given(images())
def test_channel_stats_are_numpys(x):
    mean, std = channel_stats(x)
    np.testing.assert_allclose(mean, np.mean(x.numpy(), axis=(0, 2, 3)), atol=1e-12)
    np.testing.assert_allclose(std, np.std(x.numpy(), axis=(0, 2, 3)), atol=1e-12)


@pytest.mark.parametrize("level", [0.0, 0.1, 255.0])
def test_a_channel_that_never_varies_is_only_centred(level):
    x = torch.stack([torch.full((50, 7, 6), level), torch.rand(50, 7, 6, generator=generator(0))], dim=1)
    y = normalize(x, *channel_stats(x))
    assert not y[:, 0].any()
    np.testing.assert_allclose(channel_stats(y)[1], [0, 1], atol=1e-5)


@given(st.data(), images(), st.integers(0, 4))
def test_pad_crop_is_torchvisions(data, x, padding):
    top, left = (whole(data.draw, x, 0, 2 * padding) for _ in range(2))
    crop = lambda image, i, j: TF.crop(TF.pad(image, [padding]), i, j, *image.shape[1:])  # noqa: E731
    agree(lambda x: pad_crop(x, top, left, padding=padding), lambda x: each(crop, x, top, left), x)


@given(images())
def test_horizontal_flip_is_torchvisions(x):
    agree(horizontal_flip, TF.horizontal_flip, x)


@given(st.data(), images())
def test_affine_is_torchvisions(data, x):
    """float64 alone: torchvision's parameters are Python's numbers, ours are tensors."""
    number = lambda low, high: torch.tensor([data.draw(st.floats(low, high)) for _ in x]).double()  # noqa: E731
    angle, scale, translate = number(-400, 400), number(0.3, 3), torch.stack([number(-5, 5), number(-5, 5)], dim=1)
    move = partial(TF.affine, shear=[0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
    agree(
        lambda x: affine(x, angle, translate, scale),
        lambda x: each(lambda image, a, t, s: move(image, angle=a, translate=t, scale=s), x, angle, translate, scale),
        x,
        tol={torch.float64: 1e-10},
    )


@given(st.data(), images(), st.integers(0, 6))
def test_cutout_is_torchvisions_erase(data, x, size):
    """Also where the corner lies above or left of the image."""
    top, left = (whole(data.draw, x, -7, 10) for _ in range(2))

    def erase(image, i, j):
        (i, j), (below, right) = (max(i, 0), max(j, 0)), (max(i + size, 0), max(j + size, 0))
        return TF.erase(image, i, j, max(below - i, 0), max(right - j, 0), torch.zeros(1, dtype=image.dtype))

    reference = lambda x: torch.stack([erase(*one) for one in zip(x, top.tolist(), left.tolist(), strict=True)])  # noqa: E731
    agree(lambda x: cutout(x, top, left, size=size), reference, x)


# Random transforms.

AUGMENT = {name: resolve(where) for name, where in AUGMENTS.items()}
AUGMENT["all"] = partial(compose, transforms=list(AUGMENT.values()))
N = 2000


def keys(n: int, seed: int = 0) -> torch.Tensor:
    return fold_in(key(seed).expand(n), torch.arange(n))


def assert_share(found: torch.Tensor, expected: torch.Tensor | float, n: int = N) -> None:
    """Shares of n, to 5 standard errors."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    assert ((found - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt()).all()


@pytest.mark.parametrize("name", AUGMENT)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_becomes_of_an_image_hangs_on_its_own_key(name, layout):
    x, k, f = LAYOUTS[layout](torch.randn(12, 3, 9, 8, generator=generator(0))), keys(12), AUGMENT[name]
    before, order = x.clone(), torch.randperm(12, generator=generator(1))
    y = f(x, k)
    assert torch.equal(f(x, k), y)
    assert torch.equal(f(x.contiguous(), k), y)
    assert torch.equal(torch.cat([f(x[i : i + 1], k[i : i + 1]) for i in range(12)]), y)
    assert torch.equal(f(x[order], k[order]), y[order])
    assert torch.equal(x, before)
    assert (k == keys(12)).all()
    assert not torch.equal(f(x, keys(12, seed=1)), y)
    assert len(f(x[:1].expand_as(x), k).unique(dim=0)) > 1


def test_random_crops_are_even():
    """Each result is one of the 5 × 5 shifts of its image, and every shift is as likely."""
    reach = 2
    x = torch.rand(N, 2, 8, 6, generator=generator(0)) + torch.arange(N).view(-1, 1, 1, 1)
    y, around = random_crop(x, keys(N)), x.amin(dim=(1, 2, 3), keepdim=True)
    padded = F.pad(x - around, (reach,) * 4) + around
    shifts = padded.unfold(2, 8, 1).unfold(3, 6, 1)
    same = (shifts == y.view(N, 2, 1, 1, 8, 6)).all(dim=5).all(dim=4).all(dim=1)
    assert (same.sum(dim=(1, 2)) == 1).all()
    assert_share(same.double().mean(dim=0), 1 / 25)
    assert torch.equal(x, random_crop(x, keys(N), padding=0))


@pytest.mark.parametrize("p", [0.0, 0.3, 0.5, 1.0])
def test_flips_occur_with_their_probability(p):
    x = torch.rand(N, 2, 3, 4, generator=generator(0))
    y = random_horizontal_flip(x, keys(N), p=p)
    flipped, kept = ((y == expected).flatten(1).all(dim=1) for expected in (x.flip(3), x))
    assert (flipped ^ kept).all()
    assert_share(flipped.double().mean(), p)


def test_affine_parameters_are_even_within_their_bounds_and_independent(monkeypatch):
    drawn: list[torch.Tensor] = []
    monkeypatch.setattr("fn.data.transforms.affine", lambda x, *parameters: drawn.extend(parameters) or x)
    random_affine(torch.ones(N, 1, 10, 20), keys(N), degrees=30, translate=0.2, scale=(0.5, 2))
    angle, move, scale = drawn
    parameters = torch.stack([angle, *move.unbind(1), scale]).double()
    for values, low, high in zip(parameters, [-30, -4, -2, 0.5], [30, 4, 2, 2], strict=True):
        assert stats.kstest(values.numpy(), "uniform", (low, high - low)).pvalue > 1e-4
    assert (torch.corrcoef(parameters) - torch.eye(4)).abs().max() < 5 / N**0.5


def test_resized_crops_are_of_even_areas_at_even_places_and_show_nothing_else():
    """Seen on two slopes, where a pixel's value says where it was read."""
    height, width = 9, 12
    slopes = torch.stack(torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij"))
    y = random_resized_crop(slopes.expand(N, -1, -1, -1), keys(N), area=0.3).double()
    first, last = y[:, :, 0, 0], y[:, :, -1, -1]
    side = last - first
    torch.testing.assert_close(side[:, 0], side[:, 1], atol=1e-5, rtol=0)
    straight = first.view(N, 2, 1, 1) + side.view(N, 2, 1, 1) * slopes
    torch.testing.assert_close(y, straight, atol=1e-5, rtol=0)
    assert (first >= -1e-6).all()
    assert (last <= 1 + 1e-6).all()
    drawn = [(side[:, 0] ** 2 - 0.3) / 0.7, *(first / (1 - side).clamp(min=1e-9)).unbind(1)]
    for values in drawn:
        assert stats.kstest(values.numpy(), "uniform").pvalue > 1e-4
    assert (torch.corrcoef(torch.stack(drawn)) - torch.eye(3)).abs().max() < 5 / N**0.5


@pytest.mark.parametrize(("size", "before"), [(None, 1), (4, 2), (1, 0)])
def test_cutout_is_a_square_about_any_pixel(size, before):
    """A pixel is blank as often as a centre is near; `before`: how far a square of an even size leads its centre."""
    height, width = 9, 12
    blank = random_cutout(torch.ones(N, 3, height, width), keys(N), size=size) == 0
    size = size or height // 3
    rows, columns = blank.any(dim=3), blank.any(dim=2)
    assert torch.equal(blank, rows.unsqueeze(3) & columns.unsqueeze(2))
    assert torch.equal(blank, blank[:, :1].expand_as(blank))
    for lines, length in ((rows, height), (columns, width)):
        assert int(lines.sum(dim=2).max()) == size
        near = [sum(0 <= i + before - d < length for d in range(size)) / length for i in range(length)]
        assert_share(lines[:, 0].double().mean(dim=0), torch.tensor(near))
    together = rows[:, 0].double().mean(dim=0).outer(columns[:, 0].double().mean(dim=0))
    assert (blank[:, 0].double().mean(dim=0) - together).abs().max() < 5 / N**0.5


def test_compose_goes_from_left_to_right():
    x = torch.rand(3, 1, 2, 2, generator=generator(0))
    assert torch.equal(compose(x, keys(3), transforms=[lambda x, k: x + 1, lambda x, k: 2 * x]), 2 * (x + 1))
    assert torch.equal(compose(x, keys(3), transforms=[]), x)


def test_composed_transforms_do_not_share_their_draws():
    """Two flips under one key would undo each other, and every crop to the left be a flipped one, or none."""
    x = torch.arange(4.0).expand(N, 1, 3, 4)
    twice = compose(x, keys(N), transforms=[random_horizontal_flip] * 2)
    assert_share((twice == x.flip(3)).flatten(1).all(dim=1).double().mean(), 0.5)
    both = compose(x, keys(N), transforms=[partial(random_crop, padding=1), random_horizontal_flip])
    found = both.flatten(1).unique(dim=0, return_counts=True)[1]
    assert len(found) == 3 * 3 * 2
    assert_share(found / N, 1 / 18)


# The loader.


def numbered(n: int) -> Split:
    """Image i is a ramp that begins at i, label i is i."""
    return Split(torch.arange(n).view(n, 1, 1, 1) + torch.linspace(0, 0.9, 30).view(1, 5, 6), torch.arange(n))


def assert_same(found, expected) -> None:
    for (x, y), (x2, y2) in zip(found, expected, strict=True):
        assert torch.equal(x, x2)
        assert torch.equal(y, y2)


@pytest.mark.parametrize("batch_size", [1, 4, 11, 50])
def test_a_pass_visits_every_example_once(batches, batch_size):
    n, split = 11, numbered(11)
    orders = []
    for seed, epoch in ((None, 0), (3, 0), (3, 0), (3, 1), (4, 0), (4, 1)):
        found = list(batches(split, batch_size, seed=seed, epoch=epoch))
        assert [len(y) for _, y in found] == [batch_size] * (n // batch_size) + [n % batch_size] * (n % batch_size > 0)
        assert all(torch.equal(x, split.images[y]) for x, y in found)
        orders.append(torch.cat([y for _, y in found]).tolist())
    assert all(sorted(order) == list(range(n)) for order in orders)
    assert orders[0] == list(range(n))
    assert orders[1] == orders.pop(2)
    assert len(set(map(tuple, orders))) == 5


def test_an_epoch_can_begin_at_any_batch(batches):
    augmented = partial(batches, numbered(11), 4, seed=0, epoch=2, augment=AUGMENT["all"])
    for start in range(5):
        assert_same(augmented(start=start), list(augmented())[start:])


def test_augmentation_sees_each_batch(batches):
    plain, negated = (batches(numbered(9), 4, seed=0, augment=f) for f in (None, lambda x, key: -x))
    assert_same(negated, ((-x, y) for x, y in plain))


def test_every_example_has_a_key_of_its_own_in_every_epoch(batches):
    """Whatever batch it comes in; and none has its neighbour's of the epoch before."""
    split = Split(torch.zeros(11, 1, 1, 1, dtype=torch.int64), torch.arange(11))

    def keys_of(batch_size: int, seed: int, epoch: int) -> list[int]:
        keyed = batches(split, batch_size, seed=seed, epoch=epoch, augment=lambda x, key: key)
        return [key for _, key in sorted((int(y), int(k)) for ks, ys in keyed for k, y in zip(ks, ys, strict=True))]

    assert keys_of(1, 0, 0) == keys_of(3, 0, 0) == keys_of(20, 0, 0)
    assert len({key for seed in range(3) for epoch in range(3) for key in keys_of(4, seed, epoch)}) == 99


def test_augmentation_without_a_seed_is_refused(batches):
    with pytest.raises(ValueError, match=r"^batches: augment needs a seed$"):
        next(batches(numbered(3), 2, augment=random_crop))


@pytest.mark.filterwarnings("ignore:This DataLoader will create", "ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("options", [{}, {"seed": 5, "epoch": 1, "start": 2, "augment": AUGMENT["all"]}])
def test_workers_change_neither_values_nor_order(batches, workers, options):
    before = torch.random.get_rng_state()
    prepared = list(batches(numbered(23), 4, workers=workers, **options))
    assert_same(prepared, batches(numbered(23), 4, **options))
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.slow
def test_workers_end_when_the_process_that_reads_from_them_is_killed():
    """Its output is at its end only when no process that it started lives."""
    code = "import torch; from fn.data.loader import batches; loader = batches((torch.arange(99),) * 2, 1, workers=2);"
    code += "[next(loader) for _ in range(98)]; print('begun', flush=True); input()"
    reader = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert reader.stdout is not None
    assert reader.stdout.readline() == b"begun\n"
    reader.kill()
    assert reader.communicate(timeout=600)[0] == b""


# The sets.


def assert_standardised(data: Dataset, train: np.ndarray, test: np.ndarray) -> None:
    """Both splits on the scale of the first, channel by channel."""
    mean, std = (f(train.astype(float), axis=(0, 2, 3), keepdims=True) for f in (np.mean, np.std))
    for split, pixels in ((data.train, train), (data.test, test)):
        assert split.images.dtype == torch.float32
        np.testing.assert_allclose(split.images, (pixels - mean) / std, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", DATASETS)
def test_a_row_of_the_registry_is_the_function_of_its_name(name):
    assert resolve(DATASETS[name]) is getattr(datasets, name)


def test_digits_are_scikit_learns_with_every_fifth_held_out():
    pixels, labels = load_digits(return_X_y=True)
    pixels, held_out = pixels.reshape(-1, 1, 8, 8), np.arange(1797) % 5 == 4
    data = digits()
    assert_standardised(data, pixels[~held_out], pixels[held_out])
    assert data.train.labels.tolist() == labels[~held_out].tolist()
    assert data.test.labels.tolist() == labels[held_out].tolist()
    assert data.shape == (1, 8, 8)
    assert list(data.classes) == list("0123456789")
    assert_same([take(data.train, 5)], [(data.train.images[:5], data.train.labels[:5])])


@pytest.mark.parametrize(
    "error", [URLError("no route to host"), RuntimeError("Error downloading it:\nit is not there")]
)
@pytest.mark.parametrize(
    ("name", "where", "source"),
    [
        ("mnist", "MNIST/raw", MNIST),
        ("fashion_mnist", "FashionMNIST/raw", MNIST),
        ("cifar10", "cifar-10-batches-py", CIFAR10),
    ],
)
def test_a_set_that_is_not_there_says_where_it_was_looked_for(monkeypatch, tmp_path, name, where, source, error):
    def offline(self):
        raise error

    monkeypatch.setenv("FN_DATA", str(tmp_path))
    monkeypatch.setattr(source, "download", offline)
    with pytest.raises(DatasetUnavailable) as refusal:
        resolve(DATASETS[name])()
    message = str(refusal.value)
    assert str(tmp_path / where) in message
    assert str(error).splitlines()[0].rstrip(":") in message
    assert "FN_DATA" in message
    assert "\n" not in message


def test_data_root_without_FN_DATA_is_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("FN_DATA", str(tmp_path))
    assert data_root() == tmp_path
    monkeypatch.delenv("FN_DATA")
    assert data_root().parent == tmp_path / "cache"


def needs(name: str):
    return pytest.mark.skipif(not (ROOT / name).is_dir(), reason=f"FN_DATA holds no {name}")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "mean", "std", "fewest"),
    [
        pytest.param("mnist", 0.1307, 0.3081, 5421, marks=needs("MNIST/raw")),
        pytest.param("fashion_mnist", 0.2860, 0.3530, 6000, marks=needs("FashionMNIST/raw")),
    ],
)
def test_mnist_and_its_fashion(name, mean, std, fewest):
    """The published counts, and mean and standard deviation, in units of a white pixel: black is -mean / std."""
    data = resolve(DATASETS[name])()
    for split, n in ((data.train, 60_000), (data.test, 10_000)):
        assert split.images.shape == (n, 1, 28, 28)
        assert split.labels.shape == (n,)
    counts = data.train.labels.bincount()
    assert (len(counts), int(counts.min())) == (10, fewest)
    np.testing.assert_allclose(channel_stats(data.train.images.double()), [[0], [1]], atol=1e-4)
    assert float(data.test.images.min()) == pytest.approx(-mean / std, abs=1e-3)
    assert float(data.test.images.max()) == pytest.approx((1 - mean) / std, abs=1e-3)


def test_cifar10_is_its_bytes(monkeypatch, tmp_path):
    """A file of three photographs per batch: 1024 reds, row by row, then the greens, then the blues."""
    rng, at = np.random.default_rng(0), tmp_path / CIFAR10.base_folder
    at.mkdir()
    pixels = rng.integers(256, size=(6, 3, 3072), dtype=np.uint8)
    labels = rng.integers(10, size=(6, 3)).tolist()

    def write(name: str, content) -> str:
        (at / name).write_bytes(pickle.dumps(content))
        return md5((at / name).read_bytes()).hexdigest()

    names = [name for name, _ in CIFAR10.train_list + CIFAR10.test_list]
    rows = [[name, write(name, {"data": x, "labels": y})] for name, x, y in zip(names, pixels, labels, strict=True)]
    meta = write("batches.meta", {"label_names": datasets.cifar10.__name__})
    monkeypatch.setattr(CIFAR10, "train_list", rows[:5])
    monkeypatch.setattr(CIFAR10, "test_list", rows[5:])
    monkeypatch.setattr(CIFAR10, "meta", CIFAR10.meta | {"md5": meta})
    monkeypatch.setenv("FN_DATA", str(tmp_path))
    data = datasets.cifar10()
    assert_standardised(data, pixels[:5].reshape(15, 3, 32, 32), pixels[5].reshape(3, 3, 32, 32))
    assert data.train.labels.tolist() == [label for batch in labels[:5] for label in batch]
    assert data.test.labels.tolist() == labels[5]
    assert data.classes[3] == "cat"
    assert len(data.classes) == 10


# Folders of photographs.

SIZE = 16


@pytest.fixture
def raw(monkeypatch):
    """Pixels from 0 to 255, as they are before they are standardised."""
    monkeypatch.setattr(datasets, "normalize", lambda x, mean, std: x)


def noise(height: int, width: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(256, size=(height, width, 3), dtype=np.uint8))


def bytes_of(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB")).transpose(2, 0, 1)


def save(image: Image.Image, path: Path, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path, **options)


def fill(root: Path, *, seed: int = 0, **counts: int) -> np.ndarray:
    """Return a folder per class, so many photographs in each, and their pixels in order of class and name."""
    photos = [(kind, i) for kind, n in sorted(counts.items()) for i in range(n)]
    for j, (kind, i) in reversed(list(enumerate(photos))):
        save(noise(SIZE, SIZE, seed + j), root / kind / f"{i:02}.png")
    return np.stack([bytes_of(noise(SIZE, SIZE, seed + j)) for j in range(len(photos))])


def test_every_fifth_photograph_of_each_class_is_held_out(tmp_path):
    pixels = fill(tmp_path / "pets", cat=4, dog=11, ant=6)
    data, held_out = folder(tmp_path / "pets", image_size=SIZE), np.isin(np.arange(21), [4, 14, 19])
    assert_standardised(data, pixels[~held_out], pixels[held_out])
    assert data.classes == ["ant", "cat", "dog"]
    assert data.train.labels.tolist() == [0] * 5 + [1] * 4 + [2] * 9
    assert data.test.labels.tolist() == [0, 2, 2]
    assert data.shape == (3, SIZE, SIZE)


@pytest.mark.parametrize("part", ["val", "test"])
def test_a_folder_with_a_split_keeps_it(tmp_path, part):
    train, test = fill(tmp_path / "train", cat=2, dog=3), fill(tmp_path / part, seed=50, cat=1, dog=7)
    data = folder(tmp_path, image_size=SIZE)
    assert_standardised(data, train, test)
    assert data.train.labels.tolist() == [0] * 2 + [1] * 3
    assert data.test.labels.tolist() == [0] + [1] * 7


FOUR = np.array([[[200, 30, 40], [20, 180, 60]], [[50, 90, 220], [240, 230, 10]]], dtype=np.uint8)
MODES = ["RGB", "L", "RGBA", "P", "CMYK", "LA"]
# How each EXIF orientation lays out an upright picture: which side its first row and its first column show.
STORED = {
    1: None,  # top, left
    2: Image.Transpose.FLIP_LEFT_RIGHT,  # top, right
    3: Image.Transpose.ROTATE_180,  # bottom, right
    4: Image.Transpose.FLIP_TOP_BOTTOM,  # bottom, left
    5: Image.Transpose.TRANSPOSE,  # left, top
    6: Image.Transpose.ROTATE_90,  # right, top
    7: Image.Transpose.TRANSVERSE,  # right, bottom
    8: Image.Transpose.ROTATE_270,  # left, bottom
}


def test_photographs_of_any_size_mode_and_orientation_are_upright_colours(tmp_path, raw):
    """Four quarters, each of its own colour: the corners keep theirs."""
    kept: dict[str, Image.Image] = {}
    for width, height in [(16, 16), (40, 24), (24, 41), (7, 6), (300, 100)]:
        quarters = Image.fromarray(FOUR).resize((width, height), Image.Resampling.NEAREST)
        for mode in MODES:
            image = quarters.convert(mode, palette=Image.Palette.ADAPTIVE)
            name = f"{mode} {width}.{'jpg' if mode == 'CMYK' else 'png'}"
            kept[name] = image.convert("RGB")
            save(image, tmp_path / "a" / name, quality=100)
        for orientation, stored in STORED.items():
            exif = Image.Exif()
            exif[0x0112] = orientation
            name = f"{orientation} {width}.jpeg"
            kept[name] = quarters
            image = quarters if stored is None else quarters.transpose(stored)
            save(image, tmp_path / "a" / name, exif=exif, quality=100, subsampling=0)

    save(Image.fromarray(FOUR), tmp_path / "b" / "another class.png")
    data = folder(tmp_path, image_size=SIZE)
    found = np.empty((len(kept), 3, SIZE, SIZE))
    held_out = np.arange(len(kept)) % 5 == 4
    found[~held_out], found[held_out] = data.train.images[:-1], data.test.images
    for name, pixels in zip(sorted(kept), found, strict=True):
        corners = bytes_of(kept[name])[:, :: kept[name].height - 1, :: kept[name].width - 1]
        np.testing.assert_allclose(pixels[:, :: SIZE - 1, :: SIZE - 1], corners, atol=4, err_msg=name)


@pytest.mark.parametrize("scale", [1, 3])
def test_a_square_is_the_middle_of_its_photograph(tmp_path, raw, scale):
    """Exactly where nothing is scaled; and else as torchvision scales."""
    for i in range(5):
        photo = noise(SIZE, 3 * SIZE, i) if i % 2 else noise(3 * SIZE, SIZE, i)
        save(photo.resize((scale * photo.width, scale * photo.height)), tmp_path / "a" / f"{i}.png")
    save(noise(SIZE, SIZE, 5), tmp_path / "b" / "another class.png")
    for pixels, i in zip(folder(tmp_path, image_size=SIZE).train.images, range(4), strict=False):
        with Image.open(tmp_path / "a" / f"{i}.png") as photo:
            resized = TF.resize(TF.pil_to_tensor(photo), [SIZE], InterpolationMode.BICUBIC)
        expected = TF.center_crop(resized, [SIZE, SIZE]).float()
        torch.testing.assert_close(pixels, expected, rtol=0, atol=0 if scale == 1 else 4)


def test_a_second_call_decodes_nothing_and_a_change_everything(monkeypatch, tmp_path):
    fill(tmp_path / "pets", cat=5, dog=3)
    decoded, opened = [], Image.open
    monkeypatch.setattr(Image, "open", lambda path, **_: decoded.append(path) or opened(path))

    def decodes(root: str = "pets", size: int = SIZE) -> int:
        decoded.clear()
        found.append(folder(tmp_path / root, image_size=size))
        return len(decoded)

    found: list[Dataset] = []
    assert decodes() == 8
    assert decodes() == 0
    (tmp_path / "pets" / "cat" / "00.png").touch()
    shutil.move(tmp_path / "pets", tmp_path / "moved")
    assert decodes("moved") == 0
    for one, other in pairwise(found):
        assert_same(one[:2], other[:2])
    assert decodes("moved", size=8) == 8
    save(noise(SIZE, SIZE, 99), tmp_path / "moved" / "dog" / "01.png")
    assert decodes("moved") == 8
    assert not torch.equal(found[-1].train.images, found[0].train.images)
    (tmp_path / "moved" / "dog" / "02.png").rename(tmp_path / "moved" / "cat" / "02b.png")
    assert decodes("moved") == 8
    assert found[-1].train.labels.bincount().tolist() == [5, 2]


def refusal_of(root: Path) -> str:
    with pytest.raises(DatasetUnavailable) as refusal:
        folder(root, image_size=SIZE)
    message = str(refusal.value)
    assert message.startswith("folder: ")
    assert str(root) in message
    assert "\n" not in message
    return message


def test_folders_that_hold_no_photographs_are_refused(tmp_path):
    assert "No such file" in refusal_of(tmp_path / "missing")
    assert "class folder" in refusal_of(tmp_path)
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "readme.txt").write_text("nothing")
    assert "cat" in refusal_of(tmp_path)


def test_folders_that_cannot_be_split_are_refused(tmp_path):
    fill(tmp_path / "few", cat=4, dog=4)
    assert "five" in refusal_of(tmp_path / "few")
    fill(tmp_path / "odd" / "train", cat=2, dog=2)
    fill(tmp_path / "odd" / "val", cat=2, wolf=2)
    message = refusal_of(tmp_path / "odd")
    assert "dog" in message
    assert "wolf" in message


@pytest.mark.parametrize("end", [0, 20, 60, -30])
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_a_file_that_is_no_image_is_refused_by_name(tmp_path, suffix, end):
    """A text, or a photograph cut off."""
    fill(tmp_path, cat=5, dog=5)
    bad = tmp_path / "cat" / f"{'02b' if end else '99'}.{suffix}"
    save(noise(SIZE, SIZE), bad)
    bad.write_bytes(bad.read_bytes()[:end] or b"no photograph")
    assert str(bad) in refusal_of(tmp_path)


def test_a_decoder_may_refuse_with_any_error(tmp_path):
    """Pillow raises ValueError at a header that is too short, where its sum is right."""
    fill(tmp_path, cat=5, dog=5)
    header = b"IHDR" + bytes(5)
    png = b"\x89PNG\r\n\x1a\n" + len(header[4:]).to_bytes(4) + header + crc32(header).to_bytes(4)
    (tmp_path / "cat" / "02b.png").write_bytes(png)
    assert "02b.png cannot be read as an image (Truncated IHDR chunk)" in refusal_of(tmp_path)


def test_sixteen_bits_and_a_single_class_are_refused(tmp_path):
    fill(tmp_path, cat=5, dog=5)
    Image.fromarray(np.full((9, 9), 40_000, dtype=np.uint16)).save(tmp_path / "cat" / "deep.png")
    assert "deep.png cannot be read as an image (its pixels are of mode I;16, not of 8 bits)" in refusal_of(tmp_path)
    fill(tmp_path / "one", train=5)
    assert "has one directory, train, and nothing to tell it from" in refusal_of(tmp_path / "one")


@pytest.mark.slow
@needs("hymenoptera")
def test_ants_and_bees():
    data = folder(ROOT / "hymenoptera")
    assert (data.shape, data.classes) == ((3, 64, 64), ["ants", "bees"])
    for part, split in (("train", data.train), ("val", data.test)):
        on_disk = [len(list((ROOT / "hymenoptera" / part / kind).iterdir())) for kind in data.classes]
        assert split.labels.bincount().tolist() == on_disk
        assert len(split.images) == sum(on_disk)
    np.testing.assert_allclose(channel_stats(data.train.images.double()), [[0] * 3, [1] * 3], atol=1e-4)
