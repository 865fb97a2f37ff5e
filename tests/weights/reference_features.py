"""The features of google-research/vmoe, where they are in vismoe, and their tests. Prints the tables of
docs/from-vmoe.md:

python -m tests.weights.reference_features

A row: names in the reference | names in vismoe, without `vismoe.`, with arguments | tests, below `tests/` | a remark.
Indented lines continue the line before. A feature without names in vismoe and without tests does not exist here; the
remark says why, or what to use instead. The names in the reference are those from 2022 to 2026.
"""

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import groupby
from pathlib import Path

TESTS = Path(__file__).parents[1]
FIGURES = {"reference_figures", "reference_checkpoints"}
FIELDS = "Fields of `config.model`"

FEATURES = """
# Models (`vmoe.nn`)
`vit_moe.VisionTransformerMoe` | vit.SparseVisionTransformer | weights/test_reference.py::test_logits_and_losses;
  weights/test_reference_parts.py::test_all_parts_together
`vit_moe_ensemble.VisionTransformerMoeEnsemble` | vit.MoEConfig(ensemble_size) |
  weights/test_reference_ensemble.py::test_members_of_any_number;
  vit/test_ensemble.py::test_each_member_is_a_sparse_network
`external.VisionTransformer` | create_model; weights.convert | weights/test_convert.py::test_dense_npz | presets
  `vmoe_…_dense`
`external.MlpMixer` | | | timm's `mixer_b16_224`
`vit_moe.EncoderMoe`, `EncoderBlock` | vit.SparseVisionTransformer(depth) |
  weights/test_reference_parts.py::test_all_parts_together | blocks are timm's
`vit_moe.MlpMoeBlock` | MoE; vit.MoEConfig | weights/test_reference.py::test_logits_and_losses;
  moe/test_oracle_agreement.py::test_routing_grid
`vit_moe.MlpBlock` of a sparse layer | MLPExperts | moe/test_oracle_agreement.py::test_experts
`vit_moe.MapHead` | vit.SparseVisionTransformer(global_pool) |
  weights/test_reference_parts.py::test_all_parts_together | `"map"`
`vit_moe_ensemble.MlpMoeWithNoisyTopExpertsPerItemEnsembleRouter` | moe.MemberMoE |
  vit/test_ensemble.py::test_capacity_noise_and_priority
`(logits, metrics)` of every model | record | vit/test_timm_surface.py::test_logits_only;
  moe/test_record.py::test_fields | a model returns only logits
`metrics["auxiliary_loss"]` | moe.Recording.auxiliary_loss | moe/test_record.py::test_auxiliary_loss
`metrics["encoderblock_1"]["importance_loss"]`, … | moe.LayerRecord.losses |
  weights/test_reference.py::test_logits_and_losses; moe/test_record.py::test_fields
metrics of Expert Choice and soft routing | moe.LayerRecord.metrics | weights/test_reference.py::test_other_routers

# Fields of `config.model`
`name` | weights.from_reference(config) | weights/test_reference_ensemble.py::test_by_name_alone
`num_classes` | vit.SparseVisionTransformer(num_classes) | weights/test_reference_parts.py::test_no_classes | None: 0
`patch_size` | vit.SparseVisionTransformer(patch_size) | weights/test_reference_parts.py::test_all_parts_together
`hidden_size` | vit.SparseVisionTransformer(embed_dim) | weights/test_reference_parts.py::test_all_parts_together
`classifier` | vit.SparseVisionTransformer(global_pool, class_token) |
  weights/test_reference_parts.py::test_all_parts_together | `token`, `gap`, `map`; `0` is refused
`representation_size` | vit.SparseVisionTransformer(representation_size) |
  weights/test_reference.py::test_representation_layer | None: 0
`head_bias_init` | vit.SparseVisionTransformer(head_bias_init) | vit/test_parts.py::test_bias_of_the_head
`head_kernel_zero_init` | vit.SparseVisionTransformer(weight_init) |
  weights/test_reference_parts.py::test_fields_that_say_how_and_not_what | `"jax"` starts with zeros; False is
  ignored
`deterministic` | weights.from_reference(config) | weights/test_reference_parts.py::test_mode | later `.eval()` and
  `.train()` change it
`dtype` | | weights/test_reference_parts.py::test_fields_that_say_how_and_not_what | ignored, here and below: the model
  is in float32; use autocast or `.bfloat16()` for another type
`encoder` | vit.SparseVisionTransformer | weights/test_reference.py::test_missing_fields_are_named
`encoder.num_layers` | vit.SparseVisionTransformer(depth) | weights/test_reference_parts.py::test_all_parts_together
`encoder.num_heads` | vit.SparseVisionTransformer(num_heads) |
  weights/test_reference_parts.py::test_all_parts_together
`encoder.mlp_dim` | vit.SparseVisionTransformer(mlp_ratio) | weights/test_reference_parts.py::test_width_of_the_mlps
`encoder.dropout_rate` | vit.SparseVisionTransformer(proj_drop_rate, pos_drop_rate) |
  weights/test_reference_parts.py::test_experts_of_their_own_kind;
  weights/test_reference_parts.py::test_tokens_are_dropped_out_behind_the_position_embedding
`encoder.attention_dropout_rate` | vit.SparseVisionTransformer(attn_drop_rate) |
  weights/test_reference_parts.py::test_experts_of_their_own_kind
`encoder.attention_qk_norm` | vit.SparseVisionTransformer(qk_norm) |
  weights/test_reference_parts.py::test_all_parts_together; vit/test_parts.py::test_norms_by_scale | `"scale"`
`encoder.deterministic` | | weights/test_reference_parts.py::test_mode | ignored: the reference computes it
`encoder.dtype` | | weights/test_reference_parts.py::test_fields_that_say_how_and_not_what | ignored
`encoder.position_emb` | vit.SparseVisionTransformer(pos_embed) |
  weights/test_reference_parts.py::test_all_parts_together
`encoder.position_emb.name` | vit.SparseVisionTransformer(pos_embed) |
  weights/test_reference_parts.py::test_all_parts_together; vit/test_parts.py::test_sincos2d | `learned` is `"learn"`
`encoder.position_emb.temperature` | vit.SparseVisionTransformer(pos_embed_temperature) |
  weights/test_reference_parts.py::test_temperature_of_the_position_embedding
`encoder.position_emb.h`, `encoder.position_emb.w` | |
  weights/test_reference_parts.py::test_temperature_of_the_position_embedding | ignored: the size of the images counts
`encoder.moe` | vit.MoEConfig | weights/test_reference.py::test_missing_fields_are_named
`encoder.moe.layers` | vit.MoEConfig(moe_layers) | weights/test_reference_parts.py::test_layers_that_are_not_there
`encoder.moe.num_experts` | vit.MoEConfig(num_experts) | weights/test_reference_parts.py::test_all_parts_together
`encoder.moe.group_size` | MoE(group_size) | weights/test_reference.py::test_capacity_settings
`encoder.moe.mlp_dim` | vit.MoEConfig(expert_hidden_dim) |
  weights/test_reference_parts.py::test_experts_of_their_own_kind
`encoder.moe.dropout_rate` | vit.MoEConfig(expert_dropout) |
  weights/test_reference_parts.py::test_experts_of_their_own_kind; vit/test_parts.py::test_dropout_of_experts
`encoder.moe.split_rngs` | vit.MoEConfig(expert_init) |
  weights/test_reference_parts.py::test_how_experts_would_be_drawn_anew | False is `"alike"`
`encoder.moe.ensemble_size` | vit.MoEConfig(ensemble_size) |
  weights/test_reference_ensemble.py::test_members_of_any_number
`encoder.moe.deterministic` | | weights/test_reference_parts.py::test_mode | ignored: the reference computes it
`encoder.moe.partition_spec`, `encoder.moe.dtype` | |
  weights/test_reference_parts.py::test_fields_that_say_how_and_not_what | ignored
`encoder.moe.router` | vit.MoEConfig |
  weights/test_reference_parts.py::test_values_that_are_not_understood
`encoder.moe.router.name` | vit.MoEConfig(router) | weights/test_reference.py::test_other_routers;
  weights/test_reference_parts.py::test_values_that_are_not_understood | `"top-k"`, `"expert-choice"`, `"soft"`; any
  other name is an error
`encoder.moe.router.num_selected_experts` | TopKRouter(k); vit.MoEConfig(experts_per_token) |
  weights/test_reference_parts.py::test_all_parts_together
`encoder.moe.router.noise_std` | TopKRouter(noise_std) | moe/test_oracle_agreement.py::test_routing_grid | times 1/E,
  as in the reference
`encoder.moe.router.importance_loss_weight`, `encoder.moe.router.load_loss_weight`,
  `encoder.moe.router.gshard_loss_weight` | TopKRouter(loss_weights) |
  weights/test_reference.py::test_capacity_settings; weights/test_reference.py::test_logits_and_losses | with
  `balance="loss"`
`encoder.moe.router.deterministic` | TopKRouter(noise_std) |
  weights/test_reference_parts.py::test_how_the_router_is_told_to_be_deterministic | True means 0.0
`encoder.moe.router.num_slots`, `encoder.moe.router.capacity_factor` | SoftRouter(slots_per_expert) |
  weights/test_reference.py::test_other_routers; moe/test_soft.py::test_in_a_network
`encoder.moe.router.mu_init`, `encoder.moe.router.scale_init` | | vit/test_parts.py::test_how_routers_are_drawn |
  ignored: always the reference's defaults
`encoder.moe.router.compute_similarity_metrics` | moe.LayerRecord.metrics | moe/test_soft.py::test_reference_figures |
  computed on access
`encoder.moe.router.partition_spec`, `encoder.moe.router.precision`, `encoder.moe.router.dtype` | |
  weights/test_reference.py::test_other_routers | ignored
`encoder.moe.router.dispatcher` | moe.LocalExchange; moe.grouped | weights/test_reference.py::test_capacity_settings
`encoder.moe.router.dispatcher.name` | MoE(product) |
  weights/test_reference_parts.py::test_fields_that_say_how_and_not_what | `einsum` and `indices` compute the same
`encoder.moe.router.dispatcher.capacity_factor`, `encoder.moe.router.dispatcher.capacity` |
  TopKRouter(capacity_factor) | weights/test_reference.py::test_capacity_settings
`encoder.moe.router.dispatcher.capacity_ceil_or_round` | TopKRouter(capacity_rounding) |
  weights/test_reference.py::test_capacity_settings
`encoder.moe.router.dispatcher.capacity_multiple_of` | TopKRouter(capacity_multiple_of) |
  weights/test_reference.py::test_capacity_settings | None means 1
`encoder.moe.router.dispatcher.batch_priority` | TopKRouter(batch_priority) |
  weights/test_reference.py::test_logits_and_losses; moe/test_oracle_agreement.py::test_routing_grid
`encoder.moe.router.dispatcher.bfloat16` | MoE(bfloat16_exchange) | weights/test_reference.py::test_other_routers;
  moe/test_soft.py::test_bfloat16_exchange_rounds_what_experts_see_and_say
`encoder.moe.router.dispatcher.partition_spec`, `encoder.moe.router.dispatcher.einsum_precision` | |
  weights/test_reference_parts.py::test_fields_that_say_how_and_not_what | ignored

# Routers, losses, dispatchers
`vmoe.nn.routing.NoisyTopExpertsPerItemRouter` | TopKRouter | moe/test_reference_figures.py::test_router;
  moe/test_oracle_agreement.py::test_routing_grid
`vmoe.nn.routing.NoisyTopItemsPerExpertRouter` | ExpertChoiceRouter |
  moe/test_expert_choice.py::test_reference_figures; moe/test_expert_choice.py::test_the_layer_is_the_oracle
`vmoe.nn.ensemble_routing.NoisyTopExpertsPerItemEnsembleRouter` | moe.MemberRouter |
  vit/test_ensemble.py::test_capacity_noise_and_priority
`vmoe.projects.soft_moe.router.SoftRouter` | SoftRouter | moe/test_soft.py::test_reference_figures;
  moe/test_soft.py::test_the_layer_is_the_oracle
`vmoe.projects.sparsity_constrained_ot` | | | three routers by optimal transport; write your own `vismoe.moe.Router`
importance, load, gshard loss |
  moe.routers.losses.importance_loss; moe.routers.losses.load_loss; moe.routers.losses.gshard_loss |
  moe/test_reference_figures.py::test_router; moe/test_oracle_agreement.py::test_losses_of_given_logits
`vmoe.moe.compute_capacity` | moe.compute_capacity | moe/test_reference_figures.py::test_capacity;
  moe/test_oracle_agreement.py::test_routing_grid
`vmoe.moe.get_top_experts_per_item_dispatcher` | TopKRouter |
  moe/test_reference_figures.py::test_dispatch_and_combine; moe/test_properties.py::test_kept_choices_fit_capacity
`vmoe.moe.get_top_items_per_expert_dispatcher` | ExpertChoiceRouter |
  moe/test_expert_choice.py::test_the_layer_is_the_oracle
`vmoe.moe.get_dense_einsum_dispatcher` | | | no router of the reference calls it; `TopKRouter(k=num_experts)` has
  the same effect
`EinsumDispatcher`, `ExpertIndicesDispatcher` | moe.SparsePlan; moe.LocalExchange |
  moe/test_backends.py::test_backend_equals_loop | a plan is data, an exchange and a product carry it out
`vmoe.moe.Bfloat16Dispatcher` | MoE(bfloat16_exchange) |
  moe/test_soft.py::test_bfloat16_exchange_rounds_what_experts_see_and_say
`vmoe.moe.sparse_moe_spmd` | MoE; moe.StackedLinear | moe/test_backends.py::test_every_form_of_expert | experts are a
  module, called with rows and their `vismoe.moe.Layout`
`vmoe.moe.sparse_moe_spmd_with_axes` | | | no expert parallelism yet

# Weights
`checkpoints.restore_checkpoint_partitioned` | weights.read_reference | weights/test_read_reference.py::test_samples;
  weights/test_read_reference.py::test_what_is_written_is_read | returns whole arrays by name
files without a version (before 2022-06-22) | weights.read_reference |
  weights/test_read_reference.py::test_numbers_of_leaves
a training state in such files | weights.convert | weights/test_convert.py::test_a_training_state | only its parameters
  are used
`checkpoints.save_checkpoint_partitioned` | | | `vismoe.save` writes safetensors; `to_reference` returns arrays that
  a JAX program can write
checkpoints by Orbax | | | load them with Orbax, and pass a dictionary of arrays to
  `from_reference`
a model from its parameters | weights.from_reference(params, config) |
  weights/test_reference.py::test_logits_and_losses; weights/test_reference.py::test_gradients
parameters of a model | weights.to_reference(model) | weights/test_reference.py::test_back;
  weights/test_reference_parts.py::test_all_parts_together | bit for bit
`gs://vmoe_checkpoints/…` | create_model(pretrained); weights.PUBLISHED | weights/test_pretrained.py::test_one_line;
  weights/test_convert.py::test_published_names | tags of presets
`initialization.initialize_from_vmoe`, `…_release` (2022) | training.Recipe(weights); weights.take_over |
  recipes/test_paper.py::test_fine_tuning_trains | all weights but the head; position embeddings are resized
`initialization.initialize_from_vit` | weights.convert; upcycle | weights/test_convert.py::test_dense_npz;
  vit/test_upcycle.py::test_it_starts_as_its_parent
`initialization.initialize_from_orbax` | | | Orbax is not read
rule `expand_tile`: experts of a dense MLP | upcycle(num_experts, moe_layers) |
  vit/test_upcycle.py::test_it_starts_as_its_parent | ViTs of timm, torchvision and transformers
rule `vit_zoom`: positions | weights.convert(image_size); weights.take_over |
  weights/test_convert.py::test_positions_of_the_reference; weights/test_convert.py::test_another_image_size
rules: rename, drop, `reshape`, `squeeze`, `stack`, `zoom` | | | change the dictionary between `read_reference` and
  `from_reference`
`raise_if_source_unmatched`, `…_target_…` | weights.from_reference |
  weights/test_reference.py::test_missing_and_superfluous_parameters_are_named | always an error
`configs/vmoe_paper/common.py`: `get_vmoe_config` | create_model(name) |
  vit/test_presets.py::test_paper_presets_are_the_papers; vit/test_presets.py::test_paper_trunks;
  vit/test_presets.py::test_published_totals
`configs/eee_paper`: the network | create_model(overrides) | vit/test_ensemble.py::test_there_and_back |
  `ensemble_size=2` of any sparse preset
`projects/soft_moe/configs`: the networks | create_model(overrides) | moe/test_soft.py::test_in_a_network;
  moe/test_expert_choice.py::test_in_a_network | `router="soft"`, `"expert-choice"`

# Training (`vmoe.train`, other fields of `config`)
`train.main`, `trainer.train_and_evaluate` | train | training/test_fit.py::test_training_learns | `vismoe train
  RECIPE`
`configs/vmoe_paper/common.py`: `get_optimizer_config` | recipes.paper_s32; recipes.paper_h14 |
  recipes/test_paper.py::test_upstream_trains | and the sizes in between
`configs/vmoe_paper/…_ft_ilsvrc2012.py` | recipes.paper_finetune | recipes/test_paper.py::test_fine_tuning_trains
`configs/`: `pretrain_imagenet21k`, `…_randaug_light1`, `eee_paper`, `soft_moe` | | | no recipe, since there is no
  RandAugment; fields of `vismoe train` set the rest
`train_steps`, `train_epochs` | training.Recipe(steps) | training/test_fit.py::test_evaluations_come_as_often_as_asked
  | only steps
`dataset.train.batch_size` | training.Recipe(batch_size) |
  training/test_processes.py::test_the_loss_curve_is_that_of_one_process | of all processes together
`microsteps` | training.Recipe(accumulate) | training/test_processes.py::test_the_loss_curve_is_that_of_one_process
`seed`, `extra_rng_keys` | training.Recipe(seed) | training/test_fit.py::test_the_same_recipe_gives_the_same_bits
`loss.name`: `softmax_xent` | training.Recipe(loss) | training/test_fit.py::test_auxiliary_losses_are_trained_on |
  `auto`
`loss.name`: `sigmoid_xent` | training.Recipe(loss) |
  recipes/test_paper.py::test_the_sigmoid_loss_is_summed_over_classes | `sigmoid`
`loss.name`: `ensemble_softmax_xent`, `ensemble_sigmoid_xent`, in training | vit.member_loss(kind) |
  training/test_ensemble.py::test_step_trains_each_member_alone; vit/test_ensemble.py::test_losses_and_metrics
`metrics["total_loss"]` | training.fit | training/test_fit.py::test_auxiliary_losses_are_trained_on | loss + auxiliary
  loss, with `balance="loss"`
`optimizer.name`: `adam` | training.Recipe(optimizer) |
  training/test_reference_training.py::test_steps_are_the_reference_s;
  training/test_reference_training.py::test_one_step_in_closed_form | `adamw`
`optimizer.name`: `sgd`; `optimizer.momentum` | training.Recipe(optimizer, momentum) |
  training/test_reference_training.py::test_steps_are_the_reference_s;
  training/test_reference_training.py::test_one_step_in_closed_form | `momentum`
`optimizer.name`: `big_vision_adafactor` | | | `timm.optim.AdafactorBigVision`, in your own loop
`optimizer.b1`, `b2`, `mu_dtype`, `accumulator_dtype` | | | always 0.9, 0.999 and float32, as in all
  published configurations
`optimizer.weight_decay` | training.Recipe(weight_decay) |
  training/test_reference_training.py::test_one_step_in_closed_form | pairs as in the reference; a number decays only
  matrices
`optimizer.gradient_clip.global_norm` | training.Recipe(clip_norm) |
  training/test_reference_training.py::test_one_step_in_closed_form | clipping comes first, then optimiser, weight decay
  and learning rate
`optimizer.gradient_clip.absolute_value`, `optimizer.gradient_scale` | | | hooks on parameters, in your own loop
`optimizer.frozen_pattern` | training.Recipe(frozen) |
  training/test_reference_training.py::test_frozen_parameters_stay_and_count_in_no_norm
`optimizer.trainable_pattern` | | | `frozen` with its negation, `^(?!head)`
`learning_rate.schedule`: `constant`, `warmup_cosine_decay` | training.Recipe(schedule) |
  training/test_reference_training.py::test_rates_are_the_reference_s;
  training/test_reference_training.py::test_rates_in_closed_form | `constant`, `warmup-cosine`
`learning_rate.schedule`: `warmup_linear_decay`, `warmup_polynomial_decay` | training.Recipe(schedule, power) |
  training/test_reference_training.py::test_rates_are_the_reference_s;
  training/test_reference_training.py::test_rates_in_closed_form | `warmup-polynomial`
`learning_rate.schedule`: `big_vision_rsqrt` | training.Recipe(schedule, timescale, cooldown_steps) |
  training/test_reference_training.py::test_rates_are_the_reference_s;
  training/test_reference_training.py::test_rates_in_closed_form | `rsqrt`
`learning_rate.schedule`: `warmup_exponential_decay` | | | no published configuration has it
`learning_rate.peak_value`, `end_value`, `warmup_steps` | training.Recipe(learning_rate, end_learning_rate,
  warmup_steps) | training/test_reference_training.py::test_rates_in_closed_form
`learning_rate.decay_steps` | training.Recipe(steps) | training/test_reference_training.py::test_rates_in_closed_form
  | only the reference's default
`mixup.concentration` | training.Recipe(mixup) |
  training/test_multi_label.py::test_the_loss_is_each_class_s_cross_entropy | timm's mixup
`mixup.granularity`, `mixup.size` | | | always pairs, with one weight per batch
`adversarial` | | | there are no adversarial attacks
`initialization` | training.Recipe(weights) | recipes/test_paper.py::test_taking_over_changes_no_answer
`save_checkpoint.every_steps`, `keep_last` | training.Recipe(checkpoint_every, keep_checkpoints) |
  training/test_checkpoint.py::test_the_newest_and_the_best_are_kept
`restore_or_create_train_state`, `train_state.TrainState` | train(resume); training.state.State |
  training/test_resume.py::test_killed_at_random_steps | with bit-equal results and the same order of images
`evaluate.every_steps` | training.Recipe(evaluate_every) |
  training/test_fit.py::test_evaluations_come_as_often_as_asked
`evaluate.model_overrides` of the capacity | TopKRouter(eval_capacity_factor) |
  moe/test_oracle_agreement.py::test_evaluation_has_no_noise_and_its_own_capacity
`report_progress` | train(on_status) | training/test_fit.py::test_watching_changes_nothing
CLU's `metric_writers` | training.Recipe(track) | training/test_tracker.py::test_tensorboard_has_the_metrics
`profile` | | | `torch.profiler`, in your own loop
`summarize_arrays`, `global_norm` | | | hooks, in your own loop

# Data (`vmoe.data`)
`input_pipeline.get_datasets` | data.open_data(name) | data/test_folders.py::test_train_and_val_share_classes_by_name
  | folders, tables, zips; write sets of TFDS as image files first
`shuffle_buffer`, `shuffle_seed` | training.Recipe(seed) |
  data/test_order.py::test_every_epoch_shows_every_image_once_in_a_new_order | a permutation of the whole set
`cache`, `prefetch`, `num_parallel_calls`, `pjit_utils.prefetch_to_device` | training.Recipe(workers) |
  data/test_order.py::test_any_number_of_workers_gives_the_same_stream
`pp_ops.decode` | data.read_image | data/test_decoding.py::test_grey_and_colour_become_what_the_network_takes
`pp_ops.inception_crop`, `decode_jpeg_and_inception_crop` | data.training_transform(crop) |
  data/test_transforms.py::test_crops_are_of_any_size_and_nearly_square | `crop=0.05`
`pp_ops.flip_lr` | data.training_transform(flip) |
  data/test_transforms.py::test_half_are_mirrored | `flip=0.5`
`pp_ops.resize`, `resize_small`, `central_crop` | data.evaluation_transform(config) |
  data/test_transforms.py::test_evaluation_scales_and_crops; weights/test_convert.py::test_published_names |
  converted checkpoints have the reference's
`pp_ops.value_range(-1, 1)` | data.evaluation_transform(config) |
  data/test_transforms.py::test_a_image_of_the_right_size_is_only_normalised | mean and std 0.5
`pp_ops.onehot` of several labels | data.open_data(name) |
  data/test_metadata.py::test_a_cell_of_several_labels_makes_a_set_multi_label
`pp_ops.randaug` | | | `timm.data.rand_augment_transform`, in your own loop
`pp_ops.copy`, `flatten`, `ignore_no_labels`, `keep`, `reshape` | | | only needed for TFDS

# Evaluation (`vmoe.evaluate`)
`evaluator.EvaluateMultipleDatasets` | inference.evaluate | inference/test_evaluation.py::test_by_hand | `vismoe eval
  MODEL --data SET`, one set per call
`prec@1`, `loss` | tasks.Evaluation | inference/test_evaluation.py::test_by_hand | for several labels mean average
  precision
`fewshot.FewShotPeriodicAction` | features.few_shot(shots, seeds, protocol) |
  features/test_fewshot.py::test_the_reference_s_protocol | `vismoe fewshot MODEL --protocol reference`, after training
`fewshot.l2_regs` | features.fewshot.REFERENCE_GRID | features/test_fewshot.py::test_the_reference_s_protocol
its l2, the best by rank | features.fewshot.best_rank | features/test_fewshot.py::test_ranks_not_means_choose | over
  seeds, on one set
its regression in closed form | features.ridge | features/test_ridge.py::test_reference;
  features/test_ridge.py::test_it_is_ridge_regression
`fewshot.main_task`, `fewshot.every_steps` | | | the nine sets in its configuration come from TFDS
`ensemble_softmax_xent_eval`, `ensemble_sigmoid_xent_eval` | vit.ensemble_loss(kind) |
  vit/test_ensemble.py::test_losses_and_metrics; vit/test_ensemble.py::test_losses_of_several_classes
`label_pred_ensemble_softmax`, `…_sigmoid` | vit.mean_logits(kind) |
  training/test_ensemble.py::test_evaluation_and_prediction; vit/test_ensemble.py::test_losses_of_several_classes |
  depends on the set, not on the loss

# Machines and projects
`multihost_utils` | parallel.Mesh | parallel/test_mesh.py::test_two_processes;
  training/test_processes.py::test_the_loss_curve_is_that_of_one_process | `torchrun -m vismoe train`, or plain DDP
`partitioning`, `num_expert_partitions`, `params_axis_resources` | | | not yet: data parallelism only, every device
  has all experts
`projects.adversarial_attacks` | | | there are no adversarial attacks
`projects.contrastive` | | | no text tower; `vismoe.upcycle` takes CLIP's and SigLIP's image towers
"""

