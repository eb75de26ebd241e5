"""Rollouts from config to summary: first frames become videos, under given actions or under the model's own."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.action_sources import ActionSource, open_action_source
from pipeline.config import PolicyConfig, RolloutConfig
from pipeline.fingerprint import digest
from pipeline.outputs.lerobot_dataset import read_generator, whole_fps, write_synthetic_dataset
from pipeline.outputs.merging import merge_records
from pipeline.outputs.rollouts import RolloutChecks, rollout_schema, synthetic_episodes
from pipeline.outputs.summary import Summary
from pipeline.recipe import Recipe, RolloutRecipe, make_recipe
from pipeline.rollout_plan import plan_dreams, plan_rollouts, read_tasks
from pipeline.run import Prepared, Show, drive, input_root, open_input, output_root, prepare_run
from pipeline.stages.stage import Road


def prepare_forward(config: RolloutConfig) -> Prepared:
    """What `actions` would have done. Raises a typed error for whatever does not fit."""
    dataset = open_input(config)
    recipe = make_recipe(config, dataset, mode="forward_dynamics")
    source = open_action_source(config.actions, dataset, recipe)
    return prepare_run(
        config,
        dataset,
        _rollout_recipe(config, recipe, config.chaining, source),
        plan=lambda recipe: plan_rollouts(
            dataset, recipe, source, episodes=config.dataset.episodes, num_samples=config.num_samples
        ),
        road=lambda recipe: _road(config, recipe, source),
    )


def prepare_policy(config: PolicyConfig) -> Prepared:
    """What the model would do, and what would follow. Raises a typed error for whatever does not fit."""
    dataset = open_input(config)
    tasks = read_tasks(config.tasks_path) if config.tasks_path is not None else [config.task][: bool(config.task)]
    return prepare_run(
        config,
        dataset,
        _rollout_recipe(config, make_recipe(config, dataset, mode="policy"), "autoregressive", None),
        plan=lambda recipe: plan_dreams(
            dataset,
            recipe,
            episodes=config.dataset.episodes,
            tasks=tasks,
            num_chunks=config.num_chunks,
            num_samples=config.num_samples,
        ),
        road=lambda recipe: _road(config, recipe, None),
    )


def roll_out(prepared: Prepared, show: Show | None = None) -> Summary:
    """Draws what has no record yet, merges all records of the plan, and accounts for every segment."""
    return drive(prepared, lambda keys: merge_rollouts(prepared, keys), show)


def merge_rollouts(prepared: Prepared, keys: Sequence[str]) -> RolloutChecks:
    """All records of the plan in `rollouts/`, and as a dataset where that is asked for."""
    checks = RolloutChecks(prepared.recipe)
    merge_records(
        prepared.store,
        keys,
        rollout_schema(prepared.recipe),
        prepared.output_dir / "rollouts",
        manifest=prepared.manifest,
        look=checks.add,
    )
    if prepared.config.lerobot_dataset and checks.num_videos > checks.num_single_actions:
        _write_dataset(prepared, keys)
    return checks


def where_it_is(config: RolloutConfig | PolicyConfig, summary: Summary) -> str:
    """What a terminal says at the end."""
    if not summary.results.get("videos"):
        return f"No video was drawn; {config.output_dir}/summary.json says why."
    dataset = f", the LeRobot dataset in {config.output_dir}/lerobot" if config.lerobot_dataset else ""
    return f"Videos are in {config.output_dir}/videos, a row per frame in {config.output_dir}/rollouts{dataset}."


def synthetic_camera(recipe: Recipe) -> str:
    """The feature key of a rollout's video: the camera's own, or one that says that several were composed."""
    return recipe.cameras[0] if len(recipe.cameras) == 1 else f"observation.images.{recipe.view_point}"


def _road(config: RolloutConfig | PolicyConfig, recipe: RolloutRecipe, source: ActionSource | None) -> Road:
    # The stages take seconds to import.
    from pipeline.stages.load import LoadStart
    from pipeline.stages.record import RecordRollout
    from pipeline.stages.roll_out import RollOut

    output_dir = output_root(config)
    return Road(
        load=(LoadStart, (input_root(config), config.dataset.format, recipe, source)),
        infer=(RollOut, (output_dir,)),
        record=(RecordRollout, (output_dir, recipe)),
    )


def _rollout_recipe(
    config: RolloutConfig | PolicyConfig, recipe: Recipe, chaining: str, source: ActionSource | None
) -> RolloutRecipe:
    if config.lerobot_dataset:
        whole_fps(recipe.timebase.model_fps)  # told now and not after a week
    return RolloutRecipe(**vars(recipe), chaining=chaining, actions=source.to_json() if source else {})


def _write_dataset(prepared: Prepared, keys: Sequence[str]) -> None:
    """The run's videos as a LeRobot dataset; one that is there already of the same records stays as it is."""
    recipe, manifest = prepared.recipe, prepared.manifest
    generator = {name: manifest[name] for name in ("run_id", "checkpoint", "recipe")} | {"records": digest(keys)}
    root = prepared.output_dir / "lerobot"
    if read_generator(root) == generator:
        return
    write_synthetic_dataset(
        root,
        synthetic_episodes(prepared.output_dir / "rollouts", prepared.output_dir),
        fps=recipe.timebase.model_fps,
        camera=synthetic_camera(recipe),
        action_names=recipe.action_names,
        robot_type=recipe.embodiment.domain_name,
        generator=generator,
    )
