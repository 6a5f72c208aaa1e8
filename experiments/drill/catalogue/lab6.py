"""Lab 6: data"""

from experiments.drill.catalogue.row import DATA, LOOPS, Drill

DRILLS = {
    "Examples": Drill(
        "experiments.lab6_data:Examples",
        "Lab 6 · data",
        1,
        (f"{LOOPS}test_a_dataset_gives_what_batches_gather",),
        (
            "A length, and an example for an index: that is all that a DataLoader asks for.",
            "The transform takes a batch and a key per image: give it a batch of one, and take the one out again.",
            "The key of an example is fold_in(rng_key(seed, epoch), index).",
        ),
    ),
    "batches": Drill(
        "fn.data.loader:batches",
        "Lab 6 · data",
        2,
        (f"{DATA}test_a_pass_visits_every_example_once",),
        (
            "epoch_order(n, seed=…, epoch=…) is the order; without a seed it is the split's own.",
            "Tensor.split cuts the order into batches, the last one shorter; `start` counts batches.",
            "Gather(split, augment, key, moves_targets)[indices] takes a batch; the key is rng_key(seed, epoch).",
        ),
        (),
        ("epoch_order", "Gather"),
        options=(
            f"{DATA}test_an_epoch_can_begin_at_any_batch",
            f"{DATA}test_every_example_has_a_key_of_its_own_in_every_epoch",
        ),
        edges=(f"{DATA}test_augmentation_without_a_seed_is_refused",),
    ),
}