DIFFERENCES = """
The gradient at an even load
  | NaN in the importance and load losses (the gradient of a standard deviation of 0), until its pull request 218 of
    September 2026
  | 0, computed from the variance: the loss has its minimum there, and one NaN would end a training
  | moe/test_properties.py::test_even_load_costs_nothing
The encoder of an ensemble
  | a copy of the encoder's code, which ignores `position_emb` and, in its blocks, `attention_qk_norm`
  | an option of the network, so that it works with all other options; `from_reference` builds what the copy computes.
    In both, members share the trunk up to the first sparse block
  | weights/test_reference_ensemble.py::test_what_the_reference_does_not_read;
    vit/test_ensemble.py::test_trunk_is_shared
The routers' noise in an ensemble
  | drawn for each member's own experts, (G, M, S/M, E/M)
  | drawn once, (G, S, E); values for other members' experts are not used: the same distribution, with one call per
    layer
  | vit/test_ensemble.py::test_capacity_noise_and_priority
Random numbers
  | JAX's; with `split_rngs` False all experts of a layer have the same dropout mask
  | PyTorch's: initial weights, noise, dropout, order of images and few-shot draws have the same distributions, but
    other values; each expert has its own dropout mask, because equal masks only make experts more alike
  | vit/test_parts.py::test_how_routers_are_drawn; vit/test_parts.py::test_dropout_of_experts
Capacity at evaluation
  | 1.05 to 4 times the mean load, in groups of 8 images: whether a token is dropped depends on other images
  | presets and converted checkpoints drop no token at evaluation, so that an image's result does not depend on its
    batch; `from_reference` keeps the configuration's capacity
  | moe/test_properties.py::test_image_is_independent_of_its_batch;
    vit/test_presets.py::test_paper_presets_are_the_papers
A group size that does not divide the tokens
  | an error
  | an error in training; at evaluation each image is a group, because the last batch of a set is seldom full, with a
    warning if that can change outputs
  | moe/test_oracle_agreement.py::test_groups_that_do_not_divide_are_images_at_evaluation
Rounding the experts' inputs and outputs to bfloat16
  | in published configurations, and always in soft routing
  | in published checkpoints, in `from_reference`, and with `bfloat16_exchange=True`; not in presets and recipes: it
    saves bandwidth between devices, but here experts are not spread over devices
  | moe/test_soft.py::test_bfloat16_exchange_rounds_what_experts_see_and_say
The router's type
  | the layer's `dtype`
  | float32, also under autocast and in bfloat16 models, because rounding changes choices
  | moe/test_backends.py::test_autocast_keeps_the_router_in_float32;
    moe/test_oracle_agreement.py::test_logits_are_float32_for_bfloat16_tokens
The default balancing
  | importance and load losses of weight 1, which its trainer adds
  | a bias on the choice, without losses, so that experts are balanced in any training loop; the paper's presets have
    the paper's losses, 0.005 each, and warn if these are not added to the loss
  | test_strangers_loops.py::test_plain_loop; moe/test_record.py::test_warns_once
A number as weight decay
  | decays every parameter
  | decays matrices, not biases and norms, as timm does; `(".*", 0.1)` decays all, and the paper's upstream recipes do
  | vit/test_timm_surface.py::test_weight_decay_spares_biases;
    training/test_reference_training.py::test_one_step_in_closed_form
Frozen parameters
  | have gradients, which count in the clipped norm and are dropped afterwards
  | have no gradients, which saves their computation
  | training/test_reference_training.py::test_frozen_parameters_stay_and_count_in_no_norm
A step whose loss or gradient is not finite
  | changes the weights
  | is skipped, counted and listed; ten in a row end the run
  | training/test_resume.py::test_what_is_not_finite_never_reaches_the_weights
Mixup
  | mixes neighbours in the batch, with the larger weight first and one weight per device
  | timm's: mixes the first image with the last, and so on, with one weight per batch
  | training/test_multi_label.py::test_the_loss_is_each_class_s_cross_entropy
Preprocessing
  | bilinear; at evaluation the shorter side is resized to 256 and the central 224 pixels are used, or the whole image
    is resized to 384 × 384
  | presets, for new trainings: bicubic, the shorter side is resized to the network's size; converted published
    checkpoints have the reference's preprocessing
  | weights/test_convert.py::test_published_names; data/test_transforms.py::test_evaluation_scales_and_crops
Few-shot regression
  | float32
  | float64, which comes a little closer to the minimum: weights differ by up to 2e-3, accuracies by one image of 200
  | features/test_ridge.py::test_reference
Few-shot regularisation
  | chosen on the test split, by rank over nine sets
  | by default on more images of the training split; `--protocol reference` on the validation split, by rank over seeds
  | features/test_fewshot.py::test_the_reference_s_protocol
"""


