"""Lab 7: processes"""

from experiments.drill.catalogue.row import LAB7, Drill, cases

DRILLS = {
    "all_reduce_mean": Drill(
        "experiments.lab7_processes:all_reduce_mean",
        "Lab 7 · processes",
        1,
        cases(f"{LAB7}test_the_mean_over_processes_is_over_all_examples", "alike"),
        (
            "The mean over all examples is a sum over processes divided by a sum over processes.",
            "Put x · count and count end to end: one all_reduce sums both. It writes into the tensor that it is given.",
            "Where count is 0, x may be NaN, and 0 · NaN is NaN. dist.is_initialized() says whether there are others.",
        ),
        options=(
            *cases(f"{LAB7}test_the_mean_over_processes_is_over_all_examples", "unequal"),
            f"{LAB7}test_a_process_alone_has_its_own_mean",
        ),
        edges=cases(f"{LAB7}test_the_mean_over_processes_is_over_all_examples", "none in one"),
    ),
    "data_parallel_step": Drill(
        "fn.distributed:parts_step",
        "Lab 7 · processes",
        3,
        (
            f"{LAB7}test_a_step_in_parts_is_that_of_the_whole_batch",
            f"{LAB7}test_each_part_of_each_step_has_a_key_of_its_own",
            *cases(f"{LAB7}test_a_shared_step_is_that_of_one_process_to_the_bit", "mlp"),
        ),
        (
            "fold_in(key, ts.opt_state['step']) is the key of the step, fold_in of that and i the key of part i.",
            "tensor_split cuts x and y; do own_parts(parts, *place()); each counts by part_shares(…, dtype).",
            "to_vector, pairwise_sum of the stacked ones, sum_over_processes, from_vector; the state moves by 'moved'.",
        ),
        (),
        ("place", "own_parts", "part_shares", "to_vector", "from_vector", "pairwise_sum", "sum_over_processes"),
        options=cases(f"{LAB7}test_a_shared_step_is_that_of_one_process_to_the_bit", "cnn"),
        edges=(f"{LAB7}test_an_empty_part_weighs_nothing",),
    ),
    "zero1_update": Drill(
        "fn.distributed:zero1_update",
        "Lab 7 · processes",
        2,
        cases(f"{LAB7}test_an_update_in_slices_is_the_whole_one_to_the_bit", "even"),
        (
            "All leaves end to end, cut into as many slices as there are processes: this one does number `rank`.",
            "update takes and gives trees: {'slice': vector}. Each process returns all parameters, and its own state.",
            "Zeros behind the vector make all slices as long; from_vector takes as many numbers as it needs.",
        ),
        (),
        ("place", "to_vector", "from_vector", "gather"),
        options=cases(f"{LAB7}test_an_update_in_slices_is_the_whole_one_to_the_bit", "ragged"),
        edges=(f"{LAB7}test_slices_of_two_dtypes_are_refused",),
    ),
}
