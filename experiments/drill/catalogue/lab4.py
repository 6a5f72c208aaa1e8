"""Lab 4: freezing"""

from experiments.drill.catalogue.row import FREEZING, Drill, cases

DRILLS = {
    "freeze": Drill(
        "fn.transfer:freeze",
        "Lab 4 · freezing",
        3,
        (
            *cases(f"{FREEZING}test_frozen_leaves_stay_and_trained_ones_move", "head", "backbone.bn1 head"),
            *cases(f"{FREEZING}test_the_optimizer_holds_nothing_for_frozen_leaves", "head"),
            f"{FREEZING}test_frozen_statistics_move_when_asked_to",
            f"{FREEZING}test_the_gradient_is_that_of_the_whole_at_the_trained_leaves",
        ),
        (
            "A model is Model(init, apply). The new init splits the parameters: tree.split; the rest goes into state.",
            "The new apply merges them again, and wraps the new state as it was.",
            "In training options['modes'] = trained_modes(state['state'], params) keeps a frozen norm's statistics.",
        ),
        (),
        ("trained_modes",),
        edges=(f"{FREEZING}test_a_prefix_that_matches_nothing_is_refused",),
    ),
}
