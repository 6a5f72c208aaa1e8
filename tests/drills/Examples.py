"""Examples as a subclass of torch's, with another name for what it holds."""

from torch.utils.data import Dataset

from fn.rng import fold_in
from fn.rng import key as rng_key


class Examples(Dataset):
    def __init__(self, split, seed, epoch, transform):
        self.images, self.labels = split
        self.transform = transform
        self.epoch_key = rng_key(seed, epoch)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        key = fold_in(self.epoch_key, index)
        return self.transform(self.images[index : index + 1], key.unsqueeze(0)).squeeze(0), self.labels[index]


WRONG = {
    "one key for all": ("fold_in(self.epoch_key, index)", "self.epoch_key", "result["),
    "the epoch ignored": ("rng_key(seed, epoch)", "rng_key(seed)", "result["),
    "the batch axis is left": (".squeeze(0), self", ", self", "shape"),
    "not transformed": (
        "self.transform(self.images[index : index + 1], key.unsqueeze(0)).squeeze(0)",
        "self.images[index]",
        "result[0]",
    ),
    "labels of the neighbour": ("self.labels[index]", "self.labels[index - 1]", "a dataset gives what batches gather"),
    "one too few": ("len(self.images)", "len(self.images) - 1", "parts"),
}