@dataclass(frozen=True)
class Row:
    """One row of a table.

    - `section`: heading of the table.
    - `names`: the names in the reference, in Markdown.
    - `places`: the names in vismoe, without `vismoe.`.
    - `tests`: tests, below tests/.
    - `note`: a remark; for a deliberate difference, what vismoe does.
    - `there`: for a deliberate difference, what the reference does.
    """

    section: str
    names: str
    places: tuple[str, ...]
    tests: tuple[str, ...]
    note: str = ""
    there: str = ""


def _cells(text: str) -> Iterator[list[str]]:
    """The cells of each row: a line that is not indented, with the indented lines after it."""
    for line in re.sub(r"\n +", " ", text).strip().splitlines():
        if line:
            yield [cell.strip() for cell in line.split(" |")]


def _several(cell: str) -> tuple[str, ...]:
    return tuple(cell.split("; ")) if cell else ()


def features() -> Iterator[Row]:
    """The features of the reference."""
    section = ""
    for first, *others in _cells(FEATURES):
        if first.startswith("# "):
            section = first[2:]
        else:
            places, tests, note = [*others, ""][:3]
            yield Row(section, first, _several(places), _several(tests), note)


def differences() -> Iterator[Row]:
    """The deliberate differences."""
    for what, there, here, tests in _cells(DIFFERENCES):
        yield Row("Deliberate differences", what, (), _several(tests), here, there)


