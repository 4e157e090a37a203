"""Faults that were found by trying the library, and the tests that keep each of them closed.

A are wrong numbers in silence, B steps and loads that stop half-way, C crashes and dead ends, D
what people read. A test that is named here must be there, and every fault must have one. The file
is longer than others: it is one table.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

import pytest

HERE = Path(__file__).parent

FAULTS: dict[str, tuple[str, dict[str, list[str]]]] = {
    "A1": (
        "inner loops leave the module as it is, and what it shares is one tensor",
        {
            "compat/test_inner_modules.py": [
                "the_module_is_not_written",
                "what_is_shared_is_trained_as_one_tensor",
                "a_lazy_module_must_run_first",
            ],
        },
    ),
    "A2": (
        "gradients over tasks of nets with norms are those of a loop",
        {
            "loops/test_affine.py": [
                "gradients_inside_of_vmap_are_those_of_a_loop",
                "gradients_outside_of_vmap_are_those_of_a_loop",
                "the_page_learns_a_net_with_a_norm_by_the_gradient_of_a_loop",
            ],
            "test_examples.py": [
                "few_shot_learns_a_net_with_a_norm_by_the_gradient_of_a_loop",
            ],
        },
    ),
    "A3": (
        "named parameters are loaded by their names",
        {
            "compat/test_loading.py": [
                "parameters_are_paired_by_name",
                "a_mask_by_name_still_acts_on_its_parameter",
                "other_names_are_refused",
                "without_names_on_one_side_the_position_counts",
            ],
        },
    ),
    "A4": (
        "a schedule trains under a scheduler of a trainer's, or says who rules",
        {
            "compat/test_schedulers_over_schedules.py": [
                "a_schedule_rules_under_a_scheduler_that_leaves_the_rate",
                "a_warm_up_from_zero_rules_under_any_factor",
                "a_scheduler_that_sets_other_rates_rules_and_says_so_once",
            ],
            "compat/test_trainer.py": [
                "a_schedule_rules_under_a_constant_scheduler",
                "the_default_scheduler_replaces_another_schedule_and_says_so",
            ],
        },
    ),
    "A5": (
        "a checkpoint of another optimizer, or a broken one, is refused by the entry's name",
        {
            "compat/test_entries.py": [
                "a_checkpoint_of_another_optimizer_is_refused",
                "a_method_with_a_part_of_the_state_is_refused_too",
                "a_broken_entry_is_refused_by_its_name",
                "a_missing_key_is_refused",
                "what_loads_as_before",
            ],
        },
    ),
    "A6": (
        "groups out of range go where torch goes, with a warning, or are refused",
        {
            "compat/test_edges.py": [
                "a_group_out_of_range_is_stepped_with_torchs_bits_and_a_warning_once",
                "other_optimizers_refuse_a_group_out_of_range_before_they_write",
                "a_rate_that_rounding_drove_below_zero_is_zero",
            ],
        },
    ),
    "A7": (
        "a counter that stands still corrects the bias as in torch",
        {
            "compat/test_native_numbers.py": [
                "a_counter_that_stands_still_corrects_the_bias_as_torch_does",
            ],
        },
    ),
    "A8": (
        "memory in odd places and numbers beyond a dtype do what they do in torch",
        {
            "compat/test_edges_of_memory.py": [
                "a_rate_that_is_memory_of_the_step_changes_while_it_steps_as_in_torch",
            ],
            "compat/test_edges.py": [
                "numbers_beyond_the_range_of_a_dtype_do_what_they_do_in_torch",
            ],
            "compat/test_native_numbers.py": [
                "a_known_tensor_that_became_a_lazy_negative_is_noticed",
                "a_known_complex_moment_that_became_a_lazy_conjugate_is_noticed",
            ],
        },
    ),
    "A9": (
        "moments keep their dtype",
        {
            "test_moments.py": [
                "moments_of_two_dtypes_are_refused_with_the_path",
                "a_moment_of_another_dtype_keeps_it_or_is_refused_by_name",
                "a_moment_of_integers_is_refused_with_the_path",
            ],
        },
    ),
    "A10": (
        "conversions refuse what is no state",
        {
            "compat/test_saved.py": [
                "what_is_no_state_dict",
                "parameters_and_entries_that_do_not_belong_together",
            ],
            "compat/test_convert_refused.py": [
                "a_broken_entry",
                "hyperparameters_that_are_none",
                "a_functional_state_that_is_not_one_of_the_params",
            ],
            "test_checkpoint.py": [
                "a_leaf_of_another_kind",
                "a_counter_that_is_no_integer",
            ],
        },
    ),
    "A11": (
        "tensor decays, special values and zeros have torch's bits, with one exception",
        {
            "compat/test_edges.py": [
                "special_values_and_tensor_decays_have_torchs_bits",
                "zeros_have_torchs_sign_without_a_first_moment",
                "the_sign_of_zeros_in_a_gradient_of_another_layout",
            ],
        },
    ),
    "B1": (
        "a step that raises has written nothing",
        {
            "test_all_or_nothing.py": [
                "a_step_that_raises_writes_nothing",
                "a_step_without_the_memory_for_a_tensor_writes_nothing",
                "a_step_without_the_memory_of_the_kernel_writes_nothing",
                "a_closure_that_raises_lets_nothing_be_written",
                "a_hook_that_raises_after_the_step_finds_all_of_it_done",
                "a_first_step_that_raises_leaves_no_state",
                "an_update_of_the_users_that_fails_in_a_later_group_writes_none",
                "a_compiled_step_that_raises_writes_nothing",
            ],
        },
    ),
    "B2": (
        "a load that raises leaves the optimizer as it was",
        {
            "compat/test_loading.py": [
                "a_load_that_raises_changes_nothing",
            ],
        },
    ),
    "B3": (
        "threads that exchange memory meanwhile do no harm",
        {
            "execution/test_native_kernel_memory.py": [
                "another_thread_may_exchange_what_is_stepped",
                "memory_exchanged_while_versions_are_counted_is_not_written",
            ],
        },
    ),
    "B4": (
        "versions are counted before the write",
        {
            "execution/test_native_kernel_memory.py": [
                "versions_are_counted_once_and_before_the_write",
                "a_plan_that_does_not_fit_counts_no_version",
            ],
        },
    ),
    "B5": (
        "misaligned memory is left to torch",
        {
            "execution/test_native_kernel_memory.py": [
                "misaligned_memory_is_left_to_torch",
                "no_way_into_the_kernel_takes_misaligned_memory",
            ],
        },
    ),
    "C1": (
        "norms over shards are those of one process",
        {
            "test_sharded.py": [
                "every_transform_in_two_processes",
                "couplings_are_global_in_three_processes",
                "couplings_and_noise_do_not_depend_on_the_layout_in_four_processes",
            ],
        },
    ),
    "C2": (
        "whether all is finite is asked of all shards",
        {
            "test_sharded.py": [
                "every_transform_in_two_processes",
            ],
        },
    ),
    "C3": (
        "noise does not depend on the sharding; parameters without memory are stepped",
        {
            "test_sharded.py": [
                "couplings_and_noise_do_not_depend_on_the_layout_in_four_processes",
            ],
            "compat/test_group_schedules.py": [
                "parameters_without_memory_keep_the_rate_shown",
            ],
            "schedules/test_scheduled.py": [
                "a_scheduled_transform_steps_what_has_no_memory",
            ],
        },
    ),
    "C4": (
        "groups and checkpoints hold numbers of Python",
        {
            "compat/test_numbers_of_numpy.py": [
                "a_schedule_may_return_numbers_of_numpy",
                "checkpoints_have_numbers_of_python_whoever_set_them",
            ],
            "transforms/test_arguments.py": [
                "set_hyperparameters_may_be_of_numpy",
            ],
        },
    ),
    "C5": (
        "checkpointed loops take buffers under grad and vmap",
        {
            "loops/test_unroll_edges.py": [
                "checkpointed_buffers_under_grad_of_vmap",
            ],
        },
    ),
    "C6": (
        "inner loops under transforms say what to take",
        {
            "compat/test_inner_modules.py": [
                "a_transform_is_told_to_take_unroll",
            ],
        },
    ),
    "C7": (
        "what a loop returns can leave a transform",
        {
            "loops/test_unroll_edges.py": [
                "what_is_returned_can_leave_a_transform",
            ],
        },
    ),
    "C8": (
        "schedules are told from masks, their errors come through, ints are injected",
        {
            "transforms/test_arguments.py": [
                "a_schedule_whose_first_value_is_an_int",
                "the_error_of_a_schedule_comes_through",
                "masks_are_no_schedules",
                "every_kind_of_number_is_injected",
                "bools_are_never_injected",
            ],
        },
    ),
    "C9": (
        "exported programs are saved, loaded and run",
        {
            "test_export.py": [
                "every_state_has_a_public_name_under_which_torch_saves_it",
                "a_saved_program_takes_the_step",
                "a_packaged_step_is_the_step",
            ],
        },
    ),
    "C10": (
        "degenerate loops and momenta give what they should",
        {
            "loops/test_unroll_edges.py": [
                "no_steps_give_the_start",
                "no_steps_of_implicit_give_the_start_and_no_derivative",
                "trees_with_nothing_to_train",
                "an_update_that_takes_params_by_keyword_alone_is_refused",
                "a_momentum_of_one_is_taken_alike",
            ],
        },
    ),
    "C11": (
        "a user's own update that meets a missing gradient is told where and what to do",
        {
            "compat/test_own_transforms.py": [
                "a_missing_gradient_is_named_with_the_cure",
                "the_functional_form_names_it_too",
            ],
            "compat/test_layout.py": [
                "a_state_without_fields_has_a_name",
            ],
        },
    ),
    "C12": (
        "a first step needs the memory of the state",
        {
            "compat/test_layout.py": [
                "a_first_step_needs_the_memory_of_the_state_and_no_more",
            ],
        },
    ),
    "D1": (
        "a graph that grows in training is noticed, and no advice makes one",
        {
            "core/test_growth.py": [
                "training_of_parameters_that_were_not_detached_warns_once",
                "the_advice_for_a_module_does_not_grow_a_graph",
                "what_is_not_recorded_is_not_asked",
            ],
        },
    ),
    "D4": (
        "typical mistakes are answered",
        {
            "test_mistakes.py": [
                "a_mistake_is_answered",
                "a_mask_by_name_over_parameters_without_names_is_noticed",
            ],
            "loops/test_unroll_batches.py": [
                "one_batch_given_for_all_steps_is_told_apart",
            ],
        },
    ),
    "D6": (
        "a step asks a schedule once, and calls a factory once",
        {
            "test_schedules_asked.py": [
                "a_schedule_is_asked_once_in_a_step",
                "every_scheduled_recipe_asks_once_in_a_step",
                "a_step_calls_the_factory_once_for_a_group",
            ],
        },
    ),
    "D7": (
        "tests can fail",
        {
            "test_tests.py": [
                "every_test_can_fail",
            ],
            "execution/test_executors.py": [
                "forced",
            ],
            "execution/test_program_batched.py": [
                "members_at_the_same_step_have_each_their_own_bias",
            ],
            "compat/test_convert.py": [
                "conversion_shares_no_tensor_and_no_group",
            ],
        },
    ),
}
COUNTS = {"A": 11, "B": 5, "C": 12}


def test_every_fault_is_in_the_table() -> None:
    numbered = {f"{kind}{i}" for kind, count in COUNTS.items() for i in range(1, count + 1)}
    assert set(FAULTS) == numbered | {"D1", "D4", "D6", "D7"}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_tests_of_a_fault_are_there(fault: str) -> None:
    _, tests = FAULTS[fault]
    assert tests
    for file, names in tests.items():
        assert {f"test_{name}" for name in names} <= functions(HERE / file)


@cache
def functions(path: Path) -> set[str]:
    """The names of the test functions in a file."""
    return {x.name for x in ast.parse(path.read_text()).body if isinstance(x, ast.FunctionDef)}
