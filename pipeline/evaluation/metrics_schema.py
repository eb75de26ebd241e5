"""Every key of the metrics file and what it means. Owns the schema's name; a test walks a real file along this table.

`<variant>` is a key of rows.VARIANTS, `<metric>` of rows.METRICS, `<source>` ceiling (what inverse dynamics sees in the
recorded video) or always_the_mean (guessing the mean of the given actions), `[]` an entry of a list. An estimate is an
object with ESTIMATE_KEYS: the mean over episodes, the bounds of its 95% interval over episodes, the standard deviation
over episodes (these three null for a single episode), and how many episodes had a value. Whatever could not be measured
is null, never NaN; `horizon` and `per_episode` leave out variants without rows. Whoever writes the file may add
`settings`, an object, which a comparison then looks at.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

METRICS_SCHEMA = "world-model-metrics/1"

ESTIMATE_KEYS = ("mean", "low", "high", "std_over_episodes", "num_episodes")

SCHEMA: Mapping[str, str] = MappingProxyType(
    {
        "schema": METRICS_SCHEMA,
        "episodes": "episodes that have scored frames",
        "frames": "recorded frames that the rollouts of recorded actions were compared with",
        "num_samples": "rollouts of the recorded actions from one first frame",
        "psnr": "dB, mean over episodes, of the rollouts of recorded actions; so are the next three",
        "ssim": "1 is best",
        "moving_psnr": "dB, over those pixels that moved since the first frame; null where none did",
        "lpips": "0 is best; null without weights, see lpips_status",
        "obedience": "dB of moving_psnr lost with another episode's actions; null without that variant",
        "obedience_zero_motion": "the same when told to stand still",
        "agreement_translation_rmse_m": "m, recovered against given actions; null where translations are not in metres",
        "agreement_rotation_rmse_rad": "rad, geodesic; null where the layout has no poses",
        "agreement_gripper": "share of frames with recovered and given gripper on the same side of 0.5",
        "metrics.<metric>.unit": "dB or empty",
        "metrics.<metric>.higher_is_better": "false for lpips",
        "metrics.<metric>.<variant>": "estimate, with std_over_samples; null for a variant without rows",
        "metrics.<metric>.<variant>.std_over_samples": (
            "mean over episodes of the standard deviation between the samples' episode means; null below two samples"
        ),
        "drops.other_actions": "null without that variant",
        "drops.other_actions.<metric>": (
            "estimate: how much better the rollout of recorded actions is than that of other actions, paired by frame, "
            "averaged by episode; positive means that the model obeys, for lpips too"
        ),
        "drops.zero_motion": "null without that variant",
        "drops.zero_motion.<metric>": "estimate: the same against standing still",
        "gains.copy": "null without that variant",
        "gains.copy.<metric>": "estimate: how much better the rollout is than the copied first frame, paired likewise",
        "gains.ceiling": "null without that variant",
        "gains.ceiling.<metric>": "estimate: how much better the ceiling is than the rollout, so what is left to gain",
        "horizon[].step": "frames since the rollout's first one, from 1",
        "horizon[].num_episodes": "episodes whose rollouts of recorded actions reach this step",
        "horizon[].<variant>.<metric>.mean": "over episodes at this step; null where none has a value",
        "horizon[].<variant>.<metric>.low": "bound of its 95% interval",
        "horizon[].<variant>.<metric>.high": "bound of its 95% interval",
        "agreement": "null when no action was recovered from the rollouts of recorded actions",
        "agreement.num_frames.recorded": "pairs of given and recovered actions from the rollouts, samples included",
        "agreement.num_frames.<source>": "pairs of this source; null where that was not asked",
        "agreement.num_no_rotation.recorded": "rotations left out: six recovered or given numbers that span no plane",
        "agreement.num_no_rotation.<source>": "the same of this source",
        "agreement.dimensions[].name": "the column's name",
        "agreement.dimensions[].unit": "m, 0..1 for a gripper, or empty",
        "agreement.dimensions[].mae": "of the rollout: mean over episodes of their mean absolute error",
        "agreement.dimensions[].rmse": "of the rollout: mean over episodes of their root mean square error",
        "agreement.dimensions[].r2": (
            "of the rollout: 1 - mean square error / that of always guessing the mean, each averaged over episodes; "
            "null where the given action never changes"
        ),
        "agreement.dimensions[].<source>": "the same three of this source; null where that was not asked",
        "agreement.translation": "null where the layout has no poses",
        "agreement.translation.unit": "m, or empty where the dataset's translations are not in metres",
        "agreement.translation.rmse": "of the rollout: Euclidean error, root mean square by episode; arms count alike",
        "agreement.translation.mae": "of the rollout: Euclidean error, mean",
        "agreement.translation.r2": (
            "of the rollout: 1 - mean square error / that of always guessing the mean, each averaged over episodes; "
            "null where the given translations never change"
        ),
        "agreement.translation.<source>": "the same three of this source; null where that was not asked",
        "agreement.rotation": "null where the layout has no poses",
        "agreement.rotation.unit": "rad",
        "agreement.rotation.rmse": "of the rollout: geodesic angle, root mean square by episode; arms count alike",
        "agreement.rotation.mean": "of the rollout: geodesic angle, mean",
        "agreement.rotation.r2": "of the rollout: the same of angles; null where the given rotations never change",
        "agreement.rotation.<source>": "the same three of this source; null where that was not asked",
        "agreement.gripper": "null without gripper columns, or where they are widths in metres",
        "agreement.gripper.unit": "empty",
        "agreement.gripper.agreement": "of the rollout: share of frames on the same side of 0.5",
        "agreement.gripper.<source>": "the same of this source; null where that was not asked",
        "agreement.intervals.translation_rmse_m": "estimate, of the rollout; null like the shortcut that is its mean",
        "agreement.intervals.rotation_rmse_rad": "estimate, of the rollout; null like the shortcut",
        "agreement.intervals.gripper_agreement": "estimate, of the rollout; null like the shortcut",
        "differences.assumption": "a sentence: which spread of paired differences the numbers below assume",
        "differences.power": "0.8",
        "differences.alpha": "0.05, two-sided",
        "differences.psnr[].difference_db": "a difference between two checkpoints, dB",
        "differences.psnr[].episodes_needed": "how many episodes show it with this power; null for a single episode",
        "differences.moving_psnr[].difference_db": "dB",
        "differences.moving_psnr[].episodes_needed": "likewise",
        "per_episode[].episode_index": "of the dataset",
        "per_episode[].task": "the instruction; null where the dataset has none",
        "per_episode[].frames": "recorded frames that its rollouts were compared with",
        "per_episode[].<variant>.<metric>": "mean over the episode's samples and frames",
        "per_episode[].drop": "dB of moving_psnr, as in obedience",
        "per_episode[].agreement": "null where no action was recovered at all",
        "per_episode[].agreement.translation_rmse_m": "m",
        "per_episode[].agreement.rotation_rmse_rad": "rad",
        "per_episode[].agreement.gripper_agreement": "share of frames",
        "lpips_status": "a sentence: which LPIPS this is, or why there is none",
        "verdict": "two sentences",
    }
)

# What a run adds to the scores, so that the file tells what it is of. Their contents are the manifest's.
RUN_KEYS: Mapping[str, str] = MappingProxyType(
    {
        "run_id": "short name of the recipe",
        "recipe": "everything the figures depend on besides the frames",
        "settings": "every setting of the run, by its flag's name",
        "checkpoint": "id, path and fingerprint of the weights",
        "dataset": "root, format, rate, number of episodes, fingerprint",
        "versions": "of Python and the packages that computed this",
        "comparison": "only with --baseline: what comparison.compare returns",
    }
)