@cache
def functions(file: str) -> dict[str, set[str]]:
    """The functions of a file below tests/, with the names of their arguments."""
    nodes = ast.parse((TESTS / file).read_text()).body
    defined = [node for node in nodes if isinstance(node, ast.FunctionDef)]
    return {function.name: {argument.arg for argument in function.args.args} for function in defined}


def _proof(row: Row) -> str:
    tests = []
    for test in row.tests:
        file, _, function = test.partition("::")
        tests.append(f"`{test}`" + " †" * bool(FIGURES & functions(file).get(function, set())))
    return ", ".join(tests) or "–"


def _here(row: Row) -> str:
    if not row.places:
        return row.note if row.tests else f"**not here**: {row.note}"
    return ", ".join(f"`vismoe.{place}`" for place in row.places) + f": {row.note}" * bool(row.note)


def table() -> str:
    """The tables of docs/from-vmoe.md."""
    lines = []
    for section, rows in groupby(features(), lambda row: row.section):
        lines += [f"### {section}", "", "| google-research/vmoe | vismoe | tests |", "| --- | --- | --- |"]
        lines += [f"| {row.names} | {_here(row)} | {_proof(row)} |" for row in rows] + [""]
    heads = ["| what | google-research/vmoe | vismoe, and why | tests |", "| --- | --- | --- | --- |"]
    lines += ["### Deliberate differences", "", *heads]
    lines += [f"| {row.names} | {row.there} | {row.note} | {_proof(row)} |" for row in differences()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(table(), end="")
