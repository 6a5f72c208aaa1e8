"""Lab 3: attention and positions"""

from experiments.drill.catalogue.row import ATTENTION, POSITIONS, Drill, cases

DRILLS = {
    "scaled_dot_product_attention": Drill(
        "fn.attention:scaled_dot_product_attention",
        "Lab 3 · attention",
        2,
        (f"{ATTENTION}test_attention_without_options_is_torchs",),
        (
            "Scores are the products of every query with every key, over √d_head unless a scale is given.",
            "A boolean mask is True where a query may look; False is -∞ before the softmax. Another mask is added.",
            "A query whose keys are all masked gets zeros: softmax would give it NaN.",
        ),
        ("scaled_dot_product_attention", "fn.attention.native_attention", "fn.attention_tiled"),
        ("causal_mask",),
        options=(
            f"{ATTENTION}test_the_masks_of_attention_are_torchs",
            f"{ATTENTION}test_causal_counts_from_the_first_key",
            f"{ATTENTION}test_dropout_of_weights_keeps_their_mean_and_is_a_function_of_its_key",
        ),
        edges=(
            *cases(f"{ATTENTION}test_attention_is_torchs", "plain"),
            f"{ATTENTION}test_a_query_that_may_look_nowhere_gets_zeros_and_no_gradient",
            f"{ATTENTION}test_large_scores_do_not_overflow",
            f"{ATTENTION}test_a_mask_beside_is_causal_is_refused",
        ),
    ),
    "multi_head_attention": Drill(
        "fn.attention:multi_head_attention",
        "Lab 3 · attention",
        2,
        (f"{ATTENTION}test_multi_head_attention_is_torchs_on_its_own_parameters",),
        (
            "in_proj_weight is three weights, one under the other: of queries, keys, values.",
            "Project, split the heads, attention(q, k, v, …), merge the heads, project out.",
            "Rotary turns the queries and the keys of every head, after the split; values are not turned.",
        ),
        ("multi_head_attention",),
        ("scaled_dot_product_attention", "attention_weights", "split_heads", "merge_heads"),
        options=(
            f"{ATTENTION}test_rotary_turns_queries_and_keys_of_every_head",
            f"{ATTENTION}test_the_weights_of_all_heads_are_dropped_under_the_key",
        ),
        edges=(f"{ATTENTION}test_heads_that_do_not_divide_the_width_are_refused",),
    ),
    "causal_mask": Drill(
        "fn.attention:causal_mask",
        "Lab 3 · attention",
        1,
        (f"{ATTENTION}test_causal_mask_by_hand",),
        ("Which keys may the first query see?", "Its own alone: the diagonal belongs to the past.", "ones, then tril"),
        options=(f"{ATTENTION}test_a_causal_mask_is_made_where_it_is_asked_for",),
    ),
    "sinusoidal_encoding": Drill(
        "fn.positions:sinusoidal_encoding",
        "Lab 3 · positions",
        2,
        (
            f"{POSITIONS}test_sinusoidal_is_its_formula",
            f"{POSITIONS}test_the_clocks_are_those_of_the_paper",
            f"{POSITIONS}test_a_shift_of_sinusoidal_positions_turns_each_pair",
        ),
        (
            "A pair of columns has one frequency, base^(-2i / d_model): sine in the even one, cosine in the odd one.",
            "The angles are an outer product, positions by frequencies; in float64, for positions grow large.",
            "torch.stack([sin, cos], dim=-1).flatten(-2) interleaves them.",
        ),
        edges=(f"{POSITIONS}test_what_cannot_be_placed_is_refused",),
    ),
}
